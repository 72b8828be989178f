"""A sweep as a source of jobs: claim trials, watch their metrics, and record how they end.

Each trial is a run folder in the sweep's folder, ``runs/<sweep>/trial-<number>``. Any number of workers, on any number
of machines, may work on the same sweep. See `SweepTrials` for how they share the trials.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from segdet.launch.display import LiveTable
from segdet.launch.engine import Engine
from segdet.launch.job import Job
from segdet.launch.local import LocalExecutor, last_line
from segdet.launch.state import find_runs
from segdet.launch.sweep_command import fit_arguments
from segdet.launch.sweep_results import read_score, read_values
from segdet.launch.sweep_trials import SweepTrials, Trial
from segdet.runs.folder_layout import read_record
from segdet.runs.ownership import owner_of
from segdet.util.devices import visible_gpus
from segdet.util.errors import UserError
from segdet.util.files import write_text

STORAGE = "trials.db"
"""The default storage in the sweep's folder."""

IDLE = 2.0
"""The minimum seconds between a search for a trial that found none and the next search."""

FAILURES = 3
"""The attempts in a row without progress after which a trial fails."""

KILLS = 10
"""The same limit for attempts that a signal ended, which is rarely the fault of the trial."""

SIGNALS = (130, 143)
"""Exit statuses of a run that saved its state after Ctrl-C and SIGTERM."""


POLL = 1.0
"""The seconds between two checks of the running trials."""


class SweepJobs:
    """The jobs of one worker of a sweep.

    Args:
        trials: The trials.
        folder: The sweep's folder.
        test: Whether to test each trial after training.
    """

    def __init__(self, trials: SweepTrials, folder: Path, test: bool = False) -> None:
        self.trials = trials
        self.folder = folder
        self.test = test
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._running: dict[str, Trial] = {}
        self._progress: dict[str, float] = {}
        self._lost: set[int] = set()
        self._idle_until = 0.0
        self._complete = False

    def next(self) -> Job | None:
        """Claim a trial and return its job, or None if there is none at the moment."""
        if time.monotonic() < self._idle_until:
            return None
        while (trial := self.trials.claim(self.owner, self._is_busy)) is not None:
            job = self._job(trial)
            if trial.is_bad:  # its worker was killed before it stopped the trial
                self._end(trial, "stopped")
                continue
            self._lost.discard(trial.number)
            self._running[job.name] = trial
            self._progress[job.name] = _checkpoint_time(job.folder)
            return job
        self._idle_until = time.monotonic() + IDLE
        self._complete = self.trials.is_complete()
        return None

    def is_complete(self) -> bool:
        """Return whether all trials of the sweep had ended when `next` last looked for one."""
        return self._complete

    def should_stop(self, job: Job) -> bool:
        """Report the values of a running trial, and return whether its run should be stopped."""
        trial = self._running[job.name]
        try:
            return trial.number in self._lost or self._report(trial)
        except UserError:  # the storage may respond again
            return False

    def renew(self) -> None:
        """Renew the leases of the running trials."""
        numbers = [trial.number for trial in list(self._running.values())]
        if numbers:
            self._lost.update(self.trials.renew(self.owner, numbers))

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the leases in a thread while the block runs."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(self.trials.lease / 4):
                with contextlib.suppress(UserError):  # the storage may respond again before the leases expire
                    self.renew()

        thread = threading.Thread(target=renew, name="sweep-leases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def ended(self, job: Job, status: int, stopped: bool = False) -> str:
        """Record how the command of a trial ended.

        Args:
            job: The trial's job.
            status: The exit status, negative after a signal that killed the command.
            stopped: Whether the worker is being stopped and has interrupted the command.

        Returns:
            A description for messages.
        """
        trial = self._running.pop(job.name)
        self._idle_until = 0.0
        record = read_record(job.folder)
        if trial.number in self._lost:
            return "continued by another worker, because this one did not renew its lease"
        is_bad = self._report(trial)
        if record is not None and record.status == "finished" and status == 0:
            return self._end(trial, "finished")
        if is_bad:
            return self._end(trial, "stopped")
        if record is not None and record.status == "diverged":
            return self._end(trial, "failed", "diverged")
        if stopped:
            self.trials.release(self.owner, trial.number, trial.claim.failures)
            return "interrupted; any worker continues it"
        progressed = _checkpoint_time(job.folder) > self._progress[job.name]
        failures = 1 if progressed else trial.claim.failures + 1
        reason = (
            f"exit status {status} ({last_line(job.log_path)})"
            if job.log_path.exists()
            else f"status {status}"
        )
        if failures >= (KILLS if status < 0 or status in SIGNALS else FAILURES):
            return self._end(trial, "failed", reason)
        self.trials.release(self.owner, trial.number, failures)
        return f"attempt {trial.claim.attempts} ended with {reason}; it will be continued"

    def _report(self, trial: Trial) -> bool:
        """Report the values of a trial, and return whether early termination has decided to stop it."""
        metric = self.trials.sweep.metric
        if metric is None:
            return False
        values = read_values(self.folder / trial.name, metric.name)
        return self.trials.report(self.owner, trial.number, values)

    def _end(self, trial: Trial, state: str, reason: str = "") -> str:
        metric = self.trials.sweep.metric
        score = None if metric is None or state == "failed" else read_score(self.folder / trial.name, metric)
        if state == "finished" and score is None:
            if metric is None:
                score = 0.0  # Optuna needs a value
            else:
                state, reason = "failed", f"it logged no value of {metric.name}; check the name of the metric"
        if not self.trials.end(self.owner, trial.number, state, score, reason):  # type: ignore[arg-type]
            return "recorded by another worker"
        shown = "" if score is None or metric is None else f" with {metric.name} {score:.4f}"
        return f"{state}{shown}{f': {reason}' if reason else ''}"

    def _job(self, trial: Trial) -> Job:
        folder = self.folder / trial.name
        self.folder.mkdir(parents=True, exist_ok=True)
        json_file = self.folder / f"{trial.name}.arguments.json"
        line = self.trials.sweep.command_line(trial.point, json_file)
        if str(json_file) in line:
            json_file.write_text(json.dumps(self.trials.sweep.space.arguments(trial.point)), encoding="utf-8")
        arguments = fit_arguments(line)
        assert arguments is not None  # read_sweep has checked it
        settings = {f"--{name}": str(value) for name, value in trial.point.items()}
        job = Job(folder, tuple(arguments[1:]), settings, self.test)
        if job.state().status == "new":
            write_text(job.settings_path, json.dumps(settings, indent=1) + "\n")
        elif difference := job.difference():
            self.trials.release(self.owner, trial.number, trial.claim.failures)
            raise UserError(
                f"{folder}: is not a run of {self.trials.sweep.path} in this storage ({difference}); "
                "remove the folder, or give the sweep another name"
            )
        return job

    def _is_busy(self, trial: Trial) -> bool:
        """Return whether a process still writes to the run folder of a trial, although its worker was killed."""
        owner = owner_of(self.folder / trial.name)
        return owner is not None and owner.alive


def _checkpoint_time(folder: Path) -> float:
    """Return the time of the last checkpoint, or 0."""
    try:
        return (folder / "checkpoints" / "last.ckpt").stat().st_mtime
    except OSError:
        return 0.0


def run_workers(jobs: SweepJobs, workers: int, devices_per_run: int | None = None) -> int:
    """Run trials on this machine, several at a time, until all trials of the sweep have ended.

    Args:
        jobs: The trials.
        workers: The number of trials that run at once.
        devices_per_run: The GPUs of each trial; see `LocalExecutor`.

    Returns:
        The exit status: 0, 130 after Ctrl-C, 143 after SIGTERM.
    """
    executor = LocalExecutor(workers, visible_gpus(), devices_per_run)
    with jobs.renewed(), LiveTable(lambda: find_runs(jobs.folder)) as display:
        return Engine(jobs, executor, display, POLL).run()
