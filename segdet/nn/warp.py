"""R-CNN's crops: every region of an image, with some of its surroundings, warped to one size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align


def with_context(rois: Tensor, size: int, context: int) -> Tensor:
    """Regions ``[R, 5]`` grown about their centres so that ``context`` pixels of a crop of ``size`` surround them.

    R-CNN (CVPR 2014, appendix A) warps to 227 pixels with 16 of context: regions grow by 227 / 195.
    """
    half = (rois[:, 3:] - rois[:, 1:3]) / 2 * (size / (size - 2 * context))
    centre = (rois[:, 1:3] + rois[:, 3:]) / 2
    return torch.cat([rois[:, :1], centre - half, centre + half], 1)


def warp(images: Tensor, rois: Tensor, size: int = 227, context: int = 16) -> Tensor:
    """The crops of regions of normalized images, each warped to a square whatever its shape.

    Outside of an image there is its mean, which normalization has made zero. A crop that is smaller than its
    region averages over the pixels (by as many samples as it needs), one that is larger interpolates.

    Args:
        images: Float ``[B, 3, H, W]``, normalized.
        rois: ``[R, 5]``: the image's position in the batch, then xyxy in its pixels.
        size: The side of a crop.
        context: How many pixels of a crop's rim lie around the region.

    Returns:
        ``[R, 3, size, size]``.
    """
    # Within a pixel beyond its border the pooling repeats the border; a rim of zeros makes that zeros, too.
    padded = F.pad(images, (1, 1, 1, 1)).float()
    grown = with_context(rois.float(), size, context)
    grown = torch.cat([grown[:, :1], grown[:, 1:] + 1], 1)
    crops = roi_align(padded, grown, size, sampling_ratio=-1, aligned=True)
    return crops.to(memory_format=torch.channels_last)
