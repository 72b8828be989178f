"""Atomic writing of checkpoint files."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from segdet.util.files import unwritable, write_atomically
from segdet.util.write_guard import check_writable


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its final path, flush it to disk and rename it.

    A process that is killed while it saves leaves the earlier checkpoint as it was. Lightning writes to the system's
    temporary folder first, and a move from there to another file system is a copy, which is not atomic.

    A process that does not own the run any more cannot write or remove a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save ``checkpoint``; a remote path, such as ``s3://...``, is left to Lightning.

        Raises:
            UserError: If the file cannot be written.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with write_atomically(Path(path), parents=True) as temporary, temporary.open("wb") as stream:
            try:
                torch.save(checkpoint, stream)
            except RuntimeError as error:  # torch hides the error of a full disk
                if isinstance(error.__context__, OSError):
                    raise unwritable(Path(path), error.__context__) from error
                raise

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint that a better one replaces."""
        check_writable(Path(path))
        super().remove_checkpoint(path)


def write_checkpoints_atomically(trainer: pl.Trainer) -> None:
    """Make ``trainer`` save with `AtomicCheckpointIO`, unless the user or the accelerator has set another plugin."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
