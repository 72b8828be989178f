"""Sliding windows: their grid, their crops, and the layers of a window classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from segdet.util.errors import UserError

Pair = tuple[int, int]
"""Two numbers, the vertical one first."""

Mode = Literal["crops", "dense"]
"""The evaluation of an image by a sliding-window family: crop by crop, or all windows in one pass."""


def pair(value: int | Sequence[int]) -> Pair:
    """Return ``(vertical, horizontal)`` from one number for both, or from two."""
    if isinstance(value, int):
        return value, value
    vertical, horizontal = value
    return vertical, horizontal


def window_grid(size: Sequence[int], window: int | Sequence[int], stride: int | Sequence[int]) -> Pair:
    """Return the number of rows and columns of windows that lie within an image of ``size``.

    The first window is at the top left. A number is 0 if the image is smaller than a window in this direction.
    """
    counts = [
        max(0, (length - side) // step + 1)
        for length, side, step in zip(size, pair(window), pair(stride), strict=True)
    ]
    return counts[0], counts[1]


def crop_windows(
    images: Tensor, index: Tensor, tops: Tensor, lefts: Tensor, window: int | Sequence[int]
) -> Tensor:
    """Copy windows of images ``[B, C, H, W]`` to ``[N, C, h, w]``, channels last in memory.

    Args:
        images: The images, which are copied as a whole unless they are channels last in memory.
        index: int64 ``[N]``, the image of each window.
        tops: int64 ``[N]``, the first row of each window.
        lefts: int64 ``[N]``, the first column of each window.
        window: The size of the windows, which must lie within the image.
    """
    high, wide = pair(window)
    pixels = images.permute(0, 2, 3, 1).contiguous()
    count, height, width, channels = pixels.shape
    # With channels last, a row of a window is contiguous in memory and is copied in one piece.
    runs = pixels.as_strided(
        (count, height - high + 1, width - wide + 1, high, wide * channels),
        (height * width * channels, width * channels, channels, width * channels, 1),
    )
    return runs[index, tops, lefts].unflatten(-1, (wide, channels)).permute(0, 3, 1, 2)


def window_batches(
    images: Tensor, window: int | Sequence[int], stride: int | Sequence[int], size: int
) -> Iterator[Tensor]:
    """Yield all windows of images ``[B, C, H, W]`` in batches of up to ``size``, by image, row and column."""
    rows, columns = window_grid(images.shape[-2:], window, stride)
    down, right = pair(stride)
    images = images.contiguous(memory_format=torch.channels_last)
    total = len(images) * rows * columns
    for start in range(0, total, size):
        number = torch.arange(start, min(start + size, total), device=images.device)
        place = number % (rows * columns)
        yield crop_windows(
            images, number // (rows * columns), place // columns * down, place % columns * right, window
        )


def window_stages(
    window: int,
    channels: Sequence[int],
    kernels: Sequence[int],
    pools: Sequence[int],
    strides: Sequence[int] | None = None,
) -> tuple[list[nn.Module], int]:
    """Build the layers of a window classifier before its linear layers, without any padding.

    A stage is a convolution, batch normalization, ReLU and, unless its pool is 1, max pooling.

    Args:
        window: The side of the windows.
        channels: The output channels of each stage.
        kernels: The side of each stage's convolution.
        pools: The side and stride of each stage's pooling.
        strides: The stride of each stage's convolution; null for 1.

    Returns:
        The layers, and the number of features of one window after them.

    Raises:
        UserError: If the lists differ in length, or the window is too small for the stages.
    """
    if not len(channels) == len(kernels) == len(pools):
        raise UserError(
            f"--model.channels, --model.kernels and --model.pools: {len(channels)}, {len(kernels)} and {len(pools)} "
            "numbers; give one number per stage to each"
        )
    strides = [1] * len(channels) if strides is None else strides
    if len(strides) != len(channels):
        raise UserError(
            f"--model.conv_strides: {len(strides)} numbers for {len(channels)} stages; give one per stage"
        )
    layers: list[nn.Module] = []
    side, before = window, 3
    for stage, (width, kernel, pool, stride) in enumerate(
        zip(channels, kernels, pools, strides, strict=True)
    ):
        if min(width, kernel, pool, stride) < 1 or side < kernel or (side - kernel) // stride + 1 < pool:
            raise UserError(
                f"--model.window {window}: stage {stage + 1} receives {side} pixels, too few for a kernel of {kernel} "
                f"and pooling by {pool}; use a larger window, or fewer or smaller stages"
            )
        layers += Conv2dNormActivation(before, width, kernel, stride, padding=0)
        if pool > 1:
            layers.append(nn.MaxPool2d(pool))
        side, before = ((side - kernel) // stride + 1) // pool, width
    return layers, before * side * side
