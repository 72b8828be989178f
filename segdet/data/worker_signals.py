"""Signals in data-loader workers.

Schedulers, ``timeout`` and terminals send a signal to all processes of a group. The training process finishes its step
after the signal, and it needs its workers for that.
"""

import os
import signal
import threading


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
