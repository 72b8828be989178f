"""The recall of the region proposals that detectors classify, by number of proposals and by IoU."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segdet.report.charts import SHOWN, colour_scale, dash_scale, emphasis
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import RunData, RunGroup

if TYPE_CHECKING:
    import altair as alt

LOGGED = {"proposal_recall_50": 0.5, "proposal_recall_70": 0.7}
"""The IoU of each recall in a record."""


@dataclass(frozen=True)
class _Curves:
    """The recall of the proposals of a group of runs, the mean over the seeds.

    Attributes:
        counts: float64 ``[C]``, the numbers of proposals per image; the last one is the mean number of all.
        ious: The IoUs.
        recall: float64 ``[C, len(ious)]``.
    """

    counts: np.ndarray
    ious: list[float]
    recall: np.ndarray


@dataclass(frozen=True)
class _Row:
    """The proposals of a group of runs that differ only in their seed: means over the seeds.

    Attributes:
        group: The runs.
        boxes: The proposals per image.
        recalls: The recall of all proposals at each IoU of `LOGGED`.
        map_50: The AP at IoU .5 of the detector.
        curves: The curves, or None if no run has them.
    """

    group: RunGroup
    boxes: float
    recalls: list[float]
    map_50: float
    curves: _Curves | None


def section(page: PageData) -> Section | None:
    """Return the section, or None if no detector with proposals was tested."""
    rows = [row for group in page.groups_of("detection") if (row := _row(group)) is not None]
    if not rows:
        return None
    figures = []
    if with_curves := [row for row in rows if row.curves is not None]:
        label = "{} of the objects; the table has the recall of all proposals."
        figures = [
            page.charts.figure(
                _by_count(page, with_curves),
                title="Recall by number of proposals",
                label=label.format("Recall at IoU .5 and .7 by number of proposals per image"),
                caption="Solid: IoU .5. Dashed: IoU .7. The first proposals of each image are counted.",
            ),
            page.charts.figure(
                _by_iou(page, with_curves),
                title="Recall by IoU",
                label=label.format("Recall of all proposals by IoU"),
                caption="The recall of all proposals at stricter overlaps.",
            ),
        ]
    html = render("proposals.html.j2", page=page, rows=rows, ious=list(LOGGED.values()), figures=figures)
    return Section("proposals", "Region proposals", html)


def _row(group: RunGroup) -> _Row | None:
    values = [group.values(f"test/{name}") for name in ("proposals", *LOGGED, "map_50")]
    if not all(values):
        return None
    boxes, *recalls, map_50 = (float(np.mean(each)) for each in values)
    curves = [curve for run in group.runs if (curve := _curves(run)) is not None]
    curves = [curve for curve in curves if curve.recall.shape == curves[0].recall.shape]
    mean = None
    if curves:
        counts, recall = (
            np.mean([getattr(each, name) for each in curves], 0) for name in ("counts", "recall")
        )
        mean = _Curves(counts, curves[0].ious, recall)
    return _Row(group, boxes, recalls, map_50, mean)


def _curves(run: RunData) -> _Curves | None:
    """Return the recall in the analysis of a run's errors, or None if there is none."""
    path = run.folder / "errors.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")).get("proposals")
        if content is None:
            return None
        counts = [content["per_image"] if count is None else count for count in content["counts"]]
        recall = np.array(content["recall"], np.float64)
        curves = _Curves(np.array(counts, np.float64), [float(iou) for iou in content["ious"]], recall)
        if recall.shape != (len(counts), len(curves.ious)):
            raise ValueError(f"the recall has the shape {recall.shape}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        run.faults.append(f"{path}: cannot be used ({error}); run segdet test again")
        return None
    return None if np.isnan(recall).any() or np.isnan(curves.counts).any() else curves


def _by_count(page: PageData, rows: list[_Row]) -> "alt.LayerChart":
    import altair as alt

    values = []
    for row in rows:
        assert row.curves is not None
        # Numbers beyond the mean number of proposals repeat the recall of all.
        counts = row.curves.counts
        kept = [*np.flatnonzero(counts[:-1] < counts[-1]).tolist(), len(counts) - 1]
        values += [
            {
                "run": row.group.name,
                "IoU": f"{iou:.1f}",
                "proposals": float(counts[at]),
                "recall": float(row.curves.recall[at, row.curves.ious.index(iou)]),
            }
            for iou in LOGGED.values()
            if iou in row.curves.ious
            for at in kept
        ]
    x = alt.X(
        "proposals:Q",
        title="proposals per image",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(labelOverlap="greedy", labelSeparation=6),
    )
    dash = alt.StrokeDash(
        "IoU:N", legend=None, scale=alt.Scale(domain=["0.5", "0.7"], range=[[1, 0], [5, 3]])
    )
    return _lines(page, rows, values, x, dash, ["run:N", "IoU:N", "proposals:Q"])


def _by_iou(page: PageData, rows: list[_Row]) -> "alt.LayerChart":
    import altair as alt

    values = [
        {"run": row.group.name, "IoU": iou, "recall": float(recall)}
        for row in rows
        if row.curves is not None
        for iou, recall in zip(row.curves.ious, row.curves.recall[-1], strict=True)
    ]
    styles = page.styles_of(row.group.name for row in rows)
    dash = alt.StrokeDash("run:N", legend=_legend(), scale=dash_scale(styles), sort=list(styles))
    x = alt.X("IoU:Q", title="IoU", scale=alt.Scale(domain=[0.5, 1.0]), axis=alt.Axis(tickCount=6))
    return _lines(page, rows, values, x, dash, ["run:N", "IoU:Q"])


def _lines(
    page: PageData,
    rows: list[_Row],
    values: list[dict[str, Any]],
    x: "alt.X",
    dash: "alt.StrokeDash",
    tooltip: list[str],
) -> "alt.LayerChart":
    import altair as alt

    styles = page.styles_of(row.group.name for row in rows)
    base = alt.Chart(page.charts.data(values)).transform_filter(SHOWN)
    channels = (
        x,
        alt.Y("recall:Q", title="recall", scale=alt.Scale(domain=[0, 1])),
        alt.Color("run:N", scale=colour_scale(styles), sort=list(styles), legend=_legend()),
    )
    lines = base.mark_line(strokeWidth=2).encode(*channels, strokeDash=dash, opacity=emphasis(0.9))
    points = base.mark_point(filled=True, size=30).encode(
        *channels, opacity=emphasis(0.9), tooltip=[*tooltip, alt.Tooltip("recall:Q", format=".3f")]
    )
    return alt.LayerChart(layer=[lines, points])


def _legend() -> "alt.Legend":
    import altair as alt

    return alt.Legend(orient="top", columns=3, title=None, labelLimit=120, symbolType="stroke")
