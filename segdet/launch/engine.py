"""The engine: hand the jobs of a source to an executor until all have ended.

A bench is a source with a list of jobs. A sweep is a source that chooses jobs one by one and may stop running ones.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from segdet.launch.job import Job
from segdet.util.errors import status_of_signal

POLL = 0.25
"""The seconds between two checks of the running jobs."""

WATCH = 2.0
"""The seconds between two checks whether running jobs should be stopped."""

GRACE = 60.0
"""The seconds that stopped jobs have to save their state."""


class Source(Protocol):
    """A supplier of jobs. Its methods are called from one thread."""

    def next(self) -> Job | None:
        """Claim and return a job to start now, or None if there is none at the moment."""

    def is_complete(self) -> bool:
        """Return whether no further job will come. Called only while no job of this source is running."""

    def should_stop(self, job: Job) -> bool:
        """Return whether a running job should be stopped. Its metrics are in ``metrics.csv`` in its folder."""

    def ended(self, job: Job, status: int, stopped: bool) -> str:
        """Record how a job ended.

        Args:
            job: The job.
            status: The exit status of its command, negative after a signal that killed the command.
            stopped: Whether all jobs are being stopped.

        Returns:
            A description for the user, such as ``finished in 20 s``.
        """


class Executor(Protocol):
    """A place where jobs run."""

    def free(self) -> int:
        """Return the number of jobs that can start now."""

    def start(self, job: Job) -> None:
        """Start a job."""

    def running(self) -> Sequence[Job]:
        """Return the running jobs."""

    def ended(self) -> list[tuple[Job, int]]:
        """Return the jobs that have ended since the last call, with their exit statuses."""

    def signal(self, job: Job, number: int) -> None:
        """Send a signal to a running job. After SIGINT and SIGTERM it saves its state and ends; SIGKILL kills it."""


class Display(Protocol):
    """A view of the jobs for the user."""

    def update(self, running: Sequence[Job]) -> None:
        """Show the current state of all jobs. Called at every check of the running jobs."""

    def message(self, text: str) -> None:
        """Show a line that remains visible."""


class Engine:
    """Run the jobs of a source.

    Args:
        source: The jobs.
        executor: The place where they run.
        display: The view for the user.
        poll: The seconds between two checks of the running jobs.
    """

    def __init__(self, source: Source, executor: Executor, display: Display, poll: float = POLL) -> None:
        self.source = source
        self.executor = executor
        self.display = display
        self.poll = poll
        self._stopped: set[str] = set()
        self._watched = 0.0

    def run(self) -> int:
        """Run all jobs.

        On the first SIGINT, SIGTERM or SIGHUP, all jobs save their state and end. On a second one they are killed.

        Returns:
            The exit status: 0, 130 after SIGINT, 143 after SIGTERM and SIGHUP.
        """
        with received_signals() as received:
            try:
                while not received:
                    self._collect(stopped=False)
                    self._stop_bad_jobs()
                    self._start_jobs(received)
                    if not self.executor.running() and (received or self.source.is_complete()):
                        break
                    self.display.update(self.executor.running())
                    time.sleep(self.poll)
                if received:
                    self._stop(received)
            except BaseException:
                self._abandon(received)
                raise
            self.display.update(self.executor.running())
        return status_of_signal(received[0]) if received else 0

    def _start_jobs(self, received: Sequence[int]) -> None:
        while not received and self.executor.free() > 0 and (job := self.source.next()) is not None:
            self.executor.start(job)

    def _collect(self, stopped: bool) -> None:
        for job, status in self.executor.ended():
            self._stopped.discard(job.name)
            self.display.message(f"{job.name}: {self.source.ended(job, status, stopped)}")

    def _stop_bad_jobs(self) -> None:
        if time.monotonic() < self._watched + WATCH:
            return
        self._watched = time.monotonic()
        for job in self.executor.running():
            if job.name not in self._stopped and self.source.should_stop(job):
                self._stopped.add(job.name)
                self.executor.signal(job, signal.SIGTERM)

    def _stop(self, received: Sequence[int]) -> None:
        """Let all jobs save their state and end; kill them at the second signal, or when their time is over."""
        number = signal.SIGINT if received[0] == signal.SIGINT else signal.SIGTERM
        if self.executor.running():
            self.display.message(
                f"stopping the runs, which may take up to {GRACE:g} s to save their state; a second signal kills them"
            )
        for job in self.executor.running():
            self.executor.signal(job, number)
        end = time.monotonic() + GRACE
        while self.executor.running() and len(received) == 1 and time.monotonic() < end:
            self._collect(stopped=True)
            self.display.update(self.executor.running())
            time.sleep(min(self.poll, 0.1))
        self._kill()

    def _abandon(self, received: Sequence[int]) -> None:
        """Stop all jobs after an error. They save their state, but their end is not recorded."""
        for job in self.executor.running():
            self.executor.signal(job, signal.SIGTERM)
        end, before = time.monotonic() + GRACE, len(received)
        while self.executor.running():
            if time.monotonic() > end or len(received) > before:
                for job in self.executor.running():
                    self.executor.signal(job, signal.SIGKILL)
            self.executor.ended()
            time.sleep(0.05)

    def _kill(self) -> None:
        for job in self.executor.running():
            self.executor.signal(job, signal.SIGKILL)
        while self.executor.running():
            self._collect(stopped=True)
            time.sleep(0.02)
        self._collect(stopped=True)


@contextlib.contextmanager
def received_signals(interrupt: bool = False) -> Iterator[list[int]]:
    """Collect the signals to stop: SIGINT, SIGTERM, and SIGHUP of a closed terminal.

    Args:
        interrupt: Whether each signal also raises KeyboardInterrupt.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        if interrupt:
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        # Set SIGINT too: shells make background jobs ignore it, and the commands would inherit this.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                before[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
