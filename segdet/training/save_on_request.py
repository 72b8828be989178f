"""Checkpoints that a model requests during training, before work that may take hours."""

from __future__ import annotations

from abc import ABC, abstractmethod

import lightning.pytorch as pl


class SavesOnRequest(ABC):
    """A callback that saves a checkpoint when a model requests one."""

    @abstractmethod
    def save_now(self, trainer: pl.Trainer) -> None:
        """Save the present state of the training. All processes of the run call this."""


def request_checkpoint(trainer: pl.Trainer) -> bool:
    """Save a checkpoint with the first callback that is a `SavesOnRequest`.

    Returns:
        Whether there is such a callback.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SavesOnRequest):
            callback.save_now(trainer)
            return True
    return False
