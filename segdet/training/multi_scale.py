"""Batches resized for multi-scale training and test-time augmentation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.data.sample import Target

MULTIPLE = 32
"""The sides of rescaled batches are multiples of this, the stride of the deepest maps of most networks."""

_BOXES: tuple[Literal["boxes", "proposals"], ...] = ("boxes", "proposals")
_MASKS: tuple[Literal["mask", "masks"], ...] = ("mask", "masks")


def scaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return ``(height, width)`` times ``factor``, rounded to multiples of 32, at least 32 each."""
    height, width = (max(1, round(factor * side / MULTIPLE)) * MULTIPLE for side in size)
    return height, width


def at_scale(images: Tensor, scale: float) -> Tensor:
    """Return images ``[B, 3, H, W]`` with sides multiplied by ``scale``, at least one pixel each."""
    if scale == 1:
        return images
    size = [max(1, round(scale * side)) for side in images.shape[2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=scale < 1)


def rescale(images: Tensor, targets: list[Target], size: tuple[int, int]) -> tuple[Tensor, list[Target]]:
    """Resize a batch of images and their targets.

    Images are resized bilinearly, masks by nearest neighbour. Boxes and areas are scaled. The given targets are not
    modified.

    Args:
        images: float ``[B, 3, H, W]``.
        targets: One per image.
        size: The new ``(height, width)``.
    """
    before = (images.shape[2], images.shape[3])
    if size == before:
        return images, targets
    smaller = size[0] < before[0] or size[1] < before[1]
    images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=smaller)
    scale = (size[1] / before[1], size[0] / before[0])
    rows, columns = (
        ((torch.arange(new, device=images.device) + 0.5) * (old / new)).long()
        for new, old in zip(size, before, strict=True)
    )
    rescaled: list[Target] = []
    for target in targets:
        new = Target(**target)
        for key in _BOXES:
            if key in target:
                x0, y0, x1, y1 = target[key].unbind(-1)
                boxes = [x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1]]
                new[key] = torch.stack(boxes, -1)
        if "area" in target:
            new["area"] = target["area"] * (scale[0] * scale[1])
        for name in _MASKS:
            if name in target:
                mask = target[name]
                new[name] = mask[..., rows, :][..., columns]
        rescaled.append(new)
    return images, rescaled
