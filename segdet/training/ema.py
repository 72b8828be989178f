"""A moving average of the weights, which is validated, saved and tested instead of the trained weights."""

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
    """Lightning's `WeightAveraging` with an exponential moving average. The decay rises to ``decay``.

    After step n the decay is ``min(decay, (1 + n) / (10 + n))``, so that the first steps of a short training get little
    weight. Statistics of batch normalization are averaged too; buffers that are not floating-point are copied.
    Validation, the pictures drawn after it, and ``state_dict`` in checkpoints use the averaged weights. Checkpoints
    also hold the trained weights, so that a training resumes exactly.

    Args:
        decay: The decay per step, above 0 and below 1.
    """

    def __init__(self, decay: float) -> None:
        check_range("--ema", decay, above=0, below=1)
        super().__init__(multi_avg_fn=_average(decay))
        self._exchanged = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        with warnings.catch_warnings():
            # Lightning warns about sharded models whenever configure_model is overridden.
            warnings.filterwarnings("ignore", r".*WeightAveraging callback with a model that overrides")
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the averaged weights to the device of the network."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)
        # Lightning reads the count in every step; on a GPU this would wait for the device.
        self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._exchanged = self._average_model is not None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the averaged weights until `on_validation_end`, because callbacks draw pictures with them."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the trained weights."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._exchanged = False

    @contextmanager
    def exchanged(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """Use the averaged weights instead of the trained ones inside this context."""
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
        """Save both sets of weights, even if a signal or an error interrupts a validation."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._exchanged:
            averaged, trained = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = averaged, trained


@contextmanager
def averaged(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """Use the averaged weights inside this context if the trainer has an `EMA`, as validation does."""
    with ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                stack.enter_context(callback.exchanged(pl_module))
        yield


def _average(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def average(averaged: list[Tensor], trained: list[Tensor], updates: Tensor) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, trained)
            return
        weight = 1 - ((1 + updates) / (10 + updates)).clamp(max=decay)
        change = torch._foreach_sub(trained, averaged)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(averaged, change)

    return average
