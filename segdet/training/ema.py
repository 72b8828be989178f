"""A moving average of the weights, which is what is validated, saved and tested."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from segdet.util.errors import check_range


class EMA(WeightAveraging):
    """Lightning's `WeightAveraging` with an exponential moving average whose decay rises to ``decay``.

    After step n the decay is ``min(decay, (1 + n) / (10 + n))``, so that an average over thousands of steps does not
    remember the first ones in a training of some hundred. Statistics of batch normalization are averaged too,
    and what is no floating point number is the network's own. Validation, the pictures drawn after it and
    ``state_dict`` of checkpoints have the averaged weights; those that are learned stand beside them, so that
    training goes on exactly.

    Args:
        decay: Of the average, from one step to the next; below 1.
    """

    def __init__(self, decay: float) -> None:
        check_range("--ema", decay, above=0, below=1)
        super().__init__(multi_avg_fn=_average(decay))
        self._exchanged = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Makes the average of the weights."""
        with warnings.catch_warnings():
            # A warning to everybody whose model configures itself, of sharded models, which this one is not.
            warnings.filterwarnings("ignore", r".*WeightAveraging callback with a model that overrides")
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Brings the average to where the network has gone since."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)
        # Looked at in every step, which would wait for the device.
        self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the averaged weights in the place of the learned ones."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._exchanged = self._average_model is not None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing yet: those who draw pictures at validation's end are to see the averaged weights."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the learned weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._exchanged = False

    @contextmanager
    def exchanged(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """The averaged weights in the place of the learned ones, for a while."""
        if self._average_model is None or self._exchanged:
            yield
            return
        self._swap_models(pl_module)
        self._exchanged = True
        try:
            yield
        finally:
            self._swap_models(pl_module)
            self._exchanged = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves both weights; also where a signal or a fault has it done within a validation."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._exchanged:
            averaged, learned = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = averaged, learned


@contextmanager
def averaged(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """The weights that are validated and saved, for a while: the averaged ones where there is an `EMA`."""
    with ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                stack.enter_context(callback.exchanged(pl_module))
        yield


def _average(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def average(averaged: list[Tensor], learned: list[Tensor], updates: Tensor) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, learned)
            return
        weight = 1 - ((1 + updates) / (10 + updates)).clamp(
            max=decay
        )  # on the device, which nobody waits for
        change = torch._foreach_sub(learned, averaged)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(averaged, change)

    return average
