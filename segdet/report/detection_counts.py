"""Detections of a test that are correct and wrong above each score threshold, counted from the evidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from segdet.metrics.average_precision import Detections, Objects
from segdet.metrics.detection_errors import DetectionErrors
from segdet.runs.evidence import CORRECT, WRONG, DetectionEvidence

STEPS = 1000
"""The number of steps between the lowest and the highest threshold of a slider."""


@dataclass(frozen=True)
class ScoreCounts:
    """The numbers of correct and wrong detections with a score of at least each threshold.

    Attributes:
        thresholds: float64 ``[T]``, ascending.
        correct: int64 ``[T]``.
        wrong: int64 ``[T]``.
        objects: The number of objects, without crowds and difficult ones.
        best: The index of the threshold of the best F1.
    """

    thresholds: np.ndarray
    correct: np.ndarray
    wrong: np.ndarray
    objects: int
    best: int

    @property
    def precision(self) -> np.ndarray:
        """float64 ``[T]``: the fraction of the detections that are correct; NaN without a detection."""
        return _ratio(self.correct, self.correct + self.wrong)

    @property
    def recall(self) -> np.ndarray:
        """float64 ``[T]``: the fraction of the objects that are detected; NaN without an object."""
        return _ratio(self.correct, np.full_like(self.correct, self.objects))

    @property
    def f1(self) -> np.ndarray:
        """float64 ``[T]``: the harmonic mean of precision and recall; NaN without a detection and an object."""
        return _ratio(2 * self.correct, self.correct + self.wrong + self.objects)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


@lru_cache(maxsize=32)
def detection_errors(evidence: DetectionEvidence) -> DetectionErrors:
    """Return the errors of the detections. They equal those that the test computed."""
    ids = evidence.image_ids
    return DetectionErrors(
        evidence.class_names,
        Detections(
            ids[evidence.image],
            evidence.box.astype(np.float64),
            evidence.label.astype(np.int64),
            evidence.score.astype(np.float64),
        ),
        Objects(
            ids[evidence.object_image],
            evidence.object_box.astype(np.float64),
            evidence.object_label.astype(np.int64),
            evidence.object_crowd,
            evidence.object_difficult,
            evidence.object_area,
        ),
    )


def thresholds(evidence: Sequence[DetectionEvidence]) -> np.ndarray:
    """Return the thresholds of a slider for the runs that ``evidence`` belongs to: float64 ``[T]``, ascending.

    They are evenly spaced from 0 to 1, or over the range of the scores if some are not probabilities. The scores of the
    best F1 of each run are added.
    """
    scores = [each.score for each in evidence if len(each.score)]
    low = min([0.0, *(float(each.min()) for each in scores)])
    high = max([1.0, *(float(each.max()) for each in scores)])
    best = [detection_errors(each).best_score() for each in evidence]
    # Rounding keeps numbers such as .3 exact, which accumulated steps would miss.
    return np.unique([*np.round(np.linspace(low, high, STEPS + 1), 6), *best])


def count_by_score(evidence: DetectionEvidence, thresholds: np.ndarray) -> ScoreCounts:
    """Count the detections at each of the ascending ``thresholds`` by COCO's matches at IoU .5.

    The thresholds contain the score of the best F1.
    """
    match, score = evidence.match[:, 0], evidence.score.astype(np.float64)
    correct, wrong = (_at_least(np.sort(score[match == value]), thresholds) for value in (CORRECT, WRONG))
    objects = int((~(evidence.object_crowd | evidence.object_difficult)).sum())
    best = int(np.searchsorted(thresholds, detection_errors(evidence).best_score()))
    return ScoreCounts(thresholds, correct, wrong, objects, best)


def _at_least(ascending: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(ascending) - np.searchsorted(ascending, thresholds, side="left")
