"""One table of many runs: state, epoch, score, time left and log. It is read from the files of the runs.

A bench and a sweep redraw it in the terminal while they work. ``segdet status`` prints it once. If the output is not a
terminal, a line is printed whenever the state of a run changes.
"""

import csv
import io
import re
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TextIO

import yaml

from segdet.launch.job import Job
from segdet.launch.state import RunState, read_state
from segdet.runs.folder_layout import first_provenance, shown_path

SCORES = ("miou", "loc_acc", "map")
"""The main score of each task."""

TAIL = 1 << 18
"""The bytes at the end of ``metrics.csv`` that are read."""

INTERVAL = 0.5
"""The minimum seconds between two drawings of the table."""

QUIET = 30.0
"""The minimum seconds between two lines about the epochs of a run, if the output is not a terminal."""

NOT_STARTED = ("new", "stopped", "failed", "finished")
"""States of a run that is not executed by any process. Work may be left, such as the test of a finished run."""

HEADING = ("run", "state", "epoch", "score", "left", "log")


@dataclass(frozen=True)
class Row:
    """One run in the table.

    Attributes:
        name: The name of the run.
        state: Its state in words.
        epoch: The epoch, as in ``3/10``.
        score: The main score: of the test, or the best one of the validations so far.
        left: The time left.
        log: The file with its output.
        fault: Why it failed; empty if it did not.
    """

    name: str
    state: str
    epoch: str = ""
    score: str = ""
    left: str = ""
    log: str = ""
    fault: str = ""

    @property
    def group(self) -> str:
        """The state in one word."""
        return (
            "waiting"
            if self.state.startswith("waits for ")
            else re.split(r" on | for | \(|, ", self.state)[0]
        )

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        return (self.name, self.state, self.epoch, self.score, self.left, self.log)


def read_row(folder: Path, after: Path | None = None, queued: str = "") -> Row:
    """Return the row of the run in ``folder``.

    Args:
        folder: The run folder. It need not exist.
        after: The folder of the run that it uses, or None.
        queued: The state of its job in the queue of a cluster, if it waits there.
    """
    state = read_state(folder, after)
    log = folder.with_name(f"{folder.name}.log")
    rows = _tail(folder / "metrics.csv")
    config = _trainer(folder / "config.yaml", _time(folder / "config.yaml"))
    total = config.get("max_epochs")
    epochs = state.record.epochs if state.is_finished and state.record else _epoch(rows)
    training = state.status == "running" and not state.is_finished
    return Row(
        folder.name,
        queued if queued and state.status != "running" else _words(state, after, bool(rows), folder),
        "" if epochs is None else f"{epochs}/{total}" if total not in (None, -1) else str(epochs),
        _score(state, rows),
        _duration(_seconds_left(folder, config, rows)) if training else "",
        str(shown_path(log)) if log.exists() else "",
        state.fault,
    )


def table(runs: Mapping[Path, Path | None], queue: Mapping[str, str] | None = None) -> list[Row]:
    """Return the rows of several runs.

    Args:
        runs: The run folders, each with the folder of the run that it uses, or None.
        queue: The state of the jobs that wait in the queue of a cluster, by the name of the run.
    """
    return [read_row(folder, after, (queue or {}).get(folder.name, "")) for folder, after in runs.items()]


def render(rows: Sequence[Row], width: int | None = None, height: int | None = None) -> str:
    """Return the table as text, with a line that counts the states.

    Args:
        rows: The rows.
        width: The maximum length of a line. No limit by default.
        height: The maximum number of lines. Rows of runs that neither run nor failed are left out first.
    """
    counts = Counter(row.group for row in rows)
    summary = f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}: " + ", ".join(
        f"{count} {state}" for state, count in counts.items()
    )
    shown = list(rows)
    if height is not None and len(rows) > max(1, height - 3):
        order = sorted(range(len(rows)), key=lambda index: (_rank(rows[index]), index))
        kept = set(order[: max(1, height - 3)])
        shown = [row for index, row in enumerate(rows) if index in kept]
        summary += f" ({len(rows) - len(shown)} not shown)"
    filled = [index for index in range(len(HEADING)) if index < 2 or any(row.cells()[index] for row in shown)]
    cells = [[line[index] for index in filled] for line in (HEADING, *(row.cells() for row in shown))]
    lines = [*_left_aligned(cells).splitlines(), summary] if rows else ["no runs"]
    return "\n".join(line if width is None else line[:width] for line in lines)


class LiveTable:
    """The table of the runs of a bench or a sweep on stderr, as a context manager. It implements `engine.Display`.

    Args:
        runs: A function that returns the run folders, each with the folder of the run that it uses, or None.
        stream: The output. stderr by default.
    """

    def __init__(self, runs: Callable[[], Mapping[Path, Path | None]], stream: TextIO | None = None) -> None:
        self.runs = runs
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self._lines = 0
        self._next = 0.0
        self._printed: dict[str, Row] = {}
        self._printed_at: dict[str, float] = {}
        self._active: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._next = 0.0
        self.update(())

    def update(self, running: Sequence[Job]) -> None:
        """Redraw the table, or print the runs whose state has changed."""
        start = time.monotonic()
        if start < self._next:
            return
        started = {job.folder: job.after for job in running}
        names = {folder.name for folder in started}
        rows = [
            # The process of the run is about to claim its folder, or has released it and is about to end.
            replace(row, state=self._active.get(row.name, "starting"))
            if row.name in names and row.state in NOT_STARTED
            else row
            for row in table({**self.runs(), **started})
        ]
        self._active = {row.name: row.state for row in rows if row.name in names}
        if self.live:
            self._draw(rows)
        else:
            self._print_changes(rows)
        # Reading the files of hundreds of runs on a network file system may take seconds.
        self._next = time.monotonic() + max(INTERVAL, 10 * (time.monotonic() - start))

    def message(self, text: str) -> None:
        """Print a line that remains visible above the table."""
        self._erase()
        self.stream.write(f"{text}\n")
        self.stream.flush()
        self._next = 0.0

    def _draw(self, rows: Sequence[Row]) -> None:
        size = shutil.get_terminal_size()
        lines = render(rows, size.columns - 1, size.lines - 1).splitlines()
        # Overwrite the lines in a single write, because an erased table would flicker.
        text = "".join(f"{line}\x1b[K\n" for line in lines)
        self.stream.write((f"\x1b[{self._lines}F" if self._lines else "") + text + "\x1b[J")
        self.stream.flush()
        self._lines = len(lines)

    def _erase(self) -> None:
        if self._lines:
            self.stream.write(f"\x1b[{self._lines}F\x1b[J")
            self._lines = 0

    def _print_changes(self, rows: Sequence[Row]) -> None:
        now = time.monotonic()
        for row in rows:
            before = self._printed.get(row.name)
            quiet = now < self._printed_at.get(row.name, -QUIET) + QUIET
            first = before is None and row.state in ("new", "tested", "finished")
            changed = before is None or row.state != before.state
            if first or not (changed or (row.epoch != before.epoch and not quiet)):  # type: ignore[union-attr]
                self._printed.setdefault(row.name, row)
                continue
            self._printed[row.name] = row
            self._printed_at[row.name] = now
            parts = [row.state, f"epoch {row.epoch}" if row.epoch else "", row.score]
            parts += [f"{row.left} left" if row.left else ""]
            self.stream.write(f"{row.name}: {', '.join(part for part in parts if part)}\n")
        self.stream.flush()


def _rank(row: Row) -> int:
    if row.group in ("training", "testing", "starting"):
        return 0
    return 1 if row.group in ("failed", "diverged", "stopped") else 2


def _left_aligned(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _words(state: RunState, after: Path | None, started: bool, folder: Path) -> str:
    if state.status == "waiting" and after is not None:
        return f"waits for {after.name}"
    if state.status != "running" or state.owner is None:
        return state.status
    elsewhere = state.owner.host not in ("", socket.gethostname())
    where = f" on {state.owner.host}" if elsewhere else ""
    if state.is_finished:
        return f"testing{where}"
    return f"{'training' if started or (folder / 'config.yaml').exists() else 'starting'}{where}"


def _score(state: RunState, rows: Sequence[Mapping[str, str]]) -> str:
    metrics = state.record.metrics if state.is_finished and state.record is not None else {}
    for name in (f"{split}/{score}" for split in ("test", "val") for score in SCORES):
        value = metrics.get(name)
        if value is None:
            values = [float(row[name]) for row in rows if row.get(name)]
            value = max(values, default=None)
        if value is not None:
            return f"{name} {value:.3f}"
    return ""


def _epoch(rows: Sequence[Mapping[str, str]]) -> int | None:
    """Return the number of the current epoch, from 1."""
    epochs = [int(float(row["epoch"])) for row in rows if row.get("epoch")]
    return max(epochs) + 1 if epochs else None


def _seconds_left(folder: Path, config: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> float | None:
    """Estimate the seconds until the end of a training that has not been resumed, or None if it is unknown."""
    provenance = first_provenance(folder)
    if "resumed" in provenance or "started" not in provenance:
        return None
    elapsed = (datetime.now(UTC) - datetime.fromisoformat(provenance["started"])).total_seconds()
    estimates = []
    limit, epochs = _seconds(config.get("max_time")), config.get("max_epochs")
    if limit is not None:
        estimates.append(limit - elapsed)
    steps = [(int(float(row["epoch"])), int(float(row["step"]))) for row in rows if row.get("epoch")]
    earlier = [(epoch, step) for epoch, step in steps if epoch < steps[-1][0]]
    if earlier and isinstance(epochs, int) and epochs > 0:
        epoch, step = max(earlier)
        done = (steps[-1][1] + 1) / ((step + 1) / (epoch + 1) * epochs)
        estimates.append(elapsed * (1 / done - 1) if done > 0 else 0.0)
    return max(0.0, min(estimates)) if estimates else None


def _seconds(duration: Any) -> float | None:
    """Return the seconds of the trainer's option ``max_time``; None without a limit."""
    if isinstance(duration, str) and duration.count(":") == 3:
        days, hours, minutes, seconds = map(float, duration.split(":"))
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if isinstance(duration, Mapping):
        units = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
        return sum(units.get(name, 0) * float(value) for name, value in duration.items())
    return None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _tail(path: Path) -> list[dict[str, str]]:
    """Return the last rows of a CSV file; none if it is missing."""
    try:
        with path.open("rb") as stream:
            heading = stream.readline()
            size = stream.seek(0, io.SEEK_END)
            stream.seek(max(len(heading), size - TAIL))
            body = stream.read()
    except OSError:
        return []
    if size - TAIL > len(heading):
        body = body.partition(b"\n")[2]
    complete = body[: body.rfind(b"\n") + 1]  # the last row may be incomplete
    return list(csv.DictReader(io.StringIO((heading + complete).decode("utf-8", "replace"))))


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=4096)
def _trainer(path: Path, time: int) -> dict[str, Any]:
    """Return the trainer's options in a configuration. ``time``, its modification time, is part of the cache key."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return dict(content["trainer"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}
