"""OverFeat: a dense sliding window with box regression."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from segdet.data.sample import Prediction
from segdet.detection.sliding_window_detector import SlidingWindowDetector, linear_layers
from segdet.nn.boxes import Selection, select_detections, suppress
from segdet.nn.float32 import at_least_float32
from segdet.nn.windows import Mode
from segdet.training.fine_tune import ClassRows
from segdet.util.errors import check_choice

Regression = Literal["single", "per_class"]
BoxLoss = Literal["l2", "smooth_l1"]
Merging = Literal["nms", "average"]


class OverFeat(SlidingWindowDetector):
    """OverFeat (Sermanet et al., ICLR 2014): a dense sliding window with box regression.

    The convolutions of all windows are shared: the network runs once per level of the pyramid (section 3.5). A second
    head on the same features regresses the four edges of the object relative to the window: one box for all classes, or
    one per class (section 4.2). This head is trained with an l2 loss on windows with an object; the features are
    trained by the classifier only. Windows of a single size and aspect ratio can therefore predict boxes of any size
    and aspect ratio. The boxes of neighbouring windows agree where there is an object. The paper merges these boxes
    pair by pair and sums their scores (section 4.3), so that agreement counts more than a single high score.
    ``merging: average`` merges in one step: each box kept by suppression is replaced by the mean of all overlapping
    boxes of its class, weighted by their scores.

    ``mode: crops`` computes the same detections window by window.

    Args:
        regression: ``single`` predicts one box for all classes, ``per_class`` one per class.
        box_hidden: The widths of the hidden layers of the regressor.
        box_loss: ``l2``, or ``smooth_l1``.
        box_weight: The weight of the box loss; the cross entropy has weight 1.
        freeze_features: Whether to block the gradient of the box loss at the features.
        merging: ``nms`` keeps the best of overlapping boxes, ``average`` merges them.
        merging_threshold: The minimum IoU with a kept box for merging.
        kwargs: See `SlidingWindowDetector`.
    """

    class_rows = {"box_head": ClassRows(per_class=4)}

    def __init__(
        self,
        class_names: list[str],
        mode: Mode = "dense",
        aspects: list[float] = [1.0],  # noqa: B006  read only; jsonargparse shows it as the default
        hidden: list[int] = [128],  # noqa: B006
        regression: Regression = "single",
        box_hidden: list[int] = [128],  # noqa: B006
        box_loss: BoxLoss = "l2",
        box_weight: float = 5.0,
        freeze_features: bool = True,
        merging: Merging = "average",
        merging_threshold: float = 0.5,
        **kwargs: Any,
    ) -> None:
        # The first layers of both heads share one linear layer, because `DensePass` needs one sequence of layers.
        self.extra_units = box_hidden[0]
        super().__init__(class_names, mode=mode, aspects=aspects, hidden=hidden, **kwargs)
        check_choice("--model.regression", regression, Regression)
        check_choice("--model.box_loss", box_loss, BoxLoss)
        check_choice("--model.merging", merging, Merging)
        self.regression, self.box_loss, self.box_weight = regression, box_loss, box_weight
        self.freeze_features = freeze_features
        self.merging, self.merging_threshold = merging, merging_threshold
        self.boxes_of_window = 1 if regression == "single" else len(class_names)
        self.box_head = linear_layers([*box_hidden, 4 * self.boxes_of_window])

    def box_losses(
        self, features: Tensor, windows: Tensor, boxes: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        edges = self._edges(self.network[1](features.detach() if self.freeze_features else features))
        if self.regression == "per_class":
            class_index = (labels - 1).clamp(min=0)
            edges = edges.gather(1, class_index[:, None, None].expand(-1, -1, 4))
        target_edges = (boxes - windows) / _sides(windows)
        loss = F.mse_loss if self.box_loss == "l2" else F.smooth_l1_loss
        each = loss(edges[:, 0], target_edges, reduction="none").sum(1)
        positive = labels > 0
        box = torch.where(positive, each, 0.0).sum() / positive.sum().clamp(min=1)
        return {"box": self.box_weight * box}

    def classify(self, hidden: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        boxes = windows[:, None] + self._edges(hidden) * _sides(windows)[:, None]
        if self.regression == "single":
            boxes = boxes[..., 0, :]
        return self.probabilities(hidden)[..., 1:], boxes

    def select(
        self, boxes: Iterable[Tensor], scores: Iterable[Tensor], size: tuple[int, int]
    ) -> list[Prediction]:
        if self.merging == "nms":
            return super().select(boxes, scores, size)
        # No IoU exceeds 1: nothing is suppressed yet.
        selection = Selection(self.score_threshold, 1.0, self.detections_per_class)
        candidates = [select_detections(b, s, size, selection) for b, s in zip(boxes, scores, strict=True)]
        return [self._suppress_and_merge(each) for each in candidates]

    def _suppress_and_merge(self, candidates: Prediction) -> Prediction:
        boxes, scores, labels = candidates["boxes"], candidates["scores"], candidates["labels"]
        kept = suppress(boxes, scores, labels, self.nms_threshold, self.class_agnostic_nms)
        return merge(candidates, kept[: self.detections_per_image], self.merging_threshold)

    def _edges(self, hidden: Tensor) -> Tensor:
        """Return the offsets of box edges from window edges, in sides of the window: ``[..., boxes, 4]``."""
        edges: Tensor = self.box_head(hidden[..., self.class_units :])
        edges = edges.unflatten(-1, (self.boxes_of_window, 4))
        return at_least_float32(edges)


def merge(candidates: Prediction, kept: Tensor, threshold: float) -> Prediction:
    """Merge overlapping boxes of a class into their mean, weighted by their scores.

    The score of a merged box is ``s / (1 + s)``, where ``s`` is the sum of the scores. The paper uses ``s``, which
    gives the same order but may exceed 1.

    Args:
        candidates: Boxes ``[M, 4]``, scores and labels before suppression.
        kept: int64 ``[N]``: the indices of the boxes that the others are merged into.
        threshold: The minimum IoU with a kept box for merging.
    """
    boxes, scores, labels = candidates["boxes"], candidates["scores"], candidates["labels"]
    group = (box_iou(boxes[kept], boxes) >= threshold) & (labels[kept, None] == labels)
    # A kept box of zero area would be missing from its own group, because its IoU with itself is not 1.
    group[torch.arange(len(kept), device=kept.device), kept] = True
    weights = group * scores
    total = weights.sum(1)
    order = total.argsort(descending=True, stable=True)
    means = weights @ boxes / total[:, None]
    return Prediction(boxes=means[order], scores=(total / (1 + total))[order], labels=labels[kept][order])


def _sides(windows: Tensor) -> Tensor:
    """Return ``(width, height, width, height)`` of windows ``[N, 4]`` xyxy."""
    return (windows[:, 2:] - windows[:, :2]).repeat(1, 2)
