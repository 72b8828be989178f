"""Provenance: code, data, machine and command of each run, and how to repeat it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdet.report import numbers
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import RunData
from segdet.report.table import describe_hardware
from segdet.runs.folder_layout import shown_path


@dataclass(frozen=True)
class Row:
    """The provenance of a run.

    Attributes:
        run: The run.
        state: Its state.
        started: When training started: date and time without the UTC offset.
        duration: The time of training.
        code: The commit, or the version of segdet.
        data: The first digits of the fingerprint of the data.
        machine: The machine.
        commands: The commands that trained the run.
        folder: The path of the run folder.
    """

    run: RunData
    state: str
    started: str
    duration: str
    code: str
    data: str
    machine: str
    commands: list[str]
    folder: Path


def section(page: PageData) -> Section | None:
    """Return a table of all runs with their commands, and the versions of packages."""
    if not page.runs:
        return None
    rows = [_row(run) for run in page.runs]
    common, differing = _versions(page.runs)
    machines = {row.machine for row in rows}
    prints = {task: {run.record.fingerprint for run in page.runs_of(task)} for task in page.tasks}
    html = render(
        "repeat.html.j2",
        page=page,
        rows=rows,
        common=common,
        differing=differing,
        several_machines=len(machines) > 1,
        several_data=[task for task, found in prints.items() if len(found) > 1],
    )
    return Section("repeat", "Provenance", html)


def _row(run: RunData) -> Row:
    record, git = run.record, run.provenance.get("git") or {}
    version = (run.provenance.get("packages") or {}).get("segdet", "")
    code = str(git.get("commit", ""))[:10] + (" + changes" if git.get("dirty") else "")
    seconds = record.cost.train_seconds
    return Row(
        run=run,
        state=run.state,
        started=record.started[:16].replace("T", " "),
        duration="-" if seconds is None else numbers.minutes(seconds),
        code=code or (f"segdet {version}" if version else "-"),
        data=record.fingerprint[:12] or "-",
        machine=describe_hardware(record.hardware) or "-",
        commands=record.command.split(" && ") if record.command else [],
        folder=shown_path(run.folder),
    )


def _versions(runs: Sequence[RunData]) -> tuple[list[tuple[str, str]], list[tuple[str, list[str]]]]:
    """Return the versions that all runs share, and the names of the runs for each version of other packages."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        packages: dict[str, Any] = dict(run.provenance.get("packages") or {})
        for name, version in {"python": run.provenance.get("python"), **packages}.items():
            if version:
                found.setdefault(name, {}).setdefault(str(version), []).append(run.name)
    common = [(name, next(iter(versions))) for name, versions in found.items() if len(versions) == 1]
    differing = [
        (name, [f"{version}: {', '.join(names)}" for version, names in versions.items()])
        for name, versions in found.items()
        if len(versions) > 1
    ]
    return common, differing
