"""The callbacks that save ``checkpoints/best.ckpt`` and ``checkpoints/last.ckpt``, and check the restored state."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from segdet.runs.checkpoint_file import remaining_checkpoints
from segdet.runs.folder_choice import Run
from segdet.runs.interruption import Stopped
from segdet.runs.ownership import OutdatedError
from segdet.training.callback_interfaces import SavesOnRequest
from segdet.training.divergence import DivergedError
from segdet.util.errors import UserError


class BestCheckpoint(ModelCheckpoint):
    """Save the checkpoint of the best epoch so far.

    A resumed run keeps its best score even if its folder has been moved. An epoch is skipped if the monitored
    score is missing because the validation set contains nothing to measure.

    Args:
        folder: The run's ``checkpoints``.
        monitor: The score's logged name.
        mode: ``max`` or ``min``.
    """

    def __init__(self, folder: Path, monitor: str, mode: str = "max") -> None:
        super().__init__(
            folder,
            "best",
            monitor=monitor,
            mode=mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self._reported = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if the score is the best so far."""
        if self._has_score(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if the score is the best so far and does not come from validation."""
        if self.monitor in trainer.callback_metrics:  # an epoch without validation has no score
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score if the checkpoint that achieved it is present."""
        # Lightning deletes the previous best checkpoint if its path differs from that of the new one. `dirpath` is
        # absolute and without links, unlike the folder that the user gave.
        best = Path(str(self.dirpath)) / "best.ckpt"
        if not best.exists() or not state_dict["best_model_path"]:
            return
        path = str(best)
        moved = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
        scores = {path: state_dict["best_model_score"]}
        super().load_state_dict(state_dict | moved | {"best_k_models": scores})

    def _has_score(self, trainer: pl.Trainer) -> bool:
        present = self.monitor in trainer.callback_metrics
        validated = trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.num_val_batches
        if validated and not present and not self._reported and trainer.is_global_zero:
            self._reported = True
            sys.stderr.write(f"\nsegdet: {self.monitor} has no value; best.ckpt is not updated\n")
        return present


class LastValidation(pl.Callback):
    """Validate after the last epoch, for any value of ``check_val_every_n_epoch`` and ``val_check_interval``.

    The last weights are often the best. A run that is shorter than these intervals would otherwise have no score and
    no best checkpoint.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check whether this epoch is the last."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            validate_this_epoch(trainer)

    on_train_start = on_train_epoch_start  # for a run that is resumed within its last epoch

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """If validation depends on time or steps, stop after the last batch, so that Lightning validates there."""
        by_epoch = trainer.check_val_every_n_epoch is not None and trainer.val_check_batch is not None
        if not by_epoch and trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.should_stop = True


def validate_this_epoch(trainer: pl.Trainer) -> None:
    """Make the trainer validate after the current epoch."""
    # With None, Lightning validates after a number of steps and never by epoch.
    if trainer.check_val_every_n_epoch is not None:
        trainer.check_val_every_n_epoch = 1


class LastCheckpoint(ModelCheckpoint, SavesOnRequest):
    """Save ``last.ckpt`` after each epoch, and when the run is stopped.

    Args:
        folder: The run's ``checkpoints``.
        every_n_steps: Number of optimizer steps between additional saves; None for none. These checkpoints are saved
            when the step is complete and its losses are logged: before the next batch, or before the validation.

    Attributes:
        trained: Whether this process has trained a step.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None) -> None:
        super().__init__(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.trained = False
        self._within_step = False

    def save_now(self, trainer: pl.Trainer) -> None:
        try:
            self._save_checkpoint(trainer, str(self.folder / "last.ckpt"))
        except (DivergedError, OutdatedError):
            raise
        except UserError as error:  # such as a full disk
            raise UserError(f"{error}; {remaining_checkpoints(self.folder.parent)}") from error

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Save if a checkpoint of the previous step is due."""
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if due and self.trained and self._last_global_step_saved != trainer.global_step:
            self.save_now(trainer)
        self._within_step = trainer.training

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if a checkpoint of the previous step is due."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.on_train_batch_start(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Validate if training ends here, within an epoch."""
        self.trained = True
        self._within_step = False
        # Training may end by max_time (the timer runs before checkpoint callbacks) or by max_steps. Lightning
        # validates within an epoch if should_stop is set, but it checks max_steps only after this validation.
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
            validate_this_epoch(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        self.save_now(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save, unless the exception occurred within a step, or in this process only.

        The state within a step is not exact. A run of several processes saves only if they have agreed to stop, because
        otherwise the others would wait. A second interrupt from the keyboard stops at once, without saving. Without a
        trained step there is nothing to save. A run that failed while resuming may be restored only in part, so it must
        not replace the checkpoint.
        """
        if not self.trained or self._within_step:
            return
        if isinstance(exception, KeyboardInterrupt | Stopped | OutdatedError):
            return
        # Lightning raises SIGTERMException in all processes, because they have agreed.
        if trainer.world_size > 1 and not isinstance(exception, SIGTERMException):
            return
        with contextlib.suppress(DivergedError):  # the earlier checkpoint is kept
            self.save_now(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing: the last checkpoint is always replaced."""


class Restoration(pl.Callback):
    """Record when a checkpoint is completely restored; check the state of the optimizers before the first step.

    An optimizer loads the state of another kind of optimizer without an error, and fails in its first step.

    Args:
        run: The run. Its ``restored`` is set when the restoration is complete; an error before that is an error of the
            restoration.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._options: list[set[str]] = []
        self._patience: dict[EarlyStopping, int] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep the patience of early stopping, because Lightning replaces it by the value in the checkpoint."""
        stopping = [each for each in trainer.callbacks if isinstance(each, EarlyStopping)]  # type: ignore[attr-defined]
        self._patience = {each: each.patience for each in stopping}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the names of the optimizers' options; Lightning restores their state after this hook."""
        self._options = [_options(optimizer) for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the optimizers' options with the options before the restoration; report changed settings.

        Raises:
            ValueError: If an option is missing.
        """
        for optimizer, needed in zip(trainer.optimizers, self._options, strict=True):
            missing = sorted(needed - _options(optimizer))
            if missing:
                raise ValueError(
                    f"its optimizer state lacks {', '.join(missing)}, which {type(optimizer).__name__} needs"
                )
        for stopping, patience in self._patience.items():
            stopping.patience = patience
        self.run.restored = True
        if self.run.changes and trainer.is_global_zero:
            changes = ", ".join(map(str, self.run.changes))
            sys.stderr.write(f"segdet: changed from step {trainer.global_step} on: {changes}\n")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record that the model's weights are restored."""
        self.run.restored = True

    on_test_start = on_predict_start = on_validation_start


def _options(optimizer: Any) -> set[str]:
    return {name for group in optimizer.param_groups for name in group}
