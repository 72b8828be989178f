"""``checkpoints/best.ckpt`` and ``checkpoints/last.ckpt`` of a run folder."""

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from segdet.training.checkpoint_request import SavesOnRequest


class _Checkpoint(ModelCheckpoint):
    """Lightning's own looks around after every step even if it saves after epochs, and makes its key every time."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Saves, if it is to save after so many steps and this is one."""
        if self._every_n_train_steps and trainer.global_step % self._every_n_train_steps == 0:
            super().on_train_batch_end(trainer, *args, **kwargs)

    @cached_property
    def state_key(self) -> str:
        """Under what the state stands in a checkpoint."""
        return super().state_key


class BestCheckpoint(_Checkpoint):
    """The best epoch's checkpoint, which a better one replaces.

    A run that goes on remembers its best score even if its folder has been moved. An epoch without the
    monitored score (nothing of what it counts occurs in the validation set) is no candidate.

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
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, if the score is the best so far."""
        if self._has_score(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, where it is not validation that gives the score."""
        if self._has_score(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the best score, if the checkpoint that has it is here."""
        best = self.folder / "best.ckpt"
        if not best.exists() or not state_dict["best_model_path"]:
            return
        path = str(best)
        moved = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
        scores = {path: state_dict["best_model_score"]}
        super().load_state_dict(state_dict | moved | {"best_k_models": scores})

    def _has_score(self, trainer: pl.Trainer) -> bool:
        present = self.monitor in trainer.callback_metrics
        if (
            not present
            and trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and trainer.num_val_batches
        ):
            warnings.warn(f"{self.monitor} has no value; best.ckpt stays as it is", stacklevel=1)
        return present


def has_nan(pl_module: pl.LightningModule) -> bool:
    """Whether some weight is not a number any more."""
    return any(bool(parameter.isnan().any()) for parameter in pl_module.parameters())


class LastValidation(pl.Callback):
    """Has the last epoch validated whatever ``check_val_every_n_epoch`` says, for its weights are often the best.

    Where fewer epochs are trained than lie between two validations, there would be no score and no best checkpoint.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks, for a training that goes on within its last epoch."""
        self._look(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks whether this epoch is the last."""
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            validate_now(trainer)


def validate_now(trainer: pl.Trainer) -> None:
    """Lets the present epoch be validated, whether or not its turn has come."""
    # None is by steps, whatever the epoch.
    if trainer.check_val_every_n_epoch is not None:
        trainer.check_val_every_n_epoch = 1


class LastCheckpoint(_Checkpoint, SavesOnRequest):
    """The checkpoint of the last finished epoch, or of the moment at which the run was stopped.

    Args:
        folder: The run's ``checkpoints``.
        every_n_steps: Save after so many optimizer steps in place of an epoch; a second one of these does so.

    Attributes:
        restored: Whether all that a checkpoint holds has been taken up.
        begun: Whether a step has been trained.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None) -> None:
        super().__init__(
            folder,
            "last",
            save_on_exception=every_n_steps is None,
            save_on_train_epoch_end=every_n_steps is None,
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,
        )
        self.folder = folder
        self.restored = False
        self.begun = False

    def save_now(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes that nothing is left to be taken up."""
        super().on_train_start(trainer, pl_module)
        self.restored = True

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Saves, if it is time; and has a training validated that ends here, within its epoch."""
        self.begun = True
        super().on_train_batch_end(trainer, *args, **kwargs)
        # By max_time or max_steps: the timer has said so by now, since callbacks that save come last. Lightning
        # validates within an epoch where it is to stop, but counts steps only after that.
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
            validate_now(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Saves, unless the other processes would have to take part and know nothing of the exception.

        What stopped before its first step has nothing to save; and one that was to go on may not have taken up all that
        the checkpoint holds, which it would replace.
        """
        if not self.begun:
            return
        # Saving waits for all processes. An interruption reaches all of them; a fault reaches one, while
        # the others wait in the next all-reduce for ever.
        if trainer.world_size > 1 and not isinstance(exception, KeyboardInterrupt | SIGTERMException):
            return
        if not has_nan(pl_module):  # from there no training could go on, as it can from what was saved before
            super().on_exception(trainer, pl_module, exception)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: there is always one, and it is always replaced."""
