"""Turn an experiment file into jobs, and run them on this machine.

Every run is ``segdet fit`` followed by ``segdet test`` in ``runs/<experiment>/<run>``. With a seed S that is not
0, the folder is ``<run>-seed<S>``, so that seeds can be added later. Beside the folder, ``<run>.log`` contains
the output and ``<run>.json`` the settings of the training. A restarted bench resumes where it stopped.

With ``at_once``, several runs train at the same time and share the cores equally. On a CPU this is faster than
one run with all cores, because the threads of one run wait for each other at every layer. Tests run one at a
time.
"""

import contextlib
import functools
import hashlib
import json
import re
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from segdet.launch.experiment import AFTER, Experiment
from segdet.launch.job import Job, is_finished
from segdet.launch.local import Slots, last_line, lock, print_status, run_command, stoppable
from segdet.runs.folder_layout import read_record
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean
from segdet.util.yaml_text import as_argument, load_yaml


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
    fit = ["fit", *common, f"--run_dir={folder}", *arguments]
    # The checkpoint contains the model and the data, but not the trainer's device and precision.
    test = ["test", *common, f"--ckpt_path={folder}/checkpoints/best.ckpt", *arguments]
    settings = {config: _digest(Path(config)) for config in configs}
    settings["seed"] = str(seed)
    # Keep the placeholder {after}: the settings depend on how the other run was trained, not on its folder.
    for argument in [as_argument(k, v) for k, v in run.overrides.items()] + shared:
        key, _, value = argument.removeprefix("--").partition("=")
        settings[f"--{key}"] = value
    if after is not None:
        used = json.dumps(earlier[after].settings, sort_keys=True).encode()
        settings["after"] = f"{run.after} {hashlib.sha256(used).hexdigest()[:16]}"
    return Job(folder, tuple(fit), tuple(test) if run.test else None, settings, after=after)


def run_folder(experiment: Experiment, name: str, seed: int, runs_dir: Path) -> Path:
    """Return the folder of a run of ``experiment``."""
    return runs_dir / experiment.name / (name if seed == 0 else f"{name}-seed{seed}")


def _digest(config: Path) -> str:
    """Return a digest of the values in a config file and in the files that it names. Comments have no effect."""
    content = config.read_bytes()
    with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):  # the run will report the error
        values = load_yaml(content.decode())
        content = json.dumps(values, sort_keys=True, default=str).encode()
        for value in values.values() if isinstance(values, dict) else ():
            if isinstance(value, str) and (config.parent / value).is_file():  # such as ``data: data.yaml``
                content += _digest(config.parent / value).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _insert_folder(value: Any, after: Path | None) -> Any:
    """Return ``value`` with ``{after}`` replaced by the folder ``after``."""
    if isinstance(value, dict):
        return {key: _insert_folder(each, after) for key, each in value.items()}
    if isinstance(value, list):
        return [_insert_folder(each, after) for each in value]
    return value.replace(AFTER, str(after)) if isinstance(value, str) and after else value


class Bench:
    """A runner for the jobs of an experiment. A run that fails does not stop the others.

    The output of the runs is written to stderr. If several runs train at once, stderr shows their progress instead.

    Args:
        experiment: The experiment.
        jobs: Its jobs, from `plan`.
        runs_dir: The folder that holds the experiment's folder.
    """

    def __init__(self, experiment: Experiment, jobs: Sequence[Job], runs_dir: Path) -> None:
        self.experiment = experiment
        self.jobs = jobs
        self.folder = runs_dir / experiment.name
        self._faults: dict[str, str] = {}
        self._seconds = {job.name: 0.0 for job in jobs}
        self._trained = {job.folder: threading.Event() for job in jobs}

    def run(self) -> int:
        """Run the jobs and print the outcome of each.

        Returns:
            The exit status: 0, 1 if a run failed, 130 if the bench was interrupted.

        Raises:
            UserError: If a command of ``prepare`` fails, or another bench uses the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock(self.folder), stoppable():
            try:
                if any(job.action != "skip" for job in self.jobs):
                    self._prepare()
                self._do_all()
            except KeyboardInterrupt:
                print_status(f"stopped; to resume: segdet bench {self.experiment.path}")
                return 130
        width = max(len(job.name) for job in self.jobs)
        lines = [f"  {job.name:<{width}}  {self._ending(job)}" for job in self.jobs]
        print_status("\n".join([f"{self.experiment.name}:", *lines]))
        return int(bool(self._faults))

    def _prepare(self) -> None:
        log = self.folder / "_prepare.log"
        for arguments in self.experiment.prepare:
            command = f"segdet {shlex.join(arguments)}"
            print_status(f"preparing: {command}")
            if status := run_command(arguments, log, "wb"):
                raise UserError(
                    f"{self.experiment.path}: prepare: '{command}' ended with exit status {status} "
                    f"({last_line(log)}); fix it or run it by hand"
                )

    def _do_all(self) -> None:
        if self.experiment.at_once == 1:
            for job in self.jobs:
                self._do(job, self._fit, self._test)
            return
        slots = Slots(self.experiment.at_once)
        fit = functools.partial(self._fit, slots=slots)
        # Jobs that use other runs come last, because a waiting job blocks a slot.
        slots.run([functools.partial(self._do, job, fit) for job in sorted(self.jobs, key=self._depth)])
        # Test one run at a time with all cores, because a test also measures the time per image.
        for job in self.jobs:
            self._do(job, self._test)

    def _depth(self, job: Job) -> int:
        """Return the number of jobs that must run before ``job``, one after the other."""
        before = [other for other in self.jobs if other.folder == job.after]
        return 1 + self._depth(before[0]) if before else 0

    def _do(self, job: Job, *steps: Callable[[Job, str], str | None]) -> None:
        """Run the steps of ``job`` until one fails. A step returns its error, or None."""
        if job.after in self._trained and job.trains:
            self._trained[job.after].wait()
        start = time.monotonic()
        title = f"[{self.jobs.index(job) + 1}/{len(self.jobs)}] {job.name}"
        try:
            for step in steps:
                if job.name not in self._faults and (fault := step(job, title)) is not None:
                    self._faults[job.name] = fault
        finally:
            self._trained[job.folder].set()
        self._seconds[job.name] += time.monotonic() - start

    def _fit(self, job: Job, title: str, slots: Slots | None = None) -> str | None:
        if job.action == "skip":
            print_status(f"{title}: already finished")
        if not job.trains:
            return None
        if job.after is not None and not is_finished(job.after):
            return f"{job.after.name}, which it uses, is not finished"
        job.start()
        print_status(f"{title}: {'training' if job.action == 'train' else 'resuming'}")
        mode = "wb" if job.action == "train" else "ab"
        if status := run_command(job.fit_command, job.log_path, mode, slots, job.name):
            return f"fit ended with exit status {status} ({last_line(job.log_path)})"
        record = read_record(job.folder)
        if record is None or record.status != "finished":
            return f"fit ended with {'no record' if record is None else 'the status ' + record.status}"
        return None

    def _test(self, job: Job, title: str) -> str | None:
        if job.action == "skip" or job.test is None:
            return None
        print_status(f"{title}: testing")
        if status := run_command(job.test, job.log_path, "ab"):
            return f"test ended with exit status {status} ({last_line(job.log_path)})"
        record = read_record(job.folder)
        if record is None or not record.is_tested:
            return "test wrote no test/ metrics to the record"
        return None

    def _ending(self, job: Job) -> str:
        seconds = f"{self._seconds[job.name]:.0f} s"
        if job.name in self._faults:
            return f"FAILED after {seconds}: {self._faults[job.name]}; see {job.log_path}"
        return "was already finished" if job.action == "skip" else f"finished in {seconds}"
