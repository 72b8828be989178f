"""Stopping a training of several processes by a signal to any of them."""

import os
import signal
import threading
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

NOTICE = b"\nsegdet: stopping after this batch; interrupt again to stop at once, without saving\n"


class AgreedInterrupt(KeyboardInterrupt):
    """An interrupt that all processes of the run raise after the same batch."""


class AgreedTermination(SIGTERMException):
    """A termination that all processes of the run raise after the same batch."""


class AgreedStop(pl.Callback):
    """Stop all processes of a run after the same batch if one of them receives SIGINT or SIGTERM.

    Saving the run's state is collective. An exception in the process that received the signal would leave the others
    waiting in the next all-reduce. A run of one process needs no agreement.
    """

    def __init__(self) -> None:
        self._received: set[int] = set()
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the handlers of both signals."""
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop if a process has received a signal.

        Raises:
            AgreedInterrupt: In all processes, if one has received SIGINT.
            AgreedTermination: In all processes, if one has received SIGTERM.
        """
        if not self._before:
            return
        reduce = trainer.strategy.reduce_boolean_decision
        if reduce(bool(self._received), all=False):
            interrupted = reduce(signal.SIGINT in self._received, all=False)
            raise AgreedInterrupt if interrupted else AgreedTermination

    on_validation_batch_end = on_train_batch_end

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the handlers."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _receive(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if number in self._received:
                raise KeyboardInterrupt
            os.write(2, NOTICE)  # a handler may interrupt a write to sys.stderr
        self._received.add(number)
