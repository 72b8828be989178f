"""Box coding, matching of anchors with objects, and the choice of detections: shared by all detectors.

Everything is batched over images and free of Python loops over boxes; training needs no transfer from
the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, nms, remove_small_boxes

from segdet.data.sample import Prediction, Target

_MAX_LOG_RATIO = math.log(1000 / 16)
"""Bounds a decoded side to 62.5 anchors, as torchvision and Detectron do."""


class BoxCoder:
    """Boxes as offsets from anchors (R-CNN, CVPR 2014, appendix C), divided by standard deviations.

    Args:
        std: Of the offsets of centre x, centre y, log width and log height; SSD's "variances" are
            ``(0.1, 0.1, 0.2, 0.2)``.
    """

    def __init__(self, std: Sequence[float] = (0.1, 0.1, 0.2, 0.2)) -> None:
        self.std = tuple(std)
        self._on: dict[torch.device, Tensor] = {}

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes ``[..., A, 4]`` xyxy as offsets ``[..., A, 4]`` from anchors ``[A, 4]`` xyxy.

        A box without area, which only stands in for a missing one, gives finite numbers.
        """
        size = (anchors[..., 2:] - anchors[..., :2]).clamp(min=1e-6)
        shift = ((boxes[..., :2] + boxes[..., 2:]) - (anchors[..., :2] + anchors[..., 2:])) / (2 * size)
        scale = ((boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6) / size).log()
        return torch.cat([shift, scale], -1) / self._std(shift.device)

    def decode(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """Offsets ``[..., A, 4]`` as boxes ``[..., A, 4]`` xyxy."""
        offsets = offsets * self._std(offsets.device)
        size = anchors[..., 2:] - anchors[..., :2]
        centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + offsets[..., :2] * size
        half = offsets[..., 2:].clamp(max=_MAX_LOG_RATIO).exp() * size / 2
        return torch.cat([centre - half, centre + half], -1)

    def _std(self, device: torch.device) -> Tensor:
        # Kept where it is used: copying four numbers to a GPU in every step would wait for it.
        if device not in self._on:
            # Training cannot learn through what was made in inference mode, which may be the first to ask.
            with torch.inference_mode(False):
                self._on[device] = torch.tensor(self.std, device=device)
        return self._on[device]


def to_original(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Boxes ``[N, 4]`` xyxy in an image of ``size`` (height, width), in the one of size ``original``, clipped to it."""
    scale = boxes.new_tensor([original[1], original[0]] * 2) / boxes.new_tensor([size[1], size[0]] * 2)
    return clip_boxes_to_image(boxes * scale, original)


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes ``[N, 4]`` xyxy of an image of ``width`` in its mirror image."""
    x0, y0, x1, y1 = boxes.unbind(1)
    return torch.stack([width - x1, y0, width - x0, y1], 1)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """The IoU of each of ``[..., N, 4]`` with each of ``[..., M, 4]``, xyxy: ``[..., N, M]``.

    A box without area, which only stands in for a missing one, overlaps nothing. Unlike torchvision's
    ``box_iou`` of older releases it takes a whole batch.
    """
    one, other = boxes.unsqueeze(-2), others.unsqueeze(-3)
    shared = (
        torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    ).clamp(min=0)
    common = shared[..., 0] * shared[..., 1]
    return common / (_area(one) + _area(other) - common).clamp(min=1e-9)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """The IoU of each of ``[..., 4]`` with the one at its place, xyxy: ``[...]``."""
    return pairwise_iou(boxes.unsqueeze(-2), others.unsqueeze(-2)).flatten(-3)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pad_targets(targets: list[Target], device: torch.device) -> tuple[Tensor, Tensor]:
    """The objects of a batch as one array: boxes ``[B, G, 4]`` and labels ``[B, G]``, 0 where there is none.

    G is the greatest number of objects in an image, and at least 1. However many images there are, it is two
    concatenations, one table of row numbers that is made on the host, and two gathers.
    """
    # Row 0 stands for "no object"; behind it lie the objects of the whole batch.
    boxes = torch.cat([torch.zeros(1, 4, device=device), *(target["boxes"] for target in targets)])
    labels = torch.cat(
        [torch.zeros(1, dtype=torch.int64, device=device), *(target["labels"] for target in targets)]
    )
    counts = np.array([len(target["labels"]) for target in targets])
    places = np.arange(max(1, counts.max()))
    rows = torch.from_numpy(
        np.where(places < counts[:, None], 1 + (counts.cumsum() - counts)[:, None] + places, 0)
    )
    if device.type == "cuda":
        rows = rows.pin_memory()  # so that the copy does not wait for the device
    rows = rows.to(device, non_blocking=True)
    return boxes[rows], labels[rows]


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    foreground: float,
    background: float,
    best_of_each: bool = True,
) -> tuple[Tensor, Tensor]:
    """Which object each anchor is to find.

    An anchor takes the object it overlaps most when their IoU is at least ``foreground``. Below ``background``
    it is background, between the two it is neither. With ``best_of_each`` every object also takes the
    anchor that overlaps it most, whatever their IoU (of several objects that want one anchor, the last).

    Args:
        anchors: ``[A, 4]`` xyxy.
        boxes: ``[B, G, 4]`` xyxy, from `pad_targets`.
        labels: ``[B, G]``, 0 where there is no object.
        foreground: See above.
        background: See above.
        best_of_each: See above.

    Returns:
        The index of each anchor's object, int64 ``[B, A]`` (of use only where it has one), and the
        anchors' labels, int64 ``[B, A]``: the object's, 0 for background, -1 for neither.
    """
    batch, most = labels.shape
    iou = box_iou(boxes.flatten(0, 1), anchors).unflatten(0, (batch, most))
    present = labels > 0
    iou = iou.masked_fill(~present[..., None], -1.0)
    overlap, matched = iou.max(1)
    positive = overlap >= foreground
    neither = ~positive & (overlap >= background)
    if best_of_each:
        best = iou.max(2).indices
        order = torch.arange(1, most + 1, device=labels.device).expand(batch, most)
        # One object more than there are anchors' slots: what is absent goes to slot A, which is cut off.
        slots = torch.where(present, best, len(anchors))
        forced = torch.zeros(batch, len(anchors) + 1, dtype=torch.int64, device=labels.device)
        forced = forced.scatter_reduce(1, slots, order, "amax")[:, :-1]
        matched = torch.where(forced > 0, forced - 1, matched)
        positive = positive | (forced > 0)
        neither = neither & ~positive
    found = torch.where(positive, labels.gather(1, matched), 0)
    return matched, found.masked_fill(neither, -1)


def match_all_best(
    anchors: Tensor, boxes: Tensor, labels: Tensor, foreground: float, background: float
) -> tuple[Tensor, Tensor]:
    """Which object each anchor is to find, by the rule of Faster R-CNN (section 3.1.2) and RetinaNet.

    As `match_anchors`, but for the objects' best anchors: every anchor that no other overlaps the same object more
    than, ties included, takes an object, and that is the one that it overlaps most itself. An object that no anchor
    overlaps takes none.

    Args:
        anchors: See `match_anchors`.
        boxes: See there.
        labels: See there.
        foreground: See there.
        background: See there.

    Returns:
        See `match_anchors`.
    """
    batch, most = labels.shape
    iou = box_iou(boxes.flatten(0, 1), anchors).unflatten(0, (batch, most))
    iou = iou.masked_fill((labels == 0)[..., None], -1.0)
    overlap, matched = iou.max(1)
    best = iou.amax(2, keepdim=True)
    positive = (overlap >= foreground) | ((iou == best) & (best > 0)).any(1)
    found = torch.where(positive, labels.gather(1, matched), 0)
    return matched, found.masked_fill(~positive & (overlap >= background), -1)


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, class_agnostic: bool = False
) -> Tensor:
    """Non-maximum suppression: the indices int64 ``[M]`` of the boxes that remain, best first.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``.
        labels: ``[N]``.
        threshold: Of two boxes whose IoU exceeds this, the worse is dropped,
        class_agnostic: whatever their classes, or where they are of one class.
    """
    return nms(boxes, scores, threshold) if class_agnostic else batched_nms(boxes, scores, labels, threshold)


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    score_threshold: float,
    nms_threshold: float,
    per_class: int | None,
    per_image: int | None,
    class_agnostic: bool = False,
    min_side: float = 0.0,
) -> Prediction:
    """The detections of one image: the best of each class, without duplicates.

    Args:
        boxes: ``[A, 4]`` xyxy, or ``[A, K, 4]`` where each class has its own.
        scores: ``[A, K]``; column k is of label k + 1.
        size: ``(height, width)`` that boxes are clipped to.
        score_threshold: Scores must exceed this.
        nms_threshold: Of two boxes of a class whose IoU exceeds this, the worse is dropped.
        per_class: How many of a class take part in the suppression; all when None.
        per_image: How many remain; all when None.
        class_agnostic: Whether a box is dropped for a better one of another class, too.
        min_side: Boxes with a shorter side within the image are dropped before.

    Returns:
        Boxes, scores and labels, best first.
    """
    if per_class is None:
        rows, columns = (scores > score_threshold).nonzero(as_tuple=True)
        labels, kept_scores = columns + 1, scores[rows, columns]
    else:
        best, rows = scores.topk(min(per_class, len(scores)), dim=0)
        keep = best > score_threshold
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device).expand_as(best)[keep]
        rows, kept_scores = rows[keep], best[keep]
    chosen = boxes[rows] if boxes.ndim == 2 else boxes[rows, labels - 1]
    chosen = clip_boxes_to_image(chosen, size)
    if min_side:
        large = remove_small_boxes(chosen, min_side)
        chosen, kept_scores, labels = chosen[large], kept_scores[large], labels[large]
    final = suppress(chosen, kept_scores, labels, nms_threshold, class_agnostic)[:per_image]
    return Prediction(boxes=chosen[final], scores=kept_scores[final], labels=labels[final])


def select_from_images(
    boxes: Iterable[Tensor],
    scores: Iterable[Tensor],
    size: tuple[int, int],
    score_threshold: float,
    nms_threshold: float,
    per_class: int | None,
    per_image: int | None,
    class_agnostic: bool = False,
    min_side: float = 0.0,
) -> list[Prediction]:
    """`select_detections` for each image of a batch of one size, whose ``boxes`` and ``scores`` come one by one."""
    return [
        select_detections(
            of_image,
            said,
            size,
            score_threshold,
            nms_threshold,
            per_class,
            per_image,
            class_agnostic,
            min_side,
        )
        for of_image, said in zip(boxes, scores, strict=True)
    ]


def select_from_levels(
    boxes: Tensor,
    scores: Tensor,
    levels: Sequence[int],
    size: tuple[int, int],
    score_threshold: float,
    nms_threshold: float,
    per_level: int,
    per_image: int | None,
    class_agnostic: bool = False,
) -> list[Prediction]:
    """The detections of a batch, from the best candidates of each map of a pyramid (RetinaNet, section 4.1).

    Args:
        boxes: ``[B, A, 4]`` xyxy.
        scores: ``[B, A, K]``; column k is of label k + 1.
        levels: How many of the A belong to each map, in their order.
        size: ``(height, width)`` that boxes are clipped to.
        score_threshold: Scores must exceed this.
        nms_threshold: Of two boxes of a class whose IoU exceeds this, the worse is dropped.
        per_level: How many candidates, each a box and a class, a map gives.
        per_image: How many detections remain; all when None.
        class_agnostic: Whether a box is dropped for a better one of another class, too.

    Returns:
        For each image boxes, scores and labels, best first.
    """
    classes = scores.shape[-1]
    best, places = [], []
    start = 0
    for level in levels:
        flat = scores[:, start : start + level].flatten(1)
        values, indices = flat.topk(min(per_level, flat.shape[1]), 1)
        best.append(values)
        places.append(indices + start * classes)
        start += level
    values, indices = torch.cat(best, 1), torch.cat(places, 1)
    rows, labels = indices // classes, indices % classes + 1
    chosen = clip_boxes_to_image(boxes.gather(1, rows[..., None].expand(-1, -1, 4)), size)
    found = []
    for b, s, k in zip(chosen, values, labels, strict=True):
        keep = s > score_threshold
        b, s, k = b[keep], s[keep], k[keep]
        final = suppress(b, s, k, nms_threshold, class_agnostic)[:per_image]
        found.append(Prediction(boxes=b[final], scores=s[final], labels=k[final]))
    return found
