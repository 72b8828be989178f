"""Result records as Markdown tables, one for each task. This module does not import torch, to start quickly."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segdet.report.comparisons import Comparisons, differences_table
from segdet.report.numbers import count, minutes, significant
from segdet.report.run_data import SCORES, RunGroup, find_run_folders
from segdet.runs.record import Record, in_stage_order
from segdet.util.encodable import encodable
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean
from segdet.util.tables import markdown_table

ERROR_KINDS = [
    "classification", "localization", "both", "duplicate", "background", "missed", "false_positive", "false_negative",
]  # fmt: skip
"""The columns of the table of detection errors, for tests with an error analysis."""

Number = Callable[[Record], float | None]
"""A number of a record, or None where it was not measured."""


@dataclass
class Row:
    """One line of a table: a run with all its seeds.

    Attributes:
        name: The run's name without its seed.
        records: One for each seed.
        group: The runs with their evidence, if intervals are shown.
    """

    name: str
    records: list[Record]
    group: RunGroup | None = None

    @property
    def seeds(self) -> str:
        """The seeds in order."""
        return ", ".join(map(str, sorted(record.seed for record in self.records)))

    def values(self, number: Number) -> list[float]:
        """Return the numbers of all seeds that have one."""
        return [value for record in self.records if (value := number(record)) is not None]

    def mean(self, number: Number) -> float | None:
        """Return the mean over the seeds, or None if no seed has the number."""
        values = self.values(number)
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        title: The heading.
        key: The column's name for ``--sort``.
        number: A function that returns the number of a record.
        form: A function that converts the number to text.
        score: Whether this is a score: higher is better, and cells show the standard deviation over the seeds.
        intervals: For test scores, the intervals over images, if they are shown.
    """

    title: str
    key: str
    number: Number
    form: Callable[[float], str]
    score: bool = False
    intervals: Comparisons | None = None

    def cell(self, row: Row) -> str:
        """Return the mean over the seeds; for scores, also the standard deviation and the interval over images."""
        values = row.values(self.number)
        if not values:
            return "-"
        cell = self.form(statistics.fmean(values))
        if self.score and len(values) > 1:
            cell += f" ± {self.form(statistics.stdev(values))}"
        if self.intervals is not None and row.group is not None:
            estimate = self.intervals.estimate(row.group, self.key.removeprefix("test/"))
            if estimate is not None and estimate.images.is_defined:
                cell += f" [{self.form(estimate.images.low)}, {self.form(estimate.images.high)}]"
        return cell


COSTS = [
    Column("parameters (M)", "parameters", lambda r: r.cost.parameters, lambda v: significant(v / 1e6)),
    Column("GFLOPs", "flops", lambda r: r.cost.flops, lambda v: significant(v / 1e9)),
    Column("ms per image", "ms_per_image", lambda r: r.cost.ms_per_image, significant),
    Column("passes per image", "passes_per_image", lambda r: r.cost.passes_per_image, count),
    Column("training (min:s)", "train_seconds", lambda r: r.cost.train_seconds, minutes),
    Column("disk (MB)", "disk_mb", lambda r: r.cost.disk_mb, significant),
]
"""The columns of costs, the same for every task."""


def table(
    records: Sequence[Record],
    sort: str | None = None,
    faults: Sequence[str] = (),
    comparisons: Comparisons | None = None,
) -> str:
    """Return Markdown: a table for each task, then the hardware, the commands and the records that were left out.

    Runs that differ only in their seed (``<run>`` and ``<run>-seed<S>``) share a row with mean ± sample standard
    deviation. The scores are from the test split. If no run of a task has been tested, they are from the
    validation split. If only some runs have been tested, a column with the main validation score precedes the test
    scores. The headings name the split. Unfinished runs are listed below the tables. If records have times of
    stages, a second table shows them.

    Args:
        records: The records, in the order of the rows.
        sort: The column to sort by: ``name``, a score such as ``miou`` (highest first), or a cost such as
            ``ms_per_image`` (lowest first).
        faults: A line for each record that was left out, with the reason.
        comparisons: The uncertainty of the test scores. Cells then have the interval over images, and a list below
            the table has the paired differences between runs.

    Raises:
        UserError: If no table has a column ``sort``.
    """
    known = ["name", *(c for scores in SCORES.values() for c in scores), *(c.key for c in COSTS)]
    if sort is not None and sort not in known:
        raise UserError(f"--sort: no column '{sort}'; {did_you_mean(sort, known)}")
    finished = [record for record in records if record.status == "finished"]
    tasks = sorted({record.task for record in finished}, key=[*SCORES].index)
    parts = [_section([r for r in finished if r.task == task], task, sort, comparisons) for task in tasks]
    if rest := [record for record in records if record.status != "finished"]:
        parts.append("Not finished: " + ", ".join(f"{r.name} ({r.status})" for r in rest) + ".")
    if finished:
        parts += [_legend(finished), _hardware(finished), _commands(finished)]
    if faults:
        parts += ["Left out:", "\n".join(f"- {fault}" for fault in faults)]
    return encodable("\n\n".join(part for part in parts if part) + "\n")


def _rows(records: Iterable[Record]) -> list[Row]:
    """Group the records that differ only in their seed."""
    rows: dict[tuple[str, ...], Row] = {}
    for record in records:
        name = record.name.removesuffix(f"-seed{record.seed}")
        rows.setdefault(_key(name, record), Row(name, [])).records.append(record)
    return list(rows.values())


def _key(name: str, record: Record) -> tuple[str, ...]:
    return (name, record.task, record.model, record.data)


def _differences(rows: Sequence[Row], task: str, comparisons: Comparisons) -> list[str]:
    """Return a list of paired differences between the rows, and the rows without intervals."""
    groups = [row.group for row in rows if row.group is not None]
    parts = []
    pairs = comparisons.compare(groups, task)
    if differences := differences_table(pairs):
        order = "the one above it" if comparisons.pairs == "neighbours" else "every run above it"
        title = (
            f"Differences of test/{comparisons.score_of(task)}, each run minus {order}, on the same images:"
        )
        parts += [title, differences, _DIFFERENCES_LEGEND]
    if reasons := [f"{pair.title} ({pair.reason})" for pair in pairs if pair.difference is None]:
        parts.append(f"Not compared: {', '.join(reasons)}.")
    names: dict[str, list[str]] = {}
    for group in groups:
        if any(run.record.is_tested for run in group.runs):
            names.setdefault(comparisons.reason(group), []).append(group.name)
    if "" in names:
        parts.append(_INTERVALS_LEGEND)
    return parts + [f"No interval ({why}): {', '.join(each)}." for why, each in names.items() if why]


_INTERVALS_LEGEND = (
    "Brackets in cells: 95% bootstrap interval over the images of the test. See docs/statistics.md."
)
_DIFFERENCES_LEGEND = (
    "Intervals of differences are over images, and over seeds too if both runs have several. P(better) is one minus "
    "the one-sided P-value. P (Holm) is corrected for the number of comparisons. The last columns are the standard "
    "deviations of the difference from images and from seeds."
)


def _section(records: list[Record], task: str, sort: str | None, comparisons: Comparisons | None) -> str:
    """Return the tables of one task and the notes on them."""
    main = SCORES[task][0]
    untested = [record.name for record in records if f"test/{main}" not in record.metrics]
    rows = _rows(records)
    if comparisons is not None:
        groups = {_key(group.name, group.record): group for group in comparisons.groups}
        rows = [replace(row, group=groups.get(_key(row.name, row.records[0]))) for row in rows]
    columns = _columns(task, rows, len(untested) < len(records), bool(untested), comparisons)
    if sort == "name":
        rows.sort(key=lambda row: row.name)
    elif column := next((c for c in columns if c.key == sort), None):
        sign = -1 if column.score else 1
        rows.sort(key=lambda row: float("inf") if (v := row.mean(column.number)) is None else sign * v)
    texts = {"run": lambda row: row.name, "model": lambda row: row.records[0].model}
    if any(row.records[0].backbone for row in rows):
        texts["backbone"] = lambda row: row.records[0].backbone or "-"
    if len({row.records[0].data for row in rows}) > 1:
        texts["data"] = lambda row: row.records[0].data
    if any(len(row.records) > 1 for row in rows) or len({row.seeds for row in rows}) > 1:
        texts["seeds"] = lambda row: row.seeds
    parts = [f"### {task.capitalize()}", _markdown(texts, columns, rows)]
    if untested and len(untested) < len(records):
        parts.append(f"Not tested yet: {', '.join(untested)}.")
    prints = {record.fingerprint for record in records if record.fingerprint}
    if len(prints) > 1:
        names = {p: ", ".join(r.name for r in records if r.fingerprint == p) for p in sorted(prints)}
        parts.append(
            f"These runs read different data: {'; '.join(f'{p[:12]}: {n}' for p, n in names.items())}."
        )
    if comparisons is not None and len(untested) < len(records):
        parts += _differences(rows, task, comparisons)
    parts += _stages(rows)
    if analysed := [row for row in rows if row.values(_gain(ERROR_KINDS[-1]))]:
        parts += ["### " + _ERRORS_TITLE, _markdown(texts, _error_columns(), analysed), _ERRORS_LEGEND]
    return "\n\n".join(parts)


def _columns(
    task: str, rows: Sequence[Row], some_tested: bool, some_untested: bool, intervals: Comparisons | None
) -> list[Column]:
    """Return the main score and all scores and costs that have a value."""

    def score(split: str, name: str) -> Column:
        key = f"{split}/{name}"
        number, form = lambda record: record.metrics.get(key), "{:.3f}".format
        return Column(key, name, number, form, score=True, intervals=intervals if split == "test" else None)

    main, *_ = SCORES[task]
    columns = [score("val", main)] if some_tested and some_untested else []
    columns += [score("test" if some_tested else "val", name) for name in SCORES[task]]
    return [c for c in columns + COSTS if c.key == main or any(row.values(c.number) for row in rows)]


def _stages(rows: list[Row]) -> list[str]:
    """Return a title and a table of the time per stage, or an empty list if no record has stages."""
    rows = [row for row in rows if any(record.cost.stages_ms for record in row.records)]
    if not rows:
        return []
    names = in_stage_order(name for row in rows for record in row.records for name in record.cost.stages_ms)

    def time_of(name: str) -> Number:
        return lambda record: record.cost.stages_ms.get(name)

    columns = [Column(name, name, time_of(name), significant) for name in names]
    return [
        "Milliseconds per image in each stage:",
        _markdown({"run": lambda row: row.name}, columns, rows),
    ]


def _markdown(texts: dict[str, Callable[[Row], str]], columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Return a table of ``rows`` with the texts on the left and the numbers on the right."""
    heading = [*texts, *(c.title for c in columns)]
    lines = [[*(text(row) for text in texts.values()), *(c.cell(row) for c in columns)] for row in rows]
    return markdown_table([heading, *lines], text_columns=len(texts))


_ERRORS_TITLE = "Detection: gain of test/map_50 without one kind of error"
_ERRORS_LEGEND = (
    "Each gain is the increase of map_50 without the errors of one kind. The kinds are those of TIDE at IoU .5: wrong "
    "class, wrong box, both, duplicate detection, background, missed object. The last two columns are all false "
    "positives and all false negatives. The gains do not add up."
)


def _gain(kind: str) -> Number:
    return lambda record: record.metrics.get(f"test/dap_{kind}")


def _error_columns() -> list[Column]:
    """Return the columns of the table of detection errors."""
    numbers: list[tuple[str, Number]] = [("test/map_50", lambda record: record.metrics.get("test/map_50"))]
    numbers += [(kind.replace("_", " "), _gain(kind)) for kind in ERROR_KINDS]
    return [Column(title, title, number, "{:.3f}".format, score=True) for title, number in numbers]


def _legend(records: list[Record]) -> str:
    """Return an explanation of the columns."""
    text = (
        "Costs are measured with one image at a time. GFLOPs count a multiply-add as two operations. Milliseconds "
        "exclude decoding the file. Passes are forward passes of the network. Disk is the size of all files that "
        "training keeps: checkpoints, proposals and features."
    )
    if len(_rows(records)) < len(records):
        text += " Scores of several seeds: mean ± standard deviation; costs: mean."
    return text


def _hardware(records: list[Record]) -> str:
    """Return the hardware of the runs, one line for each machine."""
    machines: dict[str, list[str]] = {}
    for record in records:
        machines.setdefault(describe_hardware(record.hardware) or "not recorded", []).append(record.name)
    if len(machines) == 1:
        return f"Hardware: {next(iter(machines))}."
    return "Hardware (compare times only within one machine):\n\n" + "\n".join(
        f"- {machine}: {', '.join(names)}" for machine, names in machines.items()
    )


def describe_hardware(hardware: dict[str, Any]) -> str:
    """Describe a machine: ``2 x NVIDIA H200, Intel Xeon (16 cores), 2 processes``."""
    gpus = [str(gpu) for gpu in hardware.get("gpus") or []]
    parts = [f"{gpus.count(gpu)} x {gpu}" for gpu in dict.fromkeys(gpus)]
    if cpu := hardware.get("cpu"):
        cores = hardware.get("cores")
        parts.append(f"{cpu} ({cores} core{'s' * (cores != 1)})" if cores else str(cpu))
    if (processes := hardware.get("processes") or 1) != 1:
        parts.append(f"{processes} processes")
    return ", ".join(parts)


def _commands(records: list[Record]) -> str:
    """Return the command of the first seed of each row."""
    commands = [row.records[0].command for row in _rows(records) if row.records[0].command]
    return "\n".join(["Commands:", "", "```", *commands, "```"]) if commands else ""


def find_records(folders: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """Find the records under ``folders``, in the order of their paths.

    The name of a run is its path relative to the given folder (``demo/fcn`` for ``runs``, ``fcn`` for ``runs/demo``).
    If several folders are given, it is the path relative to their common parent.

    Returns:
        The records, and a line for each run without a valid record.

    Raises:
        UserError: If a folder does not exist.
    """
    records, faults = [], []
    for found in find_run_folders(folders):
        try:
            records.append(replace(found.read_record(), name=found.name))
        except UserError as error:
            faults.append(str(error))
    return records, faults
