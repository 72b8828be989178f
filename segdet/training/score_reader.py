"""Callbacks that read the scores of an epoch before the model resets them."""

from abc import ABC, abstractmethod

import lightning.pytorch as pl

from segdet.metrics.base import Scores


class ReadsScores(ABC):
    """A callback to which the model passes its scores at the end of an epoch, whatever the order of the callbacks."""

    @abstractmethod
    def read_scores(self, pl_module: pl.LightningModule, stage: str, scores: Scores) -> None:
        """Read the metrics of all samples of the epoch. All processes of the run call this.

        Args:
            pl_module: The model, whose ``log`` may be called.
            stage: ``val`` or ``test``.
            scores: The metrics, which the model resets afterwards.
        """


def pass_scores(pl_module: pl.LightningModule, stage: str, scores: Scores) -> None:
    """Pass the scores of an epoch to all callbacks that are `ReadsScores`."""
    for callback in pl_module.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ReadsScores):
            callback.read_scores(pl_module, stage, scores)
