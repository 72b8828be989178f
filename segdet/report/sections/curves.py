"""Training curves: the main validation score and the training loss, by step and by wall-clock time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from segdet.report.charts import SHOWN, colour_scale, dash_scale, emphasis, logarithmic_ticks
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import Curve, RunData

if TYPE_CHECKING:
    import altair as alt

MOST_POINTS = 16_000
"""The number of points of all curves in a chart."""

HEIGHT = 240
"""The height of a plot in pixels."""

PARTS = 60
"""The largest number of means of a noisy curve."""

FEWEST_PARTS = 12
"""The smallest number of means of a noisy curve."""

MOST_MARKED = 12
"""With more curves than this, they are fainter and have no markers."""

MOST_NAMES = 24
"""With more runs than this, there is no legend."""


def section(page: PageData) -> Section | None:
    """Return the charts of each task that has logged values."""
    parts = []
    for task in page.tasks:
        runs = page.runs_of(task)
        main = f"val/{runs[0].main_score}"
        charts = [chart for name in (main, "train/loss") for chart in _charts(page, runs, name)]
        if charts:
            names = list(dict.fromkeys(run.row for run in runs))
            parts.append((task, charts, names if len(names) <= MOST_NAMES else []))
    if not parts:
        return None
    return Section("curves", "Training curves", render("curves.html.j2", page=page, parts=parts))


def _charts(page: PageData, runs: Sequence[RunData], name: str) -> list[Markup]:
    curves = [(run, run.curves[name]) for run in runs if name in run.curves]
    curves = [(run, curve) for run, curve in curves if len(curve) > 1]
    if not curves:
        return []
    per_curve = max(40, min(500, MOST_POINTS // len(curves)))
    rows = [row for run, curve in curves for row in _rows(run, downsample(curve, per_curve))]
    means = None
    if name.startswith("train/") and max(len(curve) for _, curve in curves) > 2 * FEWEST_PARTS:
        most = PARTS if len(curves) <= MOST_MARKED else PARTS // 2
        rows_of_means = [
            row
            for run, curve in curves
            for row in _rows(run, means_of(curve, min(most, max(FEWEST_PARTS, len(curve) // 8))))
        ]
        means = page.charts.data(rows_of_means)
    axes = [("step", "optimizer step")]
    if any(row["minutes"] is not None for row in rows):
        axes.append(("minutes", "minutes of training"))
    data = page.charts.data(rows)
    names, values = [run.row for run, _ in curves], [row["value"] for row in rows]
    return [_chart(page, data, means, name, x, title, names, values) for x, title in axes]


def means_of(curve: Curve, parts: int) -> Curve:
    """Return the means of ``parts`` equally long parts of a curve."""
    sections = np.array_split(np.arange(len(curve)), min(parts, len(curve)))
    steps, seconds, values = (
        np.array([column[part].mean() for part in sections])
        for column in (curve.steps, curve.seconds, curve.values)
    )
    return Curve(steps.round().astype(np.int64), seconds, values)


def downsample(curve: Curve, most: int) -> Curve:
    """Return at most ``most`` points of a curve: the first, the last, and the extremes of equally long parts.

    The largest and the smallest value are kept exactly.
    """
    if len(curve) <= most:
        return curve
    parts = np.array_split(np.arange(1, len(curve) - 1), max(1, (most - 2) // 2))
    extremes = [
        part[index] for part in parts for index in (curve.values[part].argmin(), curve.values[part].argmax())
    ]
    kept = np.unique([0, *extremes, len(curve) - 1])
    return Curve(curve.steps[kept], curve.seconds[kept], curve.values[kept])


def _rows(run: RunData, curve: Curve) -> list[dict[str, Any]]:
    extremes = {curve.values.min(), curve.values.max()}
    return [
        {
            "run": run.row,
            "name": run.name,
            "step": step,
            "minutes": round(seconds / 60, 3) if np.isfinite(seconds) else None,
            "value": value if value in extremes else float(f"{value:.5g}"),
        }
        for step, seconds, value in zip(
            curve.steps.tolist(), curve.seconds.tolist(), curve.values.tolist(), strict=True
        )
    ]


def _chart(
    page: PageData,
    rows: "alt.NamedData",
    means: "alt.NamedData | None",
    name: str,
    x: str,
    x_title: str,
    runs: Sequence[str],
    values: Sequence[float],
) -> Markup:
    import altair as alt

    styles, count = page.styles_of(runs), len(runs)
    is_loss = name.startswith("train/")
    logarithmic = is_loss and min(values) > 0 and max(values) / min(values) > 20
    scale = alt.Scale(type="log") if logarithmic else alt.Scale(zero=False)
    y_axis = alt.Axis(tickCount=5)
    if logarithmic:
        y_axis = alt.Axis(values=logarithmic_ticks(min(values), max(values)), format="~g")
    few = count <= MOST_MARKED

    def lines(data: alt.NamedData, opacity: Any, width: float, marked: bool) -> "alt.Chart":
        return (
            alt.Chart(data)
            .transform_filter(SHOWN)
            .transform_filter(f"isValid(datum.{x})")
            .mark_line(
                strokeWidth=width,
                strokeJoin="round",
                point={"size": 24, "filled": True} if marked else False,
                cursor="pointer",
            )
            .encode(
                x=alt.X(
                    f"{x}:Q", title=x_title, axis=alt.Axis(tickCount=5, format="~s" if x == "step" else "~g")
                ),
                y=alt.Y("value:Q", title=name, scale=scale, axis=y_axis),
                color=alt.Color("run:N", scale=colour_scale(styles), legend=None),
                strokeDash=alt.StrokeDash("run:N", scale=dash_scale(styles), legend=None),
                detail="name:N",
                opacity=opacity,
                tooltip=[alt.Tooltip("name:N", title="run")],
                order=alt.Order(f"{x}:Q"),
            )
        )

    strong = emphasis(0.95 if few else 0.6, 0.1)
    if means is None:
        chart: Any = lines(rows, strong, 1.5, few and not is_loss)
    else:
        chart = alt.layer(
            lines(rows, emphasis(0.3 if few else 0.06, 0.02), 0.9, False), lines(means, strong, 1.8, False)
        )
    label = f"{name} of {count} runs by {x_title}, from {min(values):.3g} to {max(values):.3g}."
    return page.charts.figure(chart.properties(height=HEIGHT), f"{name} by {x_title}", label, width=480)
