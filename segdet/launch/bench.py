"""Turn an experiment file into jobs, and run them.

Every run is ``segdet fit --test true`` in ``runs/<experiment>/<run>``. With a seed S that is not 0, the folder is
``<run>-seed<S>``, so that seeds can be added later. Beside the folder, ``<run>.log`` contains the output and
``<run>.json`` the settings of the training. A restarted bench resumes where it stopped.

Several benches, on one or more machines, may work on the same experiment. Each takes runs that no other bench has
claimed.

With ``at_once``, several runs train at the same time and share the cores equally. On a CPU this is faster than
one run with all cores, because the threads of one run wait for each other at every layer.
"""

import hashlib
import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segdet.launch.config_digest import config_digest
from segdet.launch.display import LiveTable
from segdet.launch.engine import Engine, Executor, received_signals
from segdet.launch.experiment import AFTER, Experiment
from segdet.launch.job import Job
from segdet.launch.local import last_line, print_status, run_command
from segdet.launch.state import (
    PREPARATION,
    claim,
    claim_folder,
    fault_time,
    is_finished,
    write_fault,
    write_runs,
)
from segdet.runs.ownership import Ownership, owner_of
from segdet.util.errors import INTERRUPTED, UserError, status_of_signal
from segdet.util.suggest import did_you_mean
from segdet.util.yaml_text import as_argument


def plan(
    experiment: Experiment,
    runs_dir: Path,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    rerun: bool = False,
) -> list[Job]:
    """Return the jobs of ``experiment`` with the actions that are left to do, based on the files in ``runs_dir``.

    A finished run is skipped if it has been tested or has ``test: false``; otherwise it is tested. A run that was
    interrupted after a checkpoint is resumed. Any other run is trained from the start. If a run is trained again,
    the runs that use it are trained again as well.

    Args:
        experiment: The experiment.
        runs_dir: The folder that holds the experiment's folder.
        only: Names of the runs to select. All by default.
        overrides: Settings ``KEY=VALUE`` for all runs. They take precedence over the file.
        rerun: Whether to retrain runs that were trained with other settings.

    Raises:
        UserError: If ``only`` has an unknown name or omits an unfinished run that a selected run uses, or if an
            override is not ``KEY=VALUE``. Without ``rerun``, also if a run was trained with other settings, or used a
            run that has to be trained again.
    """
    for name in only:
        if name not in experiment.runs:
            hint = did_you_mean(name, experiment.runs)
            raise UserError(f"--only: {experiment.path} has no run '{name}'; {hint}")
    for override in overrides:
        if not re.match(r"[A-Za-z_][\w.-]*=", override):
            raise UserError(f"--overrides: '{override}' is not KEY=VALUE, such as trainer.max_epochs=1")
    jobs: list[Job] = []
    all_jobs: dict[Path, Job] = {}
    trained: set[Path] = set()
    for name in experiment.runs:
        for seed in experiment.seeds:
            job = _job(experiment, name, seed, runs_dir, overrides, all_jobs)
            all_jobs[job.folder] = job
            if only and name not in only:
                continue
            job = job.with_action(experiment.path, rerun)
            if job.after in trained and job.action != "train":
                if job.action != "resume" and not rerun:
                    raise UserError(
                        f"{experiment.path}: {job.folder} used {job.after}, which must be trained again; pass "
                        "--rerun to train both again"
                    )
                job = replace(job, action="train")
            if job.trains:
                trained.add(job.folder)
            jobs.append(job)
    _check_used_runs(jobs, all_jobs)
    return jobs


def _check_used_runs(jobs: Sequence[Job], all_jobs: Mapping[Path, Job]) -> None:
    """Raise an error if a job uses an outdated or unfinished run that is not among ``jobs``."""
    planned = {job.folder for job in jobs}
    for job in jobs:
        if job.after is None or job.after in planned or not job.trains:
            continue
        if not is_finished(job.after):
            raise UserError(
                f"--only: {job.name} uses {job.after.name}, which is not finished; name it as well"
            )
        if difference := all_jobs[job.after].difference():
            raise UserError(
                f"--only: {job.name} uses {job.after.name}, which was trained with other settings "
                f"({difference}); name it as well, with --rerun"
            )


def _job(
    experiment: Experiment,
    name: str,
    seed: int,
    runs_dir: Path,
    overrides: Sequence[str],
    earlier: dict[Path, Job],
) -> Job:
    """Return the job of a run with one seed. ``earlier`` maps folders to the jobs of earlier runs."""
    run = experiment.runs[name]
    folder = run_folder(experiment, name, seed, runs_dir)
    after = run_folder(experiment, run.after, seed, runs_dir) if run.after else None
    configs = [*run.configs, *experiment.data]
    shared = [as_argument(k, v) for k, v in experiment.budget.items()] + [f"--{each}" for each in overrides]
    arguments = [as_argument(k, _insert_folder(v, after)) for k, v in run.overrides.items()] + shared
    common = [word for config in configs for word in ("--config", config)] + [f"--seed_everything={seed}"]
    settings = {config: config_digest(Path(config)) for config in configs}
    settings["seed"] = str(seed)
    # Keep the placeholder {after}: the settings depend on how the other run was trained, not on its folder.
    for argument in [as_argument(k, v) for k, v in run.overrides.items()] + shared:
        key, _, value = argument.removeprefix("--").partition("=")
        settings[f"--{key}"] = value
    if after is not None:
        used = json.dumps(earlier[after].settings, sort_keys=True).encode()
        settings["after"] = f"{run.after} {hashlib.sha256(used).hexdigest()[:16]}"
    return Job(folder, (*common, *arguments), settings, run.test, after)


def run_folder(experiment: Experiment, name: str, seed: int, runs_dir: Path) -> Path:
    """Return the folder of a run of ``experiment``."""
    return runs_dir / experiment.name / (name if seed == 0 else f"{name}-seed{seed}")


def _insert_folder(value: Any, after: Path | None) -> Any:
    """Return ``value`` with ``{after}`` replaced by the folder ``after``."""
    if isinstance(value, dict):
        return {key: _insert_folder(each, after) for key, each in value.items()}
    if isinstance(value, list):
        return [_insert_folder(each, after) for each in value]
    return value.replace(AFTER, str(after)) if isinstance(value, str) and after else value


class BenchJobs:
    """The jobs of an experiment that no other bench has claimed, as a source of the engine.

    A run that fails does not stop the others.

    Args:
        experiment: The experiment.
        jobs: Its jobs, from `plan`.
    """

    def __init__(self, experiment: Experiment, jobs: Sequence[Job]) -> None:
        self.experiment = experiment
        self.jobs = jobs
        self.faults: dict[str, str] = {}
        self.outcomes: dict[str, str] = {}
        self._left = [job for job in jobs if job.action != "skip"]
        self._claims: dict[str, tuple[Ownership, float]] = {}
        self._earlier_faults = {job.name: fault_time(job.folder) for job in jobs}
        self.outcomes |= {job.name: "was already finished" for job in jobs if job.action == "skip"}

    def next(self) -> Job | None:
        """Claim and return a job that can start, or None if there is none at the moment."""
        for job in list(self._left):
            if job.after is not None and not is_finished(job.after):
                if not any(other.folder == job.after for other in self._left) and (
                    job.after.name not in self._claims
                ):
                    self._left.remove(job)
                    self._fail(job, f"{job.after.name}, which it uses, is not finished")
                continue
            ownership = claim(job.folder)
            if ownership is None:
                continue
            self._left.remove(job)
            if fault_time(job.folder) not in (0, self._earlier_faults[job.name]):
                ownership.release()
                self.faults[job.name] = job.state().fault
                self.outcomes[job.name] = (
                    f"FAILED in another bench: {self.faults[job.name]}; see {job.log_path}"
                )
                continue
            try:
                action = job.start(self.experiment.path)
            except UserError as error:
                ownership.release()
                self._fail(job, str(error))
                continue
            if action == "skip":  # by another bench
                ownership.release()
                self.outcomes[job.name] = "was already finished"
                continue
            write_fault(job.folder, "")
            self._claims[job.name] = (ownership, time.monotonic())
            return job
        return None

    def is_complete(self) -> bool:
        """Return True. The jobs that are left are claimed by other benches, or wait for such a job.

        The bench that finishes a job also starts the jobs that wait for it.
        """
        return True

    def should_stop(self, job: Job) -> bool:
        """Return False: a bench lets its runs train to the end."""
        return False

    def ended(self, job: Job, status: int, stopped: bool) -> str:
        """Record how a job ended, and return a description."""
        ownership, start = self._claims.pop(job.name)
        seconds = f"{time.monotonic() - start:.0f} s"
        fault = "" if stopped else _fault(job, status)
        if fault and not ownership.fence.holds():  # this process was paused
            self.outcomes[job.name] = "was taken over by another bench"
        elif fault:
            self._fail(job, fault, f" after {seconds}")
        else:
            self.outcomes[job.name] = f"{'stopped' if stopped and status else 'finished'} in {seconds}"
        ownership.release()
        return self.outcomes[job.name]

    def describe(self, job: Job) -> str:
        """Return the outcome of a job in one line."""
        if job.name in self.outcomes:
            return self.outcomes[job.name]
        owner = job.state().owner
        if owner is not None:
            return f"is run by another bench, process {owner.pid} on {owner.host}"
        return f"waits for {job.after.name}" if job.after is not None else "was not started"

    def _fail(self, job: Job, fault: str, when: str = "") -> None:
        self.faults[job.name] = fault
        self.outcomes[job.name] = f"FAILED{when}: {fault}; see {job.log_path}"
        write_fault(job.folder, fault)


def _fault(job: Job, status: int) -> str:
    """Return why the command of a job has failed; empty if it has not."""
    state = job.state()
    step = "test" if state.is_finished else "fit"
    if status:
        return f"{step} ended with exit status {status} ({last_line(job.log_path)})"
    if not state.is_finished:
        return (
            f"fit ended with {'no record' if state.record is None else 'the status ' + state.record.status}"
        )
    return "test wrote no test/ metrics to the record" if job.test and not state.is_tested else ""


class Bench:
    """A runner for the jobs of an experiment.

    Args:
        experiment: The experiment.
        jobs: Its jobs, from `plan`.
        runs_dir: The folder that holds the experiment's folder.
        executor: The place where the jobs run.
    """

    def __init__(
        self, experiment: Experiment, jobs: Sequence[Job], runs_dir: Path, executor: Executor
    ) -> None:
        self.experiment = experiment
        self.jobs = jobs
        self.folder = runs_dir / experiment.name
        self.executor = executor

    def run(self) -> int:
        """Run the jobs and print the outcome of each.

        Returns:
            The exit status: 0, 1 if a run failed, 130 or 143 if a signal stopped the bench.

        Raises:
            UserError: If a command of ``prepare`` fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        resume = f"stopped; to resume: segdet bench {self.experiment.path}"
        write_runs(self.folder, {job.name: job.after.name if job.after else None for job in self.jobs})
        if any(job.action != "skip" for job in self.jobs):
            with received_signals(interrupt=True) as received:
                try:
                    self.prepare()
                except KeyboardInterrupt:
                    print_status(resume)
                    return status_of_signal(received[0]) if received else INTERRUPTED
        source = BenchJobs(self.experiment, self.jobs)
        with LiveTable(lambda: {job.folder: job.after for job in self.jobs}) as display:
            status = Engine(source, self.executor, display).run()
        width = max(len(job.name) for job in self.jobs)
        lines = [f"  {job.name:<{width}}  {source.describe(job)}" for job in self.jobs]
        print_status("\n".join([f"{self.experiment.name}:", *lines]))
        if status:
            print_status(resume)
        return status or int(bool(source.faults))

    def prepare(self) -> None:
        """Run the commands of ``prepare``, while no other bench runs them.

        Raises:
            UserError: If a command fails.
        """
        if not self.experiment.prepare:
            return
        place = self.folder / PREPARATION
        shown = None
        while (ownership := claim(place)) is None:
            owner = owner_of(claim_folder(place))
            if owner is not None and owner.number != shown:
                print_status(f"waiting for process {owner.pid} on {owner.host}, which prepares the data")
                shown = owner.number
            time.sleep(2)
        try:
            log = self.folder / f"{PREPARATION}.log"
            for arguments in self.experiment.prepare:
                command = f"segdet {shlex.join(arguments)}"
                print_status(f"preparing: {command}")
                if status := run_command(arguments, log, "wb"):
                    raise UserError(
                        f"{self.experiment.path}: prepare: '{command}' ended with exit status {status} "
                        f"({last_line(log)}); fix it or run it by hand"
                    )
        finally:
            ownership.release()
