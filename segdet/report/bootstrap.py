"""The scores of resampled test sets, computed from the evidence of a test.

A bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6) draws as many images as the test
set has, with replacement, and scores each such resample. A resample is given by the multiplicity of each image. All
resamples are scored at once, without the network and the dataset. This module does not import torch.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from segdet.runs.evidence import IOUS, DetectionEvidence, Evidence, LocalizationEvidence, SegmentationEvidence

_CHUNK = 1 << 24
"""The number of multiplicities that are converted to floating point at once: 128 MiB."""


def resample_weights(images: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Return the multiplicity of each image in each resample.

    Equal arguments give equal resamples, so that runs on the same images are compared on the same resamples.

    Args:
        images: I, the number of images, at least 1.
        resamples: B, the number of resamples.
        seed: The seed of the random numbers.

    Returns:
        int32 ``[B, I]``. Each row sums to I.
    """
    generator = np.random.default_rng(seed)
    weights = np.empty((resamples, images), np.int32)
    for row in weights:
        row[:] = np.bincount(generator.integers(images, size=images), minlength=images)
    return weights


def scores_of(evidence: Evidence, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of test sets that hold each image as often as its multiplicity.

    The names and definitions are those of `segdet.metrics`: COCO's ``map``, ``map_50``, ``map_75``, ``ap/<class>`` and
    VOC's ``map_voc07`` and ``map_voc12``, and the same for masks with the prefix ``mask_``; ``miou``, ``pixel_acc``,
    ``class_acc``, ``iou/<class>``, and ``bf`` and ``boundary_iou`` where the evidence has boundaries; ``loc_acc``,
    ``loc_error_top5``, ``top1`` and ``box_iou``. With multiplicities of one, the scores equal the metric's. Otherwise
    they equal those of the metric for a dataset that holds copies of the images, with the copies of an image directly
    after it: the order matters for AP at equal scores.

    Args:
        evidence: The evidence of a test on I images.
        weights: int ``[B, I]``, the multiplicities, such as those of `resample_weights`.

    Returns:
        For each name a float64 ``[B]``. Means over classes leave out the classes that do not occur, as in the metrics.
        An undefined score is NaN.

    Raises:
        ValueError: If the weights are for another number of images, or negative.
    """
    weights = np.asarray(weights, np.int32)
    if weights.ndim != 2 or weights.shape[1] != len(evidence):
        raise ValueError(f"the weights have the shape {weights.shape}, but there are {len(evidence)} images")
    if weights.min(initial=0) < 0:
        raise ValueError("a weight is negative")
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is NaN and marks an undefined score
        if isinstance(evidence, DetectionEvidence):
            return _detection(evidence, weights)
        if isinstance(evidence, SegmentationEvidence):
            return _segmentation(evidence, weights)
        return _localization(evidence, weights)


class _Matrix(Protocol):
    """A dense or sparse matrix."""

    def __matmul__(self, other: np.ndarray, /) -> np.ndarray: ...


def _weighted_sums(weights: np.ndarray, columns: _Matrix) -> np.ndarray:
    """Return the sums over the images, float64 ``[B, C]``.

    Args:
        weights: int32 ``[B, I]``.
        columns: ``[C, I]``.
    """
    rows = max(1, _CHUNK // max(1, weights.shape[1]))
    parts = [
        columns @ np.ascontiguousarray(weights[start : start + rows].T, dtype=np.float64)
        for start in range(0, len(weights), rows)
    ]
    return np.concatenate(parts, axis=1).T if parts else np.zeros((0, 0))


def _counts(index: np.ndarray, image: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> _Matrix:
    """Return a sparse matrix of ``shape`` (C, I) with the sums of ``values``, ``[N]``, at their rows and images."""
    from scipy.sparse import csr_array  # takes a tenth of a second

    matrix: _Matrix = csr_array((values.astype(np.float64), (index, image)), shape=shape)
    return matrix


def _mean(values: np.ndarray, axis: int | tuple[int, ...] = -1) -> np.ndarray:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    defined = ~np.isnan(values)
    mean: np.ndarray = np.where(defined, values, 0).sum(axis) / defined.sum(axis)
    return mean


def _detection(evidence: DetectionEvidence, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of boxes and, where the evidence has them, of masks."""
    # Importing the compiler takes a second.
    from segdet.report.weighted_precision import RankedMatches, weighted_precision

    classes = len(evidence.class_names)
    # At equal scores, the detection in the earlier image comes first, as in the metric.
    order = np.lexsort((evidence.image, -evidence.score, evidence.label))
    matches = [evidence.match.T, *([] if evidence.mask_match is None else [evidence.mask_match.T])]
    ranked = RankedMatches(
        label=evidence.label[order].astype(np.int64),
        score=evidence.score[order],
        image=evidence.image[order],
        match=np.concatenate([*matches, evidence.voc_match[None]])[:, order],
    )
    ignored = evidence.object_crowd | evidence.object_difficult

    def objects_of(counted: np.ndarray) -> np.ndarray:
        """Return the number of objects of each class in each resample, int64 ``[B, K]``."""
        labels, images = evidence.object_label[counted].astype(np.int64) - 1, evidence.object_image[counted]
        table = _counts(labels, images, np.ones(len(labels)), (classes, len(evidence)))
        return np.rint(_weighted_sums(weights, table)).astype(np.int64)

    objects = objects_of(~ignored)
    coco, voc07, voc12 = weighted_precision(ranked, objects, weights, voc_rules=1)
    if (evidence.object_area > _LARGEST_AREA).any():  # COCO ignores these objects, VOC does not
        objects = objects_of(~ignored & (evidence.object_area <= _LARGEST_AREA))
        coco, _, _ = weighted_precision(ranked, objects, weights, voc_rules=1)
    scores: dict[str, np.ndarray] = {}
    for prefix, first in zip(("", "mask_"), range(0, coco.shape[2], len(IOUS)), strict=False):
        precision = coco[..., first : first + len(IOUS)]
        by_class = precision.mean(2)
        scores |= {
            f"{prefix}map": _mean(by_class),
            f"{prefix}map_50": _mean(precision[..., IOUS.index(0.5)]),
            f"{prefix}map_75": _mean(precision[..., IOUS.index(0.75)]),
        }
        scores |= _by_class(f"{prefix}ap", evidence.class_names, by_class)
    return scores | {"map_voc07": _mean(voc07[..., 0]), "map_voc12": _mean(voc12[..., 0])}


_LARGEST_AREA = 1e5**2
"""The area of the largest objects that COCO's ``all`` includes."""


def _segmentation(evidence: SegmentationEvidence, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of one confusion matrix per resample, and the boundary scores where there are any."""
    shape = len(evidence.class_names), len(evidence)
    correct = np.where(evidence.truth == evidence.predicted, evidence.pixels, 0)
    columns = (
        (evidence.truth, correct),
        (evidence.truth, evidence.pixels),
        (evidence.predicted, evidence.pixels),
    )
    hits, targets, predictions = (
        _weighted_sums(weights, _counts(index.astype(np.int64), evidence.image, values, shape))
        for index, values in columns
    )
    iou = hits / (targets + predictions - hits)
    scores = {
        "miou": _mean(iou),
        "pixel_acc": hits.sum(1) / targets.sum(1),
        "class_acc": _mean(hits / targets),
    }
    scores |= _by_class("iou", evidence.class_names, iou)
    if (f1 := evidence.boundary_f1) is not None:
        values = np.concatenate([f1.T, _mean(f1)[None]])
        defined = ~np.isnan(values)
        sums = _weighted_sums(weights, np.where(defined, values, 0))
        means = sums / _weighted_sums(weights, defined.astype(np.float64))
        scores |= {"bf": means[:, -1]} | _by_class("bf", evidence.class_names, means)
    if (bands := evidence.boundary_bands) is not None:
        intersection, union = (
            _weighted_sums(weights, bands[:, side].T.astype(np.float64)) for side in range(2)
        )
        iou = intersection / union
        scores |= {"boundary_iou": _mean(iou)} | _by_class("boundary_iou", evidence.class_names, iou)
    return scores


def _localization(evidence: LocalizationEvidence, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the means over the images."""
    correct = evidence.predicted[:, 0] == evidence.label
    located = correct & (evidence.iou >= 0.5)
    columns = {
        "top1": correct,
        "loc_acc": located,
        "loc_error_top5": ~evidence.located_top5,
        "box_iou": evidence.iou,
        "images": np.ones(len(evidence)),
    }
    table = np.stack([column.astype(np.float64) for column in columns.values()])
    sums = dict(zip(columns, _weighted_sums(weights, table).T, strict=True))
    images = sums.pop("images")
    return {name: values / images for name, values in sums.items()}


def _by_class(score: str, class_names: Sequence[str], values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of ``values``, ``[B, K]``, by name."""
    return {f"{score}/{name}": values[:, label] for label, name in enumerate(class_names)}
