"""R-CNN's crops: each region of an image, with some context, warped to a fixed size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align


def with_context(rois: Tensor, size: int, context: int) -> Tensor:
    """Enlarge regions ``[R, 5]`` about their centres so that a crop has a margin of ``context`` pixels.

    R-CNN (CVPR 2014, appendix A) warps to 227 pixels with 16 pixels of context: regions grow by 227 / 195.

    Args:
        rois: ``[R, 5]``: the image's position in the batch, then xyxy.
        size: The side of a crop in pixels.
        context: The width of the margin in pixels of the crop.
    """
    half = (rois[:, 3:] - rois[:, 1:3]) / 2 * (size / (size - 2 * context))
    centre = (rois[:, 1:3] + rois[:, 3:]) / 2
    return torch.cat([rois[:, :1], centre - half, centre + half], 1)


def warp(images: Tensor, rois: Tensor, size: int = 227, context: int = 16) -> Tensor:
    """Crop regions of any aspect ratio from normalized images, and warp each to a square.

    Pixels outside the image are zero, the mean of normalized images. A region larger than the crop is averaged with
    as many samples as needed; a smaller one is interpolated.

    Args:
        images: Float ``[B, 3, H, W]``, normalized.
        rois: ``[R, 5]``: the image's position in the batch, then xyxy in its pixels.
        size: The side of a crop in pixels.
        context: The width of the margin around the region, in pixels of the crop.

    Returns:
        ``[R, 3, size, size]``.
    """
    # RoI Align repeats the border for samples up to one pixel outside the image; a border of zeros makes them zero.
    padded = F.pad(images, (1, 1, 1, 1)).float()
    enlarged = with_context(rois.float(), size, context)
    enlarged = torch.cat([enlarged[:, :1], enlarged[:, 1:] + 1], 1)
    crops = roi_align(padded, enlarged, size, sampling_ratio=-1, aligned=True)
    return crops.to(memory_format=torch.channels_last)
