"""The choice of the checkpoint to resume from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from segdet.runs.checkpoint_file import Checkpoint, latest_checkpoint, open_checkpoint
from segdet.util.errors import UserError


@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_a_corrupt_last_checkpoint_is_replaced_by_the_newest_valid_one(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert latest_checkpoint(tmp_path) is None
    for name, steps in {"best": 5, "earlier": 3, "last": 7}.items():
        content = {"state_dict": {"w": torch.ones(5000)}, "global_step": steps, "optimizer_states": []}
        torch.save(content, folder / f"{name}.ckpt")
    found: Any = latest_checkpoint(tmp_path)
    assert (found.steps, capsys.readouterr().err) == (7, "")
    last = folder / "last.ckpt"
    content = last.read_bytes()
    last.write_bytes(
        {"empty": b"", "cut": content[:900], "changed": content[:9000] + b"x" + content[9001:]}[damage]
    )
    found = latest_checkpoint(tmp_path)
    assert found.steps == 5
    line = f"segdet: {last}: the file is corrupt; the run resumes from best.ckpt of step 5\n"
    assert capsys.readouterr().err == line
    for name in ("best", "earlier"):
        (folder / f"{name}.ckpt").unlink()
    assert latest_checkpoint(tmp_path) is None
    assert "the file is corrupt; the run starts again" in capsys.readouterr().err


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
