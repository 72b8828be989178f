"""Accuracy against cost: a chart for each cost, with the Pareto front of the runs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from segdet.report import numbers
from segdet.report.charts import (
    SHOWN,
    STATIC_WIDTH,
    colour_scale,
    emphasis,
    logarithmic_ticks,
    shape_scale,
    shorten,
)
from segdet.report.html import render
from segdet.report.label_placement import Label, place_labels
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import SCORES, RunGroup

if TYPE_CHECKING:
    import altair as alt

HEIGHT = 260
"""The height of a plot in pixels."""

PLOT_WIDTH = STATIC_WIDTH - 60
"""The smallest width of a plot in pixels, for which labels are placed."""

MOST_LABELS = 16
"""With more runs than this, only those on the front are labelled."""


@dataclass(frozen=True)
class Axis:
    """A cost.

    Attributes:
        name: The name in titles.
        key: The field of `segdet.runs.record.Cost`.
        title: The title of the axis, with its unit.
        scale: The unit of the axis in units of the field.
    """

    name: str
    key: str
    title: str
    scale: float = 1.0


AXES = (
    Axis("latency", "ms_per_image", "ms per image"),
    Axis("computation", "flops", "GFLOPs per image", 1e9),
    Axis("training time", "train_seconds", "minutes of training", 60.0),
)


@dataclass(frozen=True)
class Point:
    """A run in a chart.

    Attributes:
        group: The run with its seeds.
        cost: The mean cost.
        score: The mean score.
    """

    group: RunGroup
    cost: float
    score: float


def section(page: PageData) -> Section | None:
    """Return the charts of each task that has at least two runs with a cost."""
    parts = []
    for task in page.tasks:
        score = f"{page.split_of(task)}/{SCORES[task][0]}"
        charts = [
            _chart(page, task, axis, points, score)
            for axis in AXES
            if len(points := _points(page.groups_of(task), axis, score)) > 1
        ]
        if charts:
            parts.append((task, charts))
    if not parts:
        return None
    return Section("tradeoffs", "Accuracy and cost", render("tradeoffs.html.j2", parts=parts))


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point dominates in cost and score, from the cheapest to the best."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def _points(groups: Sequence[RunGroup], axis: Axis, score: str) -> list[Point]:
    points = []
    for group in groups:
        costs = [value for value in group.costs(axis.key) if value > 0]
        scores = group.values(score)
        if costs and scores:
            points.append(Point(group, statistics.fmean(costs) / axis.scale, statistics.fmean(scores)))
    return points


def _chart(page: PageData, task: str, axis: Axis, points: list[Point], score: str) -> Markup:
    import altair as alt

    front = pareto_front(points)
    logarithmic = max(each.cost for each in points) / min(each.cost for each in points) > 8
    x_domain = _domain([each.cost for each in points], logarithmic)
    y_domain = _domain([each.score for each in points], False)
    x_scale = alt.Scale(type="log" if logarithmic else "linear", domain=x_domain, nice=False)
    y_scale = alt.Scale(domain=y_domain, nice=False, zero=False)
    styles = page.styles_of(each.group.name for each in points)
    labels = _labels(points, front, x_domain, y_domain, logarithmic)
    rows = [_row(point, label, axis, score) for point, label in zip(points, labels, strict=True)]
    steps = [{"cost": each.cost, "score": each.score} for each in front]
    if len(front) > 1 or front[0].cost < x_domain[1]:
        steps.append({"cost": x_domain[1], "score": front[-1].score})
    x = alt.X("cost:Q", scale=x_scale, axis=_cost_axis(axis.title, x_domain, logarithmic))
    y = alt.Y("score:Q", scale=y_scale, title=score, axis=alt.Axis(tickCount=5))
    line = (
        alt.Chart(page.charts.data(steps))
        .mark_line(interpolate="step-after", color="var(--line)", strokeWidth=1.5)
        .encode(x=x, y=y)
    )
    base = alt.Chart(page.charts.data(rows)).transform_filter(SHOWN).encode(x=x, y=y)
    marks = base.mark_point(filled=True, size=80, cursor="pointer", opacity=1).encode(
        color=alt.Color("run:N", scale=colour_scale(styles), legend=None),
        shape=alt.Shape("run:N", scale=shape_scale(styles), legend=None),
        opacity=emphasis(),
        tooltip=[
            alt.Tooltip("run:N", title="run"),
            alt.Tooltip("shown_score:N", title=score),
            alt.Tooltip("shown_cost:N", title=axis.title),
        ],
    )
    labelled = base.transform_filter("datum.label != ''")
    place: dict[str, Any] = {name: {"expr": f"datum.{name}"} for name in ("dx", "dy", "align")}
    names = labelled.mark_text(baseline="middle", **place).encode(text="label:N", opacity=emphasis())
    # The outline separates a label from the front behind it.
    outlines = labelled.mark_text(
        baseline="middle", stroke="var(--paper)", strokeWidth=4, strokeJoin="round", **place
    ).encode(text="label:N")
    chart = alt.layer(line, outlines, marks, names).properties(height=HEIGHT)
    best = ", ".join(each.group.name for each in front)
    return page.charts.figure(
        chart,
        f"{SCORES[task][0]} against {axis.name}",
        f"{score} against {axis.title} of {len(points)} runs. On the front, from cheap to accurate: {best}.",
    )


def _row(point: Point, label: Label | None, axis: Axis, score: str) -> dict[str, Any]:
    return {
        "run": point.group.name,
        "cost": point.cost,
        "score": point.score,
        "shown_cost": numbers.significant(point.cost),
        "shown_score": numbers.score(point.score),
        "label": "" if label is None else shorten(point.group.name),
        "dx": 0 if label is None else label.dx,
        "dy": 0 if label is None else label.dy,
        "align": "left" if label is None else label.align,
    }


def _domain(values: Sequence[float], logarithmic: bool) -> list[float]:
    """Return the limits of an axis, with a margin for labels."""
    low, high = min(values), max(values)
    if logarithmic:
        margin = 0.08 * math.log(high / low)
        return [low * math.exp(-margin), high * math.exp(margin)]
    margin = 0.1 * ((high - low) or abs(high) or 1.0)
    return [max(0.0, low - margin), high + margin]


def _cost_axis(title: str, domain: Sequence[float], logarithmic: bool) -> "alt.Axis":
    import altair as alt

    if not logarithmic:
        return alt.Axis(title=title, tickCount=4)
    return alt.Axis(title=title, values=logarithmic_ticks(*domain), format="~g")


def _labels(
    points: Sequence[Point],
    front: Sequence[Point],
    x_domain: Sequence[float],
    y_domain: Sequence[float],
    logarithmic: bool,
) -> list[Label | None]:
    scale = math.log if logarithmic else float
    left, right = (scale(value) for value in x_domain)
    bottom, top = y_domain
    positions = [
        (
            (scale(each.cost) - left) / (right - left) * PLOT_WIDTH,
            (top - each.score) / (top - bottom) * HEIGHT,
        )
        for each in points
    ]
    kept = front if len(points) > MOST_LABELS else points
    texts = [shorten(each.group.name) if each in kept else "" for each in points]
    # Labels on the front are placed first.
    order = sorted(range(len(points)), key=lambda index: points[index] not in front)
    placed = place_labels([positions[at] for at in order], [texts[at] for at in order], PLOT_WIDTH, HEIGHT)
    labels: list[Label | None] = [None] * len(points)
    for index, label in zip(order, placed, strict=True):
        labels[index] = label
    return labels
