"""Prediction in overlapping tiles, for images that do not fit into memory.

Tiles start at multiples of 32, the stride of the deepest maps of most networks, so that the cells of these maps have
the same positions as for the whole image. Logits near the edge of a tile are unreliable, because the context beyond
the edge is missing. In the overlap of two tiles, the weight therefore shifts from one tile to the other within the
middle quarter only. The result equals that for the whole image under two conditions: each logit depends only on pixels
within three eighths of the overlap, and the sizes of tiles and image are multiples of the stride.
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
    """The extent of a tile along one side of the image."""

    start: int  # the first pixel
    stop: int  # the pixel after the last
    weights: (
        Tensor  # float32 [stop - start], the tile's weight at each pixel; the weights of all tiles sum to 1
    )


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Return tiles of at least ``tile`` pixels along a side of ``length``; neighbours overlap by at least ``overlap``.

    Tiles start at multiples of 32, or of a smaller power of two if ``tile - overlap`` is below 32. The last tile can
    therefore be up to 31 pixels larger than the others. A side that is not longer than ``tile`` is one tile.
    """
    if length <= tile:
        return [Span(0, length, torch.ones(length))]
    stride = min(_STRIDE, 1 << ((tile - overlap).bit_length() - 1))
    step = (tile - overlap) // stride * stride
    last = (length - tile) // stride * stride
    starts = [*range(0, last, step), last]
    stops = [start + tile for start in starts[:-1]] + [length]
    total = torch.zeros(length)
    weights: list[Tensor] = []
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        weight = torch.ones(stop - start)
        if index > 0:
            weight *= _ramp(stops[index - 1] - start, stop - start)
        if index + 1 < len(starts):
            weight *= _ramp(stop - starts[index + 1], stop - start).flip(0)
        total[start:stop] += weight
        weights.append(weight)
    return [
        Span(start, stop, weight / total[start:stop])
        for start, stop, weight in zip(starts, stops, weights, strict=True)
    ]


def _ramp(overlap: int, length: int) -> Tensor:
    """Return weights that rise from 0 to 1 within the middle quarter of the first ``overlap`` pixels: ``[length]``."""
    pixels = torch.arange(length) + 0.5
    return ((pixels - 3 / 8 * overlap) / (overlap / 4)).clamp(0, 1) if overlap else torch.ones(length)


def predict_rows(
    predict: Callable[[Tensor], Tensor], image: Tensor, tile: tuple[int, int], overlap: int
) -> Iterator[Tensor]:
    """Yield the prediction of a network for an image, merged from tiles, from top to bottom.

    The device holds one tile at a time, the CPU one row of tiles.

    Args:
        predict: A function that returns logits or probabilities ``[1, C, h, w]`` of an image ``[1, 3, h, w]``.
        image: ``[1, 3, H, W]``, of any dtype that ``predict`` accepts.
        tile: Height and width of a tile.
        overlap: The smallest overlap of neighbouring tiles, in pixels.

    Yields:
        float32 ``[C, rows, W]`` on the CPU; all parts together are ``[C, H, W]``.
    """
    height, width = image.shape[-2:]
    down, across = spans(height, tile[0], overlap), spans(width, tile[1], overlap)
    rows: Tensor | None = None  # starts at the first row of pixels that has not been yielded
    for index, span in enumerate(down):
        for column in across:
            scores = predict(image[:, :, span.start : span.stop, column.start : column.stop])[0].float().cpu()
            if rows is None:
                rows = torch.zeros(len(scores), 0, width)
            if rows.shape[1] < span.stop - span.start:
                rows = F.pad(rows, (0, 0, 0, span.stop - span.start - rows.shape[1]))
            scores = scores * (span.weights[:, None] * column.weights)
            rows[:, : span.stop - span.start, column.start : column.stop] += scores
        assert rows is not None
        done = (down[index + 1].start if index + 1 < len(down) else height) - span.start
        yield rows[:, :done]
        rows = rows[:, done:].clone()


def classes_of_rows(rows: Iterator[Tensor], size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Return the class of every pixel of the original image: int64 ``[H', W']``.

    The result is the same as if all rows were concatenated, resized bilinearly and reduced by argmax. Only the rows
    that are needed next are in memory.

    Args:
        rows: As yielded by `predict_rows`.
        size: ``(H, W)`` of all rows together.
        original: ``(H', W')``.
    """
    # Row y of the original lies between the rows `above` and `below`, at pixel centres as in F.interpolate.
    at = ((torch.arange(original[0], dtype=torch.float64) + 0.5) * size[0] / original[0] - 0.5).clamp(min=0)
    above = at.floor().long().clamp(max=size[0] - 1)
    below = (above + 1).clamp(max=size[0] - 1)
    fraction = (at - above).float()[:, None]
    classes: list[Tensor] = []
    kept: Tensor | None = None  # the rows from `first` on
    first = done = 0
    for more in rows:
        kept = more if kept is None else torch.cat([kept, more], 1)
        available = first + kept.shape[1]
        end = int(torch.searchsorted(below, available))  # original rows that can be interpolated
        if end == done:
            continue
        part = slice(done, end)
        if original[0] == size[0]:
            resized = kept[:, above[part] - first]
        else:
            resized = torch.lerp(kept[:, above[part] - first], kept[:, below[part] - first], fraction[part])
        if original[1] != size[1]:
            wide = (end - done, original[1])
            resized = F.interpolate(resized[None], wide, mode="bilinear", align_corners=False)[0]
        classes.append(classes_of(resized).to(torch.uint8))
        done = end
        needed = min(int(above[end]), available) if end < original[0] else available
        kept, first = kept[:, needed - first :], needed
    return torch.cat(classes).long()
