"""An image in overlapping tiles, for those that do not fit into memory as a whole.

Tiles start at multiples of 32, the stride of the deepest maps of most networks, so that a network sees a tile
as it would see that part of the whole image, but for what lies beyond the tile's edge. Pixels near such an
edge are therefore left to the neighbour: over the overlap of two tiles the one's answer fades into the
other's within the middle quarter alone. Where a pixel's answer depends on no more than three eighths of
the overlap around it, and tile and image sizes are multiples of the stride, the stitched answer equals that of the
whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.metrics.confusion import classes_of

_STRIDE = 32


@dataclass(frozen=True)
class Span:
    """A tile along one side of the image.

    Attributes:
        start: Its first pixel.
        stop: The one behind its last.
        weights: float32 ``[stop - start]``, the tile's part in each pixel; all tiles' sum to 1.
    """

    start: int
    stop: int
    weights: Tensor


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles along a side of ``length`` pixels, each of at least ``tile``, two neighbours sharing at least ``overlap``.

    All start at multiples of 32 (of a smaller power of two where tile and overlap are that near), for which the last
    tile may be up to 31 pixels larger than the others. A side that is no longer than a tile is one.
    """
    if length <= tile:
        return [Span(0, length, torch.ones(length))]
    stride = min(_STRIDE, 1 << ((tile - overlap).bit_length() - 1))
    step = (tile - overlap) // stride * stride
    last = (length - tile) // stride * stride
    starts = [*range(0, last, step), last]
    stops = [start + tile for start in starts[:-1]] + [length]
    total = torch.zeros(length)
    parts: list[Tensor] = []
    for place, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        part = torch.ones(stop - start)
        if place > 0:
            part *= _fade(stops[place - 1] - start, stop - start)
        if place + 1 < len(starts):
            part *= _fade(stop - starts[place + 1], stop - start).flip(0)
        total[start:stop] += part
        parts.append(part)
    return [
        Span(start, stop, part / total[start:stop])
        for start, stop, part in zip(starts, stops, parts, strict=True)
    ]


def _fade(overlap: int, length: int) -> Tensor:
    """From 0 at the beginning of a tile to 1, within the middle quarter of its first ``overlap`` pixels."""
    pixels = torch.arange(length) + 0.5
    return ((pixels - 3 / 8 * overlap) / (overlap / 4)).clamp(0, 1) if overlap else torch.ones(length)


def stitched_rows(
    answer: Callable[[Tensor], Tensor], image: Tensor, tile: tuple[int, int], overlap: int
) -> Iterator[Tensor]:
    """What a network says of an image, put together from its tiles, from the top down.

    On the device there is one tile at a time; on the CPU what one row of tiles makes.

    Args:
        answer: Logits or probabilities ``[1, C, h, w]`` of an image ``[1, 3, h, w]``.
        image: ``[1, 3, H, W]``, of any kind that ``answer`` takes.
        tile: Height and width.
        overlap: Pixels that two neighbours share at least.

    Yields:
        float32 ``[C, rows, W]``, on the CPU, which join to ``[C, H, W]``.
    """
    height, width = image.shape[-2:]
    down, across = spans(height, tile[0], overlap), spans(width, tile[1], overlap)
    rows: Tensor | None = None  # from the first row of pixels that has not been yielded
    for place, span in enumerate(down):
        for column in across:
            found = answer(image[:, :, span.start : span.stop, column.start : column.stop])[0].float().cpu()
            if rows is None:
                rows = torch.zeros(len(found), 0, width)
            if rows.shape[1] < span.stop - span.start:
                rows = F.pad(rows, (0, 0, 0, span.stop - span.start - rows.shape[1]))
            part = found * (span.weights[:, None] * column.weights)
            rows[:, : span.stop - span.start, column.start : column.stop] += part
        assert rows is not None
        done = (down[place + 1].start if place + 1 < len(down) else height) - span.start
        yield rows[:, :done]
        rows = rows[:, done:].clone()


def classes_of_rows(rows: Iterator[Tensor], size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """The best class of every pixel of the original image: int64 ``[H', W']``.

    The same as to join all rows, resize them bilinearly and take the best class, without ever holding them all.

    Args:
        rows: As `stitched_rows` yields them.
        size: ``(H, W)`` of all of them.
        original: ``(H', W')``.
    """
    # Row y of the original lies between the rows `above` and `below` of the answer (F.interpolate's half pixels).
    at = ((torch.arange(original[0], dtype=torch.float64) + 0.5) * size[0] / original[0] - 0.5).clamp(min=0)
    above = at.floor().long().clamp(max=size[0] - 1)
    below = (above + 1).clamp(max=size[0] - 1)
    share = (at - above).float()[:, None]
    classes: list[Tensor] = []
    kept: Tensor | None = None  # rows from `first` on
    first = done = 0
    for more in rows:
        kept = more if kept is None else torch.cat([kept, more], 1)
        there = first + kept.shape[1]
        end = int(torch.searchsorted(below, there))  # the rows that lie within what is there
        if end == done:
            continue
        part = slice(done, end)
        if original[0] == size[0]:
            resized = kept[:, above[part] - first]
        else:
            resized = torch.lerp(kept[:, above[part] - first], kept[:, below[part] - first], share[part])
        if original[1] != size[1]:
            wide = (end - done, original[1])
            resized = F.interpolate(resized[None], wide, mode="bilinear", align_corners=False)[0]
        classes.append(classes_of(resized).to(torch.uint8))
        done = end
        needed = min(int(above[end]), there) if end < original[0] else there
        kept, first = kept[:, needed - first :], needed
    return torch.cat(classes).long()
