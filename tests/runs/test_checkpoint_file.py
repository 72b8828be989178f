"""The choice of the checkpoint to resume from."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from segdet.runs import checkpoint_file
from segdet.runs.checkpoint_file import Checkpoint, latest_checkpoint, open_checkpoint
from segdet.util.errors import UserError


def test_all_processes_of_a_job_find_the_same_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest valid file is chosen. Among files of the same time, the file with the most steps is chosen."""
    (tmp_path / "checkpoints").mkdir()
    assert latest_checkpoint(tmp_path) is None
    files = {"checkpoints/last.ckpt": 5, "hpc_ckpt_1.ckpt": 7, "checkpoints/hpc_ckpt_2.ckpt": 9}
    for name, steps in files.items():
        torch.save({"state_dict": {}, "global_step": steps}, tmp_path / name)
    find: Any = latest_checkpoint

    def times(*seconds: int) -> None:
        for name, second in zip(files, seconds, strict=True):
            os.utime(tmp_path / name, (second, second))

    times(30, 20, 10)
    assert find(tmp_path).steps == 5
    times(10, 30, 30)
    for step in (1, -1):
        order = [tmp_path / name for name in files][1:][::step]
        monkeypatch.setattr(checkpoint_file, "requeued_checkpoints", lambda _, order=order: order)
        assert find(tmp_path).steps == 9
    times(10, 20, 30)
    corrupt = tmp_path / "checkpoints" / "hpc_ckpt_2.ckpt"
    corrupt.write_bytes(corrupt.read_bytes()[:50])
    times(10, 20, 30)
    assert find(tmp_path).steps == 7
    assert f"segdet: {corrupt}: the file is corrupt" in capsys.readouterr().err


def test_a_corrupt_checkpoint_names_the_valid_ones(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    last = folder / "last.ckpt"
    last.write_bytes(b"PK")
    message = r"last.ckpt: the file is corrupt or is not a checkpoint; give another file"
    with pytest.raises(UserError, match=message + "$"):
        open_checkpoint("last", str(tmp_path), "fit")
    assert latest_checkpoint(tmp_path) is None
    torch.save({"state_dict": {}, "global_step": 4, "optimizer_states": []}, folder / "best.ckpt")
    torch.save({"state_dict": {}, "global_step": 6}, folder / "epoch=2.ckpt")  # weights only
    with pytest.raises(
        UserError, match=r"epoch=2.ckpt: holds weights, but is not a checkpoint of Lightning; load"
    ):
        open_checkpoint(str(folder / "epoch=2.ckpt"), None, "test")
    (folder / "epoch=1.ckpt").touch()
    with pytest.raises(
        UserError, match=message + r": epoch=2.ckpt of step 6, best.ckpt of step 4 are valid$"
    ):
        open_checkpoint(str(last), None, "fit")
    best: Any = latest_checkpoint(tmp_path)
    assert best.path.name == "best.ckpt"


def test_a_class_that_was_moved_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for class_path in ("segdet.segmentation.OldNet", "segdet.old.OldNet", "own_package.OldNet"):
        config = f"model: {{class_path: {class_path}}}"
        torch.save({"state_dict": {}, "segdet": {"config": config}}, path)
        with pytest.raises(
            UserError, match=rf"last.ckpt: its model class {class_path} cannot be imported"
        ) as caught:
            Checkpoint(path).check_class("model")
        assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize(("name", "run_dir"), [("runs/missing", None), ("best", "runs/missing")])
def test_a_missing_run(name: str, run_dir: str | None) -> None:
    with pytest.raises(UserError, match=r"^runs/missing: no such run; give the folder of a run"):
        open_checkpoint(name, run_dir, "test")
    with pytest.raises(UserError, match=r"^runs/last.ckpt: no such checkpoint"):
        open_checkpoint("runs/last.ckpt", None, "test")
