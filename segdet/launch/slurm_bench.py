"""Submit the runs of an experiment to SLURM: those that have not finished and are not in the queue."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segdet.launch.experiment import Experiment
from segdet.launch.job import Job
from segdet.launch.slurm import Entry, Slurm, Submission, Task, read_queue
from segdet.launch.state import PREPARATION, claim, write_runs
from segdet.util.errors import UserError

SUBMISSION = "_submit"
"""The name of the claim of the submission. No run has this name."""


@contextlib.contextmanager
def sole_submission(folder: Path) -> Iterator[None]:
    """Let no other process submit the runs in ``folder`` meanwhile, because both would submit the same runs.

    Raises:
        UserError: If another process submits them.
    """
    ownership = claim(folder / SUBMISSION)
    if ownership is None:
        raise UserError(f"{folder}: another process is submitting these runs; try again after its end")
    try:
        yield
    finally:
        ownership.release()


@dataclass(frozen=True)
class SlurmBench:
    """The runs of an experiment and SLURM's queue.

    Attributes:
        experiment: The experiment.
        folder: Its folder.
        queue: The runs in the queue, by name.
        missing: The jobs to submit.
        held: Jobs that a process outside the queue executes, and jobs that wait for one of them.
        submission: The job arrays of the missing jobs.
    """

    experiment: Experiment
    folder: Path
    queue: Mapping[str, Entry]
    missing: tuple[Job, ...]
    held: tuple[Job, ...]
    submission: Submission

    @classmethod
    def plan(
        cls,
        experiment: Experiment,
        jobs: Sequence[Job],
        folder: Path,
        settings: Slurm,
        at_once: int | None = None,
    ) -> "SlurmBench":
        """Read the queue and choose the jobs to submit.

        Args:
            experiment: The experiment.
            jobs: Its jobs with the actions that are left to do.
            folder: Its folder.
            settings: The resources of a job.
            at_once: The largest number of runs that train at once; None for no limit.

        Raises:
            UserError: If SLURM does not answer, or a job in the queue has other settings.
        """
        queue = read_queue(folder)
        for job in jobs:
            if job.name in queue and job.settings_path.exists() and (difference := job.difference()):
                raise UserError(
                    f"{experiment.path}: {job.name} is in SLURM's queue with other settings ({difference}); undo the "
                    f"change, or cancel it: scancel {queue[job.name].job}"
                )
        missing: list[Job] = []
        held: list[Job] = []
        for job in jobs:
            if job.action == "skip" or job.name in queue:
                continue
            runs_elsewhere = job.state().status == "running"
            waits = any(job.after == other.folder for other in held)
            (held if runs_elsewhere or waits else missing).append(job)
        submission = Submission(experiment.name, folder, settings, at_once)
        if missing and experiment.prepare and not set(queue) - {PREPARATION}:
            # The data must not change while runs read them.
            if PREPARATION not in queue:
                log = folder / f"{PREPARATION}.log"
                submission.add([Task(PREPARATION, experiment.prepare, log)], launched=False)
            before: tuple[str, ...] = (PREPARATION,)
        else:
            before = (PREPARATION,) if PREPARATION in queue else ()
        unfinished = {*queue, *(job.name for job in missing)}
        tasks = []
        for job in missing:
            used = (job.after.name,) if job.after is not None and job.after.name in unfinished else ()
            command = (*job.command, *settings.trainer_options)
            tasks.append(Task(job.name, (command,), job.log_path, used or before))
        submission.add(tasks)
        return cls(experiment, folder, queue, tuple(missing), tuple(held), submission)

    def submit(self) -> dict[str, str]:
        """Prepare the folders of the missing jobs, and submit them.

        Returns:
            SLURM's number of each submitted task, by name.

        Raises:
            UserError: If SLURM refuses a script.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        jobs = (*self.missing, *self.held)
        write_runs(self.folder, {job.name: job.after.name if job.after else None for job in jobs})
        for job in self.missing:
            job.start(self.experiment.path)
        return self.submission.submit(self.queue)

    def describe(self, submitted: Mapping[str, str]) -> str:
        """Return a line for each run that is not finished, with SLURM's number of its task."""
        lines = [f"  {name}: submitted as {number}" for name, number in submitted.items()]
        lines += [f"  {name}: {entry.describe()}" for name, entry in self.queue.items()]
        lines += [f"  {job.name}: runs, or waits for a run, outside the queue" for job in self.held]
        return "\n".join([f"{self.experiment.name}:", *lines])

    def preview(self) -> str:
        """Return the scripts that `submit` would submit."""
        return self.submission.preview(self.queue)
