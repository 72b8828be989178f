"""Upsampling: five ways from a coarse map back to a fine one, behind one interface.

Every `Upsampler` takes features, the size of the map wanted and, where it needs them, the switches of the
pooling that it undoes. It gives a map of exactly that size, odd sizes included: a map of 7 pixels pools to 4
with ``ceil_mode=True``, 4 become 8, and the last one is cut off. Stretching 4 to 7 instead would move every
pixel away from where it came from.
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
"""The names by which configurations know the upsamplers."""


class Upsampler(nn.Module):
    """Makes maps larger by a whole factor.

    Args:
        factor: Rows and columns of the result for each of the features, at least 1.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"an upsampler's factor is 1 or more, not {factor}")
        self.factor = factor

    @abstractmethod
    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        """Features ``[B, C, h, w]`` to ``[B, C, *size]``.

        Args:
            features: What to make larger.
            size: ``(height, width)`` of the map that was made smaller, such as the input of a pooling.
            indices: int64 ``[B, C, h, w]``, where each of that pooling's maxima stood in its channel, row
                by row, as ``max_pool2d(..., return_indices=True)`` gives them; only `MaxUnpooling` reads them.

        Raises:
            ValueError: If no map of this size has such features, or the indices are needed and missing.
        """

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class Nearest(Upsampler):
    """Repeats every pixel ``factor`` times in both directions (replication)."""

    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        large = _interpolated(features, self.factor, "nearest")
        return _cut(large, size, self.factor)


class Bilinear(Upsampler):
    """Interpolates between pixels' centres; beyond the outermost ones their values go on."""

    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        large = _interpolated(features, self.factor, "bilinear")
        return _cut(large, size, self.factor)


class BedOfNails(Upsampler):
    """Puts every value at the top left of its ``factor`` x ``factor`` pixels, and zeros around it."""

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
    """Puts every value where the maximum of its window stood, and zeros around it.

    Undoes a max pooling of windows of ``factor`` x ``factor`` with the switches which that kept (Zeiler and Fergus,
    ECCV 2014; SegNet, PAMI 2017, section 3; DeconvNet, ICCV 2015, section 3.2). A channel of the features is
    placed by the same channel of the pooling, so both have the same number of channels.
    """

    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        if indices is None:
            raise ValueError("max unpooling needs the indices of the pooling that it undoes")
        if indices.shape != features.shape:
            raise ValueError(
                f"max unpooling places features of shape {list(features.shape)} by as many indices, "
                f"not by {list(indices.shape)}"
            )
        h, w = features.shape[-2:]
        _check_size((h * self.factor, w * self.factor), size, self.factor)
        return F.max_unpool2d(features, indices, (self.factor, self.factor), output_size=size)


class TransposedConvolution(Upsampler):
    """The transpose of a convolution of stride ``factor``: every value lays down a weighted kernel, overlaps add.

    It begins as bilinear interpolation, each channel for itself, as the upsampling layers of FCN do (Long,
    Shelhamer, Darrell, CVPR 2015, section 3.3 and its released code: no bias). Learned, it may become any
    other; frozen, it differs from `Bilinear` only at the border, where it takes zeros to stand beyond the map.

    Args:
        channels: Of the features, and of the result.
        factor: See `Upsampler`.
        learned: Whether training changes the kernel.
        depthwise: Whether each channel has one kernel of its own and sees no other channel, in place of one
            for each pair of channels.
    """

    def __init__(
        self,
        channels: int,
        factor: int = 2,
        learned: bool = True,
        depthwise: bool = False,
    ) -> None:
        super().__init__(factor)
        side = 2 * factor - factor % 2
        # As many rows and columns off on every side as leave ``factor`` times the features' size.
        self.padding = (side - factor) // 2
        self.groups = channels if depthwise else 1
        weight = _own_kernels(channels, bilinear_kernel(side), depthwise)
        self.weight = nn.Parameter(weight, requires_grad=learned)

    def forward(self, features: Tensor, size: tuple[int, int], indices: Tensor | None = None) -> Tensor:
        large = F.conv_transpose2d(
            features, self.weight, stride=self.factor, padding=self.padding, groups=self.groups
        )
        return _cut(large, size, self.factor)

    def extra_repr(self) -> str:
        into, out, *sides = self.weight.shape
        return (
            f"{into}, {out * self.groups}, kernel_size={tuple(sides)}, factor={self.factor}, padding={self.padding}, "
            f"groups={self.groups}, learned={self.weight.requires_grad}"
        )


def bilinear_kernel(side: int) -> Tensor:
    """The kernel, float32 ``[side, side]``, with which a transposed convolution interpolates bilinearly.

    A tent around its centre, which falls to zero just outside of it: ``[.25, .75, .75, .25]`` in both
    directions for side 4, which goes with a stride of 2. At side ``2 * factor - factor % 2`` and stride
    ``factor`` what reaches a pixel inside of the map sums to one (FCN's released code, surgery.py).
    """
    reach = (side + 1) // 2
    tent = 1 - (torch.arange(side) - (side - 1) / 2).abs() / reach
    return tent[:, None] * tent


def bilinear_convolution(
    channels: int, factor: int, side: int, padding: int = 0, depthwise: bool = False
) -> nn.ConvTranspose2d:
    """A transposed convolution that begins as bilinear interpolation of each channel, as published networks have it.

    It gives all that its kernels reach; `TransposedConvolution` is for a map of a certain size.

    Args:
        channels: Of the features, and of the result.
        factor: The stride.
        side: The kernel's, at least ``2 * factor - factor % 2`` and even or odd as that is: what lies around the
            kernel of bilinear interpolation begins at zero.
        padding: The rows and columns taken off on every side.
        depthwise: As for `TransposedConvolution`.
    """
    layer = nn.ConvTranspose2d(
        channels, channels, side, factor, padding, groups=channels if depthwise else 1, bias=False
    )
    kernel = bilinear_kernel(2 * factor - factor % 2)
    around = (side - len(kernel)) // 2
    with torch.no_grad():
        layer.weight.copy_(_own_kernels(channels, F.pad(kernel, (around,) * 4), depthwise))
    return layer


def _own_kernels(channels: int, kernel: Tensor, depthwise: bool) -> Tensor:
    """The weights by which each channel lays down ``kernel`` for itself: ``[channels, channels or 1, side, side]``."""
    weight = torch.zeros(channels, 1 if depthwise else channels, *kernel.shape)
    own = torch.arange(channels)
    weight[own, torch.zeros_like(own) if depthwise else own] = kernel
    return weight


def enlarged(
    features: Tensor, size: tuple[int, int], factor: int, mode: Literal["nearest", "bilinear"] = "bilinear"
) -> Tensor:
    """A coarse map ``[B, C, h, w]`` in the place of the finer one of ``size`` that it lies beside: ``[B, C, *size]``.

    Each pixel becomes ``factor`` of them in both directions, as the coarse map's stride has it, and what then lies
    beyond is cut off. Where the coarse side was rounded down, the last row and column go on.

    Args:
        features: The coarse map.
        size: ``(height, width)`` of the fine one.
        factor: The coarse map's stride in pixels of the fine one.
        mode: Between the pixels' centres, or not.
    """
    large = _interpolated(features, factor, mode)[..., : size[0], : size[1]]
    down, right = size[0] - large.shape[2], size[1] - large.shape[3]
    return F.pad(large, (0, right, 0, down), mode="replicate") if down or right else large


def upsampler(name: Upsampling, channels: int, factor: int = 2) -> Upsampler:
    """An upsampler by its name.

    None of them draws random numbers, so that what is built around them starts from the same weights with
    every one. ``transposed`` learns a kernel for each pair of channels; ``transposed_frozen`` keeps bilinear ones,
    each channel's own.

    Args:
        name: See `Upsampling`.
        channels: Of the features.
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


def _cut(large: Tensor, size: tuple[int, int], factor: int) -> Tensor:
    """``large`` without the rows and columns at the bottom and on the right that the map never had."""
    _check_size((large.shape[-2], large.shape[-1]), size, factor)
    return large[..., : size[0], : size[1]]


def _check_size(large: tuple[int, int], size: tuple[int, int], factor: int) -> None:
    """Refuses a size for which more than a part of the last row or column would be cut off, or too little is there."""
    if not all(there - factor < wanted <= there for there, wanted in zip(large, size, strict=True)):
        raise ValueError(
            f"upsampling by {factor} gives {large[0]}x{large[1]} pixels here, of which no map of {size[0]}x{size[1]} "
            "is made; pool with ceil_mode=True, and give the size of the map before the pooling"
        )
