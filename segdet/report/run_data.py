"""Runs for reports: record, curves, configuration, evidence and profile. This module does not import torch.

`load_runs` finds the run folders. Each `RunData` reads its files when they are first used.
"""

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from segdet.launch.state import read_state
from segdet.profiling.result import PROFILE_NAME, Profile, read_profile
from segdet.report.statistics import Bootstrap, bootstrap
from segdet.runs.evidence import Evidence, read_evidence
from segdet.runs.folder_layout import TIME, first_provenance
from segdet.runs.record import RECORD_NAME, Record
from segdet.util.encodable import encodable
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean

SCORES = {
    "segmentation": ["miou", "pixel_acc", "class_acc", "bf", "boundary_iou"],
    "localization": ["loc_acc", "top1", "box_iou"],
    "detection": ["map", "map_50", "map_75", "map_voc07", "map_voc12", "mask_map", "mask_map_50"],
}
"""The scores of each task's table, the main score first. Scores that no run has are left out."""


_LARGEST_STEP = 2**53
"""The largest step that a float contains exactly. Larger ones are from damaged files."""


@dataclass(frozen=True)
class Curve:
    """The logged values of one metric.

    Attributes:
        steps: The optimizer steps, int64 ``[N]``.
        seconds: The seconds of training until each value, float64 ``[N]``; NaN where the time was not recorded.
        values: The values, float64 ``[N]``. They are finite.
    """

    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass
class RunData:
    """One run.

    Attributes:
        name: The path relative to the folder of the report, such as ``demo/fcn``.
        folder: The run folder.
        record: The record. Until the run ends, the record contains the values known so far.
        state: The state in one word, see `segdet.launch.state.Status`.
        faults: A line for each of its files that cannot be read.
    """

    name: str
    folder: Path
    record: Record
    state: str = "finished"
    faults: list[str] = field(default_factory=list)

    @property
    def row(self) -> str:
        """The name without the seed. Runs that differ only in their seed share it."""
        return self.name.removesuffix(f"-seed{self.record.seed}")

    @property
    def task(self) -> str:
        """The task: ``segmentation``, ``localization`` or ``detection``."""
        return self.record.task

    @property
    def main_score(self) -> str:
        """The name of the task's main score without the split."""
        return SCORES[self.record.task][0]

    @property
    def has_ended(self) -> bool:
        """Whether no process executes the run."""
        return self.state not in ("running", "new", "waiting")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of ``config.yaml``, or an empty dict if it is missing or corrupt."""
        return _read_yaml(self.folder / "config.yaml")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """The content of ``provenance.json``, or an empty dict if it is missing or corrupt."""
        return first_provenance(self.folder)

    @cached_property
    def evidence(self) -> Evidence | None:
        """The evidence of the test, or None if there is none. A file that cannot be used is added to `faults`."""
        if self.record.per_image is None:
            return None
        path = self.folder / self.record.per_image
        try:
            evidence = read_evidence(path)
            if evidence.task != self.task:
                raise UserError(
                    f"{path}: is of a {evidence.task} run, not {self.task}; run segdet test again"
                )
        except UserError as error:
            self.faults.append(str(error))
            return None
        return evidence

    @cached_property
    def bootstrap(self) -> Bootstrap | None:
        """The scores of the test and of resamples of its images, or None without evidence."""
        return None if self.evidence is None or not len(self.evidence) else bootstrap(self.evidence)

    @cached_property
    def profile(self) -> Profile | None:
        """The profile, or None if there is none. A file that cannot be read is added to `faults`."""
        path = self.folder / PROFILE_NAME
        if not path.exists():
            return None
        try:
            return read_profile(path)
        except UserError as error:
            self.faults.append(str(error))
            return None

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The curve of each metric in ``metrics.csv`` by its name."""
        return read_curves(self.folder / "metrics.csv", self.provenance)


@dataclass
class RunGroup:
    """The runs of a page that differ only in their seed. They share a row in tables and a colour in charts.

    Attributes:
        name: The name without the seed.
        runs: One for each seed.
    """

    name: str
    runs: list[RunData] = field(default_factory=list)

    @property
    def record(self) -> Record:
        """The record of the first seed."""
        return self.runs[0].record

    @property
    def task(self) -> str:
        """The task."""
        return self.runs[0].task

    def values(self, name: str) -> list[float]:
        """Return a score such as ``test/map`` of all seeds that have it."""
        found = (run.record.metrics.get(name) for run in self.runs)
        return [value for value in found if value is not None]

    def costs(self, name: str) -> list[float]:
        """Return a cost, a field of `segdet.runs.record.Cost`, of all seeds for which it was measured."""
        found = (getattr(run.record.cost, name) for run in self.runs)
        return [float(value) for value in found if value is not None]


def group_runs(runs: Iterable[RunData]) -> list[RunGroup]:
    """Group the runs that differ only in their seed, in the order of their first run."""
    groups: dict[tuple[str, ...], RunGroup] = {}
    for run in runs:
        key = (run.row, run.task, run.record.model, run.record.data)
        groups.setdefault(key, RunGroup(run.row)).runs.append(run)
    return list(groups.values())


def load_runs(folders: Sequence[Path]) -> tuple[list[RunData], list[str]]:
    """Find the runs under ``folders``, in the order of their paths.

    The name of a run is its path relative to the given folder (``demo/fcn`` for ``runs``, ``fcn`` for ``runs/demo``).
    If several folders are given, it is the path relative to their common parent.

    Returns:
        The runs, and a line for each run that cannot be shown. A run without a record is shown if its task is known.

    Raises:
        UserError: If a folder does not exist.
    """
    runs, faults = [], []
    for found in find_run_folders(folders):
        state = read_state(found.folder)
        try:
            record = found.read_record() if found.has_record else _record_so_far(found)
        except UserError as error:
            faults.append(str(error))
            continue
        status = state.status if state.status == "running" or not found.has_record else record.status
        runs.append(RunData(found.name, found.folder, replace(record, name=found.name), status))
    return runs, faults


@dataclass(frozen=True)
class FoundRun:
    """A run folder.

    Attributes:
        name: The name in reports.
        folder: The folder.
        shown: The path of its record in messages, as the user gave it.
        has_record: Whether the record exists.
    """

    name: str
    folder: Path
    shown: Path
    has_record: bool

    def read_record(self) -> Record:
        """Return the record.

        Raises:
            UserError: If it is missing or corrupt, or its task is unknown.
        """
        if not self.has_record:
            raise UserError(f"{self.shown}: missing; the run was stopped or is still running")
        record = Record.read(self.shown)
        if record.task not in SCORES:
            raise UserError(
                f"{self.shown}: unknown task '{record.task}'; {did_you_mean(record.task, SCORES)}"
            )
        return record


def find_run_folders(folders: Sequence[Path]) -> Iterator[FoundRun]:
    """Yield the run folders under ``folders``. Runs are not nested.

    Raises:
        UserError: If a folder does not exist.
    """
    roots = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100 (resolves no links)
    for folder, root in zip(folders, roots, strict=True):
        if not root.is_dir():
            raise UserError(f"{folder}: no such folder; give folders of runs, such as runs/demo")
    base = roots[0] if len(roots) == 1 else Path(os.path.commonpath(roots))
    seen = set()
    for folder, root in zip(folders, roots, strict=True):
        for parent, subfolders, files in os.walk(root):
            subfolders.sort()
            is_run = RECORD_NAME in files or "provenance.json" in files
            if not is_run or parent in seen:
                continue
            seen.add(parent)
            subfolders.clear()  # the folders of runs contain many files
            path = Path(parent)
            name = encodable(path.name if path == base else path.relative_to(base).as_posix())
            shown = folder / path.relative_to(root) / RECORD_NAME
            yield FoundRun(name, path, shown, RECORD_NAME in files)


def _record_so_far(found: FoundRun) -> Record:
    """Return a record of a run that has not ended, with the values that its other files contain.

    Raises:
        UserError: If its task is unknown.
    """
    config, provenance = _read_yaml(found.folder / "config.yaml"), first_provenance(found.folder)
    model, data = (
        str((config.get(part) or {}).get("class_path") or "") if isinstance(config.get(part), Mapping) else ""
        for part in ("model", "data")
    )
    curves = read_curves(found.folder / "metrics.csv", provenance)
    task = next((task for task in SCORES if task in model.split(".")), None)
    task = task or next((task for task, names in SCORES.items() if f"val/{names[0]}" in curves), None)
    if task is None:
        raise UserError(f"{found.shown}: missing; the run was stopped or is still running")
    best = f"val/{SCORES[task][0]}"
    metrics: dict[str, float | None] = {}
    if best in curves:
        at = int(np.argmax(curves[best].values))
        for name, curve in curves.items():
            if name.startswith("val/") and curves[best].steps[at] in curve.steps:
                metrics[name] = float(curve.values[curve.steps == curves[best].steps[at]][-1])
    return Record(
        name=found.name,
        task=task,
        model=model.rsplit(".", 1)[-1],
        data=data.rsplit(".", 1)[-1],
        seed=int(provenance.get("seed") or 0),
        status="interrupted",
        metrics=metrics,
        steps=max((int(curve.steps[-1]) + 1 for curve in curves.values()), default=0),
        hardware=dict(provenance.get("hardware") or {}),
        fingerprint=str(provenance.get("fingerprint") or ""),
        command=str(provenance.get("command") or ""),
        started=str(provenance.get("started") or ""),
    )


def read_curves(path: Path, provenance: Mapping[str, Any]) -> dict[str, Curve]:
    """Return the curves in a ``metrics.csv``. A step that a resumed run logged twice has the later value.

    Args:
        path: The file. It may be missing, and its last line may be incomplete.
        provenance: The provenance of the run. Its start times separate the training from the pauses between its parts.
    """
    columns: dict[str, dict[int, tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as stream:
            reader = csv.reader(stream)
            names = next(reader, [])
            if "step" not in names:
                return {}
            step_at, time_at = names.index("step"), names.index(TIME) if TIME in names else None
            measured = [(at, name) for at, name in enumerate(names) if name not in ("epoch", "step", TIME)]
            for name in names:
                columns.setdefault(name, {})
            for row in reader:
                if len(row) != len(names):
                    continue
                step = _number(row[step_at])
                if step is None or abs(step) > _LARGEST_STEP:
                    continue
                time = math.nan if time_at is None else _number(row[time_at]) or math.nan
                for at, name in measured:
                    if row[at] and (value := _number(row[at])) is not None:
                        columns[name][int(step)] = (time, value)
    except (OSError, csv.Error):
        return {}
    clock = _Clock(provenance)
    curves = {}
    for name, points in columns.items():
        if points:
            steps = np.array(sorted(points), dtype=np.int64)
            rows = np.array([points[step] for step in steps.tolist()])
            curves[name] = Curve(steps, clock.seconds(rows[:, 0]), rows[:, 1])
    return curves


class _Clock:
    """Converts the times of rows to seconds of training, without the pauses between the parts of a resumed run."""

    def __init__(self, provenance: Mapping[str, Any]) -> None:
        parts = [provenance, *provenance.get("resumed", [])]
        self.starts = [start for part in parts if (start := _timestamp(part.get("started"))) is not None]

    def seconds(self, times: np.ndarray) -> np.ndarray:
        if not self.starts:
            return times - np.nanmin(times) if np.isfinite(times).any() else times
        seconds = times - self.starts[0]
        for start in self.starts[1:]:
            before, after = times < start, times >= start
            if before.any() and after.any():
                seconds[after] -= start - times[before].max()
        return seconds


def _timestamp(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
