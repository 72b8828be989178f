"""Real training processes that a test stops, and the comparison of resumed runs with uninterrupted ones."""

import csv
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from forked_process import forked_command

LIMIT = 600.0
"""The maximum number of seconds of a process of a test."""


class Training:
    """A ``segdet`` command in a process group of its own, see `forked_command`.

    Args:
        arguments: The arguments of the command.
        log: The file for its messages.
        environment: Additional environment variables.
    """

    def __init__(
        self, arguments: Iterable[str], log: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.log = log
        self.process = forked_command(arguments, log, {"WANDB_MODE": "disabled"} | (environment or {}))

    @property
    def messages(self) -> str:
        return self.log.read_text().replace("\r", "\n")

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until ``condition`` holds; return False if the command ends before that."""
        end = time.monotonic() + LIMIT
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, self.messages
            time.sleep(0.02)
        return True

    def children(self) -> list[int]:
        """Return the processes that the command has started, without data-loader workers of other ranks."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return [int(number) for number in listed.stdout.split()]

    def other_rank(self) -> int:
        """Return the process of the second rank, which has the command line of the first."""
        (other,) = [pid for pid in self.children() if b"LOCAL_RANK=1" in _read(pid, "environ")]
        return other

    def end(self) -> tuple[int, float]:
        """Wait for the end; return the exit status and the seconds waited."""
        start = time.monotonic()
        try:
            return self.process.wait(LIMIT), time.monotonic() - start
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill all processes of the command."""
        self.process.kill_group()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def group_members(group: int) -> list[int]:
    """Return the running processes of a process group."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=False)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, own, state in rows if int(own) == group and not state.startswith("Z")]


def rows_of(run: Path) -> list[dict[str, str]]:
    """Return the rows of ``metrics.csv`` without empty values and times."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [
            {key: value for key, value in row.items() if value and key != "time"}
            for row in csv.DictReader(stream)
        ]


def tensors_of(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint by path: weights, averaged weights and the state of the optimizer."""
    content = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    found: dict[str, torch.Tensor] = {}

    def collect(value: Any, path: str) -> None:
        if isinstance(value, torch.Tensor):
            found[path] = value
        elif isinstance(value, dict):
            for key, each in value.items():
                collect(each, f"{path}/{key}")
        elif isinstance(value, list | tuple):
            for key, each in enumerate(value):
                collect(each, f"{path}/{key}")

    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        collect(content.get(part), part)
    found["step"] = torch.tensor([content["global_step"], content["epoch"]])
    return found


def differences(run: Path, expected: Path) -> list[str]:
    """Return what differs between two runs: tensors of both checkpoints, rows, and scores of the record."""
    found = []
    for name in ("last", "best"):
        if not (run / "checkpoints" / f"{name}.ckpt").exists():
            found.append(f"{name}.ckpt is missing")
            continue
        one, other = tensors_of(run, name), tensors_of(expected, name)
        if one.keys() != other.keys():
            found.append(f"{name}.ckpt: other tensors {sorted(one.keys() ^ other.keys())[:3]}")
        different = [key for key in one.keys() & other.keys() if not torch.equal(one[key], other[key])]
        if different:
            found.append(f"{name}.ckpt: {len(different)} tensors, {sorted(different)[:3]}")
    mine, theirs = rows_of(run), rows_of(expected)
    if mine != theirs:
        extra = [row for row in mine if row not in theirs][:2]
        missing = [row for row in theirs if row not in mine][:2]
        found.append(f"rows: {len(mine)} for {len(theirs)}, extra {extra}, missing {missing}")
    records = [json.loads((each / "result.json").read_text()) for each in (run, expected)]
    for key in ("status", "metrics", "steps", "epochs"):
        if records[0][key] != records[1][key]:
            found.append(f"record: {key} {records[0][key]} for {records[1][key]}")
    return found


def kill_at_random(command: list[str], run: Path, chance: random.Random, seconds: float, kills: int) -> int:
    """Run a training and kill all of its processes ``kills`` times at random times; resume it each time.

    Args:
        command: The command, with ``--resume=auto``.
        run: The run's folder.
        chance: The random numbers.
        seconds: The maximum time between the first change of the folder and a kill.
        kills: The number of kills.

    Returns:
        The number of kills that hit the training.
    """
    hits, log = 0, run.with_name(f"{run.name}.log")
    for _ in range(kills):
        before = _changes(run)
        training = Training(command, log)
        if training.wait_for(lambda: _changes(run) != before):  # noqa: B023  called in this round only
            time.sleep(chance.uniform(0, seconds))
        hits += training.process.poll() is None
        training.kill()
    training = Training(command, log)
    assert training.end()[0] == 0, training.messages
    return hits


def _changes(run: Path) -> list[float]:
    """Return the times of the last changes of files that a training writes when it has begun."""
    files = (run / "provenance.json", run / "metrics.csv")
    return [path.stat().st_mtime for path in files if path.exists()]
