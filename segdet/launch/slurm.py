"""Run jobs on a SLURM cluster: write job scripts, submit them, and read the queue.

Runs that can start together form one job array. A run that uses another one (``after``) depends on its task. The
command ends after the submission. It can be called again: the jobs in the queue are found by their names, which are
those of the scripts in ``<folder>/slurm``.

A job that SLURM preempts, or whose node fails, is requeued by SLURM. A run that reaches its time limit is saved and
requeues its job. Both resume from the last checkpoint.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StrictInt, StrictStr

from segdet.launch.state import read_state
from segdet.util.errors import UserError
from segdet.util.files import write_text
from segdet.util.validation import FileModel, YamlFile

SLURM_FILE = Path("configs/trainers/slurm.yaml")
"""The default file with the resources of a job."""

FOLDER = "slurm"
"""The folder with the job scripts and their output, in the folder of an experiment or a sweep."""

SIGNAL_SECONDS = 120
"""The time before the time limit at which a run is saved and its job requeued."""


def _check_time(time: str) -> str:
    if not re.fullmatch(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d(:\d\d)?)?", time):
        raise ValueError("write HH:MM:SS, D-HH:MM:SS or minutes, in quotes")
    return time


def _check_option(option: str) -> str:
    if not option.startswith("-"):
        raise ValueError("write options of sbatch, such as --constraint=a100")
    return option


class Slurm(FileModel):
    """The content of a file such as ``configs/trainers/slurm.yaml``: the resources of one job.

    Attributes:
        partition: The partition; None for the cluster's default.
        account: The account; None for the user's default.
        time: The time limit.
        nodes: The number of nodes.
        gpus: GPUs per node. Each gets a process. With 0, each node has one process on its CPU.
        cpus: Cores per process.
        memory: Memory per node, such as ``32G``; None for the cluster's default.
        setup: Lines of the job script before the command.
        options: Further options of ``sbatch``.
    """

    partition: StrictStr | None = None
    account: StrictStr | None = None
    time: Annotated[StrictStr, AfterValidator(_check_time)] | None = None
    nodes: Annotated[StrictInt, Field(ge=1)] = 1
    gpus: Annotated[StrictInt, Field(ge=0)] = 1
    cpus: Annotated[StrictInt, Field(ge=1)] = 4
    memory: StrictStr | None = None
    setup: tuple[StrictStr, ...] = ()
    options: tuple[Annotated[StrictStr, AfterValidator(_check_option)], ...] = ()

    @property
    def tasks(self) -> int:
        """The number of processes per node."""
        return max(1, self.gpus)

    @property
    def trainer_options(self) -> tuple[str, ...]:
        """The options of ``segdet fit`` for a run on these resources."""
        options = [
            f"--trainer.accelerator={'gpu' if self.gpus else 'cpu'}",
            f"--trainer.devices={self.tasks}",
        ]
        if self.nodes * self.tasks > 1:
            options += [f"--trainer.num_nodes={self.nodes}", "--trainer.strategy=ddp"]
        return tuple(options)

    def directives(self, launched: bool = True) -> list[str]:
        """Return the options of ``sbatch`` for the resources.

        Args:
            launched: Whether ``srun`` starts a process for each GPU. If not, one process gets all GPUs and cores.
        """
        tasks, cpus = (self.tasks, self.cpus) if launched else (1, self.cpus * self.tasks)
        options = [f"--nodes={self.nodes}", f"--ntasks-per-node={tasks}", f"--cpus-per-task={cpus}"]
        if self.gpus:
            options.append(f"--gres=gpu:{self.gpus}")
        given = {"partition": self.partition, "account": self.account, "time": self.time, "mem": self.memory}
        options += [f"--{name}={value}" for name, value in given.items() if value is not None]
        return options + list(self.options)


def read_slurm(path: Path) -> Slurm:
    """Read the file with the resources of a job.

    Raises:
        UserError: If the file cannot be read, has an unknown key or a wrong value.
    """
    return YamlFile.read(path).parse(Slurm)


@dataclass(frozen=True)
class Task:
    """One task of a job array.

    Attributes:
        name: The name of the run, or `segdet.launch.state.PREPARATION`.
        commands: The arguments of segdet commands. A command starts only if the one before has succeeded.
        log: The file for the output.
        after: The names of the tasks that must have succeeded before.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    log: Path
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A task in SLURM's queue.

    Attributes:
        job: SLURM's number of the task, such as ``17_2``.
        state: SLURM's state, such as PENDING or RUNNING.
        reason: The reason why it waits, such as Resources, or the empty string.
    """

    job: str
    state: str
    reason: str

    def describe(self) -> str:
        """Return the state in words, such as ``queued (Resources), job 17_2``."""
        state = "queued" if self.state == "PENDING" else self.state.lower()
        return f"{state}{f' ({self.reason})' if self.reason else ''}, job {self.job}"


@dataclass(frozen=True)
class Array:
    """A job array.

    Attributes:
        name: The name of the job and of its script.
        tasks: The tasks, in the order of their indices in the array.
        after: The names of the tasks that must have succeeded before.
        launched: Whether each task starts one process per GPU with ``srun``.
    """

    name: str
    tasks: tuple[Task, ...]
    after: tuple[str, ...] = ()
    launched: bool = True


@dataclass
class Submission:
    """The arrays that run the missing tasks of an experiment or a sweep.

    Args:
        title: The name of the experiment or the sweep.
        folder: Its folder.
        settings: The resources of a job.
        at_once: The largest number of tasks of an array that run at once; None for no limit.
    """

    title: str
    folder: Path
    settings: Slurm
    at_once: int | None = None
    arrays: list[Array] = field(default_factory=list)

    def add(self, tasks: Sequence[Task], launched: bool = True) -> None:
        """Add an array for each group of tasks that wait for the same other tasks."""
        groups: dict[tuple[str, ...], list[Task]] = {}
        for task in tasks:
            groups.setdefault(task.after, []).append(task)
        for after, members in groups.items():
            name = f"{self.title}-{uuid.uuid4().hex[:6]}"
            self.arrays.append(Array(name, tuple(members), after, launched))

    def script_path(self, array: Array) -> Path:
        """Return the file of the job script of ``array``."""
        return self.folder / FOLDER / f"{array.name}.sh"

    def script(self, array: Array) -> str:
        """Return the job script of ``array``."""
        limit = f"%{self.at_once}" if self.at_once is not None else ""
        output = (self.folder / FOLDER).absolute() / f"{array.name}-%a.out"
        options = [
            f"--job-name={array.name}",
            f"--array=0-{len(array.tasks) - 1}{limit}",
            f"--chdir={Path.cwd()}",
            f"--output={output}",
            "--open-mode=append",
            "--requeue",
            f"--signal={'' if array.launched else 'B:'}USR1@{SIGNAL_SECONDS}",
            *self.settings.directives(array.launched),
        ]
        lines = ["#!/bin/bash", f"# {', '.join(task.name for task in array.tasks)}"]
        lines += [f"#SBATCH {_quoted(option)}" for option in options]
        lines += ["", *self.settings.setup, "trap : TERM # wait for the run, which saves its state"]
        if array.launched:
            start, end = "srun --cpus-per-task=$SLURM_CPUS_PER_TASK --kill-on-bad-exit=1 ", []
        else:
            lines += ["unset SLURM_NTASKS SLURM_PROCID # each run starts its own processes"]
            lines += ["trap 'scontrol requeue \"$SLURM_JOB_ID\"' USR1 # SLURM then sends SIGTERM"]
            start, end = "", ["while kill -0 $! 2>/dev/null; do wait $!; status=$?; done", 'exit "$status"']
        lines += ["case $SLURM_ARRAY_TASK_ID in"]
        for index, task in enumerate(array.tasks):
            words = [shlex.join([sys.executable, "-m", "segdet", *command]) for command in task.commands]
            line = " && ".join(f"{start}{command}" for command in words)
            lines += [f"{index})", f"  exec >>{shlex.quote(str(task.log.absolute()))} 2>&1"]
            lines += [f"  {line}" if array.launched else f"  {{ {line}; }} &", "  ;;"]
        return "\n".join([*lines, "esac", *end, ""])

    def submit(self, queue: Mapping[str, Entry]) -> dict[str, str]:
        """Write and submit the scripts.

        Args:
            queue: The tasks in the queue, from `read_queue`.

        Returns:
            SLURM's number of each submitted task, by name.

        Raises:
            UserError: If SLURM refuses a script.
        """
        numbers = {name: entry.job for name, entry in queue.items()}
        submitted: dict[str, str] = {}
        for array in self.arrays:
            path = self.script_path(array)
            path.parent.mkdir(parents=True, exist_ok=True)
            # The names of the tasks are saved first, so that the array is found even if this command is killed.
            write_text(path.with_suffix(".json"), json.dumps([task.name for task in array.tasks]) + "\n")
            write_text(path, self.script(array))
            command = ["sbatch", "--parsable", *self.dependency(array, numbers), str(path)]
            job = _run(command).strip().split(";")[0]
            submitted |= {task.name: f"{job}_{index}" for index, task in enumerate(array.tasks)}
            numbers |= submitted
        return submitted

    def dependency(self, array: Array, numbers: Mapping[str, str]) -> list[str]:
        """Return the options of ``sbatch`` for the tasks that ``array`` waits for.

        Args:
            array: The array.
            numbers: SLURM's number of each task that is queued or will be. A task without a number has finished.
        """
        waits = [numbers[name] for name in array.after if name in numbers]
        if not waits:
            return []
        return [f"--dependency=afterok:{':'.join(waits)}", "--kill-on-invalid-dep=yes"]

    def preview(self, queue: Mapping[str, Entry]) -> str:
        """Return the commands and scripts that `submit` would run."""
        numbers = {name: entry.job for name, entry in queue.items()}
        parts = []
        for array in self.arrays:
            path = self.script_path(array)
            words = ["sbatch", *self.dependency(array, numbers), str(path)]
            parts.append(f"# {' '.join(words)}\n{self.script(array)}")
            numbers |= {task.name: f"JOB-OF-{array.name}_{index}" for index, task in enumerate(array.tasks)}
        return "\n".join(parts)


def read_queue(folder: Path) -> dict[str, Entry]:
    """Return the tasks of an experiment or a sweep that are in SLURM's queue, by name.

    Args:
        folder: The folder of the experiment or the sweep. If it has never been submitted, SLURM is not asked.

    Raises:
        UserError: If SLURM does not answer.
    """
    names = {path.stem: path for path in sorted((folder / FOLDER).glob("*.json"))}
    if not names:
        return {}
    found: dict[str, Entry] = {}
    lines = _run(["squeue", "--noheader", "--array", f"--name={','.join(names)}", "--format=%i|%j|%T|%r"])
    for line in lines.splitlines():
        job, name, state, reason = line.split("|", 3)
        tasks = json.loads(names[name].read_text(encoding="utf-8"))
        index = int(job.rpartition("_")[2])
        found[tasks[index]] = Entry(job, state, "" if reason == "None" else reason)
    return found


def find_failures(folder: Path, queue: Mapping[str, Entry]) -> dict[str, str]:
    """Return the last message of each run that has left the queue without a checkpoint, by name.

    Args:
        folder: The folder of the experiment or the sweep.
        queue: The runs in the queue, from `read_queue`.
    """
    failures = {}
    for path in (folder / FOLDER).glob("*.json"):
        for name in json.loads(path.read_text(encoding="utf-8")):
            log = folder / f"{name}.log"
            if name not in queue and log.exists() and read_state(folder / name).status == "new":
                failures[name] = _last_message(log)
    return failures


def _last_message(log: Path) -> str:
    """Return the last line of a log, without the lines of SLURM."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line.strip() for line in lines if line.strip() and not re.match(r"srun: |slurmstepd", line)]
    return own[-1] if own else "no output"


def _quoted(option: str) -> str:
    name, equals, value = option.partition("=")
    return f'{name}{equals}"{value}"' if re.search(r"\s", value) else option


def _run(command: Sequence[str]) -> str:
    # Variables of an allocation in which segdet runs would change the resources of the new job.
    kept = {name: value for name, value in os.environ.items() if not re.match("SLURM_(?!CONF$)", name)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
    except OSError as error:
        raise UserError(
            f"--launcher slurm: {command[0]} cannot be run ({error.strerror}); use a machine with SLURM's commands"
        ) from None
    if done.returncode:
        text = re.sub(r"\s+", " ", done.stderr).strip() or f"exit status {done.returncode}"
        fix = "correct the file of --slurm" if command[0] == "sbatch" else "try again when SLURM responds"
        raise UserError(f"--launcher slurm: {text}; {fix}")
    return done.stdout
