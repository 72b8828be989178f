"""A checkpoint file is always complete, wherever the run's folder is."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from killed_process import run_until_killed
from lightning.fabric.plugins.io import TorchCheckpointIO

from segdet.cli.main import main
from segdet.runs.checkpoint_io import AtomicCheckpointIO
from segdet.util.errors import UserError


def test_a_process_that_is_killed_while_it_saves_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def save() -> None:
        def kill(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        Path.replace = kill  # type: ignore[assignment, method-assign]  # the last call before the new file is there
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)

    run_until_killed(save)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_checkpoint_is_written_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary folder of the system may be on another file system."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 2}
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_reported_and_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(
            UserError, match=r"last.ckpt: cannot be written \(File too large\); free disk space"
        ):
            AtomicCheckpointIO().save_checkpoint({"step": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_saves_atomically(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", fail)
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]) == 0
