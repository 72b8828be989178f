"""Confusion matrices of a test, and the images of each of their cells."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from segdet.report.detection_counts import detection_errors
from segdet.runs.evidence import DetectionEvidence, Evidence, LocalizationEvidence, SegmentationEvidence

BACKGROUND = "background"
"""The name of the row of detections without an object and of the column of objects without a detection."""

OTHER = "other classes"
"""The name of the row and the column that merge all other classes in a reduced matrix."""


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix as a list of counts per image.

    Attributes:
        names: The names of the rows (true classes) and columns (predicted classes).
        unit: The counted things: ``objects``, ``pixels`` or ``images``.
        images: int64 ``[C]``, the index of each count's image.
        rows: int64 ``[C]``.
        columns: int64 ``[C]``.
        counts: int64 ``[C]``.
        min_score: The minimum score of the detections, None for other tasks.
    """

    names: list[str]
    unit: str
    images: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    counts: np.ndarray
    min_score: float | None = None

    @property
    def matrix(self) -> np.ndarray:
        """int64 ``[N, N]``: the counts of all images."""
        size = len(self.names)
        matrix = np.zeros((size, size), np.int64)
        np.add.at(matrix, (self.rows, self.columns), self.counts)
        return matrix

    def reduced(self, classes: int) -> "Confusion":
        """Return a matrix of the ``classes`` classes with the most errors; the others are merged into one.

        The background of a detection matrix is kept. A matrix that is small enough is returned as it is.
        """
        kept_always = int(self.min_score is not None)
        if len(self.names) - kept_always <= classes + 1:
            return self
        matrix = self.matrix
        errors = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
        candidates = len(self.names) - kept_always
        kept = np.sort(np.argsort(-errors[:candidates], kind="stable")[:classes])
        new = np.full(len(self.names), classes)
        new[kept] = np.arange(classes)
        names = [*(self.names[index] for index in kept), OTHER]
        if kept_always:
            new[-1] = len(names)
            names.append(self.names[-1])
        return Confusion(
            names, self.unit, self.images, new[self.rows], new[self.columns], self.counts, self.min_score
        )

    def images_by_cell(self) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """Return the indices of the images of each cell that is not zero, the largest count first, and their counts."""
        size = len(self.names)
        total = int(self.images.max(initial=0)) + 1
        keys, inverse = np.unique(
            (self.rows * size + self.columns) * total + self.images, return_inverse=True
        )
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, inverse, self.counts)
        cells, images = keys // total, keys % total
        order = np.lexsort((images, -counts, cells))
        cells, images, counts = cells[order], images[order], counts[order]
        edges = np.flatnonzero(np.diff(cells, prepend=-1, append=-1))
        return {
            divmod(int(cells[start]), size): (images[start:stop], counts[start:stop])
            for start, stop in pairwise(edges)
        }


def confusion_of(evidence: Evidence, min_score: float | None = None) -> Confusion:
    """Return the confusion matrix of a test.

    Args:
        evidence: The evidence of the test.
        min_score: The minimum score of the detections of a detector; by default the score of its best F1.
    """
    names = list(evidence.class_names)
    if isinstance(evidence, DetectionEvidence):
        errors = detection_errors(evidence)
        score = errors.best_score() if min_score is None else min_score
        image_ids, rows, columns = errors.confusion_entries(score)
        images = np.searchsorted(evidence.image_ids, image_ids)
        return Confusion(
            [*names, BACKGROUND], "objects", images, rows, columns, np.ones(len(rows), np.int64), score
        )
    if isinstance(evidence, SegmentationEvidence):
        rows, columns = evidence.truth.astype(np.int64), evidence.predicted.astype(np.int64)
        return Confusion(names, "pixels", evidence.image.astype(np.int64), rows, columns, evidence.pixels)
    assert isinstance(evidence, LocalizationEvidence)
    rows, columns = evidence.label.astype(np.int64) - 1, evidence.predicted[:, 0].astype(np.int64) - 1
    count = len(evidence)
    return Confusion(names, "images", np.arange(count), rows, columns, np.ones(count, np.int64))
