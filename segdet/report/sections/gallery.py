"""The gallery: the same images for all runs, truth beside prediction, with a score threshold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from segdet.report.disagreement import SCORE_NAMES, image_scores
from segdet.report.gallery_data import Box, Gallery, Panel, gallery_of, group_by_images
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import RunData

SHOWN = 4
"""The number of runs that are shown side by side at first."""


@dataclass(frozen=True)
class _Block:
    """The gallery of one task and its appearance.

    Attributes:
        id: The id of the element.
        task: The task.
        runs: The runs.
        gallery: The images.
        subtitle: Distinguishes several galleries of a task.
        shown: The indices of the runs that are shown at first.
        test_images: The number of images of the test.
        score_name: The name of the score of an image.
        image_score: The name of the score in a sentence about disagreement.
        means: The mean score of the images of each run.
        script: The values that the page's code needs.
    """

    id: str
    task: str
    runs: list[RunData]
    gallery: Gallery
    subtitle: str
    shown: list[int]
    test_images: int
    score_name: str
    image_score: str
    means: list[float]
    script: dict[str, object]


def section(page: PageData) -> Section | None:
    """Return the section, or None if no run has gallery images."""
    groups = group_by_images(page.runs)
    if not groups:
        return None
    several = {group.task for group in groups if sum(each.task == group.task for each in groups) > 1}
    blocks = [_block(gallery_of(group), group.task in several) for group in groups]
    return Section("gallery", "Gallery", render("gallery.html.j2", page=page, items=blocks))


def _block(gallery: Gallery, several: bool) -> _Block:
    group = gallery.group
    script: dict[str, object] = {}
    if gallery.counts:
        script = {
            "thresholds": gallery.counts[0].thresholds.tolist(),
            "runs": [
                {
                    "correct": _steps(counts.correct),
                    "wrong": _steps(counts.wrong),
                    "objects": counts.objects,
                    "best": counts.best,
                }
                for counts in gallery.counts
            ],
        }
    described = [
        replace(
            image,
            panels=[_described(image.objects, panel, gallery, at) for at, panel in enumerate(image.panels)],
        )
        for image in gallery.images
    ]
    means = [float(np.mean(image_scores(each))) for each in group.evidences]
    return _Block(
        id=group.id,
        task=group.task,
        runs=group.runs,
        gallery=replace(gallery, images=described),
        subtitle=group.runs[0].record.data if several else "",
        shown=shown_first(group.runs, means),
        test_images=len(group.evidences[0]),
        score_name=SCORE_NAMES[group.task],
        image_score=f"each image's {SCORE_NAMES[group.task]}"
        + (" at the run's best threshold" if gallery.counts else ""),
        means=means,
        script=script,
    )


def _steps(counts: np.ndarray) -> list[int]:
    """Return the first count, then the difference of each count from the previous one, which is shorter as text."""
    return [int(counts[0]), *np.diff(counts).tolist()]


def shown_first(runs: Sequence[RunData], means: Sequence[float]) -> list[int]:
    """Return the indices of up to `SHOWN` runs: the first seeds of rows that are spread over the scores.

    Other seeds are added if there are fewer rows.

    Args:
        runs: The runs.
        means: The mean score of the images of each run.
    """
    rows = [run.row for run in runs]
    first = [index for index in range(len(runs)) if rows.index(rows[index]) == index]
    first.sort(key=lambda index: means[index])
    chosen = np.linspace(0, len(first) - 1, min(SHOWN, len(first))).round().astype(int)
    others = [index for index in range(len(runs)) if index not in first]
    return sorted([*(first[at] for at in chosen), *others[: SHOWN - len(chosen)]])


def _described(objects: Sequence[Box], panel: Panel, gallery: Gallery, run: int) -> Panel:
    """Return the panel with a sentence about its numbers."""
    if panel.note or not gallery.counts:
        return panel
    best = gallery.counts[run].best
    kinds = [box.kind for box in panel.boxes if box.position >= best]
    correct, wrong = kinds.count("correct"), len(kinds) - kinds.count("correct")
    missed = sum(each.kind == "object" for each in objects) - correct
    return replace(panel, note=describe(panel.score, correct, wrong, missed))


def describe(score: float, correct: int, wrong: int, missed: int) -> str:
    """Return F1 and the numbers of detections of an image in words. The page's code writes the same."""
    if not correct + wrong + missed:
        return f"F1 {score:.2f}: no objects, no detections"
    return f"F1 {score:.2f}: {correct} correct, {wrong} wrong, {missed} missed"
