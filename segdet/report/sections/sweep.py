"""Sweeps: the scores of the trials in their order, the importance of the parameters, and parallel coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from segdet.launch.sweep_history import SweepHistory, read_history
from segdet.launch.sweep_results import shown_value
from segdet.report.charts import SHOWN, WIDE, emphasis
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.util.errors import UserError

STATES = ("finished", "stopped", "running")
"""The states of trials with a score, in the order of their colours."""

HEIGHT = 260
"""The height of a plot in pixels."""


@dataclass(frozen=True)
class Part:
    """A sweep on the page.

    Attributes:
        history: The sweep.
        charts: The charts.
        rows: The trials, best first: the name of the run, the state, the texts of the parameters, and the score.
    """

    history: SweepHistory
    charts: list[Markup]
    rows: Sequence[tuple[str, str, list[str], float | None]]


def section(page: PageData) -> Section | None:
    """Return the charts of each sweep among the folders of the page."""
    parts = []
    for folder in dict.fromkeys(run.folder.parent for run in page.runs):
        try:
            history = read_history(folder)
        except UserError as error:
            page.faults.append(str(error))
            continue
        if history is not None and history.trials:
            parts.append(_part(page, history))
    if not parts:
        return None
    return Section("sweep", "Sweep", render("sweep.html.j2", page=page, parts=parts))


def _part(page: PageData, history: SweepHistory) -> Part:
    names = {run.folder: run.row for run in page.runs}
    rows = [
        {
            "run": names.get(history.folder / trial.name, trial.name),
            "number": trial.number,
            "state": trial.state,
            "score": trial.score,
        }
        for trial in history.trials
        if trial.score is not None
    ]
    charts = []
    if rows:
        charts.append(_history(page, history, rows))
    if history.importances:
        charts.append(_importances(page, history))
    if len(rows) > 1:
        charts.append(_parallel(page, history, rows))
    sign = -1 if history.goal == "maximize" else 1
    ordered = sorted(
        history.trials, key=lambda each: (each.score is None, sign * (each.score or 0.0), each.number)
    )
    table = [
        (
            names.get(history.folder / trial.name, trial.name),
            trial.state,
            [shown_value(trial.point.get(name)) for name in history.parameters],
            trial.score,
        )
        for trial in ordered
    ]
    return Part(history, charts, table)


def _history(page: PageData, history: SweepHistory, rows: list[dict[str, Any]]) -> Markup:
    import altair as alt

    better = max if history.goal == "maximize" else min
    best: list[dict[str, Any]] = []
    for row in rows:
        if row["state"] == "finished":
            best.append(
                {
                    "number": row["number"],
                    "score": better([row["score"], *(each["score"] for each in best[-1:])]),
                }
            )
    x = alt.X("number:Q", title="trial", axis=alt.Axis(tickMinStep=1, tickCount=8, format="d"))
    y = alt.Y("score:Q", title=history.metric, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    colours = alt.Scale(domain=list(STATES), range=[f"var(--series-{at})" for at in (1, 2, 7)])
    points = (
        alt.Chart(page.charts.data(rows))
        .transform_filter(SHOWN)
        .mark_point(filled=True, size=55, cursor="pointer", opacity=1)
        .encode(
            x=x,
            y=y,
            color=alt.Color("state:N", scale=colours, legend=alt.Legend(title=None, orient="top")),
            opacity=emphasis(),
            tooltip=[alt.Tooltip("run:N"), alt.Tooltip("state:N"), alt.Tooltip("score:Q", format=".4f")],
        )
    )
    line = (
        alt.Chart(page.charts.data(best))
        .mark_line(interpolate="step-after", color="var(--ink-2)", strokeWidth=1.2)
        .encode(x=x, y=y)
    )
    chart = alt.layer(line, points).properties(height=HEIGHT)
    label = f"{history.metric} of {len(rows)} trials in their order, with the best one so far."
    return page.charts.figure(chart, "Score of each trial, and the best so far", label)


def _importances(page: PageData, history: SweepHistory) -> Markup:
    import altair as alt

    rows = [{"parameter": name, "share": share} for name, share in history.importances.items()]
    base = alt.Chart(page.charts.data(rows)).encode(
        y=alt.Y("parameter:N", sort=None, title=None, axis=alt.Axis(labelLimit=170, ticks=False)),
        x=alt.X("share:Q", title="importance (PED-ANOVA)", axis=alt.Axis(format="%", tickCount=4)),
    )
    bars = base.mark_bar(color="var(--series-1)", height={"band": 0.6})
    texts = base.mark_text(align="left", dx=5).encode(text=alt.Text("share:Q", format=".0%"))
    chart = alt.layer(bars, texts).properties(height=max(80, 34 * len(rows)))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in history.importances.items())
    return page.charts.figure(chart, f"Importance of the parameters for {history.metric}", shares)


def _parallel(page: PageData, history: SweepHistory, rows: Sequence[dict[str, Any]]) -> Markup:
    import altair as alt

    scored = {trial.number: trial for trial in history.trials if trial.score is not None}
    axes = [*history.parameters, history.metric]
    columns = {
        name: positions([trial.point.get(name) for trial in scored.values()]) for name in history.parameters
    }
    columns[history.metric] = positions([trial.score for trial in scored.values()])
    runs = {row["number"]: row["run"] for row in rows}
    points = [
        {
            "run": runs[trial.number],
            "axis": name,
            "at": columns[name][index],
            "value": shown_value(trial.score if name == history.metric else trial.point.get(name)),
            "score": trial.score,
        }
        for index, trial in enumerate(scored.values())
        for name in axes
    ]
    x = alt.X("axis:N", sort=axes, title=None, axis=alt.Axis(orient="top", labelAngle=0, labelLimit=140))
    y = alt.Y("at:Q", title=None, axis=None, scale=alt.Scale(domain=[0, 1]))
    base = alt.Chart(page.charts.data(points)).transform_filter(SHOWN).encode(x=x, y=y)
    best = (max if history.goal == "maximize" else min)(trial.score for trial in scored.values())  # type: ignore[type-var]
    worst = (min if history.goal == "maximize" else max)(trial.score for trial in scored.values())  # type: ignore[type-var]
    lines = base.mark_line(strokeWidth=1.6).encode(
        detail="run:N",
        color=alt.Color(
            "score:Q",
            scale=alt.Scale(domain=[worst, best], scheme="viridis", reverse=True),
            legend=alt.Legend(title=history.metric, orient="right", gradientLength=120, tickCount=3),
        ),
        opacity=emphasis(0.85, 0.08),
        tooltip=[alt.Tooltip("run:N"), alt.Tooltip("score:Q", format=".4f")],
    )
    rules = alt.Chart(page.charts.data([{"axis": name} for name in axes])).mark_rule().encode(x=x)
    labels = [
        {"axis": name, "at": at, "value": value}
        for name in axes
        for at, value in ends([(point["at"], point["value"]) for point in points if point["axis"] == name])
    ]
    texts = (
        alt.Chart(page.charts.data(labels))
        .mark_text(align="left", dx=5, color="var(--ink-2)")
        .encode(x=x, y=y, text="value:N")
    )
    chart = alt.layer(rules, lines, texts).properties(height=HEIGHT)
    label = f"Parameters of {len(scored)} trials: a line for each trial through its values and its score."
    return page.charts.figure(chart, "Parameters of each trial", label, width=WIDE)


def positions(values: Sequence[Any]) -> list[float]:
    """Return the positions of values on an axis between 0 and 1: numbers by size, others in alphabetical order.

    Numbers that span more than two orders of magnitude are placed by their logarithm.
    """
    import math

    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        scale = math.log if low > 0 and high / low > 100 else float
        span = scale(high) - scale(low)
        return [(scale(value) - scale(low)) / span if span else 0.5 for value in values]
    places = sorted({str(value) for value in values})
    return [places.index(str(value)) / max(1, len(places) - 1) for value in values]


def ends(points: Sequence[tuple[float, str]], most: int = 8) -> list[tuple[float, str]]:
    """Return the labels of an axis: all values if there are at most ``most``, otherwise the first and the last."""
    distinct = sorted(dict(points).items())
    return distinct if len(distinct) <= most else [distinct[0], distinct[-1]]
