"""Regions of interest: their features from the map of the whole image, and the two layers that look at those."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from segdet.nn.backbones import is_weights_file, read_weights


def rois_of(boxes: list[Tensor]) -> Tensor:
    """The boxes ``[N, 4]`` of each image of a batch as regions ``[R, 5]``: the image's position, then xyxy."""
    counts = torch.tensor([len(each) for each in boxes])
    images = torch.arange(len(boxes)).repeat_interleave(counts).to(boxes[0].device, non_blocking=True)
    together = torch.cat(boxes).float()
    return torch.cat([images[:, None].to(together.dtype), together], 1)


class RoIPooling(nn.Module):
    """The features of regions, from the feature map of the whole image, as maps of one size.

    ``max`` is Fast R-CNN's RoI max pooling (Girshick, ICCV 2015, section 2.1) with its released code's rounding: a
    region's corners are rounded to cells, its last pixel belongs to it, and bins overlap where they do not
    divide it. ``align`` samples the map at four points a bin without any rounding (He et al., ICCV 2017).

    Args:
        size: The side of a region's map.
        stride: Of the feature map, in pixels.
        kind: ``max`` or ``align``.
    """

    def __init__(self, size: int = 7, stride: int = 16, kind: Literal["max", "align"] = "max") -> None:
        super().__init__()
        self.size, self.stride, self.kind = size, stride, kind
        # Our boxes end behind their last pixel, the released code's with it.
        self.register_buffer("_last", torch.tensor([0.0, 0, 0, 1, 1]), persistent=False)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """A map ``[B, C, h, w]`` and regions ``[R, 5]`` in pixels of the image to ``[R, C, size, size]``."""
        rois = rois.to(features.dtype)
        if self.kind == "align":
            return roi_align(features, rois, self.size, 1 / self.stride, sampling_ratio=2, aligned=True)
        return roi_pool(features, rois - self._last.to(features.dtype), self.size, 1 / self.stride)  # type: ignore[operator]


class TwoLayers(nn.Module):
    """``fc6`` and ``fc7`` on a region's flattened map, as in AlexNet and VGG16.

    Args:
        features: The numbers of a map.
        width: The units of both layers; 4096 in the papers.
        dropout: The rate behind either.
    """

    fc6: nn.Module
    fc7: nn.Module

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.fc6 = nn.Linear(features, width)
        self.fc7 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Flattened maps ``[R, features]`` to ``[R, width]``."""
        hidden = self.dropout(F.relu(self.fc6(features)))
        return self.dropout(F.relu(self.fc7(hidden)))

    def start_from(self, backbone: str, weights: str | bool | None) -> bool:
        """Takes over the two layers of a pretrained network of torchvision's whose shapes they have.

        Args:
            backbone: Its name, such as ``torchvision:vgg16``; of others there is nothing to take.
            weights: As for `segdet.nn.backbones.backbone`, which has told of weights that cannot be had.

        Returns:
            Whether there was something to take.
        """
        if not weights or not backbone.startswith("torchvision:"):
            return False
        if isinstance(weights, str) and is_weights_file(weights):
            state = read_weights(Path(weights), f"backbone {backbone}")
        else:
            choices = torchvision.models.get_model_weights(backbone.removeprefix("torchvision:"))
            state = choices["DEFAULT" if weights is True else weights].get_state_dict(progress=False)
        own = self.state_dict()
        named = {f"fc{number}.{part}": f"classifier.{layer}.{part}"
                 for number, layer in ((6, 0), (7, 3)) for part in ("weight", "bias")}  # fmt: skip
        fits = all(
            # IMAGENET1K_FEATURES has NaN there, for those layers were never published.
            theirs in state
            and state[theirs].shape == own[ours].shape
            and bool(state[theirs].isfinite().all())
            for ours, theirs in named.items()
        )
        if fits:
            self.load_state_dict({ours: state[theirs] for ours, theirs in named.items()})
        return fits
