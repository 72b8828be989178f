"""Multi-crop testing: predictions for crops, mirror images and resized versions of an image are merged.

Sources: Krizhevsky, Sutskever, Hinton (NIPS 2012), section 4.1 (ten crops); Sermanet et al., OverFeat (ICLR 2014),
section 4.3, and Simonyan and Zisserman (ICLR 2015), appendix A (boxes of several positions and scales are merged if
they overlap, and weighted by their class scores).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from segdet.nn.boxes import mirror, paired_iou
from segdet.nn.float32 import at_least_float32
from segdet.training.multi_scale import at_scale
from segdet.util.errors import check_choice, check_range

Views = Literal["one", "two", "five", "ten"]

Predict = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A function from images ``[B, 3, H, W]`` to logits ``[B, K]`` and boxes ``[B, 4]`` or ``[B, K, 4]``, xyxy pixels."""

MERGE_IOU = 0.5
"""The smallest IoU at which boxes of several views are merged."""


class MultiCrop:
    """Prediction from several views of an image.

    Args:
        views: The views at each scale: ``one`` is the whole image, ``two`` adds its mirror image, ``five`` are the four
            corners and the centre, ``ten`` adds their mirror images.
        share: The side of the corner and centre crops, as a fraction of the image's side.
        scales: The factors by which the image is resized.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(self, views: Views = "one", share: float = 0.875, scales: Sequence[float] = (1.0,)) -> None:
        check_choice("--model.views", views, Views)
        check_range("--model.crop_share", share, above=0, most=1)
        check_range("--model.test_scales", scales, above=0)
        self.views, self.share, self.scales = views, share, tuple(scales)

    @property
    def single(self) -> bool:
        """Whether the unchanged image is the only view."""
        return self.views == "one" and self.scales == (1.0,)

    def predict(self, predict: Predict, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predictions of all views in the pixels of the images.

        Args:
            predict: The network.
            images: ``[B, 3, H, W]``.

        Returns:
            Logits ``[V, B, K]`` and boxes ``[V, B, 1 or K, 4]`` xyxy of V views.
        """
        logits, boxes = [], []
        for scale in self.scales:
            resized = at_scale(images, scale)
            height, width = resized.shape[2:]
            crop_height, crop_width, corners = self._crops(height, width)
            crops = torch.stack([resized[:, :, y : y + crop_height, x : x + crop_width] for y, x in corners])
            if self.views in ("two", "ten"):
                crops = torch.cat([crops, crops.flip(-1)])
            # All views of a scale have the same size and go through the network together.
            crop_logits, crop_boxes = predict(crops.flatten(0, 1))
            logits.append(crop_logits.unflatten(0, crops.shape[:2]))
            crop_boxes = crop_boxes[:, None] if crop_boxes.ndim == 2 else crop_boxes
            crop_boxes = crop_boxes.unflatten(0, crops.shape[:2])
            count = len(corners)
            crop_boxes = torch.cat([crop_boxes[:count], mirror(crop_boxes[count:], crop_width)])
            repeats = len(crop_boxes) // count
            shift = crop_boxes.new_tensor([[x, y, x, y] for y, x in corners]).repeat(repeats, 1)
            to_image = crop_boxes.new_tensor([images.shape[3] / width, images.shape[2] / height]).repeat(2)
            boxes.append((crop_boxes + shift[:, None, None]) * to_image)
        return torch.cat(logits), torch.cat(boxes)

    def _crops(self, height: int, width: int) -> tuple[int, int, list[tuple[int, int]]]:
        """Return height and width of the crops of an image, and the first row and column of each crop."""
        if self.views in ("one", "two"):
            return height, width, [(0, 0)]
        crop_height, crop_width = (max(1, round(self.share * side)) for side in (height, width))
        down, right = height - crop_height, width - crop_width
        corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
        return crop_height, crop_width, corners


def merge_views(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the predictions of several views.

    The probability of a class is the mean over the views. The box of the view with the highest probability and all
    boxes that overlap it by `MERGE_IOU` or more are averaged, weighted by probability. Views that contain a small part
    of the object, or none, thus do not affect the box.

    Args:
        logits: ``[V, B, K]``.
        boxes: ``[V, B, 1 or K, 4]`` xyxy.

    Returns:
        Log probabilities ``[B, K]`` and boxes ``[B, K, 4]``.
    """
    probabilities = at_least_float32(logits).softmax(-1)
    boxes = boxes.to(probabilities.dtype).expand(-1, -1, probabilities.shape[-1], -1)
    best = probabilities.argmax(0, keepdim=True)
    best_boxes = boxes.gather(0, best[..., None].expand(-1, -1, -1, 4))
    weights = torch.where(paired_iou(boxes, best_boxes) >= MERGE_IOU, probabilities, 0.0)
    # The IoU of an empty box with itself is 0.
    weights = weights.scatter(0, best, probabilities.gather(0, best))
    merged = (weights[..., None] * boxes).sum(0) / weights.sum(0)[..., None].clamp(min=1e-30)
    return probabilities.mean(0).clamp(min=1e-30).log(), merged
