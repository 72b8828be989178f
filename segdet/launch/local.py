"""Run segdet commands as processes on this machine, with output, logs, interruption and concurrency."""

import codecs
import contextlib
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, Any

from segdet.util.cores import SHARE, usable_cores
from segdet.util.errors import UserError

GRACE_SECONDS = 60
"""The time that an interrupted command has to save its state."""


class Slots:
    """A runner for several commands at once. Each gets its share of the cores. One line shows the progress of all.

    Args:
        count: The number of commands that run at once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.cores = max(1, usable_cores() // count)
        self._children: dict[str, subprocess.Popen] = {}
        self._progress: dict[str, str] = {}
        self._lock = threading.Lock()
        self._stopped = False
        self._drawn = 0.0

    def run(self, calls: Sequence[Callable[[], None]]) -> None:
        """Make ``calls`` in order as slots become free. On an error or interruption, stop all commands."""
        with ThreadPoolExecutor(self.count) as pool:
            futures = [pool.submit(call) for call in calls]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._end()
                raise

    def enter(self, name: str, child: subprocess.Popen) -> None:
        """Register a command that has started. Interrupt it immediately if all commands are being stopped."""
        with self._lock:
            self._children[name] = child
            if self._stopped:
                child.send_signal(signal.SIGINT)

    @property
    def stopped(self) -> bool:
        """Whether all commands are being stopped."""
        return self._stopped

    def interrupt(self, name: str) -> None:
        """Interrupt a running command, which then saves its state and ends."""
        with self._lock:
            if name in self._children:
                self._children[name].send_signal(signal.SIGINT)

    def leave(self, name: str) -> None:
        """Remove a command that has ended."""
        with self._lock:
            self._children.pop(name, None)
            self._progress.pop(name, None)

    def show(self, name: str, text: str) -> None:
        """Store the last line of a command's output. Redraw the progress of all commands at most twice a second."""
        last = next((part for part in reversed(re.split(r"[\r\n]+", text)) if part.strip()), "")
        with self._lock:
            if last:
                self._progress[name] = " ".join(last.split())
            if time.monotonic() < self._drawn + 0.5:
                return
            self._drawn = time.monotonic()
            width = shutil.get_terminal_size().columns - 1
            each = max(20, width // max(1, len(self._progress)) - 3)
            parts = [f"{key}: {value}"[:each].ljust(each) for key, value in sorted(self._progress.items())]
            sys.stderr.write("\r" + " | ".join(parts)[:width])
            sys.stderr.flush()

    def _end(self) -> None:
        with self._lock:
            self._stopped = True
            alive = list(self._children.values())
        _interrupt(alive)


def run_command(
    arguments: Sequence[str], log: Path, mode: str, slots: Slots | None = None, name: str = ""
) -> int:
    """Run a segdet command, show its output on stderr and keep it in ``log``.

    On KeyboardInterrupt, interrupt the command and wait until it has saved its state. On a second one, kill it.

    Args:
        arguments: The arguments of the command.
        log: The file for the output.
        mode: The mode to open the file with.
        slots: The commands that run at the same time, or None if there are no others.
        name: The command's name in the progress line.

    Returns:
        The command's exit status.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("COLUMNS", str(shutil.get_terminal_size().columns))  # for progress bars
    if slots is not None:
        environment.setdefault("OMP_NUM_THREADS", str(slots.cores))
        environment[SHARE] = str(slots.cores)  # the number of data-loader workers depends on it
    show = sys.stderr.write if slots is None else functools.partial(slots.show, name)
    command = [sys.executable, "-m", "segdet", *arguments]
    with log.open(mode) as file:
        file.write(f"$ segdet {shlex.join(arguments)}\n".encode())
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # only this process receives Ctrl-C, and passes it on once
        )
        assert child.stdout is not None
        # Use a thread, because a worker that outlives the command may keep the pipe open.
        tee = threading.Thread(target=_tee, args=(child.stdout, file, show), daemon=True)
        tee.start()
        if slots is not None:
            slots.enter(name, child)
        try:
            return child.wait()
        except KeyboardInterrupt:
            _interrupt([child])
            raise
        finally:
            if sys.exc_info()[0] is not None:
                _kill(child)
            tee.join(2)
            if slots is not None:
                slots.leave(name)


def _interrupt(children: Sequence[subprocess.Popen]) -> None:
    """Interrupt commands and wait until they have saved their state; kill those that have not ended in time."""
    print_status(f"stopping the runs, which may take up to {GRACE_SECONDS} s to save their state")
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        for child in children:
            child.send_signal(signal.SIGINT)
        end = time.monotonic() + GRACE_SECONDS
        for child in children:
            child.wait(max(0.0, end - time.monotonic()))
    for child in children:
        _kill(child)


def _kill(child: subprocess.Popen) -> None:
    """Kill a command and all processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tee(source: IO[bytes], log: IO[bytes], show: Callable[[str], Any]) -> None:
    """Show ``source`` as it arrives, and copy it to ``log`` without the intermediate states of progress bars."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    line = b""
    with source, contextlib.suppress(ValueError):  # the log is already closed
        while chunk := os.read(source.fileno(), 65536):
            show(decoder.decode(chunk))
            sys.stderr.flush()
            *lines, line = (line + chunk).split(b"\n")
            log.writelines(whole.rstrip(b"\r").rpartition(b"\r")[2] + b"\n" for whole in lines)
            line = line[line.rfind(b"\r", 0, -1) + 1 :]
            log.flush()
        log.write(line + b"\n" if line else b"")
        log.flush()


def last_line(log: Path) -> str:
    """Return the last non-empty line of ``log``, which is the message after an error."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock the folder of an experiment, so that only one bench can use it.

    Raises:
        UserError: If another bench has the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another segdet bench is using it; wait for it or stop it") from None
        yield


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise KeyboardInterrupt on each signal to stop: SIGINT, SIGTERM, and SIGHUP of a closed terminal."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        # Set SIGINT too: shells make background jobs ignore it, and the commands would inherit this.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_status(line: str) -> None:
    """Print a line of progress on stderr."""
    sys.stderr.write(f"\n{line}\n")
    sys.stderr.flush()
