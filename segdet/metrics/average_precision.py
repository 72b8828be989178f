"""Average precision of boxes and masks as defined by COCO and VOC, computed on arrays.

The reference evaluators handle the detections of one image and class at a time. Here each step handles one detection of
every image and class at once, and considers only the pairs of boxes that overlap enough. The results are the same, in a
fraction of the time.

Sources: Lin et al., Microsoft COCO (2014); `Evaluation.coco` equals pycocotools' ``cocoeval.py``. Everingham et al.,
The PASCAL Visual Object Classes Challenge (2010), section 4.2; `Evaluation.voc` equals ``voc_eval.py`` of the Fast
R-CNN release.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

COCO_NAMES = (
    "map", "map_50", "map_75", "map_small", "map_medium", "map_large",
    "mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large",
)  # fmt: skip
"""COCO's twelve numbers in the order in which pycocotools prints them."""

MAX_DETECTIONS = 100
"""The number of detections per image and class that COCO evaluates."""

_IOUS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_AREAS = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)

_CHUNK = 1 << 21
"""The number of pairs of boxes that are compared at once. Their arrays take a few hundred megabytes."""


@dataclass(frozen=True)
class Detections:
    """The detections of a dataset, in any order. At equal scores in an image, the first detection ranks higher."""

    images: np.ndarray  # int64 [N], image ids
    boxes: np.ndarray  # float64 [N, 4], xyxy, finite
    labels: np.ndarray  # int64 [N], 1..K
    scores: np.ndarray  # float64 [N], finite
    box_areas: np.ndarray | None = None  # float64 [N]; None to compute them from the boxes

    def order(self) -> np.ndarray:
        """Return the indices that sort by image, then class, then descending score."""
        return np.lexsort((-self.scores, self.labels, self.images))

    def select(self, rows: np.ndarray) -> "Detections":
        """Return the detections at the indices ``rows``."""
        return Detections(**_selected(self, rows))


@dataclass(frozen=True)
class Objects:
    """The ground-truth objects of a dataset, in any order."""

    images: np.ndarray  # int64 [M], image ids
    boxes: np.ndarray  # float64 [M, 4], xyxy
    labels: np.ndarray  # int64 [M], 1..K
    iscrowd: np.ndarray  # bool [M]
    difficult: np.ndarray  # bool [M]
    areas: np.ndarray  # float64 [M]; COCO uses the areas to classify objects as small, medium or large
    box_areas: np.ndarray | None = None  # float64 [M]; None to compute them from the boxes

    @property
    def ignored(self) -> np.ndarray:
        """bool ``[M]``: crowds and difficult objects. Neither detecting nor missing them is an error."""
        return self.iscrowd | self.difficult

    def order(self) -> np.ndarray:
        """Return the indices that sort by image, then class."""
        return np.lexsort((self.labels, self.images))

    def select(self, rows: np.ndarray) -> "Objects":
        """Return the objects at the indices ``rows``."""
        return Objects(**_selected(self, rows))


def _selected(columns: Detections | Objects, rows: np.ndarray) -> dict[str, Any]:
    return {name: None if values is None else values[rows] for name, values in vars(columns).items()}


def _box_areas(columns: Detections | Objects) -> np.ndarray:
    """Return the areas of the boxes: those that are given, or the product of the sides."""
    if columns.box_areas is not None:
        return columns.box_areas
    return np.asarray((columns.boxes[:, 2:] - columns.boxes[:, :2]).prod(1))


@dataclass(frozen=True)
class MaskOverlaps:
    """The overlaps of the masks of detections and objects of the same image and class."""

    areas: np.ndarray  # float64 [N], the areas of the detections' masks
    detections: np.ndarray  # int64 [P], the detection of each pair
    objects: np.ndarray  # int64 [P], the object of each pair
    overlaps: (
        np.ndarray
    )  # float64 [P], the IoU; for ignored objects the intersection over the detection's area


@dataclass(frozen=True)
class _Pairs:
    """The pairs of a detection and an object of the same group that overlap by at least a threshold."""

    detections: np.ndarray  # int64 [P], ascending
    objects: np.ndarray  # int64 [P], ascending for each detection
    iou: np.ndarray  # float64 [P]
    overlaps: (
        np.ndarray
    )  # float64 [P], COCO's overlap: the IoU; for ignored objects the intersection over the detection's area


class Evaluation:
    """The evaluation of detections against objects.

    Args:
        class_names: The names of the classes, label 1 first.
        detections: The detections.
        objects: The ground truth.
        mask_overlaps: The overlaps of masks, for `coco` by masks; None for `coco` and `voc` by boxes.

    Attributes:
        detections: Sorted by image, class and descending score. All arrays ``[N]`` below have the same order.
        objects: Sorted by image and class. All arrays ``[M]`` below have the same order.
        ranks: int64 ``[N]``, the rank of each detection by score within its image and class, from 0.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        detections: Detections,
        objects: Objects,
        mask_overlaps: MaskOverlaps | None = None,
    ) -> None:
        self.class_names = list(class_names)
        detection_order, object_order = detections.order(), objects.order()
        self.detections = detections.select(detection_order)
        self.objects = objects.select(object_order)
        # Number the pairs of an image and a class. The numbers of both arrays ascend.
        images = np.unique(np.concatenate([detections.images, objects.images]))
        groups = len(self.class_names) + 1
        self._detection_group = (
            np.searchsorted(images, self.detections.images) * groups + self.detections.labels
        )
        self._object_group = np.searchsorted(images, self.objects.images) * groups + self.objects.labels
        self._groups = groups
        first = np.searchsorted(self._detection_group, self._detection_group)
        self.ranks = np.arange(len(detections.labels)) - first
        self._box_areas = _box_areas(self.detections), _box_areas(self.objects)
        if mask_overlaps is None:
            self._areas = self._box_areas[0]
            self._pairs = self._overlapping(self._detection_group, self._object_group, _IOUS[0])
        else:
            self._areas = mask_overlaps.areas[detection_order]
            self._pairs = _reindexed(mask_overlaps, detection_order, object_order)

    def pairs_of_images(self, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the pairs of detections and objects of the same image, of any class, with an IoU >= ``threshold``.

        Ignored objects are left out.

        Returns:
            The detections, ascending, the objects, and their IoU, ``[P]`` each.
        """
        pairs = self._overlapping(
            self._detection_group // self._groups, self._object_group // self._groups, threshold
        )
        keep = (pairs.iou >= threshold) & ~self.objects.ignored[pairs.objects]
        return pairs.detections[keep], pairs.objects[keep], pairs.iou[keep]

    def _overlapping(self, detection_group: np.ndarray, object_group: np.ndarray, threshold: float) -> _Pairs:
        """Return all pairs of the same group that overlap by at least ``threshold``; both arrays ascend."""
        start = np.searchsorted(object_group, detection_group, side="left")
        counts = np.searchsorted(object_group, detection_group, side="right") - start
        parts = [self._compare(start, counts, rows, threshold) for rows in _chunks(counts)]
        return _Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _compare(
        self, start: np.ndarray, counts: np.ndarray, rows: slice, threshold: float
    ) -> tuple[np.ndarray, ...]:
        """Compare each detection of ``rows`` with its ``counts`` objects from index ``start`` on."""
        start, counts = start[rows], counts[rows]
        detections = np.repeat(np.arange(rows.start, rows.start + len(counts)), counts)
        first = np.repeat(start - (np.cumsum(counts) - counts), counts)
        objects = first + np.arange(len(detections))
        boxes, others = self.detections.boxes[detections], self.objects.boxes[objects]
        sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
        touching = (sides > 0).all(1)
        detections, objects, sides = detections[touching], objects[touching], sides[touching]
        intersection = sides.prod(1)
        area, other_area = self._box_areas[0][detections], self._box_areas[1][objects]
        iou = intersection / (area + other_area - intersection)
        overlaps = np.where(self.objects.ignored[objects], intersection / area, iou)
        keep = np.maximum(iou, overlaps) >= threshold
        return detections[keep], objects[keep], iou[keep], overlaps[keep]

    def coco(self) -> dict[str, float]:
        """Return COCO's twelve numbers and ``ap/<class>``, equal to those of pycocotools, with NaN instead of its -1.

        COCO has no ``difficult`` flag. Difficult objects are treated as crowds.
        """
        ranks = self.ranks
        classes = len(self.class_names)
        precision = np.full((len(_IOUS), len(_RECALLS), classes, len(_AREAS)), np.nan)
        recall = {
            limit: np.full((len(_IOUS), classes, len(_AREAS)), np.nan) for limit in (1, 10, MAX_DETECTIONS)
        }
        # At equal scores, the detection in the earlier image comes first, as in pycocotools.
        by_score = np.lexsort((-self.detections.scores, self.detections.labels))
        by_score = by_score[ranks[by_score] < MAX_DETECTIONS]
        rows = class_slices(self.detections.labels[by_score], classes)
        for area, (low, high) in enumerate(_AREAS):
            ignored_objects = self._outside(low, high)
            counts = np.bincount(self.objects.labels[~ignored_objects], minlength=classes + 1)[1:]
            correct, ignored = self._coco_matches(low, high)
            for label, count in enumerate(counts):
                if not count:
                    continue
                order = by_score[rows[label]]
                hits = correct[:, order]
                for limit, values in recall.items():
                    values[:, label, area] = hits[:, ranks[order] < limit].sum(1) / count
                precision[:, :, label, area] = interpolated_precision(hits, ignored[:, order], count)
        half, three_quarters = 0, 5
        scores = [
            _mean(precision[..., _ALL]),
            _mean(precision[half, ..., _ALL]),
            _mean(precision[three_quarters, ..., _ALL]),
            *(_mean(precision[..., area]) for area in (_SMALL, _MEDIUM, _LARGE)),
            *(_mean(recall[limit][..., _ALL]) for limit in (1, 10, MAX_DETECTIONS)),
            *(_mean(recall[MAX_DETECTIONS][..., area]) for area in (_SMALL, _MEDIUM, _LARGE)),
        ]
        by_class = {
            f"ap/{name}": _mean(precision[:, :, label, _ALL]) for label, name in enumerate(self.class_names)
        }
        return dict(zip(COCO_NAMES, scores, strict=True)) | by_class

    def coco_matches(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the correct and the ignored detections by COCO's rule, for objects of all areas.

        Returns:
            Two arrays bool ``[10, N]``, one row per IoU. Detections after the first `MAX_DETECTIONS` of their image and
            class are ignored, because COCO does not evaluate them.
        """
        correct, ignored = self._coco_matches(*_AREAS[_ALL])
        return correct, ignored | (self.ranks >= MAX_DETECTIONS)

    def _coco_matches(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the correct and the ignored detections, bool ``[10, N]``, for objects of a range of areas."""
        ignored_objects = self._outside(low, high)
        matches = self.match(ignored_objects)
        correct = matches >= 0
        ignored = np.zeros_like(correct)
        ignored[correct] = ignored_objects[matches[correct]]
        ignored |= ~correct & ((self._areas < low) | (self._areas > high))
        return correct & ~ignored, ignored

    def _outside(self, low: float, high: float) -> np.ndarray:
        """Return the objects that do not count for a range of areas: bool ``[M]``."""
        return (self.objects.areas < low) | (self.objects.areas > high) | self.objects.ignored

    def match(self, ignored: np.ndarray, ious: np.ndarray = _IOUS) -> np.ndarray:
        """Match the first `MAX_DETECTIONS` detections of each image and class with objects by COCO's rule.

        Args:
            ignored: bool ``[M]``, the objects that a detection is matched with only if no other is available.
            ious: float64 ``[T]``, the thresholds, ascending from .5 on.

        Returns:
            int64 ``[T, N]``, the object of each detection, -1 for none.
        """
        pairs = self._pairs
        keep = np.flatnonzero((pairs.overlaps >= ious[0]) & (self.ranks[pairs.detections] < MAX_DETECTIONS))
        candidates = pairs.detections[keep], pairs.objects[keep], pairs.overlaps[keep]
        return match_greedily(*candidates, self.ranks, ignored, self.objects.ignored, ious)

    def voc(self) -> dict[str, float]:
        """Return ``map_voc07`` and ``map_voc12``: the means of `voc_by_class` over the classes with an object."""
        voc07, voc12 = self.voc_by_class()
        return {"map_voc07": _mean(voc07), "map_voc12": _mean(voc12)}

    def voc_by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """Return VOC's AP at eleven recalls and as the area under the curve, equal to those of ``voc_eval.py``.

        Crowds are treated as ``difficult``.

        VOC's boxes are inclusive and 1-based, with a width of ``xmax - xmin + 1``. The boxes here are exclusive and
        0-based, so the width ``xmax - xmin`` is the same number.

        Returns:
            Two arrays float64 ``[K]``, NaN for classes without an object.
        """
        correct, ignored = self.voc_matches()
        by_score = np.lexsort((-self.detections.scores, self.detections.labels))
        classes = len(self.class_names)
        counts = np.bincount(self.objects.labels[~self.objects.ignored], minlength=classes + 1)[1:]
        rows = class_slices(self.detections.labels[by_score], classes)
        voc07, voc12 = np.full(classes, np.nan), np.full(classes, np.nan)
        for label in np.flatnonzero(counts):
            order = by_score[rows[label]]
            order = order[~ignored[order]]
            voc07[label], voc12[label] = _voc_ap(correct[order], int(counts[label]))
        return voc07, voc12

    def voc_matches(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the correct and the ignored detections by VOC's rule, bool ``[N]`` each."""
        pairs, objects = self._pairs, self.objects
        keep = pairs.iou > 0.5
        # Each detection is compared only with the object of highest IoU, even if that object is already detected.
        best, _ = best_objects(
            pairs.detections[keep], pairs.objects[keep], pairs.iou[keep], len(self.detections.labels)
        )
        ignored = np.zeros(len(best), bool)
        ignored[best >= 0] = objects.ignored[best[best >= 0]]
        # The detections of an object are of one image and class, and therefore in descending order of score.
        hits = np.flatnonzero((best >= 0) & ~ignored)
        correct = np.zeros(len(best), bool)
        correct[hits[np.unique(best[hits], return_index=True)[1]]] = True
        return correct, ignored


def best_objects(
    detections: np.ndarray, objects: np.ndarray, iou: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the object of highest IoU of each of ``count`` detections (-1 for none), and this IoU: ``[N]`` each."""
    order = np.lexsort((objects, -iou, detections))
    rows, first = np.unique(detections[order], return_index=True)
    best, best_iou = np.full(count, -1), np.zeros(count)
    best[rows], best_iou[rows] = objects[order[first]], iou[order[first]]
    return best, best_iou


def match_greedily(
    detections: np.ndarray,
    objects: np.ndarray,
    overlaps: np.ndarray,
    ranks: np.ndarray,
    last_resort: np.ndarray,
    shareable: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    """Match each detection, in the order of ``ranks``, with the free object that it overlaps most, per threshold.

    Args:
        detections: int64 ``[P]``, the detection of each pair that may be matched.
        objects: int64 ``[P]``, the object of each pair.
        overlaps: float64 ``[P]``, the overlap of each pair.
        ranks: int64 ``[N]``, the order of the detections; detections that compete for an object have different ranks.
        last_resort: bool ``[M]``, the objects that are matched only if no other is available.
        shareable: bool ``[M]``, the objects that any number of detections may be matched with.
        thresholds: float64 ``[T]``, the smallest overlaps.

    Returns:
        int64 ``[T, N]``, the object of each detection, -1 for none.
    """
    taken = np.zeros((len(thresholds), len(last_resort)), bool)
    matches = np.full((len(thresholds), len(ranks)), -1)
    # Candidates in order of preference: not a last resort, larger overlap, later object. The first free one is chosen.
    order = np.lexsort((-objects, -overlaps, last_resort[objects], detections, ranks[detections]))
    detections, objects, overlaps = detections[order], objects[order], overlaps[order]
    allowed = overlaps >= thresholds[:, None]
    for step in _runs(ranks[detections]):
        candidates = objects[step]
        free = allowed[:, step] & (~taken[:, candidates] | shareable[candidates])
        starts = np.flatnonzero(np.diff(detections[step], prepend=-1))
        none = len(candidates)
        chosen = np.minimum.reduceat(np.where(free, np.arange(none), none), starts, axis=1)
        threshold, which = np.nonzero(chosen < none)
        chosen_objects = candidates[chosen[threshold, which]]
        taken[threshold, chosen_objects] = True
        matches[threshold, detections[step][starts][which]] = chosen_objects
    return matches


def _reindexed(mask_overlaps: MaskOverlaps, detection_order: np.ndarray, object_order: np.ndarray) -> _Pairs:
    """Return the pairs with the indices of the sorted detections and objects.

    Sorting moved the detection ``detection_order[i]`` and the object ``object_order[i]`` to index i.
    """
    detections = np.argsort(detection_order)[mask_overlaps.detections]
    objects = np.argsort(object_order)[mask_overlaps.objects]
    order = np.lexsort((objects, detections))
    overlaps = mask_overlaps.overlaps[order]
    return _Pairs(detections[order], objects[order], overlaps, overlaps)


def _chunks(counts: np.ndarray) -> Iterator[slice]:
    """Yield slices of consecutive rows. The counts of a slice sum to at most ``_CHUNK``, unless it has a single row.

    If there are no rows, yield one empty slice.
    """
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
    """Yield the slices of equal values of an ascending array."""
    if not len(values):
        return
    for start, stop in pairwise(np.flatnonzero(np.diff(values, prepend=-1, append=-1))):
        yield slice(start, stop)


def class_slices(labels: np.ndarray, classes: int) -> list[slice]:
    """Return the slice of each class 1..K in ascending labels."""
    edges = np.searchsorted(labels, np.arange(1, classes + 2))
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def interpolated_precision(correct: np.ndarray, ignored: np.ndarray, objects: int) -> np.ndarray:
    """Return COCO's precision at its 101 recalls, float64 ``[T, 101]``.

    Args:
        correct: bool ``[T, N]``, in descending order of score.
        ignored: bool ``[T, N]``, the detections that are neither correct nor wrong.
        objects: The number of objects.
    """
    tp = np.cumsum(correct, 1, dtype=np.float64)
    fp = np.cumsum(~correct & ~ignored, 1, dtype=np.float64)
    precision = tp / (fp + tp + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    # The precision at recalls that are never reached is 0.
    best = np.concatenate([best, np.zeros((len(best), 1))], 1)
    reached = [np.searchsorted(row, _RECALLS, side="left") for row in tp / objects]
    return np.take_along_axis(best, np.stack(reached), 1)


def _voc_ap(correct: np.ndarray, objects: int) -> tuple[float, float]:
    """Return the AP of one class at eleven recalls (VOC 2007) and as the area under the curve (since 2010).

    ``correct``, bool ``[N]``, is in descending order of score, without detections of difficult objects.
    """
    tp = np.cumsum(correct)
    precision = np.append(np.maximum.accumulate((tp / np.arange(1, len(tp) + 1))[::-1])[::-1], 0.0)
    # Recalls are compared as integers, because in floating point a recall of .3 may be below the threshold .3.
    reached = np.searchsorted(10 * tp, np.arange(11) * objects, side="left")
    steps = np.flatnonzero(correct)
    return float(precision[reached].mean()), float(precision[steps].sum() / objects)
