"""The gain in AP from fixing each kind of error of a detector."""

from dataclasses import dataclass

import numpy as np

from segdet.metrics.detection_errors import KINDS, SPECIAL
from segdet.report.detection_counts import detection_errors
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import RunData, RunGroup
from segdet.runs.evidence import DetectionEvidence

DESCRIPTIONS = {
    "classification": "correct box, wrong class",
    "localization": "correct class, IoU between .1 and .5",
    "both": "wrong class and wrong box",
    "duplicate": "object already found by a better detection",
    "background": "no object",
    "missed": "object without a detection",
    "false_positive": "all wrong detections",
    "false_negative": "all objects without a detection",
}


@dataclass(frozen=True)
class _Row:
    """The errors of a group of runs that differ only in their seed.

    Attributes:
        group: The runs.
        map_50: The AP at IoU .5, the mean over the seeds.
        gains: The gain of each kind, the means over the seeds.
        spread: The standard deviation of each gain over the seeds, None for one seed.
    """

    group: RunGroup
    map_50: float
    gains: list[float]
    spread: list[float] | None


def section(page: PageData) -> Section | None:
    """Return the section, or None if no detector was tested."""
    rows = [row for group in page.groups_of("detection") if (row := _row(group)) is not None]
    if not rows:
        return None
    largest = max((gain for row in rows for gain in row.gains[: len(KINDS)]), default=0.0)
    html = render(
        "errors.html.j2",
        rows=rows,
        kinds=KINDS,
        special=SPECIAL,
        descriptions=DESCRIPTIONS,
        largest=max(largest, 1e-9),
        page=page,
    )
    return Section("errors", "Errors of the detectors", html)


def _row(group: RunGroup) -> _Row | None:
    found = [values for run in group.runs if (values := _gains(run)) is not None]
    if not found:
        return None
    table = np.array(found)
    spread = table[:, 1:].std(0, ddof=1).tolist() if len(table) > 1 else None
    return _Row(group, float(table[:, 0].mean()), table[:, 1:].mean(0).tolist(), spread)


def _gains(run: RunData) -> list[float] | None:
    """Return ``map_50`` and the gains of a run, from its record or else from its evidence; None if both lack them."""
    names = ["test/map_50", *(f"test/dap_{kind}" for kind in (*KINDS, *SPECIAL))]
    recorded = [run.record.metrics.get(name) for name in names]
    values = [value for value in recorded if value is not None]
    if len(values) == len(names):
        return values
    if not isinstance(run.evidence, DetectionEvidence):
        return None
    errors = detection_errors(run.evidence)
    values = [errors.ap(), *errors.gains().values()]
    return None if np.isnan(values).any() else values
