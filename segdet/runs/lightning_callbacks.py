"""Adapt Lightning's own callbacks to a run: the folder of their files, and the values that finders choose."""

import sys
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from segdet.runs.folder_choice import Run
from segdet.runs.record_callback import RunRecorder
from segdet.runs.resumed_options import FOUND_BY
from segdet.util.distributed import rank
from segdet.util.errors import UserError


def check_callback(callback: type) -> None:
    """Raise `UserError` for a callback of Lightning that does not work with the files and schedules of a run."""
    if issubclass(callback, StochasticWeightAveraging | WeightAveraging):
        raise UserError(
            f"--trainer.callbacks {callback.__name__}: its average is not in all checkpoints of a run; give --ema "
            "0.999, which validates, saves and tests an average of the weights"
        )
    if issubclass(callback, OnExceptionCheckpoint):
        raise UserError(
            f"--trainer.callbacks {callback.__name__}: a new training would start from the checkpoint that it saved "
            "earlier; leave it out: a run that fails saves checkpoints/last.ckpt, and --ckpt_path last resumes it"
        )
    if issubclass(callback, ModelPruning):
        raise UserError(
            f"--trainer.callbacks {callback.__name__}: config.yaml cannot contain its pruning function; leave it out, "
            "and prune the trained model in a script: torch.nn.utils.prune on the modules of segdet.load(RUN)"
        )


def adapted_callbacks(callbacks: Sequence[Any], run: Run, saves_checkpoints: bool) -> list[Any]:
    """Return the callbacks of the configuration that the command uses, with the run's folder for their checkpoints.

    Finders search at the start of a run only, so a resumed run leaves them out and reports it.

    Args:
        callbacks: The callbacks.
        run: The run.
        saves_checkpoints: Whether the command saves checkpoints.
    """
    left_out: list[type] = [] if saves_checkpoints else [ModelCheckpoint]
    if run.resumed or run.command != "fit":
        left_out += FOUND_BY
    kept = [callback for callback in callbacks if not isinstance(callback, tuple(left_out))]
    for callback in kept:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(run.folder / "checkpoints")
    for callback in callbacks:
        if (
            run.command == "fit"
            and rank() == 0
            and isinstance(callback, tuple(FOUND_BY))
            and callback not in kept
        ):
            sys.stderr.write(
                f"segdet: {type(callback).__name__} searches at the start of a run only; this resumed run keeps its "
                "learning rate and batch size\n"
            )
    return kept


class FoundValues(pl.Callback):
    """Train with the learning rate and the batch size that Lightning's finders find, and record them.

    The finders change these values after the optimizer and its schedule are built. This callback runs after the finders
    and builds the optimizer and the schedule again.

    Args:
        recorder: The callback that writes the configuration.
    """

    def __init__(self, recorder: RunRecorder) -> None:
        self._recorder = recorder
        self._earlier: float | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep the learning rate before the search."""
        self._earlier = float(pl_module.lr)  # type: ignore[arg-type]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build optimizer and schedule again, and record and report what was found."""
        finders = [
            each
            for each in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(each, LearningRateFinder | BatchSizeFinder)
        ]
        if not finders or trainer.fast_dev_run:  # type: ignore[attr-defined]  # the finders do nothing then
            return
        rate = float(pl_module.lr)  # type: ignore[arg-type]
        found: dict[tuple[str, ...], Any] = {}
        lines = []
        for finder in finders:
            if isinstance(finder, BatchSizeFinder):
                found[FOUND_BY[BatchSizeFinder]] = size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
                lines.append(f"found --data.batch_size {size}")
            elif rate != self._earlier:
                found[FOUND_BY[LearningRateFinder]] = rate
                lines.append(f"found --model.optim.lr {rate:g}")
            else:
                lines.append(
                    f"LearningRateFinder found no rate in so few steps; --model.optim.lr stays {rate:g}; train longer, "
                    "or give it"
                )
        trainer.callback_metrics.clear()  # scores of the search do not belong to the training
        trainer.strategy.setup_optimizers(trainer)
        self._recorder.change_config(trainer, found)
        if trainer.is_global_zero:
            sys.stderr.write("".join(f"segdet: {line}\n" for line in lines))


class StopReport(pl.Callback):
    """Report the epoch and the reason if EarlyStopping ends a training."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback in trainer.early_stopping_callbacks:
            # In a resumed training, the restored state of the callback may refer to a stop before the resumption.
            if callback.stopped_epoch == trainer.current_epoch - 1 and trainer.is_global_zero:
                reason = _stop_reason(callback)
                if reason:
                    sys.stderr.write(f"segdet: stopped early after epoch {trainer.current_epoch}: {reason}\n")


def _stop_reason(callback: EarlyStopping) -> str | None:
    reasons = {
        EarlyStoppingReason.PATIENCE_EXHAUSTED: f"did not improve {callback.wait_count} times in a row; best "
        f"{float(callback.best_score):.4f}",
        EarlyStoppingReason.STOPPING_THRESHOLD: f"reached stopping_threshold {callback.stopping_threshold}",
        EarlyStoppingReason.DIVERGENCE_THRESHOLD: f"passed divergence_threshold {callback.divergence_threshold}",
        EarlyStoppingReason.NON_FINITE_METRIC: "is not finite",
    }
    reason = reasons.get(callback.stopping_reason)
    return f"{callback.monitor} {reason}" if reason else None
