"""The position of the training loop in checkpoints, so that a resumed run repeats nothing and leaves nothing out.

Lightning's counters describe a position exactly only within some hooks. In a checkpoint that is saved between two
batches, Lightning would count a step twice, and a validation that was interrupted, or not yet started, would be left
out. `LoopPosition` corrects the counters in the checkpoint.
"""

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from segdet.runs.checkpoint_callbacks import validate_this_epoch
from segdet.runs.loggers import MetricsFile


class LoopPosition(Checkpoint):
    """Save and restore the position between two batches, an unfinished validation, and the rows of ``metrics.csv``.

    An interrupted validation starts again from its first batch when the run is resumed, even if the training had
    reached its end. Rows of ``metrics.csv`` that are newer than the checkpoint are removed, because the resumed run
    writes them again.

    Lightning calls checkpoint callbacks after all others. This one precedes those that save.

    Args:
        resumes_folder: Whether the run continues the ``metrics.csv`` in its folder.
    """

    def __init__(self, resumes_folder: bool = False) -> None:
        self.resumes_folder = resumes_folder
        self._validating = False
        self._validated_batch = -1
        self._rows_before_validation = 0
        self._restored: dict[str, Any] = {}
        self._restored_step = -1
        self._stopping = False
        self._replaced: tuple[int, Any] | None = None

    # Saving.

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record that a validation begins; restore the options that a repeated validation replaced."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validating = True
        self._rows_before_validation = _rows(trainer)
        if self._replaced is not None:
            trainer.fit_loop.epoch_loop.max_steps, trainer.val_check_batch = self._replaced
            trainer.should_stop, self._replaced = self._stopping, None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record that the validation is complete."""
        self._validating = False
        self._validated_batch = trainer.fit_loop.total_batch_idx

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Correct the counters, and add what Lightning does not save."""
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]
        total = batches["total"]
        if total["ready"] == total["started"] + 1:  # the next batch is loaded
            for counts in (total, batches["current"]):
                counts["ready"] = counts["started"]
            batches["is_last_batch"] = False
        epochs = loops["epoch_progress"]["current"]
        if epochs["ready"] == epochs["started"] == epochs["processed"]:
            # Between two epochs. With max_steps, Lightning would finish the epoch a second time.
            for counts in (loops["epoch_progress"]["total"], epochs):
                counts["completed"] = counts["processed"]
        if total["ready"] == total["processed"] == total["completed"]:
            # If a run is resumed within an epoch at a batch before a validation, Lightning finishes this batch a second
            # time and counts its step again.
            validated = self._validating or self._validated_batch == total["ready"] - 1
            again = validated and epochs["started"] > epochs["processed"]
            ready, last = batches["current"]["ready"], batches["is_last_batch"]
            stepped = last or ready % trainer.accumulate_grad_batches == 0
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"] - (
                again and stepped
            )
        if self._validating:
            # The counters of a validation that was interrupted within its first batch.
            loops["epoch_loop.val_loop.batch_progress"] = {
                "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
                "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
                "is_last_batch": False,
            }
        checkpoint["callbacks"][self.state_key] = {
            "validating": self._validating,
            "stopping": trainer.should_stop,
            "rows": self._rows_before_validation if self._validating else _rows(trainer),
        }

    # Resuming.

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the saved position."""
        if trainer.state.fn == "fit":
            self._restored = checkpoint["callbacks"].get(self.state_key, {})
            self._restored_step = checkpoint["global_step"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue a training whose last validation was interrupted; otherwise Lightning would skip this validation."""
        if self._restored.get("validating") and trainer.enable_validation:
            self._replaced = trainer.max_steps, trainer.val_check_batch
            self._stopping = self._restored["stopping"] or trainer.should_stop
            trainer.should_stop = False  # max_time may be over
            if trainer.max_steps == self._restored_step:
                trainer.fit_loop.epoch_loop.max_steps += 1
                self._stopping = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the newer rows of ``metrics.csv``; make an interrupted validation due at once."""
        restored, self._restored = self._restored, {}
        if restored and self.resumes_folder and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, MetricsFile):
                    logger.keep(restored["rows"])
        if self._replaced is not None:
            trainer.val_check_batch = 1
            trainer._last_val_time = -math.inf  # type: ignore[attr-defined]  # for validations at intervals of time
            validate_this_epoch(trainer)
        epochs = trainer.fit_loop.epoch_progress.current
        if restored and epochs.started == epochs.processed:  # type: ignore[attr-defined]
            # With max_steps, Lightning regards the first epoch after a restoration as an unfinished one.
            trainer.fit_loop.epoch_loop.restarting = False


def _rows(trainer: pl.Trainer) -> int:
    return sum(logger.rows for logger in trainer.loggers if isinstance(logger, MetricsFile))
