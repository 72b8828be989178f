"""The recall of the region proposals that detectors classify."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segdet.report.charts import SHOWN, colour_scale, emphasis, shape_scale
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import RunGroup

if TYPE_CHECKING:
    import altair as alt

IOUS = {"proposal_recall_50": 0.5, "proposal_recall_70": 0.7}


@dataclass(frozen=True)
class _Row:
    """The proposals of a group of runs that differ only in their seed: means over the seeds.

    Attributes:
        group: The runs.
        boxes: The proposals per image.
        recalls: The recall at each IoU of `IOUS`.
        map_50: The AP at IoU .5 of the detector.
    """

    group: RunGroup
    boxes: float
    recalls: list[float]
    map_50: float


def section(page: PageData) -> Section | None:
    """Return the section, or None if no detector with proposals was tested."""
    rows = [row for group in page.groups_of("detection") if (row := _row(group)) is not None]
    if not rows:
        return None
    figure = page.charts.figure(
        _chart(page, rows),
        title="Recall of the proposals",
        label="Recall of the objects against the number of proposals per image, at IoU .5 and .7; the table has the "
        "same numbers.",
        caption="The recall at IoU .5 bounds the recall of a detector without box regression.",
    )
    html = render("proposals.html.j2", page=page, rows=rows, ious=list(IOUS.values()), figure=figure)
    return Section("proposals", "Region proposals", html)


def _row(group: RunGroup) -> _Row | None:
    names = ("proposals", *IOUS, "map_50")
    values = [group.values(f"test/{name}") for name in names]
    if not all(values):
        return None
    boxes, *recalls, map_50 = (float(np.mean(each)) for each in values)
    return _Row(group, boxes, recalls, map_50)


def _chart(page: PageData, rows: list[_Row]) -> "alt.LayerChart":
    import altair as alt

    values = [
        {"run": row.group.name, "boxes": row.boxes, "iou": f"IoU {iou:.1f}", "recall": recall}
        for row in rows
        for iou, recall in zip(IOUS.values(), row.recalls, strict=True)
    ]
    styles = page.styles_of(row.group.name for row in rows)
    base = alt.Chart(alt.InlineData(values=values)).transform_filter(SHOWN)
    boxes = alt.X("boxes:Q", title="proposals per image", scale=alt.Scale(type="log", nice=True, padding=20))
    recall = alt.Y("recall:Q", title="recall", scale=alt.Scale(domain=[0, 1]))
    legend = alt.Legend(orient="right", title=None)
    colour = alt.Color("run:N", scale=colour_scale(styles), legend=legend)
    lines = base.mark_line(strokeWidth=1.5).encode(
        boxes, recall, colour, detail="run:N", opacity=emphasis(0.5)
    )
    points = base.mark_point(filled=True, size=80).encode(
        boxes,
        recall,
        colour,
        shape=alt.Shape("run:N", scale=shape_scale(styles), legend=legend),
        opacity=emphasis(),
        tooltip=[
            "run:N",
            "iou:N",
            alt.Tooltip("boxes:Q", format=",.0f"),
            alt.Tooltip("recall:Q", format=".3f"),
        ],
    )
    labels = base.mark_text(dx=10, align="left").encode(boxes, recall, text="iou:N", opacity=emphasis())
    return alt.LayerChart(layer=[lines, points, labels])
