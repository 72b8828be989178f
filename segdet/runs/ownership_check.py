"""The callback that ends a run whose folder another process has claimed."""

import time
from typing import Any

import lightning.pytorch as pl

from segdet.runs.folder_choice import Run
from segdet.runs.ownership import Fence
from segdet.util.write_guard import guard_folder

INTERVAL = 1.0
"""The minimum time in seconds between two checks, because a check reads a file on a shared file system."""


class OwnershipCheck(pl.Callback):
    """End the run after the batch in which it loses its folder; share the fencing number with all processes of the run.

    A process that was paused checks before its next batch.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._fence: Fence | None = None
        self._checked = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the ownership, and share the fencing number of rank 0 with the other processes of the run."""
        own = None if self.run.ownership is None else self.run.ownership.fence
        if own is not None:
            own.check()
        if trainer.world_size > 1:
            number, key = trainer.strategy.broadcast((own.number, own.key) if own else (0, ""))
            if own is None and number:
                own = Fence(self.run.folder, number, key)
                guard_folder(self.run.folder, own)
        self._fence = own

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Check the ownership.

        Raises:
            OutdatedError: If another process has claimed the folder.
        """
        if self._fence is not None and time.monotonic() - self._checked >= INTERVAL:
            self._fence.check()
            self._checked = time.monotonic()

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start
