"""Multi-crop testing: a network sees parts of an image, mirrored and resized too, and the answers are merged.

Sources: Krizhevsky, Sutskever, Hinton (NIPS 2012), section 4.1 (ten crops); Sermanet et al., OverFeat (ICLR 2014),
section 4.3, and Simonyan and Zisserman (ICLR 2015), appendix A (boxes of several places and scales are merged by
agreement and rated by their class scores).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from segdet.nn.boxes import paired_iou
from segdet.nn.float32 import at_least_float32
from segdet.training.multi_scale import at_scale
from segdet.util.errors import UserError, check_choice

Views = Literal["one", "two", "five", "ten"]

Answers = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images ``[B, 3, H, W]`` to logits ``[B, K]`` and boxes ``[B, 4]`` or ``[B, K, 4]``, xyxy in their pixels."""

AGREEMENT = 0.5
"""The IoU by which boxes of several views are taken for the same."""


class MultiCrop:
    """Asks a network about several views of an image.

    Args:
        views: Of each size: ``one`` is the whole image, ``two`` adds its mirror image, ``five`` are the four
            corners and the centre, ``ten`` adds their mirror images.
        share: The side of a corner or of the centre, as a share of the image's.
        scales: The sizes that the image is resized to, as shares of its own.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(self, views: Views = "one", share: float = 0.875, scales: Sequence[float] = (1.0,)) -> None:
        check_choice("--model.views", views, Views)
        if not 0 < share <= 1:
            raise UserError(f"--model.crop_share: {share}; give a share greater than 0, at most 1")
        if not scales or min(scales) <= 0:
            raise UserError(f"--model.test_scales: {list(scales)}; give one or more numbers greater than 0")
        self.views, self.share, self.scales = views, share, tuple(scales)

    @property
    def single(self) -> bool:
        """Whether the whole image, as it is, is the only view."""
        return self.views == "one" and self.scales == (1.0,)

    def ask(self, answers: Answers, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the network says of each view, in the pixels of the images.

        Args:
            answers: The network.
            images: ``[B, 3, H, W]``.

        Returns:
            Logits ``[V, B, K]`` and boxes ``[V, B, 1 or K, 4]`` xyxy of V views.
        """
        logits, boxes = [], []
        for scale in self.scales:
            resized = at_scale(images, scale)
            height, width = resized.shape[2:]
            high, wide, corners = self._crops(height, width)
            crops = torch.stack([resized[:, :, y : y + high, x : x + wide] for y, x in corners])
            if self.views in ("two", "ten"):
                crops = torch.cat([crops, crops.flip(-1)])
            # All views of a scale are of one size and go through the network together.
            said, found = answers(crops.flatten(0, 1))
            logits.append(said.unflatten(0, crops.shape[:2]))
            found = found[:, None] if found.ndim == 2 else found
            found = found.unflatten(0, crops.shape[:2])
            count = len(corners)
            left, top, right, bottom = found[count:].unbind(-1)
            found = torch.cat([found[:count], torch.stack([wide - right, top, wide - left, bottom], -1)])
            shift = found.new_tensor([[x, y, x, y] for y, x in corners]).repeat(len(found) // count, 1)
            back = found.new_tensor([images.shape[3] / width, images.shape[2] / height]).repeat(2)
            boxes.append((found + shift[:, None, None]) * back)
        return torch.cat(logits), torch.cat(boxes)

    def _crops(self, height: int, width: int) -> tuple[int, int, list[tuple[int, int]]]:
        """Height and width of the crops of an image, and the first row and column of each."""
        if self.views in ("one", "two"):
            return height, width, [(0, 0)]
        high, wide = (max(1, round(self.share * side)) for side in (height, width))
        down, right = height - high, width - wide
        return high, wide, [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]


def merge_views(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """One answer from those of several views.

    The probability of a class is the mean of the views'. Its box is that of the view which is most sure of
    the class, averaged with the boxes of the views which agree with it, each with its probability as weight: a view
    that holds but a part of the object, or none of it, has no say in where it ends.

    Args:
        logits: ``[V, B, K]``.
        boxes: ``[V, B, 1 or K, 4]`` xyxy.

    Returns:
        The logarithms of the probabilities ``[B, K]``, and boxes ``[B, K, 4]``.
    """
    probabilities = at_least_float32(logits).softmax(-1)
    boxes = boxes.to(probabilities.dtype).expand(-1, -1, probabilities.shape[-1], -1)
    surest = probabilities.argmax(0, keepdim=True)
    anchors = boxes.gather(0, surest[..., None].expand(-1, -1, -1, 4))
    weights = torch.where(paired_iou(boxes, anchors) >= AGREEMENT, probabilities, 0.0)
    # A box without area overlaps not even itself.
    weights = weights.scatter(0, surest, probabilities.gather(0, surest))
    merged = (weights[..., None] * boxes).sum(0) / weights.sum(0)[..., None].clamp(min=1e-30)
    return probabilities.mean(0).clamp(min=1e-30).log(), merged
