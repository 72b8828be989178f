"""Error analysis of detections: the cost of each kind of error in average precision, and confusions between classes.

Source: Bolya, Foley, Hays, Hoffman, TIDE: A General Toolbox for Identifying Object Detection Errors (ECCV 2020),
section 2. Every error has one kind. The cost of a kind is the gain in AP at IoU .5 if only the errors of this kind were
fixed. Where the paper leaves details open, mainly the order in which kinds are tested, this module follows the authors'
``tidecv``.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from segdet.metrics.average_precision import (
    MAX_DETECTIONS,
    Detections,
    Evaluation,
    Objects,
    best_objects,
    class_slices,
    interpolated_precision,
    match_greedily,
)

FOREGROUND = 0.5
"""The smallest IoU of a correct detection."""

BACKGROUND = 0.1
"""The IoU below which a detection is background."""

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
"""The kinds of errors. Missed objects are the last kind; the others are wrong detections."""

SPECIAL = ("false_positive", "false_negative")
"""All wrong detections together, and all objects that were not detected."""

CORRECT, IGNORED = -1, -2
"""Codes instead of a kind: the first for correct detections and detected objects, the second for ignored objects."""

_CLASSIFICATION, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(KINDS))
_DEFAULT_SCORE = 0.3
"""The score threshold if no threshold is better than another; also the threshold for pictures of predictions."""


@dataclass(frozen=True)
class ImageErrors:
    """The errors of each image."""

    images: np.ndarray  # int64 [I], the ids of the images that have an object or a detection of any score
    correct: np.ndarray  # int64 [I], the number of correct detections
    counts: np.ndarray  # int64 [I, 6], the number of errors by `KINDS`
    f1: (
        np.ndarray
    )  # float64 [I], the harmonic mean of precision and recall; NaN if there is neither object nor detection

    def worst(self) -> np.ndarray:
        """Return the rows of images with errors, by ascending F1, then by descending number of errors."""
        total = self.counts.sum(1)
        order = np.lexsort((self.images, -total, self.f1))
        return order[total[order] > 0]


class DetectionErrors:
    """The errors of the detections of a dataset.

    Detections are matched with objects as for COCO's AP at IoU .5: by descending score, within their class, at most 100
    per image and class. Crowds and difficult objects are ignored, and so are detections matched with them. A
    detection without an object has the first of these kinds that applies:

    - ``localization``: its largest IoU with an object of its class is at least .1 and below .5;
    - ``classification``: its IoU with an object of another class is at least .5;
    - ``duplicate``: its IoU with an object of its class is at least .5, but that object has a better detection;
    - ``background``: its IoU with every object is below .1;
    - ``both``: all other cases, with a wrong location and a wrong class.

    An object without a detection is ``missed``, unless a localization or classification error refers to it.

    Errors are fixed as follows. A classification error gets the class of the object that it overlaps most. A
    localization error gets the box of its object. An object may then have several detections, including the one that
    was matched before; only the best is kept. (``tidecv`` keeps the one matched before even if another is better.)
    Errors of the kinds ``both``, ``duplicate`` and ``background`` are removed. Missed objects are removed from the
    ground truth, so recall counts the other objects only. ``false_positive`` removes all wrong detections,
    ``false_negative`` all objects without a detection. If a class has no objects left, its AP is 1 without detections,
    else 0.

    Args:
        class_names: The names of the classes, label 1 first.
        detections: The detections.
        objects: The ground truth.

    Attributes:
        detections: The detections that are not ignored, ``N`` of them, by image, class and descending score.
        objects: The objects, including ignored ones, ``M`` of them, by image and class.
        kinds: int64 ``[N]``, the kind of each detection as an index into `KINDS`, or `CORRECT`.
        object_of: int64 ``[N]``, the object of a correct detection, or the object that an error of the kinds
            classification, localization or duplicate refers to, else -1.
    """

    def __init__(self, class_names: Sequence[str], detections: Detections, objects: Objects) -> None:
        self.class_names = list(class_names)
        evaluation = Evaluation(class_names, detections, objects)
        self.objects = evaluation.objects
        ignored = self.objects.ignored
        matches = evaluation.match(ignored, np.array([FOREGROUND]))[0]
        keep = evaluation.ranks < MAX_DETECTIONS
        keep[matches >= 0] &= ~ignored[matches[matches >= 0]]
        self.detections = evaluation.detections.select(np.flatnonzero(keep))
        matches = matches[keep]

        index = np.cumsum(keep) - 1
        pair_detections, pair_objects, iou = evaluation.pairs_of_images(BACKGROUND)
        use = keep[pair_detections]
        pair_detections, pair_objects, iou = index[pair_detections[use]], pair_objects[use], iou[use]
        same = self.detections.labels[pair_detections] == self.objects.labels[pair_objects]
        foreground = iou >= FOREGROUND
        self._foreground = pair_detections[foreground], pair_objects[foreground], iou[foreground]
        count = len(matches)
        same_class, same_iou = best_objects(pair_detections[same], pair_objects[same], iou[same], count)
        other_class, other_iou = best_objects(pair_detections[~same], pair_objects[~same], iou[~same], count)

        correct = matches >= 0
        self.kinds = np.select(
            [
                correct,
                (same_iou >= BACKGROUND) & (same_iou < FOREGROUND),
                other_iou >= FOREGROUND,
                same_iou >= FOREGROUND,
                (same_iou < BACKGROUND) & (other_iou < BACKGROUND),
            ],
            [CORRECT, _LOCALIZATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND],
            _BOTH,
        )
        self.object_of = np.select(
            [correct, np.isin(self.kinds, (_LOCALIZATION, _DUPLICATE)), self.kinds == _CLASSIFICATION],
            [matches, same_class, other_class],
            -1,
        )
        # The AP is the mean over the classes with at least one of these objects.
        self._object_counts = self._per_class(self.objects.labels[~ignored])

    @property
    def correct(self) -> np.ndarray:
        """bool ``[N]``: the detections that are matched with an object."""
        return self.kinds == CORRECT

    def _per_class(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels, minlength=len(self.class_names) + 1)[1:]

    def object_states(self, min_score: float = -np.inf) -> np.ndarray:
        """Return the state of each object, considering detections with a score of at least ``min_score``.

        Returns:
            int64 ``[M]``: `CORRECT` if the object is detected; else the kind of the best classification or localization
            error that refers to it, if any; else the kind ``missed``; `IGNORED` for ignored objects.
        """
        states = np.full(len(self.objects.labels), _MISSED)
        near_miss = np.isin(self.kinds, (_CLASSIFICATION, _LOCALIZATION))
        rows = np.flatnonzero(near_miss & (self.detections.scores >= min_score))
        # Sort by ascending score, so that the best error of an object is assigned last.
        rows = rows[np.argsort(self.detections.scores[rows], kind="stable")]
        states[self.object_of[rows]] = self.kinds[rows]
        states[self.object_of[self.correct & (self.detections.scores >= min_score)]] = CORRECT
        states[self.objects.ignored] = IGNORED
        return states

    # The cost of each kind.

    def ap(self, fixed: Collection[str] = ()) -> float:
        """Return the AP at IoU .5, between 0 and 1, if the errors of these kinds were fixed; NaN without an object.

        Without ``fixed`` it is COCO's ``map_50``.

        Args:
            fixed: Names from `KINDS` and `SPECIAL`.
        """
        labels, correct = self.detections.labels, self.correct
        keep = np.ones(len(labels), bool)
        kinds = {kind for kind, name in enumerate(KINDS) if name in fixed}
        if corrected := kinds & {_CLASSIFICATION, _LOCALIZATION}:
            rows = np.flatnonzero(np.isin(self.kinds, [*corrected, CORRECT]))
            # The best detection of each object; at equal scores, the one that is already correct.
            rows = rows[np.lexsort((~correct[rows], -self.detections.scores[rows], self.object_of[rows]))]
            best = rows[np.unique(self.object_of[rows], return_index=True)[1]]
            keep[rows] = False
            keep[best] = True
            correct = np.zeros_like(correct)
            correct[best] = True
            labels = labels.copy()
            labels[best] = self.objects.labels[self.object_of[best]]
        keep &= ~np.isin(self.kinds, [*(kinds & {_BOTH, _DUPLICATE, _BACKGROUND})])
        if "false_positive" in fixed:
            keep &= correct
        object_counts = self._object_counts
        if _MISSED in kinds:
            missed = self.object_states() == _MISSED
            object_counts = object_counts - self._per_class(self.objects.labels[missed])
        if "false_negative" in fixed:
            object_counts = self._per_class(labels[keep & correct])
        return self._mean_ap(labels, correct, keep, object_counts)

    def _mean_ap(
        self, labels: np.ndarray, correct: np.ndarray, keep: np.ndarray, object_counts: np.ndarray
    ) -> float:
        order = np.lexsort((-self.detections.scores, labels))
        order = order[keep[order]]
        values: list[float] = []
        for label, rows in enumerate(class_slices(labels[order], len(self.class_names))):
            if not self._object_counts[label]:
                continue
            if not object_counts[label]:
                values.append(float(rows.start == rows.stop))
                continue
            hits = correct[order[rows]][None]
            precision = interpolated_precision(hits, np.zeros_like(hits), int(object_counts[label]))
            values.append(float(precision.mean()))
        return float(np.mean(values)) if values else float("nan")

    def gains(self) -> dict[str, float]:
        """Return the gain in AP at IoU .5, TIDE's dAP, from fixing each of `KINDS` and `SPECIAL` alone."""
        before = self.ap()
        return {name: self.ap({name}) - before for name in (*KINDS, *SPECIAL)}

    def counts(self) -> dict[str, int]:
        """Return the number of errors of each kind, at any score."""
        counts = np.bincount(self.kinds[~self.correct], minlength=len(KINDS))
        counts[_MISSED] = (self.object_states() == _MISSED).sum()
        return dict(zip(KINDS, counts.tolist(), strict=True))

    # Errors at one score threshold.

    def best_score(self) -> float:
        """Return the score threshold with the best F1; .3 if no detection is correct."""
        if not self.correct.any():
            return _DEFAULT_SCORE
        order = np.argsort(-self.detections.scores, kind="stable")
        scores = self.detections.scores[order]
        f1 = 2 * np.cumsum(self.correct[order]) / (np.arange(1, len(order) + 1) + self._object_counts.sum())
        f1[:-1][scores[:-1] == scores[1:]] = -1  # a threshold cannot separate equal scores
        return float(scores[f1.argmax()])

    def confusion(self, min_score: float) -> np.ndarray:
        """Return the confusion matrix of the detections with a score of at least ``min_score``.

        Returns:
            int64 ``[K + 1, K + 1]``. Rows are true classes, columns predicted classes. The last row counts
            detections without an object, the last column objects without a detection.
        """
        _, true, predicted = self.confusion_entries(min_score)
        size = len(self.class_names) + 1
        return np.bincount(true * size + predicted, minlength=size**2).reshape(size, size)

    def confusion_entries(self, min_score: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the entries of the confusion matrix one by one: matches, detections and objects without a match.

        Detections and objects are matched within their class first, as above. The others are then matched across
        classes by the same rule: by descending score, with the free object of the largest IoU of at least .5.

        Returns:
            The image id, the row and the column of each entry, int64 ``[C]`` each. Rows and columns are labels - 1, and
            K for background.
        """
        shown = self.detections.scores >= min_score
        hits = shown & self.correct
        unmatched, free = shown & ~self.correct, ~self.objects.ignored
        free[self.object_of[hits]] = False
        detections, objects, iou = self._foreground
        use = unmatched[detections] & free[objects]
        order = np.lexsort((-self.detections.scores, self.detections.images))
        images = self.detections.images[order]
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order)) - np.searchsorted(images, images)
        none = np.zeros(len(free), bool)
        matches = match_greedily(
            detections[use], objects[use], iou[use], ranks, none, none, np.array([FOREGROUND])
        )[0]  # fmt: skip
        matches[hits] = self.object_of[hits]
        free[matches[matches >= 0]] = False
        background = len(self.class_names)
        predicted = np.concatenate([self.detections.labels[shown] - 1, np.full(free.sum(), background)])
        match = matches[shown]
        true = np.full(len(match), background)
        true[match >= 0] = self.objects.labels[match[match >= 0]] - 1
        true = np.concatenate([true, self.objects.labels[free] - 1])
        image_ids = np.concatenate([self.detections.images[shown], self.objects.images[free]])
        return image_ids, true, predicted

    def of_images(self, min_score: float) -> ImageErrors:
        """Return the errors per image of the detections with a score of at least ``min_score``."""
        images = np.unique(np.concatenate([self.detections.images, self.objects.images]))
        shown = self.detections.scores >= min_score
        detection_image = np.searchsorted(images, self.detections.images[shown])
        object_image = np.searchsorted(images, self.objects.images)
        # One column per kind, and a last one for correct detections.
        columns = len(KINDS) + 1
        table = np.bincount(
            detection_image * columns + np.where(self.correct, columns - 1, self.kinds)[shown],
            minlength=len(images) * columns,
        ).reshape(len(images), columns)
        states = self.object_states(min_score)
        counts, correct = table[:, :-1], table[:, -1]
        counts[:, _MISSED] = np.bincount(object_image[states == _MISSED], minlength=len(images))
        detection_counts = np.bincount(detection_image, minlength=len(images))
        object_counts = np.bincount(object_image[states != IGNORED], minlength=len(images))
        with np.errstate(invalid="ignore"):
            return ImageErrors(images, correct, counts, 2 * correct / (detection_counts + object_counts))
