"""Efficient graph-based image segmentation (Felzenszwalb and Huttenlocher, IJCV 2004).

Pixels are the nodes; the weight of an edge is the colour difference of two neighbours. Edges are processed in
ascending order of weight. An edge merges two components if its weight is at most the largest weight inside each
component plus ``k / size`` (equations 4 and 5). A larger ``k`` gives larger regions.

The edges and their order depend only on the colours: they are computed once for all values of ``k``.
"""

from typing import NamedTuple

import cv2
import numpy as np

from segdet.util.numba_compile import compiled

_STEPS = 64
"""Colour differences are rounded to 1/64 of a grey level, so that a counting sort can order them."""

_NONE = 65535
"""The weight of edges that would leave the image; larger than all others."""


class Edges(NamedTuple):
    """The edges of an image's graph, sorted by weight, then by pixel and direction."""

    codes: np.ndarray  # int32 [E]: four times the pixel's index plus the direction of the neighbour
    weights: np.ndarray  # int32 [E]: the Euclidean distance of the two colours in 1/64 of a grey level
    size: tuple[int, int]  # (height, width)


def edges_of(image: np.ndarray, sigma: float = 0.8) -> Edges:
    """Return the graph of an image with 8-connected pixels.

    Args:
        image: uint8 ``[H, W, C]``; at most 2 ** 29 pixels.
        sigma: The standard deviation, in pixels, of the Gaussian that smooths the image first; 0 for none.
    """
    smooth: np.ndarray = image.astype(np.float32)
    if sigma > 0:
        reach = 2 * int(np.ceil(4 * sigma)) + 1
        smooth = cv2.GaussianBlur(smooth, (reach, reach), sigma, borderType=cv2.BORDER_REPLICATE)
    smooth = np.ascontiguousarray(smooth.reshape(*image.shape[:2], -1))
    # Right, down, down right and down left include every pair of 8-connected pixels once.
    weights = _weights(smooth).reshape(-1)
    codes = np.argsort(weights, kind="stable")  # a radix sort for 16 bits
    codes = codes[: np.count_nonzero(weights != _NONE)]
    return Edges(codes.astype(np.int32), weights[codes].astype(np.int32), (image.shape[0], image.shape[1]))


def segment(edges: Edges, k: float, min_size: int) -> tuple[np.ndarray, int]:
    """Segment an image into regions.

    Args:
        edges: The graph.
        k: The scale of observation: regions smaller than about ``k`` stay separate only with a strong boundary.
        min_size: Regions of fewer pixels are merged with the most similar neighbour.

    Returns:
        Labels int32 ``[H, W]``, 0..N-1 in the order of the regions' first pixels, and N.
    """
    height, width = edges.size
    labels, count = _segment(edges.codes, edges.weights, height, width, k * _STEPS, min_size)
    return labels.reshape(height, width), count


@compiled
def _weights(image: np.ndarray) -> np.ndarray:
    """Return the weight of each pixel's edge in each direction, uint16 ``[H, W, 4]``; `_NONE` at the border."""
    height, width, channels = image.shape
    weights = np.full((height, width, 4), np.uint16(_NONE), np.uint16)
    for y in range(height):
        for direction, (dy, dx) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
            if y + dy == height:
                continue
            for x in range(max(0, -dx), width - max(0, dx)):
                total = np.float32(0.0)
                for channel in range(channels):
                    difference = image[y, x, channel] - image[y + dy, x + dx, channel]
                    total += difference * difference
                weights[y, x, direction] = np.uint16(np.sqrt(total) * np.float32(_STEPS) + np.float32(0.5))
    return weights


@compiled
def _find(parents: np.ndarray, node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@compiled
def _segment(
    codes: np.ndarray, weights: np.ndarray, height: int, width: int, k: float, min_size: int
) -> tuple[np.ndarray, int]:
    pixels = height * width
    parents = np.arange(pixels).astype(np.int32)
    sizes = np.ones(pixels, np.int32)
    limits = np.full(pixels, np.float32(k), np.float32)
    offsets = np.array([1, width, width + 1, width - 1], np.int32)
    left = np.empty(len(codes), np.int32)
    remaining = 0
    for i in range(len(codes)):
        pixel = codes[i] >> 2
        one = _find(parents, pixel)
        other = _find(parents, pixel + offsets[codes[i] & 3])
        if one == other:
            continue
        weight = np.float32(weights[i])
        if weight <= limits[one] and weight <= limits[other]:
            if sizes[one] < sizes[other]:
                one, other = other, one
            parents[other] = one
            sizes[one] += sizes[other]
            # Edges are sorted by weight, so this edge has the largest weight inside the component.
            limits[one] = weight + np.float32(k / sizes[one])
        else:
            left[remaining] = codes[i]
            remaining += 1
    for i in range(remaining):
        pixel = left[i] >> 2
        one = _find(parents, pixel)
        other = _find(parents, pixel + offsets[left[i] & 3])
        if one != other and (sizes[one] < min_size or sizes[other] < min_size):
            if sizes[one] < sizes[other]:
                one, other = other, one
            parents[other] = one
            sizes[one] += sizes[other]
    labels = np.empty(pixels, np.int32)
    numbers = np.full(pixels, -1, np.int32)
    count = 0
    for pixel in range(pixels):
        root = _find(parents, pixel)
        if numbers[root] < 0:
            numbers[root] = count
            count += 1
        labels[pixel] = numbers[root]
    return labels, count
