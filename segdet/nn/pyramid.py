"""Feature pyramids on any backbone, and their anchors, as inputs of torchvision's detection modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool

from segdet.nn.size_cache import SizeCache
from segdet.nn.strided import HalvingConv2d
from segdet.util.errors import UserError


class FeaturePyramid(nn.Module):
    """A feature pyramid network (Lin et al., CVPR 2017): a top-down pathway with lateral connections.

    Args:
        channels: The channels of the backbone's maps, fine to coarse.
        strides: The strides of the backbone's maps.
        width: The channels of all output maps.
        extra_levels: The number of additional maps, each half the size of the one before, by 3x3 convolutions
            (RetinaNet's P6 and P7).
        subsampled: Whether the last map is followed by a copy with every second cell (Faster R-CNN's P6).
        norm: Whether batch normalization follows the pyramid's convolutions.

    Attributes:
        strides: The strides of all output maps.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        width: int,
        extra_levels: int = 0,
        subsampled: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__()
        extra: ExtraFPNBlock | None = ExtraLevels(width, extra_levels) if extra_levels else None
        if subsampled:
            extra, extra_levels = LastLevelMaxPool(), 1
        self.strides = [*strides, *(strides[-1] * 2 ** (level + 1) for level in range(extra_levels))]
        self.pyramid = FeaturePyramidNetwork(
            list(channels), width, extra, norm_layer=nn.BatchNorm2d if norm else None
        )

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return maps ``[B, width, h_i, w_i]`` by level, from maps ``[B, channels[i], h_i, w_i]``, fine to coarse."""
        features = self.pyramid({str(place): each for place, each in enumerate(maps)})
        return {str(place): each for place, each in enumerate(features.values())}


class ExtraLevels(ExtraFPNBlock):
    """Maps above the pyramid: 3x3 convolutions of stride 2, with ReLUs between them (RetinaNet, section 4).

    Args:
        width: The channels.
        count: The number of maps.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(HalvingConv2d(width, width, 3, 2, 1) for _ in range(count))
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(convolution.bias)

    def forward(self, x: list[Tensor], y: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append the extra maps to the pyramid's maps ``x`` and their names; the backbone's maps ``y`` are not used."""
        for place, convolution in enumerate(self.convolutions):
            x.append(convolution(F.relu(x[-1]) if place else x[-1]))
            names.append(f"extra{place}")
        return x, names


def group_norm(width: int) -> Callable[[int], nn.GroupNorm]:
    """Return the factory of group normalization for a head that is shared by all levels.

    There are at most 32 groups. Each has at least 8 of the ``width`` channels.

    Raises:
        UserError: If the channels cannot be divided into the groups.
    """
    groups = max(1, min(32, width // 8))
    if width % groups:
        raise UserError(
            f"--model.width {width}: cannot be normalized in {groups} groups; give a multiple of 8"
        )
    return partial(nn.GroupNorm, groups)


class GridAnchors(AnchorGenerator):
    """torchvision's anchors, computed once per image size and in float32.

    torchvision gives anchors the type of the maps; bfloat16 would move them by almost a pixel.

    Args:
        sizes: The sides of the square anchors, per map.
        aspect_ratios: Height over width, per map.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[Sequence[float]]) -> None:
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, aspect_ratios)))
        self._computed: SizeCache[Tensor] = SizeCache()

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image, float32 ``[A, 4]`` xyxy; the same for all images of a batch."""
        size = tuple(image_list.tensors.shape[-2:])
        device = image_list.tensors.device
        grids = tuple((each.shape[-2], each.shape[-1]) for each in feature_maps)

        def compute() -> Tensor:
            maps = [torch.empty(1, 1, *grid, device=device) for grid in grids]
            one = ImageList(image_list.tensors[:1], image_list.image_sizes[:1])
            return super(GridAnchors, self).forward(one, maps)[0]

        return [self._computed.get((size, grids, device), compute)] * len(image_list.image_sizes)


class RoundedAnchors(GridAnchors):
    """The anchors of Faster R-CNN, rounded as in the released code (py-faster-rcnn, generate_anchors).

    They are centred on the cell of ``stride`` pixels. At stride 16 the areas are 128^2, 256^2 and 512^2 pixels, with
    three aspect ratios each. The last pixel is exclusive, so that x1 and y1 are greater by one than in that code.

    Args:
        stride: The stride of the map.
        scales: The sides of the square anchors in strides.
        aspect_ratios: Height over width.
    """

    def __init__(
        self,
        stride: int = 16,
        scales: Sequence[float] = (8, 16, 32),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ) -> None:
        self.stride = stride
        super().__init__([[scale * stride for scale in scales]], [aspect_ratios])

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return anchors ``[N, 4]`` of the cell at the image's corner, by aspect ratio, with ``scales`` in pixels."""
        ratios = torch.tensor(list(aspect_ratios), dtype=torch.float64)
        width = (self.stride**2 / ratios).sqrt().round()  # of a single cell, before it is scaled
        height = (width * ratios).round()
        sides = torch.stack([width, height], 1)[:, None] * (torch.tensor(list(scales)) / self.stride)[:, None]
        centre = (self.stride - 1) / 2
        low = centre - (sides - 1) / 2
        return torch.cat([low, low + sides], -1).flatten(0, 1).to(dtype=dtype, device=device)


def pad_to_stride(images: Tensor, stride: int) -> ImageList:
    """Pad images ``[B, 3, H, W]`` with zeros on the right and at the bottom to multiples of a stride.

    Each cell of a map then covers the same number of pixels. The ``image_sizes`` are those before padding.
    """
    height, width = images.shape[-2:]
    padded = images
    if height % stride or width % stride:
        padded = F.pad(images, (0, -width % stride, 0, -height % stride))
    return ImageList(padded, [(height, width)] * len(images))
