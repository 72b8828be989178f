"""COCO's and VOC's average precision of boxes, from arrays.

Both evaluators go through the detections of an image and class one by one. Here a step handles one
detection of EVERY image and class at once, on the few pairs of boxes that overlap enough to matter, which
gives the same numbers in a fraction of the time.

Sources: Lin et al., Microsoft COCO (2014), and pycocotools' ``cocoeval.py``, whose numbers
``Evaluation.coco`` gives; Everingham et al., The PASCAL Visual Object Classes Challenge (2010), section 4.2,
and the ``voc_eval.py`` of Fast R-CNN's release, whose numbers ``Evaluation.voc`` gives.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

COCO_NAMES = (
    "map",
    "map_50",
    "map_75",
    "map_small",
    "map_medium",
    "map_large",
    "mar_1",
    "mar_10",
    "mar_100",
    "mar_small",
    "mar_medium",
    "mar_large",
)
"""COCO's twelve numbers in the order in which its evaluator prints them."""

_IOUS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_AREAS = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
MOST = 100
"""The most detections of one image and class that COCO looks at."""

_CHUNK = 1 << 21
"""How many pairs of boxes are compared at once: some hundred megabytes."""


@dataclass(frozen=True)
class Found:
    """The detections of a dataset.

    Attributes:
        images: int64 ``[N]``, the id of each one's image; those of one image in any order, ties excepted:
            of equal scores the first counts as the better.
        boxes: float64 ``[N, 4]``, xyxy, finite.
        labels: int64 ``[N]``, 1..K.
        scores: float64 ``[N]``, finite.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def order(self) -> np.ndarray:
        """The rows by image, then class, then score, best first."""
        return np.lexsort((-self.scores, self.labels, self.images))

    def at(self, rows: np.ndarray) -> "Found":
        """The detections at ``rows``."""
        return Found(self.images[rows], self.boxes[rows], self.labels[rows], self.scores[rows])


@dataclass(frozen=True)
class Truth:
    """The objects of a dataset.

    Attributes:
        images: int64 ``[N]``, the id of each one's image.
        boxes: float64 ``[N, 4]``, xyxy.
        labels: int64 ``[N]``, 1..K.
        iscrowd: bool ``[N]``.
        difficult: bool ``[N]``.
        areas: float64 ``[N]``, by which COCO calls an object small, medium or large.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray

    @property
    def ignored(self) -> np.ndarray:
        """bool ``[N]``: what need not be found, and is no mistake if it is."""
        return self.iscrowd | self.difficult

    def order(self) -> np.ndarray:
        """The rows by image, then class."""
        return np.lexsort((self.labels, self.images))

    def at(self, rows: np.ndarray) -> "Truth":
        """The objects at ``rows``."""
        return Truth(
            self.images[rows],
            self.boxes[rows],
            self.labels[rows],
            self.iscrowd[rows],
            self.difficult[rows],
            self.areas[rows],
        )


@dataclass(frozen=True)
class Overlaps:
    """How much detections and objects of the same image and class overlap by their masks instead of their boxes.

    Attributes:
        areas: float64 ``[N]``, of the detections' masks.
        found: int64 ``[P]``, which detection.
        truth: int64 ``[P]``, which object.
        share: float64 ``[P]``, the IoU; for ignored objects the share of the detection that lies in them.
    """

    areas: np.ndarray
    found: np.ndarray
    truth: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class _Pairs:
    """A detection and an object of the same image and class that overlap by half or more.

    Attributes:
        found: int64 ``[P]``, ascending: which detection.
        truth: int64 ``[P]``, ascending for each detection: which object.
        iou: float64 ``[P]``.
        share: float64 ``[P]``, ``iou``, but for ignored objects the share of the detection that lies in
            them, which is COCO's measure for crowds.
    """

    found: np.ndarray
    truth: np.ndarray
    iou: np.ndarray
    share: np.ndarray


class Evaluation:
    """Detections against objects.

    Args:
        class_names: The names of the classes, label 1 first.
        found: What was detected.
        truth: What is there.
        overlaps: Of masks, for `coco`; None for those of the boxes.

    Attributes:
        found: By image, then class, then score, best first; as all that speaks of detections here.
        truth: By image, then class.
        places: int64 ``[N]``, the place of each detection in its image and class, the best one's 0.
    """

    def __init__(
        self, class_names: Sequence[str], found: Found, truth: Truth, overlaps: Overlaps | None = None
    ) -> None:
        self.class_names = list(class_names)
        found_order, truth_order = found.order(), truth.order()
        self.found = found.at(found_order)
        self.truth = truth.at(truth_order)
        # One number for an image and class, ascending in both, as their rows are.
        images = np.unique(np.concatenate([found.images, truth.images]))
        groups = len(self.class_names) + 1
        self._found_group = np.searchsorted(images, self.found.images) * groups + self.found.labels
        self._truth_group = np.searchsorted(images, self.truth.images) * groups + self.truth.labels
        self._groups = groups
        self.places = np.arange(len(found.labels)) - np.searchsorted(self._found_group, self._found_group)
        if overlaps is None:
            self._areas = (self.found.boxes[:, 2:] - self.found.boxes[:, :2]).prod(1)
            self._pairs = self._overlapping(self._found_group, self._truth_group, _IOUS[0])
        else:
            self._areas = overlaps.areas[found_order]
            self._pairs = _moved(overlaps, found_order, truth_order)

    def pairs_of_images(self, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of a detection and an object of its image, of any class, that overlap by ``least`` or more.

        Objects that are ignored are in none.

        Returns:
            Which detection, ascending, which object, and their IoU, ``[P]`` each.
        """
        pairs = self._overlapping(self._found_group // self._groups, self._truth_group // self._groups, least)
        use = (pairs.iou >= least) & ~self.truth.ignored[pairs.truth]
        return pairs.found[use], pairs.truth[use], pairs.iou[use]

    def _overlapping(self, found_group: np.ndarray, truth_group: np.ndarray, least: float) -> _Pairs:
        """All pairs within a group, numbers that ascend on both sides, that overlap by ``least`` or more."""
        start = np.searchsorted(truth_group, found_group, side="left")
        counts = np.searchsorted(truth_group, found_group, side="right") - start
        pieces = [self._compare(start, counts, rows, least) for rows in _chunks(counts)]
        return _Pairs(*(np.concatenate(column) for column in zip(*pieces, strict=True)))

    def _compare(
        self, start: np.ndarray, counts: np.ndarray, rows: slice, least: float
    ) -> tuple[np.ndarray, ...]:
        """The pairs of the detections ``rows``, each of which has ``counts`` objects from ``start`` on."""
        start, counts = start[rows], counts[rows]
        found = np.repeat(np.arange(rows.start, rows.start + len(counts)), counts)
        first = np.repeat(start - (np.cumsum(counts) - counts), counts)
        truth = first + np.arange(len(found))
        one, other = self.found.boxes[found], self.truth.boxes[truth]
        sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
        near = (sides > 0).all(1)
        found, truth, one, other, sides = found[near], truth[near], one[near], other[near], sides[near]
        common, area = sides.prod(1), (one[:, 2:] - one[:, :2]).prod(1)
        iou = common / (area + (other[:, 2:] - other[:, :2]).prod(1) - common)
        share = np.where(self.truth.ignored[truth], common / area, iou)
        enough = np.maximum(iou, share) >= least
        return found[enough], truth[enough], iou[enough], share[enough]

    def coco(self) -> dict[str, float]:
        """COCO's twelve numbers and ``ap/<class>``, equal to pycocotools'; NaN where it says -1.

        It knows no ``difficult``: such objects are treated as crowds.
        """
        places = self.places
        classes = len(self.class_names)
        precision = np.full((len(_IOUS), len(_RECALLS), classes, len(_AREAS)), np.nan)
        recall = {most: np.full((len(_IOUS), classes, len(_AREAS)), np.nan) for most in (1, 10, MOST)}
        # Of equal scores the one in the earlier image comes first, as in the reference.
        by_score = np.lexsort((-self.found.scores, self.found.labels))
        by_score = by_score[places[by_score] < MOST]
        rows = class_slices(self.found.labels[by_score], classes)
        for area, (low, high) in enumerate(_AREAS):
            outside = (self.truth.areas < low) | (self.truth.areas > high) | self.truth.ignored
            counted = np.bincount(self.truth.labels[~outside], minlength=classes + 1)[1:]
            got = self.match(outside)
            right = got >= 0
            ignored = np.zeros_like(right)
            ignored[right] = outside[got[right]]
            ignored |= ~right & ((self._areas < low) | (self._areas > high))
            right &= ~ignored
            for label, objects in enumerate(counted):
                if not objects:
                    continue
                order = by_score[rows[label]]
                hits = right[:, order]
                for most, values in recall.items():
                    values[:, label, area] = hits[:, places[order] < most].sum(1) / objects
                precision[:, :, label, area] = interpolated(hits, ignored[:, order], objects)
        half, three_quarters = 0, 5
        scores = [
            _mean(precision[..., _ALL]),
            _mean(precision[half, ..., _ALL]),
            _mean(precision[three_quarters, ..., _ALL]),
            *(_mean(precision[..., area]) for area in (_SMALL, _MEDIUM, _LARGE)),
            *(_mean(recall[most][..., _ALL]) for most in (1, 10, MOST)),
            *(_mean(recall[MOST][..., area]) for area in (_SMALL, _MEDIUM, _LARGE)),
        ]
        each = {
            f"ap/{name}": _mean(precision[:, :, label, _ALL]) for label, name in enumerate(self.class_names)
        }
        return dict(zip(COCO_NAMES, scores, strict=True)) | each

    def match(self, outside: np.ndarray, ious: np.ndarray = _IOUS) -> np.ndarray:
        """The object that each of an image's first `MOST` detections of a class gets, by COCO's rule.

        Args:
            outside: bool ``[M]``, the objects that do not count, which are taken only if no other can be.
            ious: float64 ``[T]``, the thresholds, ascending from .5 on.

        Returns:
            int64 ``[T, N]``, -1 where a detection gets none.
        """
        pairs = self._pairs
        use = np.flatnonzero((pairs.share >= ious[0]) & (self.places[pairs.found] < MOST))
        return matched(
            pairs.found[use],
            pairs.truth[use],
            pairs.share[use],
            self.places,
            outside,
            self.truth.ignored,
            ious,
        )

    def voc(self) -> dict[str, float]:
        """``map_voc07`` and ``map_voc12``, equal to ``voc_eval``'s; classes without an object are left out.

        VOC's boxes are inclusive pixels counted from 1, of width ``xmax - xmin + 1``; ours are exclusive and
        counted from 0, so that the plain difference is the same number. Crowds are treated as ``difficult``.
        """
        pairs, truth = self._pairs, self.truth
        use = np.flatnonzero(pairs.iou > 0.5)
        order = use[np.lexsort((pairs.truth[use], -pairs.iou[use], pairs.found[use]))]
        # Each detection's best object, taken or not: a second detection of it is wrong.
        found, first = np.unique(pairs.found[order], return_index=True)
        best = np.full(len(self.found.labels), -1)
        best[found] = pairs.truth[order[first]]
        ignored = np.zeros(len(best), bool)
        ignored[found] = truth.ignored[best[found]]
        by_score = np.lexsort((-self.found.scores, self.found.labels))
        hits = np.flatnonzero((best[by_score] >= 0) & ~ignored[by_score])
        right = np.zeros(len(best), bool)
        right[by_score[hits[np.unique(best[by_score[hits]], return_index=True)[1]]]] = True
        classes = len(self.class_names)
        counted = np.bincount(truth.labels[~truth.ignored], minlength=classes + 1)[1:]
        rows = class_slices(self.found.labels[by_score], classes)
        old, new = np.full(classes, np.nan), np.full(classes, np.nan)
        for label in np.flatnonzero(counted):
            order = by_score[rows[label]]
            order = order[~ignored[order]]
            old[label], new[label] = _voc_ap(right[order], int(counted[label]))
        return {"map_voc07": _mean(old), "map_voc12": _mean(new)}


def matched(
    found: np.ndarray,
    objects: np.ndarray,
    share: np.ndarray,
    places: np.ndarray,
    outside: np.ndarray,
    ignored: np.ndarray,
    ious: np.ndarray,
) -> np.ndarray:
    """Give each detection, best first, the free object that it overlaps most, at each threshold.

    Args:
        found: int64 ``[P]``, which detection of each pair that may be matched.
        objects: int64 ``[P]``, which object.
        share: float64 ``[P]``, how much they overlap.
        places: int64 ``[N]``, whose turn it is: a detection's place among those that share objects with it.
        outside: bool ``[M]``, the objects that are taken only if no other can be.
        ignored: bool ``[M]``, the objects that any number of detections may take.
        ious: float64 ``[T]``, the thresholds.

    Returns:
        int64 ``[T, N]``, the object that each detection got, -1 for none.
    """
    taken = np.zeros((len(ious), len(outside)), bool)
    got = np.full((len(ious), len(places)), -1)
    # Those that count, then the larger overlap, then the later object: the first that is free is the one.
    order = np.lexsort((-objects, -share, outside[objects], found, places[found]))
    found, objects, share = found[order], objects[order], share[order]
    allowed = share >= ious[:, None]
    for step in _runs(places[found]):
        candidates = objects[step]
        free = allowed[:, step] & (~taken[:, candidates] | ignored[candidates])
        starts = np.flatnonzero(np.diff(found[step], prepend=-1))
        none = len(candidates)
        chosen = np.minimum.reduceat(np.where(free, np.arange(none), none), starts, axis=1)
        threshold, which = np.nonzero(chosen < none)
        objects_chosen = candidates[chosen[threshold, which]]
        taken[threshold, objects_chosen] = True
        got[threshold, found[step][starts][which]] = objects_chosen
    return got


def _moved(overlaps: Overlaps, found_order: np.ndarray, truth_order: np.ndarray) -> _Pairs:
    """The pairs by the new places of detections and objects: row i has become that of ``order[i]``."""
    found, truth = (
        np.argsort(order)[rows]
        for order, rows in ((found_order, overlaps.found), (truth_order, overlaps.truth))
    )
    order = np.lexsort((truth, found))
    share = overlaps.share[order]
    return _Pairs(found[order], truth[order], share, share)


def _chunks(counts: np.ndarray) -> Iterator[slice]:
    """Consecutive rows of at most ``_CHUNK`` in sum (or one row), at least one slice."""
    ends = np.cumsum(counts)
    start = 0
    while True:
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + _CHUNK, side="right")), start + 1)
        yield slice(start, stop)
        start = stop
        if start >= len(counts):
            return


def _runs(values: np.ndarray) -> Iterator[slice]:
    """The slices of equal values of an ascending array."""
    if not len(values):
        return
    for start, stop in pairwise(np.flatnonzero(np.diff(values, prepend=-1, append=-1))):
        yield slice(start, stop)


def class_slices(labels: np.ndarray, classes: int) -> list[slice]:
    """Where each class 1..K stands in ascending labels."""
    edges = np.searchsorted(labels, np.arange(1, classes + 2))
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _mean(values: np.ndarray) -> float:
    """The mean of what is not NaN, NaN if nothing is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def interpolated(right: np.ndarray, ignored: np.ndarray, objects: int) -> np.ndarray:
    """COCO's precision at its 101 recalls: bool ``[T, N]``, best score first, to float64 ``[T, 101]``."""
    tp = np.cumsum(right, 1, dtype=np.float64)
    fp = np.cumsum(~right & ~ignored, 1, dtype=np.float64)
    precision = tp / (fp + tp + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    # Recalls beyond the last are never reached: precision 0.
    best = np.concatenate([best, np.zeros((len(best), 1))], 1)
    reached = [np.searchsorted(row, _RECALLS, side="left") for row in tp / objects]
    return np.take_along_axis(best, np.stack(reached), 1)


def _voc_ap(right: np.ndarray, objects: int) -> tuple[float, float]:
    """VOC's AP of one class by eleven recalls and as an area.

    Args:
        right: bool ``[N]``, best score first, detections of difficult objects left out.
        objects: How many there are to find, at least one.
    """
    tp = np.cumsum(right)
    precision = np.append(np.maximum.accumulate((tp / np.arange(1, len(tp) + 1))[::-1])[::-1], 0.0)
    # In integers: in floating point a recall of .3 may or may not reach the third tenth.
    reached = np.searchsorted(10 * tp, np.arange(11) * objects, side="left")
    steps = np.flatnonzero(right)
    return float(precision[reached].mean()), float(precision[steps].sum() / objects)
