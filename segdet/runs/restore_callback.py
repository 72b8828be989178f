"""The restoration of a checkpoint: whether it is complete, and whether the optimizer's state fits."""

from typing import Any

import lightning.pytorch as pl

from segdet.runs.folder_choice import Run


class Restoration(pl.Callback):
    """Note when everything in a checkpoint has been restored; check the state of the optimizers before the first step.

    An optimizer restores the state of another kind of optimizer without complaint, and fails in its first step.

    Args:
        run: The run, whose ``restored`` is set. Errors before that are errors of the restoration.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._options: list[set[str]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the names of the optimizers' options; Lightning restores their state after this hook."""
        self._options = [_options(optimizer) for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the restored options with those before.

        Raises:
            ValueError: If an option is missing.
        """
        for optimizer, needed in zip(trainer.optimizers, self._options, strict=True):
            missing = sorted(needed - _options(optimizer))
            if missing:
                raise ValueError(
                    f"its optimizer state lacks {', '.join(missing)}, which {type(optimizer).__name__} needs"
                )
        self.run.restored = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the model's weights are restored."""
        self.run.restored = True

    on_test_start = on_predict_start = on_validation_start


def _options(optimizer: Any) -> set[str]:
    return {name for group in optimizer.param_groups for name in group}
