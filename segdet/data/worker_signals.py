"""Signals in data-loader workers.

Schedulers, ``timeout`` and terminals send a signal to all processes of a group. The training process finishes its step
after the signal, and it needs its workers for that.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader


class StopSafeLoader(DataLoader[Any]):
    """A loader whose workers are not ended by a SIGTERM to the process group while they start.

    torch ends a worker on SIGTERM until `leave_signals_to_parent` has run in it. The training step would then have no
    data, and the run could not save its exact state.
    """

    def __iter__(self) -> Any:
        """Start the workers with SIGTERM blocked, a state that they inherit, and return the iterator."""
        with _sigterm_blocked():
            return super().__iter__()


@contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Block SIGTERM in this thread. A signal that arrives meanwhile is delivered at the end."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """Make this worker ignore signals that stop a run. It ends when its parent terminates it.

    A worker that ignored SIGTERM altogether would outlive its parent's call of ``terminate``, and the parent would wait
    for it forever.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):  # Windows has only SIGINT
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on Windows and macOS
        # Threads inherit the mask, so that no thread of this process receives the signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), name="worker-signals", daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when ``parent`` sends SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
