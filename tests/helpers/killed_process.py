"""A process that a test kills in the middle of its work."""

import multiprocessing
import signal
import warnings
from collections.abc import Callable


def run_until_killed(work: Callable[[], None]) -> None:
    """Run ``work`` in a forked process, and check that SIGKILL ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about fork in a process with threads
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
