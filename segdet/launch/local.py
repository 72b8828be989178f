"""Run segdet commands as processes on this machine, with output, logs, interruption and concurrency."""

import codecs
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from segdet.launch import log_filter
from segdet.launch.job import Job
from segdet.util.cores import SHARE, usable_cores
from segdet.util.devices import VISIBLE
from segdet.util.errors import UserError

GRACE_SECONDS = 60
"""The time that an interrupted command has to save its state."""


class LocalExecutor:
    """Run several jobs at once as processes on this machine. Each gets its share of the cores and of the GPUs.

    Args:
        at_once: The number of jobs that run at once.
        devices: The GPUs, as in ``CUDA_VISIBLE_DEVICES``. Empty if there are none.
        devices_per_run: The GPUs of each job. By default one, or all if only one job runs at once. If there are fewer
            GPUs than jobs, the jobs share them by default.

    Raises:
        UserError: If there are too few GPUs for ``devices_per_run``.
    """

    def __init__(
        self, at_once: int = 1, devices: Sequence[str] = (), devices_per_run: int | None = None
    ) -> None:
        if devices_per_run is not None and at_once * devices_per_run > len(devices):
            raise UserError(
                f"--devices_per_run {devices_per_run}: {at_once} runs at once need {at_once * devices_per_run} GPUs, "
                f"but {len(devices)} are visible; give a smaller --at_once, or fewer devices for each run"
            )
        self.at_once = at_once
        self.cores = max(1, usable_cores() // at_once)
        self.devices = list(devices)
        self.devices_per_run = devices_per_run or (1 if at_once > 1 else len(self.devices))
        self._processes: dict[str, tuple[Job, subprocess.Popen, subprocess.Popen, list[str]]] = {}

    def free(self) -> int:
        """Return the number of jobs that can start now."""
        return self.at_once - len(self._processes)

    def start(self, job: Job) -> None:
        """Start a job. Its output is appended to its log."""
        used = Counter(device for *_, held in self._processes.values() for device in held)
        devices = sorted(self.devices, key=lambda device: used[device])[: self.devices_per_run]
        devices.sort(key=self.devices.index)
        process, writer = _start_logged(job.command, self._environment(devices), job.log_path)
        self._processes[job.name] = (job, process, writer, devices)

    def running(self) -> list[Job]:
        """Return the running jobs."""
        return [job for job, *_ in self._processes.values()]

    def ended(self) -> list[tuple[Job, int]]:
        """Return the jobs that have ended since the last call, with their exit statuses."""
        ended = []
        for name, (job, process, writer, _) in list(self._processes.items()):
            if (status := process.poll()) is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):  # a worker may outlive the command
                    writer.wait(2)
                del self._processes[name]
                ended.append((job, status))
        return ended

    def signal(self, job: Job, number: int) -> None:
        """Send a signal to a running job; SIGKILL also to the processes that it has started."""
        process = self._processes[job.name][1]
        if number == signal.SIGKILL:
            _kill(process)
        else:
            process.send_signal(number)

    def _environment(self, devices: Sequence[str]) -> dict[str, str]:
        environment = {}
        if self.at_once > 1:
            environment = {SHARE: str(self.cores)}  # the number of data-loader workers depends on it
            environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(self.cores))
        if devices:
            environment[VISIBLE] = ",".join(devices)
        return environment


def run_command(arguments: Sequence[str], log: Path, mode: str) -> int:
    """Run a segdet command, show its output on stderr and keep it in ``log``.

    On KeyboardInterrupt, interrupt the command and wait until it has ended. On a second one, kill it.

    Args:
        arguments: The arguments of the command.
        log: The file for the output.
        mode: The mode to open the file with.

    Returns:
        The command's exit status.
    """
    file = log.open(mode)
    _write_title(file, arguments)
    process = _start(arguments, {}, subprocess.PIPE)
    # Use a thread, because a worker that outlives the command may keep the pipe open.
    tee = threading.Thread(target=_tee, args=(process.stdout, file), daemon=True)
    tee.start()
    try:
        return process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.send_signal(signal.SIGINT)
            process.wait(GRACE_SECONDS)
        raise
    finally:
        if sys.exc_info()[0] is not None:
            _kill(process)
        tee.join(2)


def _start(arguments: Sequence[str], environment: Mapping[str, str], output: Any) -> subprocess.Popen:
    """Start a segdet command."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    environment.setdefault("COLUMNS", str(shutil.get_terminal_size().columns))  # for progress bars
    return subprocess.Popen(
        [sys.executable, "-m", "segdet", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # only this process receives Ctrl-C, and passes it on once
    )


def _start_logged(
    arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> tuple[subprocess.Popen, subprocess.Popen]:
    """Start a segdet command, and a process that appends its output to ``log``. Both outlive this process."""
    with log.open("ab") as file:
        _write_title(file, arguments)
    command = [sys.executable, "-S", log_filter.__file__, str(log)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert writer.stdin is not None
    with writer.stdin:
        return _start(arguments, environment, writer.stdin), writer


def _write_title(file: IO[bytes], arguments: Sequence[str]) -> None:
    file.write(f"$ segdet {shlex.join(arguments)}\n".encode())
    file.flush()


def _kill(child: subprocess.Popen) -> None:
    """Kill a command and all processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tee(source: IO[bytes], log: IO[bytes]) -> None:
    """Show ``source`` on stderr as it arrives, and copy it to ``log``."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def show(chunk: bytes) -> None:
        sys.stderr.write(decoder.decode(chunk))
        sys.stderr.flush()

    with source, log:
        log_filter.copy_output(source, log, show)


def last_line(log: Path) -> str:
    """Return the last non-empty line of ``log``, which is the message after an error."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


def print_status(line: str) -> None:
    """Print a line of progress on stderr."""
    sys.stderr.write(f"\n{line}\n")
    sys.stderr.flush()
