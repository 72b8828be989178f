"""The choice of the checkpoint to resume from."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from segdet.runs import checkpoint_file
from segdet.runs.checkpoint_file import latest_checkpoint


def test_all_processes_of_a_job_find_the_same_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one written that is whole; of those of one moment the farthest, in whatever order they are found."""
    (tmp_path / "checkpoints").mkdir()
    assert latest_checkpoint(tmp_path) is None
    files = {"checkpoints/last.ckpt": 5, "hpc_ckpt_1.ckpt": 7, "checkpoints/hpc_ckpt_2.ckpt": 9}
    for name, steps in files.items():
        torch.save({"state_dict": {}, "global_step": steps}, tmp_path / name)
    found: Any = latest_checkpoint

    def times(*seconds: int) -> None:
        for name, second in zip(files, seconds, strict=True):
            os.utime(tmp_path / name, (second, second))

    times(30, 20, 10)
    assert found(tmp_path).steps == 5
    times(10, 30, 30)
    for turn in (1, -1):
        order = [tmp_path / name for name in files][1:][::turn]
        monkeypatch.setattr(checkpoint_file, "requeued_checkpoints", lambda _, order=order: order)
        assert found(tmp_path).steps == 9
    times(10, 20, 30)
    torn = tmp_path / "checkpoints" / "hpc_ckpt_2.ckpt"
    torn.write_bytes(torn.read_bytes()[:50])
    times(10, 20, 30)
    assert found(tmp_path).steps == 7
    assert f"segdet: {torn}: the file is corrupt" in capsys.readouterr().err
