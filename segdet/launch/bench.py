"""``segdet bench``: runs a whole comparison from one file, each run as a process of its own.

The file names the runs and says what they share, and nothing else::

    # What it is; the command; what to expect.
    seeds: [0, 1]                     # default [0]
    prepare: [segdet data make data/shapes]
    data: configs/data/shapes.yaml    # given to every run after its own configs
    budget: {trainer.max_time: "00:00:10:00"}
    at_once: 2                        # default 1; see below
    runs:
      fcn: {configs: configs/fcn.yaml}
      unet: {configs: configs/unet.yaml, overrides: {model.optim.lr: 0.01}, test: false}
      tuned: {configs: configs/unet.yaml, after: unet, overrides: {model.weights: "{after}"}}

``after`` names an earlier run that this one takes something from; ``{after}`` stands for its folder (of the same seed).
Every run is ``segdet fit`` followed by ``segdet test`` in ``runs/<experiment>/<run>`` (``<run>-seed<S>`` for
a seed S other than 0, so that seeds can be added later), with what it printed in ``<run>.log`` and what
it was trained with in ``<run>.json`` beside it; ``table.md`` has the table of all. Started again, it goes
on where it stopped.

With ``at_once`` several runs are at work at the same time and share the cores out among them. On a CPU that is
faster than one run with all cores, for its threads wait for each other at every layer, and much faster
where something else is at work, too. All runs then train with the same share, and are tested one at a time.
"""

import argparse
import codecs
import contextlib
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from segdet.runs.record import RECORD_NAME, Record
from segdet.util.cores import SHARE, usable_cores
from segdet.util.errors import UserError
from segdet.util.suggest import closest, did_you_mean

GRACE_SECONDS = 60
"""How long a stopped run may take to save itself."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


# ------------------------------------------------------------------------------------------- the file


@dataclass(frozen=True)
class Run:
    """One run of an experiment, as its file has it.

    Attributes:
        name: Its name in the table.
        configs: Config files, later ones win.
        overrides: Dotted keys of the command line and their values.
        test: Whether it is tested after training.
        after: The run that has to be finished before; ``{after}`` in the overrides is its folder. Empty for none.
    """

    name: str
    configs: tuple[str, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    test: bool = True
    after: str = ""


@dataclass(frozen=True)
class Experiment:
    """A comparison, as its file has it.

    Attributes:
        path: The file.
        name: Its name and its folder's: the file's, unless the file says another.
        runs: In the order of the file, which is that of the table.
        seeds: Every run is trained with each of them.
        budget: Overrides that all runs share and none may change.
        data: Config files given to every run after its own.
        prepare: Arguments of segdet commands to run first.
        at_once: How many runs are at work at the same time.
    """

    path: Path
    name: str
    runs: tuple[Run, ...]
    seeds: tuple[int, ...] = (0,)
    budget: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    prepare: tuple[tuple[str, ...], ...] = ()
    at_once: int = 1


class _Loader(yaml.SafeLoader):
    """YAML as the command reads it: ``1e-5`` is a number, ``00:10:00`` a text; a repeated key is a fault."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' is there twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, form) for tag, form in resolvers if tag.rpartition(":")[2] not in ("int", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$"),
    list("-+0123456789."),
)


def read_experiment(path: Path | str) -> Experiment:
    """The experiment in the file ``path``. Files that it names are relative to the current directory.

    Raises:
        UserError: If the file cannot be read, has an unknown key or a wrong value, or names a config
            file that is not there.
    """
    path = Path(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = closest(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise UserError(
            f"{path}: no such file" + (f"; did you mean {path.parent / near}?" if near else "")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: {error.problem}; mend the YAML") from None
    check = _Checker(path)
    check.keys(
        "", values, ["name", "seeds", "prepare", "data", "budget", "at_once", "runs"], required=["runs"]
    )
    budget = check.overrides("budget", values.get("budget", {}))
    prepare = values.get("prepare", [])
    runs = check.mapping("runs", values["runs"])
    if not runs:
        check.fault("runs", "is empty", "name at least one run")
    if "{after}" in json.dumps(budget):
        check.fault("budget", "has '{after}'", "only a run's own overrides can take from another run")
    return Experiment(
        path,
        check.name("name", values.get("name", path.stem)),
        tuple(check.run(name, spec, budget, list(runs)) for name, spec in runs.items()),
        check.seeds("seeds", values.get("seeds", [0])),
        budget,
        check.configs("data", values.get("data", [])),
        tuple(
            check.command("prepare", line) for line in ([prepare] if isinstance(prepare, str) else prepare)
        ),
        check.count("at_once", values.get("at_once", 1)),
    )


@dataclass(frozen=True)
class _Checker:
    """Turns the plain values of an experiment file into checked ones."""

    path: Path

    def fault(self, key: str, what: str, remedy: str) -> None:
        raise UserError(f"{self.path}: {key + ' ' if key else ''}{what}; {remedy}")

    def mapping(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
            self.fault(key, f"is {value!r}", "it has to be a mapping of names")
        return value

    def keys(self, key: str, value: Any, known: list[str], required: list[str]) -> None:
        for name in self.mapping(key, value):
            if name not in known:
                self.fault(key, f"has the unknown key '{name}'", did_you_mean(name, known))
        for name in required:
            if name not in value:
                self.fault(key, f"has no key '{name}'", "add it")

    def name(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not _NAME.fullmatch(value) or re.search(r"-seed\d+$", value):
            self.fault(
                key,
                f"is {value!r}",
                "use letters, digits, '.', '_' and '-' (no '-seed<S>' at the end), for it names a folder",
            )
        return value

    def seeds(self, key: str, value: Any) -> tuple[int, ...]:
        right = isinstance(value, list) and value and all(type(s) is int and s >= 0 for s in value)
        if not right or len(set(value)) < len(value):
            self.fault(
                key, f"is {value!r}", "it has to be a list of different whole numbers, such as [0, 1, 2]"
            )
        return tuple(value)

    def count(self, key: str, value: Any) -> int:
        if type(value) is not int or value < 1:
            self.fault(key, f"is {value!r}", "it has to be a whole number from 1 on")
        return int(value)

    def overrides(self, key: str, value: Any) -> dict[str, Any]:
        for name in self.mapping(key, value):
            if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", name):
                self.fault(key, f"has the key {name!r}", "write dotted keys, such as trainer.max_epochs")
            if name.split(".")[0] in ("config", "run_dir", "seed_everything", "ckpt_path"):
                self.fault(key, f"sets '{name}'", "leave it to segdet bench, which sets it for every run")
        return value

    def configs(self, key: str, value: Any) -> tuple[str, ...]:
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            self.fault(key, f"is {value!r}", "it has to be a config file or a list of them")
        for path in paths:
            if not Path(path).is_file():
                near = [p.as_posix() for p in Path(path).parent.glob("*.yaml")]
                close = closest(path, near)
                hint = f"did you mean {close}?" if close else "paths are relative to the current directory"
                self.fault(key, f"names {path}, which is not in {Path.cwd()}", hint)
        return tuple(paths)

    def command(self, key: str, value: Any) -> tuple[str, ...]:
        words = shlex.split(value) if isinstance(value, str) else []
        if len(words) < 2 or words[0] != "segdet":
            self.fault(key, f"has {value!r}", "write segdet commands, such as 'segdet data make data/shapes'")
        return tuple(words[1:])

    def run(self, name: str, value: Any, budget: Mapping[str, Any], names: list[str]) -> Run:
        key = f"runs.{name}"
        self.name(key, name)
        self.keys(key, value, ["configs", "overrides", "test", "after"], required=["configs"])
        overrides = self.overrides(f"{key}.overrides", value.get("overrides", {}))
        if shared := [override for override in overrides if override in budget]:
            self.fault(
                f"{key}.overrides", f"sets '{shared[0]}', which is the budget", "all runs share one budget"
            )
        if not isinstance(test := value.get("test", True), bool):
            self.fault(f"{key}.test", f"is {test!r}", "it has to be true or false")
        configs = self.configs(f"{key}.configs", value["configs"])
        if not configs:
            self.fault(f"{key}.configs", "is empty", "name at least one config file")
        after, takes = value.get("after"), "{after}" in json.dumps(overrides)
        if after is not None and after not in names[: names.index(name)]:
            self.fault(f"{key}.after", f"is {after!r}", "it has to be the name of a run above this one")
        if after is None and takes:
            self.fault(key, "takes something from '{after}'", "name the run with the key 'after'")
        if after is not None and not takes:
            self.fault(
                f"{key}.after", f"is {after!r}, of which nothing is taken", "write {after} in an override"
            )
        return Run(name, configs, overrides, test, after or "")


# ------------------------------------------------------------------------------------------- the plan

Action = Literal["train", "resume", "test", "skip"]


@dataclass(frozen=True)
class Job:
    """One run with one seed: its folder, its commands, and what is left to do.

    Attributes:
        folder: The run folder.
        fit: The arguments of the segdet command that trains it.
        test: Those of the one that tests it, None where it is not tested.
        settings: What it is trained with: the arguments and the config files' digests.
        action: What is left to do.
        after: The folder of the run that has to be finished before, None for none.
    """

    folder: Path
    fit: tuple[str, ...]
    test: tuple[str, ...] | None
    settings: Mapping[str, str]
    action: Action = "train"
    after: Path | None = None

    @property
    def name(self) -> str:
        """The folder's name, which is the run's."""
        return self.folder.name

    @property
    def settings_path(self) -> Path:
        """The file of the settings."""
        return self.folder.with_name(f"{self.name}.json")

    @property
    def log_path(self) -> Path:
        """The file of what the run printed. It lies beside the folder, which has to be the run's own."""
        return self.folder.with_name(f"{self.name}.log")

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "checkpoints" / "last.ckpt"


def plan(
    experiment: Experiment,
    runs_dir: Path,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    rerun: bool = False,
) -> list[Job]:
    """What is to be done for ``experiment``, run by run, judged by what lies in ``runs_dir``.

    A run is skipped when its record is finished (and tested), tested when only that is missing, resumed
    when it was cut off after a checkpoint, else trained from the start. What took from a run that is to be trained
    has to be trained again behind it.

    Args:
        experiment: The experiment.
        runs_dir: Holds the experiment's folder.
        only: Names of the runs to do; all by default.
        overrides: ``KEY=VALUE`` each, for all runs, over everything that the file says.
        rerun: Train anew what was trained with other settings.

    Raises:
        UserError: If ``only`` names no run or one that takes from another which is neither finished nor named, or an
            override is no ``KEY=VALUE``; without ``rerun`` also if a run was trained with other settings, or took from
            one that is to be trained now.
    """
    names = [run.name for run in experiment.runs]
    for name in only:
        if name not in names:
            raise UserError(f"--only: {experiment.path} has no run '{name}'; {did_you_mean(name, names)}")
    for override in overrides:
        if not re.match(r"[A-Za-z_][\w.-]*=", override):
            raise UserError(f"--overrides: '{override}' is no KEY=VALUE, such as trainer.max_epochs=1")
    jobs: list[Job] = []
    known: dict[Path, Job] = {}
    trained: set[Path] = set()
    for run in experiment.runs:
        for seed in experiment.seeds:
            job = _job(experiment, run, seed, runs_dir, overrides, known)
            known[job.folder] = job
            if only and run.name not in only:
                continue
            job = _judged(job, experiment, rerun)
            if job.after in trained and job.action != "train":
                if job.action != "resume" and not rerun:
                    raise UserError(
                        f"{experiment.path}: {job.folder} took from {job.after}, which is to be trained anew; pass "
                        "--rerun to train it anew as well"
                    )
                job = replace(job, action="train")
            if job.action in ("train", "resume"):
                trained.add(job.folder)
            jobs.append(job)
    planned = {job.folder for job in jobs}
    for job in jobs:
        if job.after is None or job.after in planned or job.action not in ("train", "resume"):
            continue
        if not _finished(_record(job.after)):
            raise UserError(
                f"--only: {job.name} takes from {job.after.name}, which is not finished; name it as well"
            )
        if difference := _difference(known[job.after]):
            raise UserError(
                f"--only: {job.name} takes from {job.after.name}, which was trained with other settings "
                f"({difference}); name it as well, with --rerun"
            )
    return jobs


def _job(
    experiment: Experiment,
    run: Run,
    seed: int,
    runs_dir: Path,
    overrides: Sequence[str],
    known: Mapping[Path, Job],
) -> Job:
    """The job of a run with one seed; ``known`` has those of the runs above it, by folder."""
    folder = _folder(experiment, run.name, seed, runs_dir)
    after = _folder(experiment, run.after, seed, runs_dir) if run.after else None
    configs = [*run.configs, *experiment.data]
    shared = [_argument(k, v) for k, v in experiment.budget.items()] + [f"--{each}" for each in overrides]
    given = [_argument(k, _filled(v, after)) for k, v in run.overrides.items()] + shared
    common = [word for config in configs for word in ("--config", config)] + [f"--seed_everything={seed}"]
    fit = ["fit", *common, f"--run_dir={folder}", *given]
    # The checkpoint knows its model and data, not the trainer's device and precision.
    test = ["test", *common, f"--ckpt_path={folder}/checkpoints/best.ckpt", *given]
    settings = {config: _digest(Path(config)) for config in configs}
    settings["seed"] = str(seed)
    # As the file has them: where the runs lie makes no difference, what the other run was trained with does.
    for argument in [_argument(k, v) for k, v in run.overrides.items()] + shared:
        key, _, value = argument.removeprefix("--").partition("=")
        settings[f"--{key}"] = value
    if after is not None:
        told = json.dumps(known[after].settings, sort_keys=True).encode()
        settings["after"] = f"{run.after} {hashlib.sha256(told).hexdigest()[:16]}"
    return Job(folder, tuple(fit), tuple(test) if run.test else None, settings, after=after)


def _folder(experiment: Experiment, name: str, seed: int, runs_dir: Path) -> Path:
    return runs_dir / experiment.name / (name if seed == 0 else f"{name}-seed{seed}")


def _digest(config: Path) -> str:
    """A digest of what a config file says, whatever its comments and layout."""
    content = config.read_bytes()
    with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):  # the run itself will say what is wrong
        content = json.dumps(yaml.load(content, _Loader), sort_keys=True, default=str).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _filled(value: Any, after: Path | None) -> Any:
    """``value`` with the folder of the run that it takes from in the place of ``{after}``."""
    if isinstance(value, dict):
        return {key: _filled(each, after) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, after) for each in value]
    return value.replace("{after}", str(after)) if isinstance(value, str) and after else value


def _argument(key: str, value: Any) -> str:
    """``--key=value`` as the command line reads it: texts as they are, all else as JSON (which is YAML)."""
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def _judged(job: Job, experiment: Experiment, rerun: bool) -> Job:
    """``job`` with what is left to do."""
    record = _record(job.folder)
    finished = _finished(record)
    if not finished and not job.last.exists():
        return replace(job, action="train")  # whatever is there died before it had anything to keep
    if difference := _difference(job):
        if rerun:
            return replace(job, action="train")
        raise UserError(
            f"{experiment.path}: {job.folder} was trained with other settings ({difference}); "
            "pass --rerun to remove it and train it anew, or another --runs_dir to keep both"
        )
    if not finished:
        return replace(job, action="resume")
    assert record is not None
    tested = job.test is None or any(name.startswith("test/") for name in record.metrics)
    return replace(job, action="skip" if tested else "test")


def _record(folder: Path) -> Record | None:
    """The record of the run in ``folder``, None where there is none that can be read."""
    try:
        return Record.read(folder / RECORD_NAME)
    except UserError:
        return None


def _finished(record: Record | None) -> bool:
    """Whether there is a record, of a run that has been trained to its end."""
    return record is not None and record.status == "finished"


def _difference(job: Job) -> str:
    """In words, in what ``job`` differs from what its folder was trained with; empty if in nothing."""
    try:
        before = json.loads(job.settings_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{job.settings_path}, which says with which, is missing or torn"

    def said(key: str) -> str:
        if key not in before:
            return f"{key} is new"
        if key not in job.settings:
            return f"{key} is gone"
        return f"{key} was {before[key]}" if key.startswith("--") else f"{key} changed"

    return ", ".join(
        said(key) for key in {**before, **job.settings} if before.get(key) != job.settings.get(key)
    )


# ------------------------------------------------------------------------------------------- the work


def bench(experiment: Experiment, jobs: Sequence[Job], runs_dir: Path) -> int:
    """Does ``jobs`` and writes ``table.md`` of all runs.

    A run that fails does not stop the others. What the runs print goes to stderr, the table to stdout; of several
    at once stderr shows how far they are.

    Returns:
        The exit status: 0, 1 where a run failed, 130 where it was stopped.
    """
    folder = runs_dir / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    faults: dict[str, str | None] = {}
    seconds: dict[str, float] = {}
    trained = {job.folder: threading.Event() for job in jobs}
    lanes = Lanes(experiment.at_once) if experiment.at_once > 1 else None

    def do(number: int, job: Job, *steps: Callable[[Job, str, Lanes | None], str | None]) -> None:
        if job.after in trained and job.action in ("train", "resume"):
            trained[job.after].wait()  # it was begun before
        start = time.monotonic()
        title = f"[{number}/{len(jobs)}] {job.name}"
        try:
            for step in steps:
                if faults.get(job.name) is None:
                    faults[job.name] = step(job, title, lanes)
        finally:
            trained[job.folder].set()
        seconds[job.name] = seconds.get(job.name, 0.0) + time.monotonic() - start

    with _alone(folder), _stoppable():
        try:
            if any(job.action != "skip" for job in jobs):
                for arguments in experiment.prepare:
                    _say(f"preparing: segdet {shlex.join(arguments)}")
                    if status := _launch(arguments, folder / "_prepare.log", "wb"):
                        why = _last_line(folder / "_prepare.log")
                        raise UserError(
                            f"{experiment.path}: prepare: 'segdet {shlex.join(arguments)}' ended with exit "
                            f"status {status} ({why}); mend it or run it by hand"
                        )
            numbered = list(enumerate(jobs, 1))
            if lanes is None:
                for number, job in numbered:
                    do(number, job, _fit, _test)
            else:
                # Those that take from others at last: a lane that waits does nothing.
                ordered = sorted(numbered, key=lambda each: _depth(each[1], jobs))
                lanes.run([functools.partial(do, number, job, _fit) for number, job in ordered])
                # One at a time and with all cores, for a test also measures what an image costs.
                lanes = None
                for number, job in numbered:
                    do(number, job, _test)
        except KeyboardInterrupt:
            _say(f"stopped; to go on where it stopped: segdet bench {experiment.path}")
            return 130
    width = max(len(job.name) for job in jobs)
    lines = [f"  {job.name:<{width}}  {_ended(job, faults[job.name], seconds[job.name])}" for job in jobs]
    _say("\n".join([f"{experiment.name}:", *lines]))
    failed = any(fault is not None for fault in faults.values())
    return max(_report(experiment, runs_dir), int(failed))


def _depth(job: Job, jobs: Sequence[Job]) -> int:
    """How many jobs have to be done before, one after the other."""
    before = [other for other in jobs if other.folder == job.after]
    return 1 + _depth(before[0], jobs) if before else 0


def _ended(job: Job, fault: str | None, seconds: float) -> str:
    """How a job ended, in words."""
    if fault is not None:
        return f"FAILED after {seconds:.0f} s: {fault}; see {job.log_path}"
    return "was finished before" if job.action == "skip" else f"finished in {seconds:.0f} s"


class Lanes:
    """Several runs at work at the same time, each with its share of the cores, and a line that says how far they are.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.cores = max(1, usable_cores() // count)
        self._children: dict[str, subprocess.Popen] = {}
        self._shown: dict[str, str] = {}
        self._lock = threading.Lock()
        self._stopped = False
        self._drawn = 0.0

    def run(self, works: Sequence[Callable[[], None]]) -> None:
        """Does ``works``, in their order as lanes become free; interrupted, it ends what is at work."""
        with ThreadPoolExecutor(self.count) as pool:
            futures = [pool.submit(work) for work in works]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._end()
                raise

    def enter(self, name: str, child: subprocess.Popen) -> None:
        """A command begins to work; it is ended where all have been."""
        with self._lock:
            self._children[name] = child
            if self._stopped:
                child.send_signal(signal.SIGINT)

    def leave(self, name: str) -> None:
        """It has ended."""
        with self._lock:
            self._children.pop(name, None)
            self._shown.pop(name, None)

    def show(self, name: str, text: str) -> None:
        """Takes up what a command printed last, and redraws the line of all now and then."""
        last = next((part for part in reversed(re.split(r"[\r\n]+", text)) if part.strip()), "")
        with self._lock:
            if last:
                self._shown[name] = " ".join(last.split())
            if time.monotonic() < self._drawn + 0.5:
                return
            self._drawn = time.monotonic()
            width = shutil.get_terminal_size().columns - 1
            each = max(20, width // max(1, len(self._shown)) - 3)
            parts = [f"{key}: {value}"[:each].ljust(each) for key, value in sorted(self._shown.items())]
            sys.stderr.write("\r" + " | ".join(parts)[:width])
            sys.stderr.flush()

    def _end(self) -> None:
        with self._lock:
            self._stopped = True
            alive = list(self._children.values())
        _say(f"ending the runs, which may take up to {GRACE_SECONDS} s to save themselves")
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            for child in alive:
                child.send_signal(signal.SIGINT)
            end = time.monotonic() + GRACE_SECONDS
            for child in alive:
                child.wait(max(0.0, end - time.monotonic()))
        for child in alive:
            _kill(child)


def _fit(job: Job, title: str, lanes: Lanes | None) -> str | None:
    """Trains what is left to train. Returns what went wrong, None if nothing did."""
    if job.action == "skip":
        _say(f"{title}: finished before")
    if job.action not in ("train", "resume"):
        return None
    if job.after is not None and not _finished(_record(job.after)):
        return f"{job.after.name}, which it takes from, is not finished"
    fit, mode = job.fit, "ab"
    if job.action == "train":
        shutil.rmtree(job.folder, ignore_errors=True)
        job.settings_path.write_text(json.dumps(job.settings, indent=1) + "\n", encoding="utf-8")
        mode = "wb"
    else:
        fit = (*fit, f"--ckpt_path={job.last}")
    _say(f"{title}: {'training' if job.action == 'train' else 'resuming'}")
    if status := _launch(fit, job.log_path, mode, *(() if lanes is None else (lanes, job.name))):
        return f"fit ended with exit status {status} ({_last_line(job.log_path)})"
    record = _record(job.folder)
    if record is None or record.status != "finished":
        return f"fit left {'no record' if record is None else 'the status ' + record.status}"
    return None


def _test(job: Job, title: str, lanes: Lanes | None) -> str | None:
    """Tests what is left to test. Returns what went wrong, None if nothing did."""
    if job.action == "skip" or job.test is None:
        return None
    _say(f"{title}: testing")
    if status := _launch(job.test, job.log_path, "ab", *(() if lanes is None else (lanes, job.name))):
        return f"test ended with exit status {status} ({_last_line(job.log_path)})"
    record = _record(job.folder)
    if record is None or not any(name.startswith("test/") for name in record.metrics):
        return "test left no test/ metrics in the record"
    return None


def _report(experiment: Experiment, runs_dir: Path) -> int:
    """Writes and prints the table of all runs that are there, in the order of the file, by ``segdet report``.

    Returns:
        The exit status: 0 also where there is no run yet to tabulate.
    """
    places = [
        _folder(experiment, run.name, seed, runs_dir) for run in experiment.runs for seed in experiment.seeds
    ]
    folders = [str(place) for place in places if (place / RECORD_NAME).exists()]
    path = runs_dir / experiment.name / "table.md"
    if not folders:
        return 0
    # Imports run downward only and the report stands above: it is asked through the command, as runs are.
    command = [sys.executable, "-m", "segdet", "report", *folders, f"--output={path}"]
    if status := subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
        return status
    text = path.read_text(encoding="utf-8")
    path.write_text(f"# {experiment.name}\n\n`segdet bench {experiment.path}`\n\n{text}", encoding="utf-8")
    sys.stdout.write(text)
    sys.stdout.flush()
    _say(f"table: {path}")
    return 0


def _launch(
    arguments: Sequence[str], log: Path, mode: str, lanes: Lanes | None = None, name: str = ""
) -> int:
    """Runs a segdet command, shows what it prints on stderr and keeps it in ``log``.

    Interrupted, it ends the command, with time to save itself; interrupted again, at once.

    Args:
        arguments: Of the command.
        log: The file.
        mode: How to open it.
        lanes: What else is at work, None if nothing is.
        name: What the command is called there.

    Returns:
        The command's exit status.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("COLUMNS", str(shutil.get_terminal_size().columns))  # for its progress bars
    if lanes is not None:
        environment.setdefault("OMP_NUM_THREADS", str(lanes.cores))
        environment[SHARE] = str(lanes.cores)  # for those who choose a number of processes by it: loaders
    show = sys.stderr.write if lanes is None else functools.partial(lanes.show, name)
    command = [sys.executable, "-m", "segdet", *arguments]
    with log.open(mode) as file:
        file.write(f"$ segdet {shlex.join(arguments)}\n".encode())
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches it once, from here, and not its helpers
        )
        assert child.stdout is not None
        # In a thread, so that a helper that outlives the command and holds the pipe keeps nobody waiting.
        tee = threading.Thread(target=_tee, args=(child.stdout, file, show), daemon=True)
        tee.start()
        if lanes is not None:
            lanes.enter(name, child)
        try:
            return child.wait()
        except KeyboardInterrupt:
            _say(f"ending the run, which may take up to {GRACE_SECONDS} s to save itself")
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                child.send_signal(signal.SIGINT)
                child.wait(GRACE_SECONDS)
            raise
        finally:
            if sys.exc_info()[0] is not None:
                _kill(child)
            tee.join(2)
            if lanes is not None:
                lanes.leave(name)


def _kill(child: subprocess.Popen) -> None:
    """Ends a command and what it has started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tee(source: IO[bytes], log: IO[bytes], show: Callable[[str], Any]) -> None:
    """Shows ``source`` as it comes and copies it to ``log`` without the passing states of progress bars."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    line = b""
    with source, contextlib.suppress(ValueError):  # the log was closed: nobody waits for the rest
        while chunk := os.read(source.fileno(), 65536):
            show(decoder.decode(chunk))
            sys.stderr.flush()
            *lines, line = (line + chunk).split(b"\n")
            log.writelines(whole.rstrip(b"\r").rpartition(b"\r")[2] + b"\n" for whole in lines)
            line = line[line.rfind(b"\r", 0, -1) + 1 :]
            log.flush()
        log.write(line + b"\n" if line else b"")
        log.flush()


def _last_line(log: Path) -> str:
    """The last line that says something, which is where an error says what it is."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the experiment's folder against a second ``segdet bench`` of the same."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another segdet bench is at work in it; wait for it or stop it"
            ) from None
        yield


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Has every request to end (SIGTERM, a closed terminal) end the run at work too, as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        # SIGINT too: a shell has its background jobs ignore it, which the run at work would inherit.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    sys.stderr.write(f"\n{line}\n")
    sys.stderr.flush()


def main(argv: Sequence[str]) -> int:
    """``segdet bench FILE``: see ``--help``.

    Returns:
        The exit status, as `bench` has it.

    Raises:
        UserError: If the file is at fault, or a run was trained with other settings.
    """
    parser = argparse.ArgumentParser(
        prog="segdet bench",
        allow_abbrev=False,
        description="Train, test and compare the runs of an experiment file.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="experiment file, such as experiments/demo.yaml"
    )
    parser.add_argument(
        "--runs_dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs go (runs)"
    )
    parser.add_argument(
        "--at_once", type=int, metavar="N", help="runs at work at the same time (the file's, or 1)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="do these runs alone")
    parser.add_argument(
        "--overrides",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of all runs, over those of the file",
    )
    parser.add_argument(
        "--rerun", action="store_true", help="train anew what was trained with other settings"
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would be done, and do nothing")
    arguments = parser.parse_args(argv)
    experiment = read_experiment(arguments.file)
    if arguments.at_once is not None:
        if arguments.at_once < 1:
            raise UserError(f"--at_once {arguments.at_once}: give at least 1")
        experiment = replace(experiment, at_once=arguments.at_once)
    jobs = plan(experiment, arguments.runs_dir, arguments.only, arguments.overrides, arguments.rerun)
    if not arguments.dry_run:
        return bench(experiment, jobs, arguments.runs_dir)
    for words in experiment.prepare if any(job.action != "skip" for job in jobs) else ():
        sys.stdout.write(f"segdet {shlex.join(words)}\n")
    for job in jobs:
        if job.action == "skip":
            sys.stdout.write(f"# {job.name} is finished\n")
        if job.action in ("train", "resume"):
            resume = [f"--ckpt_path={job.last}"] if job.action == "resume" else []
            sys.stdout.write(f"segdet {shlex.join([*job.fit, *resume])}\n")
        if job.action != "skip" and job.test is not None:
            sys.stdout.write(f"segdet {shlex.join(job.test)}\n")
    return 0
