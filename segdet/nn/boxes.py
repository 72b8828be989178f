"""Box coding, matching of anchors with objects, and the selection of detections, shared by all detectors.

All functions are batched over images and have no Python loops over boxes. Training copies nothing back to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, nms, remove_small_boxes

from segdet.data.sample import Prediction, Target
from segdet.nn.float32 import at_least_float32
from segdet.nn.transfer import to_device

_MAX_LOG_RATIO = math.log(1000 / 16)
"""The limit of log sides: a decoded side is at most 62.5 times the anchor's side, as in torchvision and Detectron."""


class BoxCoder:
    """Boxes as offsets from anchors (R-CNN, CVPR 2014, appendix C), divided by standard deviations.

    Args:
        std: The standard deviations of the offsets of centre x, centre y, log width and log height; SSD's
            "variances" are ``(0.1, 0.1, 0.2, 0.2)``.
    """

    def __init__(self, std: Sequence[float] = (0.1, 0.1, 0.2, 0.2)) -> None:
        self.std = tuple(std)
        self._by_device: dict[torch.device, Tensor] = {}

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Encode boxes ``[..., A, 4]`` xyxy as offsets ``[..., A, 4]`` from anchors ``[A, 4]`` xyxy.

        Boxes without area, which fill the places of missing objects, have finite offsets.
        """
        size = (anchors[..., 2:] - anchors[..., :2]).clamp(min=1e-6)
        shift = ((boxes[..., :2] + boxes[..., 2:]) - (anchors[..., :2] + anchors[..., 2:])) / (2 * size)
        scale = ((boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6) / size).log()
        return torch.cat([shift, scale], -1) / self._std(shift.device)

    def decode(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """Decode offsets ``[..., A, 4]`` to boxes ``[..., A, 4]`` xyxy."""
        offsets = offsets * self._std(offsets.device)
        size = anchors[..., 2:] - anchors[..., :2]
        centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + offsets[..., :2] * size
        half = offsets[..., 2:].clamp(max=_MAX_LOG_RATIO).exp() * size / 2
        return torch.cat([centre - half, centre + half], -1)

    def _std(self, device: torch.device) -> Tensor:
        # Copying four numbers to a GPU in every step would synchronize with it.
        if device not in self._by_device:
            # The first call may be in inference mode. Tensors created in that mode cannot be used in training.
            with torch.inference_mode(False):
                self._by_device[device] = torch.tensor(self.std, device=device)
        return self._by_device[device]


def to_original(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Map boxes ``[N, 4]`` xyxy from an image of ``size`` (height, width) to the ``original`` size, and clip them."""
    scale = boxes.new_tensor([original[1], original[0]] * 2) / boxes.new_tensor([size[1], size[0]] * 2)
    return clip_boxes_to_image(boxes * scale, original)


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Flip boxes ``[..., 4]`` xyxy of an image of ``width`` horizontally."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], -1)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of each of ``[..., N, 4]`` with each of ``[..., M, 4]``, xyxy: ``[..., N, M]``.

    Boxes without area, which fill the places of missing objects, have an IoU of 0. Unlike torchvision's ``box_iou`` of
    older releases, this function takes batches.
    """
    one, other = boxes.unsqueeze(-2), others.unsqueeze(-3)
    high, low = torch.minimum(one[..., 2:], other[..., 2:]), torch.maximum(one[..., :2], other[..., :2])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    return intersection / (_area(one) + _area(other) - intersection).clamp(min=1e-9)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of each of ``[..., 4]`` with the box at the same position, xyxy: ``[...]``."""
    return pairwise_iou(boxes.unsqueeze(-2), others.unsqueeze(-2)).flatten(-3)


def paired_giou_loss(boxes: Tensor, others: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Return 1 - GIoU of each of ``[..., 4]`` with the box at the same position, xyxy: ``[...]``.

    The values are those of torchvision's ``generalized_box_iou_loss``, which waits for a GPU, because it selects the
    overlapping pairs with a boolean index.

    Source: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
    """
    boxes, others = at_least_float32(boxes), at_least_float32(others)
    low = torch.maximum(boxes[..., :2], others[..., :2])
    sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - low
    overlaps = (sides > 0).all(-1)
    intersection = torch.where(overlaps, sides[..., 0] * sides[..., 1], 0.0)
    union = _area(boxes) + _area(others) - intersection
    hull = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    enclosing = hull[..., 0] * hull[..., 1]
    return 1 - (intersection / (union + epsilon) - (enclosing - union) / (enclosing + epsilon))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pad_targets(targets: list[Target], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad the objects of a batch to boxes ``[B, G, 4]`` and labels ``[B, G]``, 0 where there is no object.

    G is the maximum number of objects per image, and at least 1. A batch of any size takes two concatenations, one
    index table made on the host, and two gathers.
    """
    # Row 0 stands for "no object"; the objects of the whole batch follow.
    boxes = torch.cat([torch.zeros(1, 4, device=device), *(target["boxes"] for target in targets)])
    labels = torch.cat(
        [torch.zeros(1, dtype=torch.int64, device=device), *(target["labels"] for target in targets)]
    )
    counts = np.array([len(target["labels"]) for target in targets])
    places = np.arange(max(1, counts.max()))
    rows = torch.from_numpy(
        np.where(places < counts[:, None], 1 + (counts.cumsum() - counts)[:, None] + places, 0)
    )
    rows = to_device(rows, device)
    return boxes[rows], labels[rows]


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    foreground: float,
    background: float,
    best_of_each: bool = True,
) -> tuple[Tensor, Tensor]:
    """Match each anchor with an object.

    An anchor is matched with the object of highest IoU if this IoU is at least ``foreground``. Below ``background`` the
    anchor is background; between the two it is ignored. With ``best_of_each`` every object is also matched with its
    anchor of highest IoU, even if that IoU is low. If several objects share that anchor, the last object is used.

    Args:
        anchors: ``[A, 4]`` xyxy.
        boxes: ``[B, G, 4]`` xyxy, from `pad_targets`.
        labels: ``[B, G]``, 0 where there is no object.

    Returns:
        The index of each anchor's object, int64 ``[B, A]`` (meaningful only for matched anchors), and the anchors'
        labels, int64 ``[B, A]``: the object's label, 0 for background, -1 for ignored.
    """
    batch, most = labels.shape
    iou = box_iou(boxes.flatten(0, 1), anchors).unflatten(0, (batch, most))
    present = labels > 0
    iou = iou.masked_fill(~present[..., None], -1.0)
    overlap, matched = iou.max(1)
    positive = overlap >= foreground
    ignored = ~positive & (overlap >= background)
    if best_of_each:
        best = iou.max(2).indices
        order = torch.arange(1, most + 1, device=labels.device).expand(batch, most)
        # Missing objects are written to an extra slot A, which is cut off.
        slots = torch.where(present, best, len(anchors))
        forced = torch.zeros(batch, len(anchors) + 1, dtype=torch.int64, device=labels.device)
        forced = forced.scatter_reduce(1, slots, order, "amax")[:, :-1]
        matched = torch.where(forced > 0, forced - 1, matched)
        positive = positive | (forced > 0)
        ignored = ignored & ~positive
    anchor_labels = torch.where(positive, labels.gather(1, matched), 0)
    return matched, anchor_labels.masked_fill(ignored, -1)


def match_all_best(
    anchors: Tensor, boxes: Tensor, labels: Tensor, foreground: float, background: float
) -> tuple[Tensor, Tensor]:
    """Match each anchor with an object by the rule of Faster R-CNN (section 3.1.2) and RetinaNet.

    Arguments and results are those of `match_anchors`. The difference is in the best anchors of the objects. All
    anchors that have the highest IoU with some object are positive, including ties. Each is matched with the object
    that it overlaps most. An object that overlaps no anchor is not matched.
    """
    batch, most = labels.shape
    iou = box_iou(boxes.flatten(0, 1), anchors).unflatten(0, (batch, most))
    iou = iou.masked_fill((labels == 0)[..., None], -1.0)
    overlap, matched = iou.max(1)
    best = iou.amax(2, keepdim=True)
    positive = (overlap >= foreground) | ((iou == best) & (best > 0)).any(1)
    anchor_labels = torch.where(positive, labels.gather(1, matched), 0)
    return matched, anchor_labels.masked_fill(~positive & (overlap >= background), -1)


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, class_agnostic: bool = False
) -> Tensor:
    """Return the indices, int64 ``[M]``, of the boxes that remain after non-maximum suppression, best first.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``.
        labels: ``[N]``.
        threshold: The IoU above which the box of lower score is removed.
        class_agnostic: Whether boxes of different classes suppress each other.
    """
    return nms(boxes, scores, threshold) if class_agnostic else batched_nms(boxes, scores, labels, threshold)


@dataclass(frozen=True)
class Selection:
    """Options for the selection of detections from scored boxes."""

    score_threshold: float  # scores must exceed this
    nms_threshold: float  # the IoU above which the box of lower score of the same class is removed
    per_class: int | None = (
        None  # the maximum number of boxes per class before suppression; None for no limit
    )
    per_image: int | None = None  # the maximum number of detections per image; None for no limit
    class_agnostic: bool = False  # whether boxes of different classes suppress each other
    min_side: float = (
        0.0  # boxes with a shorter side, after clipping to the image, are removed before suppression
    )


def select_detections(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], selection: Selection
) -> Prediction:
    """Select the detections of one image.

    Args:
        boxes: ``[A, 4]`` xyxy, or ``[A, K, 4]`` with a box per class.
        scores: ``[A, K]``; column k is for label k + 1.
        size: ``(height, width)`` that boxes are clipped to.
        selection: Thresholds and limits.

    Returns:
        Boxes, scores and labels, best first.
    """
    if selection.per_class is None:
        rows, columns = (scores > selection.score_threshold).nonzero(as_tuple=True)
        labels, kept_scores = columns + 1, scores[rows, columns]
    else:
        best, rows = scores.topk(min(selection.per_class, len(scores)), dim=0)
        keep = best > selection.score_threshold
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device).expand_as(best)[keep]
        rows, kept_scores = rows[keep], best[keep]
    chosen = boxes[rows] if boxes.ndim == 2 else boxes[rows, labels - 1]
    chosen = clip_boxes_to_image(chosen, size)
    if selection.min_side:
        large = remove_small_boxes(chosen, selection.min_side)
        chosen, kept_scores, labels = chosen[large], kept_scores[large], labels[large]
    return _suppressed(chosen, kept_scores, labels, selection)


def select_from_levels(
    boxes: Tensor,
    scores: Tensor,
    levels: Sequence[int],
    size: tuple[int, int],
    selection: Selection,
    per_level: int,
) -> list[Prediction]:
    """Select the detections of a batch from the best candidates of each pyramid level (RetinaNet, section 4.1).

    Args:
        boxes: ``[B, A, 4]`` xyxy.
        scores: ``[B, A, K]``; column k is for label k + 1.
        levels: The number of boxes of each level, in the order of A.
        size: ``(height, width)`` that boxes are clipped to.
        selection: Thresholds and limits; without ``per_class`` and ``min_side``.
        per_level: The number of candidates, each a box and a class, per level.

    Returns:
        Boxes, scores and labels for each image, best first.
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
    predictions = []
    for b, s, k in zip(chosen, values, labels, strict=True):
        keep = s > selection.score_threshold
        predictions.append(_suppressed(b[keep], s[keep], k[keep], selection))
    return predictions


def _suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> Prediction:
    kept = suppress(boxes, scores, labels, selection.nms_threshold, selection.class_agnostic)
    kept = kept[: selection.per_image]
    return Prediction(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])
