"""Interfaces of callbacks that a model calls during training and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import lightning.pytorch as pl

from segdet.metrics.base import Scores


class ReadsScores(ABC):
    """A callback that reads the scores of an epoch before the model resets them, in any order of callbacks."""

    @abstractmethod
    def read_scores(self, pl_module: pl.LightningModule, stage: str, scores: Scores) -> None:
        """Read the metrics of all samples of the epoch. All processes of the run call this.

        Args:
            pl_module: The model; its ``log`` may be called.
            stage: ``val`` or ``test``.
            scores: The metrics. The model resets them afterwards.
        """


def pass_scores(pl_module: pl.LightningModule, stage: str, scores: Scores) -> None:
    """Pass the scores of an epoch to all callbacks that are `ReadsScores`."""
    for callback in pl_module.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ReadsScores):
            callback.read_scores(pl_module, stage, scores)


class SavesOnRequest(ABC):
    """A callback that saves a checkpoint when a model requests one, before work that may take hours."""

    @abstractmethod
    def save_now(self, trainer: pl.Trainer) -> None:
        """Save the current state of the training. All processes of the run call this."""


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


class DefersSignals(ABC):
    """A callback that lets the signals that stop a run take effect after a batch."""

    @abstractmethod
    def at_once(self) -> AbstractContextManager[None]:
        """Let signals take effect at once inside this context."""


@contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Let signals stop the run at once inside this context, for long work that follows a checkpoint."""
    with ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, DefersSignals):
                stack.enter_context(callback.at_once())
        yield
