"""Hierarchical grouping of regions (Uijlings et al., Selective Search, IJCV 2013, sections 3.1 and 3.2).

The two most similar neighbouring regions are merged repeatedly until one region is left. Every region, initial or
merged, is a node of the hierarchy, and its bounding box is a proposal.
"""

from typing import NamedTuple

import cv2
import numpy as np

from segdet.util.numba_compile import compiled

COLOUR_BINS = 25
TEXTURE_BINS = 10
DIRECTIONS = 8
"""The directions of the Gaussian derivatives: four and their opposites."""

_SIGNED = 2 * TEXTURE_BINS - 1
"""The number of bins of a derivative, from negative to positive values; both signs share the middle bin."""


class Regions(NamedTuple):
    """The regions of a segmentation, with the features of the similarities."""

    sizes: np.ndarray  # int64 [R], sizes in pixels
    boxes: np.ndarray  # int32 [R, 4], xyxy, exclusive
    colours: np.ndarray  # float32 [R, 25 C], the histograms of all channels, with a sum of 1
    # float32 [R, 80 C], the histograms of the derivatives of all channels and directions, with a sum of 1.
    textures: np.ndarray
    pairs: np.ndarray  # int32 [P, 2], neighbouring regions; each pair once, the lower number first
    pixels: int  # the number of pixels of the image


class Measures(NamedTuple):
    """The similarities that are summed: equations 2, 4, 5 and 6 of the paper."""

    colour: bool
    texture: bool
    size: bool
    fill: bool


def bins_of(image: np.ndarray) -> np.ndarray:
    """Return the histogram bins of each pixel.

    Texture is the derivative of a Gaussian (sigma 1) in eight directions. Opposite directions differ only in sign, so
    that only four are computed. The bins cover the range up to the maximum response of the channel.

    Args:
        image: uint8 ``[H, W, C]``, contiguous.

    Returns:
        uint8 ``[H * W, 5 C]``: C bins of colour, then four bins of texture per channel.
    """
    channels = image.shape[2]
    reach = np.arange(-3, 4, dtype=np.float64)
    bell = np.exp(-(reach**2) / 2)
    bell /= bell.sum()
    slope = reach * bell
    along = [
        cv2.sepFilter2D(image, cv2.CV_32F, x, y, borderType=cv2.BORDER_REPLICATE).reshape(-1, channels)
        for x, y in ((slope, bell), (bell, slope))
    ]
    return _bins(image.reshape(-1, channels), along[0], along[1])


def regions_of(labels: np.ndarray, count: int, bins: np.ndarray) -> Regions:
    """Return the regions of a label map int32 ``[H, W]`` of 0..count-1; ``bins`` is the result of `bins_of`."""
    channels = bins.shape[1] // 5
    sizes, boxes, colours, textures = _describe(labels, count, bins, channels)
    return Regions(sizes, boxes, colours, textures, _neighbours(labels, count), labels.size)


def group(regions: Regions, measures: Measures) -> np.ndarray:
    """Return the bounding boxes of the hierarchy, from the first region to the whole image.

    Returns:
        int32 ``[2 R - 1, 4]``, xyxy: first the boxes of the given regions, then one box per merge, in order.
    """
    used = [regions.colours] * measures.colour + [regions.textures] * measures.texture
    histograms = np.concatenate(used, axis=1) if used else np.zeros((len(regions.sizes), 0), np.float32)
    boxes, _ = _group(
        regions.sizes, regions.boxes, histograms, regions.pairs, float(measures.size), float(measures.fill),
        regions.pixels,
    )  # fmt: skip
    return boxes


@compiled
def _bins(image: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    pixels, channels = image.shape
    codes = np.empty((pixels, 5 * channels), np.uint8)
    half = np.float32(np.sqrt(0.5))
    for channel in range(channels):
        top = np.float32(0.0)
        for pixel in range(pixels):
            a = abs(dx[pixel, channel])
            b = abs(dy[pixel, channel])
            top = max(top, max(max(a, b), half * (a + b)))
        # The maximum response is scaled to slightly less than the number of bins, so that it falls into the last bin.
        scale = np.float32((TEXTURE_BINS - 1e-3) / top) if top > 0 else np.float32(0.0)
        turn = half * scale
        at = channels + 4 * channel
        for pixel in range(pixels):
            codes[pixel, channel] = (image[pixel, channel] * COLOUR_BINS) >> 8
            a = dx[pixel, channel]
            b = dy[pixel, channel]
            # int() truncates towards zero, so that bin 0 is shared by both signs.
            codes[pixel, at] = int(a * scale) + (TEXTURE_BINS - 1)
            codes[pixel, at + 1] = int(b * scale) + (TEXTURE_BINS - 1)
            codes[pixel, at + 2] = int((a + b) * turn) + (TEXTURE_BINS - 1)
            codes[pixel, at + 3] = int((a - b) * turn) + (TEXTURE_BINS - 1)
    return codes


@compiled
def _describe(
    labels: np.ndarray, count: int, bins: np.ndarray, channels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    height, width = labels.shape
    features = bins.shape[1]
    starts = np.empty(features + 1, np.int64)
    starts[0] = 0
    for feature in range(features):
        starts[feature + 1] = starts[feature] + (COLOUR_BINS if feature < channels else _SIGNED)
    counts = np.zeros((count, starts[features]), np.int32)
    sizes = np.zeros(count, np.int64)
    boxes = np.empty((count, 4), np.int32)
    boxes[:, 0] = width
    boxes[:, 1] = height
    boxes[:, 2] = 0
    boxes[:, 3] = 0
    for y in range(height):
        for x in range(width):
            region = labels[y, x]
            sizes[region] += 1
            boxes[region, 0] = min(boxes[region, 0], x)
            boxes[region, 1] = min(boxes[region, 1], y)
            boxes[region, 2] = max(boxes[region, 2], x + 1)
            boxes[region, 3] = max(boxes[region, 3], y + 1)
            pixel = y * width + x
            for feature in range(features):
                counts[region, starts[feature] + bins[pixel, feature]] += 1
    colours = np.zeros((count, channels * COLOUR_BINS), np.float32)
    textures = np.zeros((count, channels * DIRECTIONS * TEXTURE_BINS), np.float32)
    for region in range(count):
        each = np.float32(1.0) / np.float32(channels * sizes[region])
        for column in range(channels * COLOUR_BINS):
            colours[region, column] = counts[region, column] * each
        each /= np.float32(DIRECTIONS)
        for feature in range(channels, features):
            middle = starts[feature] + TEXTURE_BINS - 1
            to = 2 * TEXTURE_BINS * (feature - channels)
            over = 0
            under = 0
            for bin in range(1, TEXTURE_BINS):
                over += counts[region, middle + bin]
                under += counts[region, middle - bin]
                textures[region, to + bin] = counts[region, middle + bin] * each
                textures[region, to + TEXTURE_BINS + bin] = counts[region, middle - bin] * each
            textures[region, to] = (sizes[region] - over) * each
            textures[region, to + TEXTURE_BINS] = (sizes[region] - under) * each
    return sizes, boxes, colours, textures


@compiled
def _neighbours(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the 4-connected neighbours: int32 ``[P, 2]``, ascending by the first region."""
    height, width = labels.shape
    starts = np.zeros(count + 2, np.int64)
    for y in range(height):
        for x in range(width):
            one = labels[y, x]
            if x + 1 < width and labels[y, x + 1] != one:
                starts[min(one, labels[y, x + 1]) + 2] += 1
            if y + 1 < height and labels[y + 1, x] != one:
                starts[min(one, labels[y + 1, x]) + 2] += 1
    for region in range(count):
        starts[region + 2] += starts[region + 1]
    others = np.empty(starts[count + 1], np.int32)
    for y in range(height):
        for x in range(width):
            one = labels[y, x]
            for step in range(2):
                if step == 0 and x + 1 < width:
                    other = labels[y, x + 1]
                elif step == 1 and y + 1 < height:
                    other = labels[y + 1, x]
                else:
                    continue
                if other != one:
                    low = min(one, other)
                    others[starts[low + 1]] = max(one, other)
                    starts[low + 1] += 1
    pairs = np.empty((len(others), 2), np.int32)
    seen = np.full(count, -1, np.int32)
    at = 0
    for region in range(count):
        for i in range(starts[region], starts[region + 1]):
            if seen[others[i]] != region:
                seen[others[i]] = region
                pairs[at, 0] = region
                pairs[at, 1] = others[i]
                at += 1
    return pairs[:at].copy()


@compiled
def _similarity(
    one: int,
    other: int,
    sizes: np.ndarray,
    boxes: np.ndarray,
    histograms: np.ndarray,
    rows: np.ndarray,
    size: float,
    fill: float,
    pixels: int,
) -> float:
    common = np.float32(0.0)
    first = rows[one]
    second = rows[other]
    for column in range(histograms.shape[1]):
        a = histograms[first, column]
        b = histograms[second, column]
        common += a if a < b else b
    joint = sizes[one] + sizes[other]
    width = max(boxes[one, 2], boxes[other, 2]) - min(boxes[one, 0], boxes[other, 0])
    height = max(boxes[one, 3], boxes[other, 3]) - min(boxes[one, 1], boxes[other, 1])
    gap = float(width) * float(height) - joint
    return common + size * (1.0 - joint / pixels) + fill * (1.0 - gap / pixels)


@compiled
def _push(heap: np.ndarray, keys: np.ndarray, length: int, region: int) -> None:
    """Push ``region`` onto the heap of ``length`` entries: largest key on top, ties by the lower number."""
    at = length
    while at > 0:
        above = (at - 1) >> 1
        parent = heap[above]
        if keys[parent] > keys[region] or (keys[parent] == keys[region] and parent < region):
            break
        heap[at] = parent
        at = above
    heap[at] = region


@compiled
def _pop(heap: np.ndarray, keys: np.ndarray, length: int) -> int:
    """Pop the top of the heap of ``length`` entries."""
    top = heap[0]
    region = heap[length - 1]
    length -= 1
    at = 0
    while True:
        child = 2 * at + 1
        if child >= length:
            break
        if child + 1 < length:
            one, other = heap[child], heap[child + 1]
            if keys[other] > keys[one] or (keys[other] == keys[one] and other < one):
                child += 1
        below = heap[child]
        if keys[region] > keys[below] or (keys[region] == keys[below] and region < below):
            break
        heap[at] = below
        at = child
    heap[at] = region
    return top


@compiled
def _group(
    first_sizes: np.ndarray,
    first_boxes: np.ndarray,
    histograms: np.ndarray,
    pairs: np.ndarray,
    size: float,
    fill: float,
    pixels: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hierarchy's boxes ``[2 R - 1, 4]`` and the two regions of each merge: ``[R - 1, 2]``.

    An edge belongs to the later of its two regions. A heap contains each region with the best of its own edges. If the
    other end of this edge was merged, the region is updated only when it reaches the top. Therefore every similarity is
    computed once, and the heap contains regions instead of edges.

    ``histograms`` is overwritten: a merged region uses the row of one of its parts.
    """
    count = len(first_sizes)
    total = 2 * count - 1
    sizes = np.empty(total, np.int64)
    sizes[:count] = first_sizes
    boxes = np.empty((total, 4), np.int32)
    boxes[:count] = first_boxes
    rows = np.arange(total)
    joined = np.empty((count - 1, 2), np.int32)
    alive = np.zeros(total, np.bool_)
    alive[:count] = True
    # Edges: owner, end, similarity, and the next edge with the same end (linked lists that start at `arriving`).
    capacity = 8 * len(pairs) + 1024
    owners = np.empty(capacity, np.int32)
    ends = np.empty(capacity, np.int32)
    similarities = np.empty(capacity, np.float64)
    following = np.empty(capacity, np.int64)
    arriving = np.full(total, -1, np.int64)
    starts = np.zeros(total + 1, np.int64)
    for i in range(len(pairs)):
        starts[pairs[i, 1] + 1] += 1
    for region in range(count):
        starts[region + 1] += starts[region]
    place = starts[: count + 1].copy()
    for i in range(len(pairs)):
        region = pairs[i, 1]
        edge = place[region]
        place[region] += 1
        owners[edge] = region
        ends[edge] = pairs[i, 0]
        similarities[edge] = _similarity(
            region, pairs[i, 0], sizes, boxes, histograms, rows, size, fill, pixels
        )
        following[edge] = arriving[pairs[i, 0]]
        arriving[pairs[i, 0]] = edge
    edges = len(pairs)

    best = np.full(total, -1, np.int64)
    keys = np.full(total, -np.inf, np.float64)
    heap = np.empty(total, np.int64)
    waiting = 0
    for region in range(count):
        for edge in range(starts[region], starts[region + 1]):
            if similarities[edge] > keys[region]:
                keys[region] = similarities[edge]
                best[region] = edge
        if best[region] >= 0:
            _push(heap, keys, waiting, region)
            waiting += 1

    seen = np.full(total, -1, np.int64)
    latest = count
    while waiting > 0:
        one = _pop(heap, keys, waiting)
        waiting -= 1
        if not alive[one]:
            continue
        other = ends[best[one]]
        if not alive[other]:
            best[one] = -1
            keys[one] = -np.inf
            for edge in range(starts[one], starts[one + 1]):
                if alive[ends[edge]] and similarities[edge] > keys[one]:
                    keys[one] = similarities[edge]
                    best[one] = edge
            if best[one] >= 0:
                _push(heap, keys, waiting, one)
                waiting += 1
            continue

        new = latest
        latest += 1
        joined[new - count, 0] = min(one, other)
        joined[new - count, 1] = max(one, other)
        alive[one] = False
        alive[other] = False
        alive[new] = True
        sizes[new] = sizes[one] + sizes[other]
        boxes[new, 0] = min(boxes[one, 0], boxes[other, 0])
        boxes[new, 1] = min(boxes[one, 1], boxes[other, 1])
        boxes[new, 2] = max(boxes[one, 2], boxes[other, 2])
        boxes[new, 3] = max(boxes[one, 3], boxes[other, 3])
        rows[new] = rows[one]
        share = np.float32(sizes[one] / sizes[new])
        rest = np.float32(1.0) - share
        for column in range(histograms.shape[1]):
            histograms[rows[one], column] = (
                share * histograms[rows[one], column] + rest * histograms[rows[other], column]
            )
        starts[new] = edges
        for turn in range(2):
            part = one if turn == 0 else other
            # The loop visits the part's own edges first, then the edges of later regions that end at the part.
            edge = starts[part]
            own = True
            while True:
                if own:
                    if edge == starts[part + 1]:
                        own = False
                        edge = arriving[part]
                        continue
                    near = ends[edge]
                    edge += 1
                else:
                    if edge < 0:
                        break
                    near = owners[edge]
                    edge = following[edge]
                if not alive[near] or seen[near] == new:
                    continue
                seen[near] = new
                if edges == capacity:
                    capacity *= 2
                    owners = _longer(owners, capacity)
                    ends = _longer(ends, capacity)
                    similarities = _longer(similarities, capacity)
                    following = _longer(following, capacity)
                owners[edges] = new
                ends[edges] = near
                similarities[edges] = _similarity(
                    new, near, sizes, boxes, histograms, rows, size, fill, pixels
                )
                following[edges] = arriving[near]
                arriving[near] = edges
                if similarities[edges] > keys[new]:
                    keys[new] = similarities[edges]
                    best[new] = edges
                edges += 1
        starts[new + 1] = edges
        if best[new] >= 0:
            _push(heap, keys, waiting, new)
            waiting += 1
    return boxes[:latest].copy(), joined[: latest - count].copy()


@compiled
def _longer(array: np.ndarray, length: int) -> np.ndarray:
    longer = np.empty(length, array.dtype)
    longer[: len(array)] = array
    return longer
