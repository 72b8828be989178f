"""Windows of several sizes and aspect ratios, as windows of one size in resized copies of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.nn.windows import window_grid


@dataclass(frozen=True)
class WindowLayout:
    """The positions of the A windows of an image size, by level, row and column."""

    sizes: list[tuple[int, int]]  # (height, width) of each level
    counts: list[int]  # the number of windows of each level
    boxes: Tensor  # float32 [A, 4] xyxy in pixels of the image
    starts: (
        Tensor  # int64 [A]: the position of a window's first pixel in the packed levels, see `pack_levels`
    )
    pitches: Tensor  # int64 [A]: the distance between two rows of a window in the packed levels


def level_sizes(
    size: tuple[int, int], window: int, stride: int, scales: Sequence[float], aspects: Sequence[float]
) -> list[tuple[int, int]]:
    """Return the sizes of the levels, one for each different pair of scale and aspect ratio.

    Along each side, the last window ends at the border of the image. The number of windows is chosen so that the window
    size is closest to the requested size. A window larger than the image gets the size of the image.

    Args:
        size: ``(height, width)`` of the image.
        window: The side of a window in pixels of the levels.
        stride: The distance between windows in pixels of the levels.
        scales: The sizes of the windows: the square root of the ratio of window area to image area.
        aspects: Width over height.
    """
    height, width = size
    sizes: dict[tuple[int, int], None] = {}
    for scale in scales:
        for aspect in aspects:
            side = scale * math.sqrt(height * width)
            steps = [
                max(0, round((whole / part - 1) * window / stride))
                for whole, part in ((height, side / math.sqrt(aspect)), (width, side * math.sqrt(aspect)))
            ]
            sizes[window + steps[0] * stride, window + steps[1] * stride] = None
    return list(sizes)


def layout_windows(
    size: tuple[int, int], sizes: list[tuple[int, int]], window: int, stride: int, device: torch.device
) -> WindowLayout:
    """Return the windows of an image of ``size`` (height, width) on levels of ``sizes``."""
    boxes, starts, pitches, pixels = [], [], [], 0
    for high, wide in sizes:
        rows, columns = window_grid((high, wide), window, stride)
        tops, lefts = torch.meshgrid(
            torch.arange(rows, device=device) * stride,
            torch.arange(columns, device=device) * stride,
            indexing="ij",
        )
        corners = torch.stack([lefts, tops], -1).view(-1, 2)
        scale = torch.tensor([size[1] / wide, size[0] / high] * 2, device=device)
        boxes.append(torch.cat([corners, corners + window], 1) * scale)
        starts.append(pixels + corners[:, 1] * wide + corners[:, 0])
        pitches.append(torch.full_like(starts[-1], wide))
        pixels += high * wide
    counts = [len(each) for each in boxes]
    return WindowLayout(sizes, counts, torch.cat(boxes), torch.cat(starts), torch.cat(pitches))


def build_levels(images: Tensor, layout: WindowLayout) -> list[Tensor]:
    """Resize images ``[B, 3, H, W]`` to the sizes of the levels, channels last in memory."""
    return [
        F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True).contiguous(
            memory_format=torch.channels_last
        )
        for size in layout.sizes
    ]


def pack_levels(levels: list[Tensor]) -> Tensor:
    """Concatenate the pixels of all levels: ``[B, pixels, 3]``."""
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], 1)


def crop_packed(packed: Tensor, layout: WindowLayout, index: Tensor, numbers: Tensor, window: int) -> Tensor:
    """Copy windows ``[N, 3, window, window]``, channels last in memory, from packed levels.

    Args:
        packed: See `pack_levels`.
        layout: The layout of the levels.
        index: int64 ``[N]``, the image of each window.
        numbers: int64 ``[N]``, the number of each window in the layout.
        window: The side of a window.
    """
    images, pixels, channels = packed.shape
    # A row of a window is contiguous in memory, and is copied in one piece, for all levels alike.
    runs = packed.as_strided((images * pixels - window + 1, window * channels), (channels, 1))
    rows = torch.arange(window, device=packed.device) * layout.pitches[numbers, None]
    first = index * pixels + layout.starts[numbers]
    return runs[first[:, None] + rows].unflatten(-1, (window, channels)).permute(0, 3, 1, 2)
