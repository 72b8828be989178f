"""Feature pyramids and the anchors on them: what torchvision's detection parts stand on, with any backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool

from segdet.nn.kept import Kept
from segdet.util.errors import UserError


class FeaturePyramid(nn.Module):
    """A feature pyramid (Lin et al., CVPR 2017): each map receives what coarser ones know, and all have one width.

    Args:
        channels: Of the backbone's maps, fine to coarse.
        strides: Theirs.
        width: The channels of all maps after it.
        extra_levels: Further maps, each half the size of the one before, by convolutions of 3x3 (RetinaNet's P6 and
            P7).
        subsampled: Whether the last map is followed by every second cell of itself (Faster R-CNN's P6).
        norm: Whether batch normalization follows the pyramid's convolutions.

    Attributes:
        strides: Of all maps after it.
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
        """Maps ``[B, channels[i], h_i, w_i]``, fine to coarse, to maps ``[B, width, h_i, w_i]`` by their place."""
        features = self.pyramid({str(place): each for place, each in enumerate(maps)})
        return {str(place): each for place, each in enumerate(features.values())}


class ExtraLevels(ExtraFPNBlock):
    """Maps beyond the pyramid's last: convolutions of 3x3 and stride 2, with ReLUs between (RetinaNet, section 4).

    Args:
        width: The channels.
        count: How many maps.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(count))
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(convolution.bias)

    def forward(self, x: list[Tensor], y: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """The pyramid's maps ``x`` and their names, with the further ones; ``y``, the backbone's, are not looked at."""
        for place, convolution in enumerate(self.convolutions):
            x.append(convolution(F.relu(x[-1]) if place else x[-1]))
            names.append(f"extra{place}")
        return x, names


def grouped(width: int) -> Callable[[int], nn.GroupNorm]:
    """What makes the group normalization of a head that several maps share: 32 groups as usual, fewer where one would
    have less than 8 of the ``width`` channels.

    Raises:
        UserError: If the channels cannot be divided so.
    """
    groups = max(1, min(32, width // 8))
    if width % groups:
        raise UserError(
            f"--model.width {width}: cannot be normalized in {groups} groups; give a multiple of 8"
        )
    return partial(nn.GroupNorm, groups)


class GridAnchors(AnchorGenerator):
    """torchvision's anchors, computed once for a size of images and exact in any precision.

    torchvision gives anchors the maps' own type; in bfloat16 that would move them by most of a pixel.

    Args:
        sizes: The sides of the square anchors, of each map.
        aspect_ratios: Height over width, of each map.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[Sequence[float]]) -> None:
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, aspect_ratios)))
        self._computed: Kept[Tensor] = Kept()

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of each image, float32 ``[A, 4]`` xyxy: the same for all images of a batch."""
        size = tuple(image_list.tensors.shape[-2:])
        device = image_list.tensors.device
        grids = tuple((each.shape[-2], each.shape[-1]) for each in feature_maps)

        def compute() -> Tensor:
            maps = [torch.empty(1, 1, *grid, device=device) for grid in grids]
            one = ImageList(image_list.tensors[:1], image_list.image_sizes[:1])
            return super(GridAnchors, self).forward(one, maps)[0]

        return [self._computed.get((size, grids, device), compute)] * len(image_list.image_sizes)


class NineAnchors(GridAnchors):
    """Faster R-CNN's anchors, rounded as its released code rounds them (py-faster-rcnn, generate_anchors).

    Around the cell of ``stride`` pixels; areas of 128, 256 and 512 pixels squared at stride 16, in three shapes each.
    As everywhere here the last pixel is exclusive, so that x1 and y1 are greater by one than in that code.

    Args:
        stride: The map's.
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
        """The anchors ``[N, 4]`` of the cell at the image's corner, ratio by ratio.

        Args:
            scales: The sides of the square ones in pixels.
            aspect_ratios: Height over width.
            dtype: Of the anchors.
            device: Where they are wanted.
        """
        ratios = torch.tensor(list(aspect_ratios), dtype=torch.float64)
        width = (self.stride**2 / ratios).sqrt().round()  # of a single cell; only then enlarged
        height = (width * ratios).round()
        sides = torch.stack([width, height], 1)[:, None] * (torch.tensor(list(scales)) / self.stride)[:, None]
        centre = (self.stride - 1) / 2
        low = centre - (sides - 1) / 2
        return torch.cat([low, low + sides], -1).flatten(0, 1).to(dtype=dtype, device=device)


def on_grid(images: Tensor, multiple: int) -> ImageList:
    """Images ``[B, 3, H, W]``, padded with zeros on the right and at the bottom to multiples of a stride.

    Only so does each cell of a map stand for the same number of pixels. The sizes that torchvision's parts are told
    are those before the padding.
    """
    height, width = images.shape[-2:]
    padded = images
    if height % multiple or width % multiple:
        padded = F.pad(images, (0, -width % multiple, 0, -height % multiple))
    return ImageList(padded, [(height, width)] * len(images))


def in_float32(module: nn.Module) -> None:
    """Lets a head give its numbers in float32, in whatever precision it computes: boxes are made of them."""

    def convert(_: nn.Module, __: Any, output: Any) -> Any:
        return _float32(output)

    module.register_forward_hook(convert)


def _float32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {key: _float32(value) for key, value in output.items()}
    return type(output)(_float32(value) for value in output)
