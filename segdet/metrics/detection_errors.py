"""Where a detector loses its average precision, and what it takes for what.

Source: Bolya, Foley, Hays, Hoffman, TIDE: A General Toolbox for Identifying Object Detection Errors (ECCV 2020),
section 2: every mistake has one kind, and the weight of a kind is what the AP at IoU .5 would gain were its mistakes
alone put right. Where the paper leaves something open, the order in which kinds are looked for above all, it is done
as in the authors' own ``tidecv``.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from segdet.metrics.average_precision import (
    MOST,
    Evaluation,
    Found,
    Truth,
    class_slices,
    interpolated,
    matched,
)

FOREGROUND = 0.5
"""The IoU from which on a detection has found an object."""

BACKGROUND = 0.1
"""The IoU below which a detection has nothing to do with an object."""

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
"""The kinds of mistakes; the last one is made by objects, the others by detections."""

SPECIAL = ("false_positive", "false_negative")
"""All wrong detections together, and all objects that were not found."""

RIGHT, IGNORED = -1, -2
"""What stands in a kind's place where there is no mistake, and for objects that do not count."""

_CLASSIFICATION, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(KINDS))
_NO_SCORE = 0.3
"""The threshold where no score is better than another: that of the pictures of predictions."""


@dataclass(frozen=True)
class ImageErrors:
    """The mistakes of each image, one row an image.

    Attributes:
        images: int64 ``[I]``, the ids of the images that have an object or a detection at any score.
        right: int64 ``[I]``, right detections.
        counts: int64 ``[I, 6]``, mistakes by `KINDS`.
        f1: float64 ``[I]``, the harmonic mean of precision and recall; NaN where there is neither an object nor a
            detection.
    """

    images: np.ndarray
    right: np.ndarray
    counts: np.ndarray
    f1: np.ndarray

    def worst(self) -> np.ndarray:
        """The rows that have a mistake, the lowest F1 first, of equal ones that with more mistakes."""
        total = self.counts.sum(1)
        order = np.lexsort((self.images, -total, self.f1))
        return order[total[order] > 0]


class DetectionErrors:
    """The mistakes of the detections of a dataset.

    Detections are matched with objects as for COCO's AP at IoU .5: best first, within their class, at most 100 an
    image and class. Crowds and difficult objects do not count, and neither do detections that fall to them. A
    detection that found no object is, by the first of these that holds,

    - a ``localization`` error if its best overlap with an object of its class is from .1 to below .5;
    - a ``classification`` error if it overlaps an object of another class by .5 or more;
    - a ``duplicate`` if it overlaps an object of its class by .5 or more, which a better one has found;
    - ``background`` if it overlaps no object by .1 or more;
    - else it is ``both`` in the wrong place and of the wrong class.

    An object that no detection found is ``missed``, unless one of the first two kinds is about it.

    What is put right of each kind: a classification error gets the class of the object that it overlaps most, a
    localization error the box of its own, and of all detections that an object has then, the one that found it before
    included, the best stays and the others go. (``tidecv`` keeps the one that found it before, even where the other is
    better.) Errors of the other three kinds go. Missed objects are not looked for: recall counts the others, as though
    those missed were found as precisely as they are. ``false_positive`` takes away all wrong detections,
    ``false_negative`` looks for no object that was not found. Of a class that is left without an object to look for
    the AP is 1 if nothing is found of it either, else 0.

    Args:
        class_names: The names of the classes, label 1 first.
        found: What was detected.
        truth: What is there.

    Attributes:
        found: The detections that count, by image, class and score.
        truth: The objects, by image and class, with those that do not count.
        kinds: int64 ``[N]``, the kind of each detection by its place in `KINDS`, or `RIGHT`.
        objects: int64 ``[N]``, the object that a right detection found, or that a mistake of the kinds classification,
            localization and duplicate is about, else -1.
    """

    def __init__(self, class_names: Sequence[str], found: Found, truth: Truth) -> None:
        self.class_names = list(class_names)
        evaluation = Evaluation(class_names, found, truth)
        self.truth = evaluation.truth
        ignored = self.truth.ignored
        got = evaluation.match(ignored, np.array([FOREGROUND]))[0]
        counts = evaluation.places < MOST
        counts[got >= 0] &= ~ignored[got[got >= 0]]
        self.found = evaluation.found.at(np.flatnonzero(counts))
        self.objects = got[counts]

        place = np.cumsum(counts) - 1
        detections, objects, iou = evaluation.pairs_of_images(BACKGROUND)
        use = counts[detections]
        detections, objects, iou = place[detections[use]], objects[use], iou[use]
        same = self.found.labels[detections] == self.truth.labels[objects]
        near = iou >= FOREGROUND
        self._near = detections[near], objects[near], iou[near]
        number = len(self.objects)
        own, own_iou = _largest(detections[same], objects[same], iou[same], number)
        other, other_iou = _largest(detections[~same], objects[~same], iou[~same], number)

        right = self.objects >= 0
        self.kinds = np.select(
            [
                right,
                (own_iou >= BACKGROUND) & (own_iou < FOREGROUND),
                other_iou >= FOREGROUND,
                own_iou >= FOREGROUND,
                (own_iou < BACKGROUND) & (other_iou < BACKGROUND),
            ],
            [RIGHT, _LOCALIZATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND],
            _BOTH,
        )
        about = np.select(
            [right, np.isin(self.kinds, (_LOCALIZATION, _DUPLICATE)), self.kinds == _CLASSIFICATION],
            [self.objects, own, other],
            -1,
        )
        self.objects = about
        # How many objects of each class are to be found; the AP is the mean of the classes that have some.
        self._counted = self._per_class(self.truth.labels[~ignored])

    @property
    def right(self) -> np.ndarray:
        """bool ``[N]``: the detections that found an object."""
        return self.kinds == RIGHT

    def _per_class(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels, minlength=len(self.class_names) + 1)[1:]

    def states(self, min_score: float = -np.inf) -> np.ndarray:
        """What became of each object by the detections of ``min_score`` or more.

        Returns:
            int64 ``[M]``: `RIGHT` if it was found, the kind of the best mistake that is about it where that is of
            classification or localization, else that of the missed, and `IGNORED` where it does not count.
        """
        states = np.full(len(self.truth.labels), _MISSED)
        about = np.isin(self.kinds, (_CLASSIFICATION, _LOCALIZATION)) & (self.found.scores >= min_score)
        rows = np.flatnonzero(about)
        rows = rows[np.argsort(self.found.scores[rows], kind="stable")]  # the best is written last
        states[self.objects[rows]] = self.kinds[rows]
        states[self.objects[self.right & (self.found.scores >= min_score)]] = RIGHT
        states[self.truth.ignored] = IGNORED
        return states

    # What each kind costs.

    def ap(self, fixed: Collection[str] = ()) -> float:
        """The AP at IoU .5, 0 to 1, were no mistakes of these kinds made; NaN if there is no object.

        Without any it is COCO's, ``map_50``.

        Args:
            fixed: Of `KINDS` and `SPECIAL`.
        """
        labels, right = self.found.labels, self.right
        keep = np.ones(len(labels), bool)
        kinds = {kind for kind, name in enumerate(KINDS) if name in fixed}
        if mended := kinds & {_CLASSIFICATION, _LOCALIZATION}:
            rows = np.flatnonzero(np.isin(self.kinds, [*mended, RIGHT]))
            # Each object's best; of equal scores the one that has found it already.
            rows = rows[np.lexsort((~right[rows], -self.found.scores[rows], self.objects[rows]))]
            best = rows[np.unique(self.objects[rows], return_index=True)[1]]
            keep[rows] = False
            keep[best] = True
            right = np.zeros_like(right)
            right[best] = True
            labels = labels.copy()
            labels[best] = self.truth.labels[self.objects[best]]
        keep &= ~np.isin(self.kinds, [*(kinds & {_BOTH, _DUPLICATE, _BACKGROUND})])
        if "false_positive" in fixed:
            keep &= right
        objects = self._counted
        if _MISSED in kinds:
            objects = objects - self._per_class(self.truth.labels[self.states() == _MISSED])
        if "false_negative" in fixed:
            objects = self._per_class(labels[keep & right])
        return self._mean_ap(labels, right, keep, objects)

    def _mean_ap(self, labels: np.ndarray, right: np.ndarray, keep: np.ndarray, objects: np.ndarray) -> float:
        order = np.lexsort((-self.found.scores, labels))
        order = order[keep[order]]
        values: list[float] = []
        for label, rows in enumerate(class_slices(labels[order], len(self.class_names))):
            if not self._counted[label]:
                continue
            if not objects[label]:
                values.append(float(rows.start == rows.stop))
                continue
            hits = right[order[rows]][None]
            values.append(float(interpolated(hits, np.zeros_like(hits), int(objects[label])).mean()))
        return float(np.mean(values)) if values else float("nan")

    def gains(self) -> dict[str, float]:
        """What putting right each of `KINDS` and `SPECIAL` alone would add to the AP at IoU .5: TIDE's dAP, 0 to 1."""
        before = self.ap()
        return {name: self.ap({name}) - before for name in (*KINDS, *SPECIAL)}

    def counts(self) -> dict[str, int]:
        """How many mistakes of each kind there are, at any score."""
        made = np.bincount(self.kinds[~self.right], minlength=len(KINDS))
        made[_MISSED] = (self.states() == _MISSED).sum()
        return dict(zip(KINDS, made.tolist(), strict=True))

    # What is seen at one score.

    def best_score(self) -> float:
        """The score from which on the detections have the best F1; .3 where not one of them is right."""
        if not self.right.any():
            return _NO_SCORE
        order = np.argsort(-self.found.scores, kind="stable")
        scores = self.found.scores[order]
        f1 = 2 * np.cumsum(self.right[order]) / (np.arange(1, len(order) + 1) + self._counted.sum())
        f1[:-1][scores[:-1] == scores[1:]] = -1  # equal scores come together
        return float(scores[f1.argmax()])

    def confusion(self, min_score: float) -> np.ndarray:
        """How often each class was taken for each, by the detections of ``min_score`` or more.

        Detections and objects that found each other within their class are matched first, as everywhere here; what is
        left over then across the classes by the same rule: best first, the free object of the largest IoU, .5 at least.

        Returns:
            int64 ``[K + 1, K + 1]``, rows the truth, columns what was said; the last row counts detections that
            match no object, the last column objects that none matches.
        """
        shown = self.found.scores >= min_score
        hits = shown & self.right
        left, free = shown & ~self.right, ~self.truth.ignored
        free[self.objects[hits]] = False
        detections, objects, iou = self._near
        use = left[detections] & free[objects]
        order = np.lexsort((-self.found.scores, self.found.images))
        images = self.found.images[order]
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order)) - np.searchsorted(images, images)
        none = np.zeros(len(free), bool)
        got = matched(
            detections[use], objects[use], iou[use], places, none, none, np.array([FOREGROUND])
        )[0]  # fmt: skip
        got[hits] = self.objects[hits]
        free[got[got >= 0]] = False
        last = len(self.class_names)
        said = np.concatenate([self.found.labels[shown] - 1, np.full(free.sum(), last)])
        match = got[shown]
        true = np.full(len(match), last)
        true[match >= 0] = self.truth.labels[match[match >= 0]] - 1
        true = np.concatenate([true, self.truth.labels[free] - 1])
        return np.bincount(true * (last + 1) + said, minlength=(last + 1) ** 2).reshape(last + 1, last + 1)

    def of_images(self, min_score: float) -> ImageErrors:
        """The mistakes of each image's detections of ``min_score`` or more."""
        images = np.unique(np.concatenate([self.found.images, self.truth.images]))
        shown = self.found.scores >= min_score
        of_found = np.searchsorted(images, self.found.images[shown])
        of_truth = np.searchsorted(images, self.truth.images)
        # A column for what is right, behind those of the kinds.
        columns = len(KINDS) + 1
        table = np.bincount(
            of_found * columns + np.where(self.right, columns - 1, self.kinds)[shown],
            minlength=len(images) * columns,
        ).reshape(len(images), columns)
        states = self.states(min_score)
        counts, right = table[:, :-1], table[:, -1]
        counts[:, _MISSED] = np.bincount(of_truth[states == _MISSED], minlength=len(images))
        said = np.bincount(of_found, minlength=len(images))
        there = np.bincount(of_truth[states != IGNORED], minlength=len(images))
        with np.errstate(invalid="ignore"):
            return ImageErrors(images, right, counts, 2 * right / (said + there))


def _largest(
    found: np.ndarray, objects: np.ndarray, iou: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """The object that each of ``number`` detections overlaps most, -1 for none, and how much, ``[N]`` each."""
    order = np.lexsort((objects, -iou, found))
    rows, first = np.unique(found[order], return_index=True)
    best, largest = np.full(number, -1), np.zeros(number)
    best[rows], largest[rows] = objects[order[first]], iou[order[first]]
    return best, largest
