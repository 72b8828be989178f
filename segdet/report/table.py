"""``segdet report``: result records as Markdown tables, one for each task.

Imports no torch, so that a table is there at once.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segdet.runs.record import RECORD_NAME, Record
from segdet.util.errors import UserError
from segdet.util.tables import markdown_table

SCORES = {
    "segmentation": ["miou", "pixel_acc", "class_acc", "bf", "boundary_iou"],
    "localization": ["loc_acc", "top1", "box_iou"],
    "detection": ["map", "map_50", "map_75", "map_voc07", "map_voc12", "mask_map", "mask_map_50"],
}
"""The scores of each task's table, the main one first; one that no run has is left out."""

MISTAKES = [
    "classification", "localization", "both", "duplicate", "background", "missed", "false_positive", "false_negative",
]  # fmt: skip
"""The columns of detection's second table, of tests whose errors were analysed."""


@dataclass
class Row:
    """One line of a table: a run with all its seeds.

    Attributes:
        name: The run's name without its seed.
        records: One for each seed.
    """

    name: str
    records: list[Record]

    @property
    def seeds(self) -> str:
        """The seeds, in order."""
        return ", ".join(map(str, sorted(record.seed for record in self.records)))

    def values(self, of: Callable[[Record], float | None]) -> list[float]:
        """What ``of`` says of each seed's record, without those it says None of."""
        return [value for record in self.records if (value := of(record)) is not None]

    def mean(self, of: Callable[[Record], float | None]) -> float | None:
        """The mean of `values`, None where there are none."""
        values = self.values(of)
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        title: Its heading.
        key: What ``--sort`` calls it.
        of: The number of one record.
        form: The number as text.
        score: Whether more is better, and the seeds' spread is of interest.
    """

    title: str
    key: str
    of: Callable[[Record], float | None]
    form: Callable[[float], str]
    score: bool = False

    def cell(self, row: Row) -> str:
        """The mean over the seeds, for scores with their standard deviation."""
        values = row.values(self.of)
        if not values:
            return "-"
        mean = self.form(statistics.fmean(values))
        return f"{mean} ± {self.form(statistics.stdev(values))}" if self.score and len(values) > 1 else mean


def _significant(value: float) -> str:
    """``value`` with at least three significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _count(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"


def _minutes(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


COSTS = [
    Column("parameters (M)", "parameters", lambda r: r.cost.parameters, lambda v: _significant(v / 1e6)),
    Column("GFLOPs", "flops", lambda r: r.cost.flops, lambda v: _significant(v / 1e9)),
    Column("ms per image", "ms_per_image", lambda r: r.cost.ms_per_image, _significant),
    Column("passes per image", "passes_per_image", lambda r: r.cost.passes_per_image, _count),
    Column("training (min:s)", "train_seconds", lambda r: r.cost.train_seconds, _minutes),
    Column("disk (MB)", "disk_mb", lambda r: r.cost.disk_mb, _significant),
]
"""The columns of cost, the same for every task."""

STAGES = ["proposals", "crops", "warps", "network", "classifier", "nms"]
"""The order of the stages' columns; others come behind these."""


def table(records: Sequence[Record], sort: str | None = None) -> str:
    """The Markdown of ``records``: a table for each task, with what they ran on and how underneath.

    Runs that differ in their seed alone (``<run>`` and ``<run>-seed<S>``) are one line, mean ± standard
    deviation of the sample. The scores are those of the test split; where no run of the task has been tested,
    those of the validation split, and where some have not, the main score of the validation split stands
    before the test's. The headings say which. Runs that did not
    finish are named, not tabulated. Where models tell their stages apart, a second table has the time of each.

    Args:
        records: In the order of the lines.
        sort: Order the lines by ``name``, by a score (``miou``; best first) or by a cost
            (``ms_per_image``; least first) instead.

    Raises:
        UserError: If no table has a column ``sort``.
    """
    known = ["name", *(c for scores in SCORES.values() for c in scores), *(c.key for c in COSTS)]
    if sort is not None and sort not in known:
        raise UserError(f"--sort: no column '{sort}'; choose from {', '.join(known)}")
    finished = [record for record in records if record.status == "finished"]
    tasks = sorted({record.task for record in finished}, key=[*SCORES].index)
    parts = [_section([r for r in finished if r.task == task], task, sort) for task in tasks]
    if rest := [record for record in records if record.status != "finished"]:
        parts.append("Not finished: " + ", ".join(f"{r.name} ({r.status})" for r in rest) + ".")
    if finished:
        parts += [_legend(finished), _hardware(finished), _commands(finished)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(records: Iterable[Record]) -> list[Row]:
    """The records of runs, seeds together."""
    rows: dict[tuple[str, ...], Row] = {}
    for record in records:
        name = record.name.removesuffix(f"-seed{record.seed}")
        key = (name, record.task, record.model, record.data)
        rows.setdefault(key, Row(name, [])).records.append(record)
    return list(rows.values())


def _section(records: list[Record], task: str, sort: str | None) -> str:
    """One task's table."""
    main = SCORES[task][0]
    untested = [record.name for record in records if f"test/{main}" not in record.metrics]
    rows = _rows(records)

    def score(split: str, name: str) -> Column:
        key = f"{split}/{name}"
        return Column(key, name, lambda record: record.metrics.get(key), "{:.3f}".format, score=True)

    columns = [score("val", main)] if 0 < len(untested) < len(records) else []
    columns += [score("val" if len(untested) == len(records) else "test", name) for name in SCORES[task]]
    columns += COSTS
    columns = [c for c in columns if c.key == main or any(row.values(c.of) for row in rows)]
    if sort == "name":
        rows.sort(key=lambda row: row.name)
    elif column := next((c for c in columns if c.key == sort), None):
        sign = -1 if column.score else 1
        rows.sort(key=lambda row: float("inf") if (v := row.mean(column.of)) is None else sign * v)

    texts = {"run": lambda row: row.name, "model": lambda row: row.records[0].model}
    if any(row.records[0].backbone for row in rows):
        texts["backbone"] = lambda row: row.records[0].backbone or "-"
    if len({row.records[0].data for row in rows}) > 1:
        texts["data"] = lambda row: row.records[0].data
    if any(len(row.records) > 1 for row in rows) or len({row.seeds for row in rows}) > 1:
        texts["seeds"] = lambda row: row.seeds
    notes = []
    if untested and len(untested) < len(records):
        notes.append(f"Not tested yet: {', '.join(untested)}.")
    prints = {record.fingerprint for record in records if record.fingerprint}
    if len(prints) > 1:
        notes.append(
            "These runs read different data: "
            + "; ".join(
                f"{p[:12]}: {', '.join(r.name for r in records if r.fingerprint == p)}"
                for p in sorted(prints)
            )
            + "."
        )
    parts = [f"### {task.capitalize()}", _markdown(texts, columns, rows), *notes, *_stages(rows)]
    if analysed := [row for row in rows if row.values(_gain(MISTAKES[-1]))]:
        parts += ["### " + _MISTAKES_TITLE, _markdown(texts, _mistakes(), analysed), _MISTAKES_LEGEND]
    return "\n\n".join(parts)


def _stages(rows: list[Row]) -> list[str]:
    """A table of what the stages of an image's prediction take, of the rows that have stages; none where none has."""
    rows = [row for row in rows if any(record.cost.stages_ms for record in row.records)]
    if not rows:
        return []
    present = dict.fromkeys(name for row in rows for record in row.records for name in record.cost.stages_ms)
    names = [name for name in STAGES if name in present] + [name for name in present if name not in STAGES]

    def of(name: str) -> Callable[[Record], float | None]:
        return lambda record: record.cost.stages_ms.get(name)

    columns = [Column(name, name, of(name), _significant) for name in names]
    return [
        "Milliseconds of the stages of an image:",
        _markdown({"run": lambda row: row.name}, columns, rows),
    ]


def _markdown(texts: dict[str, Callable[[Row], str]], columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table of ``rows``: the texts on the left, then the numbers."""
    heading = [*texts, *(c.title for c in columns)]
    lines = [[*(text(row) for text in texts.values()), *(c.cell(row) for c in columns)] for row in rows]
    return markdown_table([heading, *lines], text_columns=len(texts))


_MISTAKES_TITLE = "Detection: what test/map_50 would gain without one kind of mistake"
_MISTAKES_LEGEND = (
    "TIDE's kinds at IoU .5: the wrong class, the wrong place, both, an object found twice, nothing there, an object "
    "missed; then all wrong detections, and all objects not found. Gains do not add up."
)


def _gain(kind: str) -> Callable[[Record], float | None]:
    return lambda record: record.metrics.get(f"test/dap_{kind}")


def _mistakes() -> list[Column]:
    """The columns of the table of mistakes."""
    named = [("test/map_50", lambda record: record.metrics.get("test/map_50"))]
    named += [(kind.replace("_", " "), _gain(kind)) for kind in MISTAKES]
    return [Column(title, title, of, "{:.3f}".format, score=True) for title, of in named]


def _legend(records: list[Record]) -> str:
    """What the columns mean."""
    text = (
        "One image at a time: GFLOPs counts a multiply-add as two, ms leaves decoding the file out, "
        "passes is how often the network runs. Disk is what a training leaves there: checkpoints, and what of "
        "proposals and features was kept."
    )
    if len(_rows(records)) < len(records):
        text += " Scores of several seeds: mean ± standard deviation; costs: mean."
    return text


def _hardware(records: list[Record]) -> str:
    """What the runs ran on, one line for each different machine."""
    machines: dict[str, list[str]] = {}
    for record in records:
        machines.setdefault(_said(record.hardware) or "not recorded", []).append(record.name)
    if len(machines) == 1:
        return f"Hardware: {next(iter(machines))}."
    return "Hardware (times compare within one machine only):\n\n" + "\n".join(
        f"- {machine}: {', '.join(names)}" for machine, names in machines.items()
    )


def _said(hardware: dict[str, Any]) -> str:
    """A machine in words: ``2 x NVIDIA H200, Intel Xeon (16 cores), 2 processes``."""
    gpus = [str(gpu) for gpu in hardware.get("gpus") or []]
    parts = [f"{gpus.count(gpu)} x {gpu}" for gpu in dict.fromkeys(gpus)]
    if cpu := hardware.get("cpu"):
        cores = hardware.get("cores")
        parts.append(f"{cpu} ({cores} core{'s' * (cores != 1)})" if cores else str(cpu))
    if (processes := hardware.get("processes") or 1) != 1:
        parts.append(f"{processes} processes")
    return ", ".join(parts)


def _commands(records: list[Record]) -> str:
    """The command of each line's first seed."""
    commands = [row.records[0].command for row in _rows(records) if row.records[0].command]
    return "\n".join(["Commands:", "", "```", *commands, "```"]) if commands else ""


def find(directories: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """The records under ``directories``, by path and named by it, and what is wrong with the rest.

    A run is named by its folder relative to the directory given (``runs`` has ``demo/fcn``, ``runs/demo``
    has ``fcn``); where several are given, by its folder relative to their common parent.

    Returns:
        The records, and a line for each that is torn or missing from a run's folder.

    Raises:
        UserError: If a directory does not exist.
    """
    records, faults, seen = [], [], set()
    roots = [Path(os.path.abspath(directory)) for directory in directories]  # noqa: PTH100 (keeps links)
    for directory, root in zip(directories, roots, strict=True):
        if not root.is_dir():
            raise UserError(f"{directory}: no such folder; give folders of runs, such as runs/demo")
    base = roots[0] if len(roots) == 1 else Path(os.path.commonpath(roots))
    for root in roots:
        for folder, subfolders, files in os.walk(root):
            subfolders.sort()
            is_run = RECORD_NAME in files or "provenance.json" in files
            if not is_run or folder in seen:
                continue
            seen.add(folder)
            subfolders.clear()  # runs do not nest, and checkpoints and media are many
            path = Path(folder, RECORD_NAME)
            if RECORD_NAME not in files:
                faults.append(f"{path}: missing; the run was stopped or is still running")
                continue
            try:
                record = Record.read(path)
            except UserError as error:
                faults.append(str(error))
                continue
            if record.task not in SCORES:
                faults.append(
                    f"{path}: has the unknown task '{record.task}'; choose from {', '.join(SCORES)}"
                )
                continue
            name = Path(folder).name if Path(folder) == base else Path(folder).relative_to(base).as_posix()
            records.append(replace(record, name=name))
    return records, faults


def main(argv: Sequence[str]) -> int:
    """``segdet report DIR... [--output FILE] [--sort COLUMN]``.

    Returns:
        The exit status: 0, also where some records are torn or missing, which are listed.

    Raises:
        UserError: If a directory is missing or holds no run at all.
    """
    parser = argparse.ArgumentParser(
        prog="segdet report",
        allow_abbrev=False,
        description="Tabulate the results of runs, one Markdown table for each task.",
    )
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="searched for result.json files"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the tables there instead of printing them"
    )
    parser.add_argument("--sort", metavar="COLUMN", help="name, a score (miou) or a cost (ms_per_image)")
    arguments = parser.parse_args(argv)
    records, faults = find(arguments.directories)
    if not records and not faults:
        named = ", ".join(str(directory) for directory in arguments.directories)
        raise UserError(f"{named}: no {RECORD_NAME} in it; run segdet fit or segdet bench first")
    text = table(records, arguments.sort)
    if faults:
        text += "\nLeft out:\n\n" + "\n".join(f"- {fault}" for fault in faults) + "\n"
    if arguments.output is None:
        sys.stdout.write(text.lstrip("\n"))
    else:
        try:
            arguments.output.write_text(text.lstrip("\n"), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{arguments.output}: cannot be written ({error.strerror})") from error
    return 0
