"""Results: a table of scores and costs for each task."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from segdet.report import numbers
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import SCORES, RunGroup


@dataclass(frozen=True)
class Cell:
    """A cell of a table of numbers.

    Attributes:
        value: The number by which the table is sorted, or None.
        text: The text.
        note: A smaller text after it, such as a standard deviation.
        best: Whether it is the best of its column.
    """

    value: float | None
    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Cost:
    """A column of costs.

    Attributes:
        title: The heading.
        key: The field of `segdet.runs.record.Cost`.
        form: A function that converts a number to text.
        scale: The unit of the column in units of the field.
    """

    title: str
    key: str
    form: Callable[[float], str] = numbers.significant
    scale: float = 1.0


COSTS = (
    Cost("parameters (M)", "parameters", scale=1e6),
    Cost("GFLOPs", "flops", scale=1e9),
    Cost("ms", "ms_per_image"),
    Cost("passes", "passes_per_image", numbers.count),
    Cost("memory (MiB)", "peak_memory_mb"),
    Cost("training (min:s)", "train_seconds", numbers.minutes),
    Cost("disk (MB)", "disk_mb"),
)


@dataclass(frozen=True)
class Row:
    """A row of a table of results.

    Attributes:
        group: The run with its seeds.
        cells: The cells, in the order of the columns.
        state: The state, if a seed has not finished.
    """

    group: RunGroup
    cells: list[Cell]
    state: str


@dataclass(frozen=True)
class Table:
    """The results of a task.

    Attributes:
        task: The task.
        split: The split of the scores.
        columns: The headings of the columns of numbers.
        rows: The rows, best first.
        backbones: Whether the models have different backbones.
    """

    task: str
    split: str
    columns: list[str]
    rows: list[Row]
    backbones: bool


def section(page: PageData) -> Section | None:
    """Return the tables of results."""
    tables = [_table(page, task) for task in page.tasks]
    if not tables:
        return None
    return Section("results", "Results", render("results.html.j2", page=page, tables=tables))


def _table(page: PageData, task: str) -> Table:
    groups, split = page.groups_of(task), page.split_of(task)
    scores = [name for name in SCORES[task] if any(group.values(f"{split}/{name}") for group in groups)]
    costs = [cost for cost in COSTS if any(group.costs(cost.key) for group in groups)]
    columns = [_score_column(groups, f"{split}/{name}") for name in scores]
    columns += [_cost_column(groups, cost) for cost in costs]
    rows = [Row(group, [column[at] for column in columns], _state(group)) for at, group in enumerate(groups)]
    if scores:
        rows.sort(key=lambda row: -1.0 if row.cells[0].value is None else row.cells[0].value, reverse=True)
    backbones = len({group.record.backbone for group in groups}) > 1
    return Table(task, split, [*scores, *(cost.title for cost in costs)], rows, backbones)


def _score_column(groups: list[RunGroup], name: str) -> list[Cell]:
    means = [statistics.fmean(values) if (values := group.values(name)) else None for group in groups]
    best = max((mean for mean in means if mean is not None), default=None)
    cells = []
    for group, mean in zip(groups, means, strict=True):
        if mean is None:
            cells.append(Cell(None, "-"))
            continue
        values = group.values(name)
        note = f"± {numbers.score(statistics.stdev(values))}" if len(values) > 1 else ""
        cells.append(Cell(mean, numbers.score(mean), note, best=mean == best and len(groups) > 1))
    return cells


def _cost_column(groups: list[RunGroup], cost: Cost) -> list[Cell]:
    cells = []
    for group in groups:
        values = group.costs(cost.key)
        mean = statistics.fmean(values) / cost.scale if values else None
        cells.append(Cell(mean, "-" if mean is None else cost.form(mean)))
    return cells


def _state(group: RunGroup) -> str:
    states = dict.fromkeys(run.state for run in group.runs if run.state not in ("finished", "tested"))
    return ", ".join(states)
