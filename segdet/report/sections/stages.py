"""Time per stage: the parts of the time to predict one image."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from segdet.report import numbers
from segdet.report.charts import HUES, SHOWN, WIDE, emphasis, shorten
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import RunGroup
from segdet.report.table import in_stage_order

ROW_HEIGHT = 26
"""The height of a bar with its gap in pixels."""


@dataclass(frozen=True)
class Times:
    """The times of a run.

    Attributes:
        group: The run with its seeds. The times are those of the first seed that has them.
        stages: Milliseconds per image by stage, in order.
    """

    group: RunGroup
    stages: dict[str, float]

    @property
    def total(self) -> float:
        """The sum of the stages in milliseconds."""
        return sum(self.stages.values())


def section(page: PageData) -> Section | None:
    """Return a chart and a table for each task that has runs with stages."""
    parts = []
    for task in page.tasks:
        times = [Times(group, stages) for group in page.groups_of(task) if (stages := stages_of(group))]
        if times:
            times.sort(key=lambda each: -each.total)
            names = in_stage_order(name for each in times for name in each.stages)
            parts.append((task, _chart(page, times, names), times, names))
    if not parts:
        return None
    return Section("stages", "Time per stage", render("stages.html.j2", page=page, parts=parts))


def stages_of(group: RunGroup) -> dict[str, float]:
    """Return the milliseconds per image of each stage: from the profile of a seed, otherwise from its record."""
    for run in group.runs:
        if run.profile is not None and run.profile.stages.ms:
            return run.profile.stages.ms
    return next((run.record.cost.stages_ms for run in group.runs if run.record.cost.stages_ms), {})


def _chart(page: PageData, times: Sequence[Times], names: Sequence[str]) -> Markup:
    import altair as alt

    rows = [
        {
            "run": each.group.name,
            "label": shorten(each.group.name, 24),
            "stage": name,
            "order": names.index(name),
            "ms": each.stages[name],
            "share": each.stages[name] / each.total,
            "shown_ms": f"{numbers.significant(each.stages[name])} ms",
        }
        for each in times
        if each.total > 0
        for name in names
        if name in each.stages
    ]
    totals = [
        {"run": each.group.name, "total": f"{numbers.significant(each.total)} ms", "at": 1.0}
        for each in times
    ]
    order = [each.group.name for each in times]
    y = alt.Y(
        "run:N",
        sort=order,
        title=None,
        axis=alt.Axis(labelLimit=150, ticks=False, domain=False),
        scale=alt.Scale(paddingInner=0.35),
    )
    colours = [f"var(--series-{position % HUES + 1})" for position in range(len(names))]
    bars = (
        alt.Chart(page.charts.data(rows))
        .transform_filter(SHOWN)
        .mark_bar(cursor="pointer", stroke="var(--paper)", strokeWidth=1)
        .encode(
            y=y,
            x=alt.X(
                "share:Q",
                stack="zero",
                title="share of the time per image",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", tickCount=5),
            ),
            color=alt.Color(
                "stage:N",
                scale=alt.Scale(domain=list(names), range=colours),
                legend=alt.Legend(title=None, orient="top", columns=4, symbolType="square"),
            ),
            order="order:Q",
            opacity=emphasis(),
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("stage:N"),
                alt.Tooltip("shown_ms:N", title="time"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )
    texts = (
        alt.Chart(page.charts.data(totals))
        .transform_filter(SHOWN)
        .mark_text(align="left", dx=6, clip=False)
        .encode(y=y, x=alt.X("at:Q", title="share of the time per image"), text="total:N", opacity=emphasis())
    )
    slowest = times[0]
    label = (
        f"Share of each stage in the time per image, of {len(times)} runs. The slowest is {slowest.group.name} "
        f"with {numbers.significant(slowest.total)} ms."
    )
    chart = alt.layer(bars, texts).properties(height=ROW_HEIGHT * len(times))
    return page.charts.figure(chart, "", label, width=WIDE)
