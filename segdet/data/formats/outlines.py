"""Convert outlines of objects in COCO's format (polygons or run-length encodings) to masks and back.

Format: https://cocodataset.org/#format-data and the ``mask`` module of pycocotools.
"""

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

Outline = list[list[float]] | dict[str, Any]
"""Polygons ``[x, y, x, y, ...]``, or a run-length encoding with the keys ``size`` and ``counts``."""


def outline_runs(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the column-major run lengths of an outline, starting with background.

    Args:
        outline: The polygons or the run-length encoding. A single polygon may be a flat list of numbers.
        size: ``(height, width)`` of the image.

    Returns:
        int64 ``[R]``; the sum is the number of pixels.

    Raises:
        ValueError: If the outline is invalid. Invalid types raise TypeError, KeyError or AttributeError.
    """
    if not isinstance(outline, list):
        return _run_lengths(outline, size)
    flat = all(isinstance(value, int | float) for value in outline)
    return _polygons([outline] if flat else outline, size)


def outline_mask(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of an outline: bool ``[H, W]``; for errors see `outline_runs`."""
    runs = outline_runs(outline, size)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def outline_of(mask: np.ndarray, crowd: bool) -> Outline:
    """Encode a bool mask like COCO: polygons if there are no holes, else RLE; uncompressed RLE for crowds."""
    size = list(mask.shape)
    if crowd:
        flat = mask.ravel(order="F")
        changes = np.flatnonzero(np.diff(flat, prepend=False))
        return {"counts": np.diff(changes, prepend=0, append=len(flat)).tolist(), "size": size}
    outlines, holes = mask_polygons(mask)
    if not holes:
        return [points.ravel().astype(float).tolist() for points in outlines]
    encoded = rle.encode(mask.astype(np.uint8, order="F"))
    return {"counts": encoded["counts"].decode("ascii"), "size": size}


def mask_polygons(mask: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return outlines and holes of a bool mask as polygons along pixel edges, int ``[V, 2]`` xy each.

    OpenCV's contours follow pixel centres. At double size, each side of an original pixel has its own row or column of
    centres. Halving the coordinates of these centres gives the edges of the original pixels, so that the polygons
    enclose exactly the mask.
    """
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines: list[np.ndarray] = []
    holes: list[np.ndarray] = []
    for contour, (*_, parent) in zip(contours, tree[0] if tree is not None else [], strict=True):
        points = (contour[:, 0] + 1) // 2
        points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
        (outlines if parent < 0 else holes).append(points)
    return outlines, holes


def _polygons(parts: list[Any], size: tuple[int, int]) -> np.ndarray:
    """Return the run lengths of polygons, filled by pycocotools."""
    height, width = size
    for part in parts:
        points = np.asarray(part, np.float64)
        if points.ndim != 1 or points.size % 2:
            raise ValueError("a polygon is not a list x, y, x, y ...")
        # pycocotools traces each edge point by point, so a distant vertex would exhaust the memory.
        if not (np.abs(points) <= 100 * (height + width)).all():
            raise ValueError("a polygon's point is not finite or far outside the image")
    # pycocotools would read a list as boxes if its first part has four numbers.
    parts = [part for part in parts if len(part) >= 6]
    if not parts:
        raise ValueError("no polygon has 3 points")
    return _decompressed(rle.merge(rle.frPyObjects(parts, height, width))["counts"])


def _run_lengths(outline: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return the run lengths of an RLE segmentation, compressed or not."""
    height, width = size
    counts = outline["counts"]
    if [int(side) for side in outline["size"]] != [height, width]:
        raise ValueError(f"its size {outline['size']} is not the image's [{height}, {width}]")
    runs = np.asarray(counts) if isinstance(counts, list) else _decompressed(counts.encode("ascii"))
    if runs.dtype.kind not in "iu" or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"its counts do not add up to the image's {height * width} pixels")
    return runs


def _decompressed(counts: bytes) -> np.ndarray:
    """Decode COCO's compressed run lengths to int64.

    Each character minus 48 contains five bits of a number, lowest first. A sixth bit is set if more characters follow.
    The highest of the last five bits is the sign. From the fourth number on, values are differences to the number two
    places earlier. (pycocotools decodes this as well, but with warnings on NumPy 2.)
    """
    bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((bits & 0x20) == 0)
    if not bits.size or last.size == 0 or last[-1] != bits.size - 1:
        raise ValueError("its counts are truncated")
    starts = np.concatenate([[0], last[:-1] + 1])
    lengths = last - starts + 1
    if lengths.max() > 12:
        raise ValueError("its counts are not numbers")
    shifts = 5 * (np.arange(bits.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((bits & 0x1F) << shifts, starts)
    numbers -= np.where(bits[last] & 0x10, 1 << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
