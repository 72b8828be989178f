"""A fork of the test process, which has already imported torch and Lightning, in place of a new interpreter."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path


class ForkedProcess:
    """A function in a process group of its own, with the interface of ``subprocess.Popen``.

    Importing the libraries takes a new interpreter about eight seconds of CPU time; a fork has them already.

    Args:
        work: The function. Its return ends the process with status 0.
        log: The file to which the output is appended.
    """

    def __init__(self, work: Callable[[], None], log: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about fork in a process with threads
            self._process = multiprocessing.get_context("fork").Process(target=_run, args=(work, log))
            self._process.start()
        while self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("segdet", timeout)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill_group(self) -> None:
        """Kill all processes of the group, if the process is still running."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()


def forked_command(
    arguments: Iterable[str], log: Path, environment: Mapping[str, str], folder: Path | None = None
) -> ForkedProcess:
    """Start ``python -m segdet``. Processes that it starts, such as other ranks of a training, are new interpreters.

    Args:
        arguments: The arguments of the command.
        log: The file to which the command's output is appended.
        environment: Additional environment variables.
        folder: The working directory, or None for that of this process.
    """
    words = list(arguments)

    def run() -> None:
        os.environ.update(environment)
        if folder is not None:
            os.chdir(folder)
        sys.argv = ["segdet", *words]
        # Lightning starts the other ranks with the name of the main module.
        runpy.run_module("segdet", run_name="__main__", alter_sys=True)

    return ForkedProcess(run, log)


def _run(work: Callable[[], None], log: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may have replaced the handlers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  open until the process ends
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    warnings.resetwarnings()
    for category in (DeprecationWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    work()
