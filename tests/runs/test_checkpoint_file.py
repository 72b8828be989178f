"""The choice of the checkpoint to resume from."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from segdet.runs import checkpoint_file
from segdet.runs.checkpoint_file import latest_checkpoint, open_checkpoint
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
    (folder / "epoch=1.ckpt").touch()
    with pytest.raises(
        UserError, match=message + r": epoch=2.ckpt of step 6, best.ckpt of step 4 are valid$"
    ):
        open_checkpoint(str(last), None, "fit")
    best: Any = latest_checkpoint(tmp_path)
    assert best.path.name == "best.ckpt"
