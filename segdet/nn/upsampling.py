"""Upsampling layers with one interface: interpolation, unpooling and transposed convolution.

Every `Upsampler` takes features and the size of the output. `MaxUnpooling` also takes the switches of the pooling
that it inverts. The output has exactly the requested size, odd sizes included: a map of 7 pixels pools to 4 with
``ceil_mode=True``; 4 pixels are upsampled to 8, and the last one is cropped. Resizing 4 pixels to 7 instead would
shift every pixel from its position in the image.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.util.errors import check_choice

Upsampling = Literal[
    "nearest", "bilinear", "bed_of_nails", "max_unpooling", "transposed", "transposed_frozen"
]
"""Names of the upsamplers in configurations."""


class Upsampler(nn.Module):
    """Base class of layers that upsample maps by an integer factor.

    Args:
        factor: The factor in both directions, at least 1.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor: must be at least 1, not {factor}")
        self.factor = factor

    @abstractmethod
    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        """Upsample features ``[B, C, h, w]`` to ``[B, C, *size]``.

        Args:
            features: The features.
            size: ``(height, width)`` of the output, for example of the input of the pooling to invert.
            indices: int64 ``[B, C, h, w]``, the indices of the maxima as returned by ``max_pool2d`` with
                ``return_indices=True``: flat positions within a channel. Only `MaxUnpooling` uses them.

        Raises:
            ValueError: If pooling a map of ``size`` does not give maps of ``h`` x ``w``, or indices are missing.
        """

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class Nearest(Upsampler):
    """Nearest-neighbour upsampling: every pixel is repeated ``factor`` times in both directions."""

    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        return _crop(_interpolated(features, self.factor, "nearest"), size, self.factor)


class Bilinear(Upsampler):
    """Bilinear interpolation between pixel centres, with replication beyond the outermost centres."""

    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        return _crop(_interpolated(features, self.factor, "bilinear"), size, self.factor)


class BedOfNails(Upsampler):
    """Bed-of-nails unpooling: each value at the top left of its ``factor`` x ``factor`` window, zeros elsewhere."""

    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        h, w = features.shape[-2:]
        _check_size((h * self.factor, w * self.factor), size, self.factor)
        last = features.is_contiguous(memory_format=torch.channels_last)
        large = torch.empty(
            (*features.shape[:2], *size),
            dtype=features.dtype,
            device=features.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        ).zero_()
        large[..., :: self.factor, :: self.factor] = features
        return large


class MaxUnpooling(Upsampler):
    """Max unpooling: each value at the position of its window's maximum, zeros elsewhere.

    The layer inverts a max pooling with windows of ``factor`` x ``factor`` by its switches (Zeiler and Fergus, ECCV
    2014; SegNet, PAMI 2017, section 3; DeconvNet, ICCV 2015, section 3.2). Each channel is placed by the switches of
    the same channel, so the features have as many channels as the pooled map.
    """

    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        if indices is None:
            raise ValueError("max unpooling needs the indices of the pooling that it inverts")
        if indices.shape != features.shape:
            raise ValueError(
                f"max unpooling: features of shape {list(features.shape)} need indices of the same shape, "
                f"not {list(indices.shape)}"
            )
        h, w = features.shape[-2:]
        _check_size((h * self.factor, w * self.factor), size, self.factor)
        return F.max_unpool2d(features, indices, (self.factor, self.factor), output_size=size)


class TransposedConvolution(Upsampler):
    """Transposed convolution of stride ``factor``: the sum of copies of the kernel, each multiplied by one value.

    It is initialized to bilinear interpolation of each channel and has no bias, as in FCN (Long, Shelhamer,
    Darrell, CVPR 2015, section 3.3 and the released code). The frozen layer differs from `Bilinear` only at the
    border, where it pads with zeros.

    Args:
        channels: The number of input and output channels.
        factor: See `Upsampler`.
        learned: Whether the kernel is trained.
        depthwise: Whether each channel has one kernel of its own instead of one per pair of channels.
    """

    def __init__(self, channels: int, factor: int = 2, learned: bool = True, depthwise: bool = False) -> None:
        super().__init__(factor)
        side = 2 * factor - factor % 2
        # Crop the output to ``factor`` times the input size.
        self.padding = (side - factor) // 2
        self.groups = channels if depthwise else 1
        weight = _channelwise_weight(channels, bilinear_kernel(side), depthwise)
        self.weight = nn.Parameter(weight, requires_grad=learned)

    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        large = F.conv_transpose2d(
            features, self.weight, stride=self.factor, padding=self.padding, groups=self.groups
        )
        return _crop(large, size, self.factor)

    def extra_repr(self) -> str:
        channels, out, *sides = self.weight.shape
        return (
            f"{channels}, {out * self.groups}, kernel_size={tuple(sides)}, factor={self.factor}, "
            f"padding={self.padding}, groups={self.groups}, learned={self.weight.requires_grad}"
        )


def bilinear_kernel(side: int) -> Tensor:
    """Return the kernel, float32 ``[side, side]``, of a transposed convolution that interpolates bilinearly.

    The kernel is a tent that falls to zero just outside: ``[.25, .75, .75, .25]`` in both directions for side 4 and
    stride 2. With side ``2 * factor - factor % 2`` and stride ``factor``, the weights at each inner pixel of the
    output sum to one (FCN's released code, surgery.py).
    """
    reach = (side + 1) // 2
    tent = 1 - (torch.arange(side) - (side - 1) / 2).abs() / reach
    return tent[:, None] * tent


def bilinear_convolution(
    channels: int, factor: int, side: int, padding: int = 0, depthwise: bool = False
) -> nn.ConvTranspose2d:
    """Return a transposed convolution initialized to bilinear interpolation, with a free choice of kernel and padding.

    As in published networks, the output is not cropped to a given size; `TransposedConvolution` crops it.

    Args:
        channels: The number of input and output channels.
        factor: The stride.
        side: The side of the kernel: at least ``2 * factor - factor % 2``, and of the same parity. The border around
            the bilinear kernel is initialized to zero.
        padding: The number of rows and columns cropped from each side of the output.
        depthwise: See `TransposedConvolution`.
    """
    layer = nn.ConvTranspose2d(
        channels, channels, side, factor, padding, groups=channels if depthwise else 1, bias=False
    )
    kernel = bilinear_kernel(2 * factor - factor % 2)
    border = (side - len(kernel)) // 2
    with torch.no_grad():
        layer.weight.copy_(_channelwise_weight(channels, F.pad(kernel, (border,) * 4), depthwise))
    return layer


def _channelwise_weight(channels: int, kernel: Tensor, depthwise: bool) -> Tensor:
    """Return weights ``[channels, 1 if depthwise else channels, side, side]`` that apply ``kernel`` to each channel."""
    weight = torch.zeros(channels, 1 if depthwise else channels, *kernel.shape)
    index = torch.arange(channels)
    weight[index, torch.zeros_like(index) if depthwise else index] = kernel
    return weight


def upsample_to(
    features: Tensor, size: tuple[int, int], factor: int, mode: Literal["nearest", "bilinear"] = "bilinear"
) -> Tensor:
    """Upsample a coarse map ``[B, C, h, w]`` by its stride and return ``[B, C, *size]``, aligned with a finer map.

    The output is cropped at the bottom and right, or extended by replication where the coarse size was rounded down.

    Args:
        features: The coarse map.
        size: ``(height, width)`` of the finer map.
        factor: The stride of the coarse map in pixels of the finer one.
        mode: The interpolation.
    """
    large = _interpolated(features, factor, mode)[..., : size[0], : size[1]]
    down, right = size[0] - large.shape[2], size[1] - large.shape[3]
    return F.pad(large, (0, right, 0, down), mode="replicate") if down or right else large


def build_upsampler(name: Upsampling, channels: int, factor: int = 2) -> Upsampler:
    """Return the upsampler called ``name``.

    ``transposed`` learns a kernel per pair of channels; ``transposed_frozen`` keeps one bilinear kernel per channel.
    No upsampler draws random numbers, so the other layers of a network start from the same weights with any upsampler.

    Args:
        name: See `Upsampling`.
        channels: The number of channels.
        factor: See `Upsampler`.

    Raises:
        UserError: If there is no upsampler of this name.
    """
    check_choice("--model.upsampling", name, Upsampling)
    match name:
        case "nearest":
            return Nearest(factor)
        case "bilinear":
            return Bilinear(factor)
        case "bed_of_nails":
            return BedOfNails(factor)
        case "max_unpooling":
            return MaxUnpooling(factor)
        case "transposed":
            return TransposedConvolution(channels, factor)
        case "transposed_frozen":
            return TransposedConvolution(channels, factor, learned=False, depthwise=True)


def _interpolated(features: Tensor, factor: int, mode: Literal["nearest", "bilinear"]) -> Tensor:
    align = None if mode == "nearest" else False
    return F.interpolate(features, scale_factor=float(factor), mode=mode, align_corners=align)


def _crop(large: Tensor, size: tuple[int, int], factor: int) -> Tensor:
    """Crop ``large`` at the bottom and right to ``size``."""
    _check_size((large.shape[-2], large.shape[-1]), size, factor)
    return large[..., : size[0], : size[1]]


def _check_size(large: tuple[int, int], size: tuple[int, int], factor: int) -> None:
    """Raise ``ValueError`` unless ``size`` is smaller than ``large`` by less than ``factor`` pixels per side."""
    if not all(side - factor < target <= side for side, target in zip(large, size, strict=True)):
        raise ValueError(
            f"upsampling by {factor} gives {large[0]}x{large[1]} pixels, which cannot be cropped to "
            f"{size[0]}x{size[1]}; pool with ceil_mode=True, and give the size of the map before the pooling"
        )
