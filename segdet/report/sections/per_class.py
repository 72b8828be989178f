"""The score of each class of all runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from segdet.report.charts import SHOWN, WIDE, colour_scale, emphasis, shape_scale
from segdet.report.class_scores import TITLES, ClassScore, class_scores
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import RunGroup

if TYPE_CHECKING:
    import altair as alt

MAX_CLASSES = 40
"""The number of classes in a chart: those with the largest differences between runs. The table contains all."""


MAX_LINES = 8
"""The maximum number of runs with intervals in the chart. With more runs, only the table has intervals."""


@dataclass(frozen=True)
class _Table:
    """The scores of the classes of a task.

    Attributes:
        task: The task.
        title: The name of the score.
        figure: The chart.
        groups: The columns.
        rows: The name and the scores of each class; None where a run has no score.
        charted: The number of classes in the chart.
        intervals: Whether some scores have an interval.
        ranges: Whether some scores have a range of seeds instead.
    """

    task: str
    title: str
    figure: Markup
    groups: list[RunGroup]
    rows: list[tuple[str, list[ClassScore | None]]]
    charted: int
    intervals: bool
    ranges: bool


def section(page: PageData) -> Section | None:
    """Return the section, or None if no run has scores of classes."""
    tables = [table for task in page.tasks if (table := _table(page, task)) is not None]
    if not tables:
        return None
    return Section("per-class", "Scores of each class", render("per_class.html.j2", tables=tables))


def _table(page: PageData, task: str) -> _Table | None:
    split = page.split_of(task)
    found = [(group, class_scores(group, split)) for group in page.groups_of(task)]
    found = [(group, scores) for group, scores in found if scores]
    if not found:
        return None
    scores = [{score.name: score for score in each} for _, each in found]
    names = list(dict.fromkeys(name for each in scores for name in each))
    means = {name: np.array([each[name].mean for each in scores if name in each]) for name in names}
    # The most difficult class last.
    names.sort(key=lambda name: -means[name].mean())
    rows = [(name, [each.get(name) for each in scores]) for name in names]
    charted = sorted(names, key=lambda name: -np.ptp(means[name]))[:MAX_CLASSES]
    charted.sort(key=names.index)
    groups = [group for group, _ in found]
    values = [
        {
            "run": score.group.name,
            "class": score.name,
            "score": score.mean,
            "low": score.low,
            "high": score.high,
        }
        for each in scores
        for name, score in each.items()
        if name in charted
    ]
    title = f"{TITLES[task]} on the {'test' if split == 'test' else 'validation'} set"
    figure = page.charts.figure(
        _chart(page, values, charted, [group.name for group in groups], title),
        title=f"{TITLES[task]}, by class",
        label=f"Dot plot with one line for each of {len(charted)} classes and one mark for each run; the table below "
        "has the same numbers.",
        width=WIDE,
    )
    every = [score for each in scores for score in each.values()]
    intervals = any(score.is_interval for score in every)
    ranges = any(score.low < score.high and not score.is_interval for score in every)
    return _Table(task, title, figure, groups, rows, len(charted), intervals, ranges)


def _chart(
    page: PageData, values: list[dict[str, Any]], classes: list[str], names: list[str], title: str
) -> "alt.LayerChart":
    import altair as alt

    styles = page.styles_of(names)
    legend = alt.Legend(orient="top", columns=4, title=None, labelLimit=120)
    colour = alt.Color("run:N", scale=colour_scale(styles), sort=names, legend=legend)
    shape = alt.Shape("run:N", scale=shape_scale(styles), sort=names, legend=legend)
    base = alt.Chart(page.charts.data(values)).transform_filter(SHOWN)
    with_lines = len(names) <= MAX_LINES and any(row["low"] < row["high"] for row in values)
    height = 10 * len(names) + 12 if with_lines else 26
    position = alt.Y(
        "class:N",
        sort=classes,
        title=None,
        scale=alt.Scale(paddingInner=0.2, paddingOuter=0.1) if with_lines else alt.Undefined,
        axis=alt.Axis(grid=not with_lines, labelLimit=160),
    )
    offset = alt.YOffset("run:N", sort=names) if with_lines else alt.Undefined
    scale = alt.Scale(zero=False, nice=True)
    points = base.mark_point(filled=True, size=60 if with_lines else 80, opacity=1).encode(
        y=position,
        yOffset=offset,
        x=alt.X(
            "score:Q",
            scale=scale,
            title=title,
            axis=alt.Axis(grid=True, tickCount=6, labelOverlap="greedy", labelSeparation=6),
        ),
        color=colour,
        shape=shape,
        opacity=emphasis(0.9, 0.12),
        tooltip=[
            "run:N",
            "class:N",
            *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("score", "low", "high")),
        ],
    )
    layers: list[alt.Chart] = [points]
    if with_lines:
        lines = base.mark_rule(strokeWidth=1.5).encode(
            y=position,
            yOffset=offset,
            x=alt.X("low:Q", scale=scale, title=title),
            x2="high:Q",
            color=colour,
            opacity=emphasis(0.7, 0.1),
        )
        layers.insert(0, lines)
    return alt.LayerChart(layer=layers, height=height * len(classes))
