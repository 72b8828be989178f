"""How well segmentation meets the contours: boundary F1 and boundary IoU, beside the scores of pixels."""

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from segdet.data.sample import IGNORE
from segdet.metrics.confusion import SegmentationScores

BF_TOLERANCE = 0.0075
"""Of the image's diagonal: within what distance a boundary is met (the SegNet paper's)."""

IOU_WIDTH = 0.02
"""Of the image's diagonal: the width of the band along the contours (Boundary IoU's)."""

_TILE = 128
"""The side of the parts in which an image is worked on."""

_UNIT = 2.0**-40
"""What F1 is counted in: a sum of integers is the same in any order and over any processes."""


class BoundaryScores(SegmentationScores):
    """`SegmentationScores`, and how well the classes' contours are met.

    ``compute`` gives also

    - ``bf``: the boundary F1 of the SegNet paper (Badrinarayanan, Kendall, Cipolla, PAMI 2017, after
      Csurka, Larlus, Perronnin, BMVC 2013). Boundary pixels of a class are those with one of another class
      beside them (above, below, left or right). Precision is the share of the predicted ones that are nearer
      than .75 % of the image's diagonal to a true one of the class, recall that of the true ones near a predicted
      one. Their F1 is averaged over the classes that occur in the image's target, and that over the images.
    - ``boundary_iou``: Boundary IoU (Cheng et al., CVPR 2021), the IoU of two bands: those pixels of the true
      and of the predicted class that are within 2 % of the image's diagonal of its contour (8-connected steps,
      at least one; as in the authors' code the image's edge is a contour too). Intersections and unions are
      summed over the dataset as for mIoU, then averaged over the classes that are present.
    - ``bf/<class>``: the mean F1 of a class over the images in which it counts.
    - ``boundary_iou/<class>``.

    Pixels to ignore separate nothing by themselves: neither they nor the edge of a region of them are a boundary.
    But an annotation may have a strip of them along its contours, as VOC's has, five pixels wide along every one.
    There the contour is known to run, though not where: it is taken to be in the middle of a strip that is narrower
    than twice .75 % of the diagonal, so that no point of the strip is farther from it than what is tolerated
    anyway. A predicted contour within such a strip counts for ``bf``; in wider regions none does. Elsewhere, and in
    the bands of ``boundary_iou`` everywhere, pixels to ignore are not counted. (MATLAB's ``bfscore`` takes them for a
    class of their own: its true contours are the strip's two edges.)

    In ``bf`` a class without a boundary in target and prediction (it fills all that is annotated) is left out, as is
    an image without any other.

    The work is done on the CPU. One core of an AMD EPYC takes about 10 ms for an image of 360x480 with 11 classes and
    0.2 s for one of 1024x2048 with 19; with strips to ignore along every contour 30 ms and 0.45 s. That is ten to forty
    times what `SegmentationScores` takes.

    Attributes:
        f1: int64 ``[2, C + 1]``, sums of F1 in units of 2^-40, and how many F1 are in each: of each class and,
            last, of images.
        bands: int64 ``[2, C]``, pixels of the intersections and of the unions.
    """

    f1: Tensor
    bands: Tensor

    def __init__(self, class_names: Sequence[str], ignore_index: int = IGNORE) -> None:
        super().__init__(class_names, ignore_index)
        classes = len(self.class_names)
        self.add_state("f1", torch.zeros(2, classes + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bands", torch.zeros(2, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count the pixels and boundaries of a batch or of one image, at the original resolution.

        Args:
            prediction: int64 ``[B, H, W]`` or ``[H, W]``, 0..C-1.
            target: Of the same shape, 0..C-1 or ``ignore_index``.

        Raises:
            ValueError: If the shapes differ, or a value is none of these.
        """
        super().update(prediction, target)
        if not target.numel():
            return
        pairs = torch.stack([prediction.to(torch.uint8), target.to(torch.uint8)]).cpu().numpy()
        classes = len(self.class_names)
        f1 = np.zeros((2, classes + 1), np.int64)
        bands = np.zeros((2, classes), np.int64)
        for found, truth in pairs.reshape(2, -1, *target.shape[-2:]).swapaxes(0, 1):
            ignored = truth == self.ignore_index
            joined, unknown = join(truth, ignored, classes)
            of_classes = boundary_f1(found, joined, unknown, classes)
            counted = ~np.isnan(of_classes)
            if counted.any():
                of_all = [*of_classes[counted], of_classes[counted].mean()]
                f1[:, np.append(counted, True)] += [[round(one / _UNIT) for one in of_all], [1] * len(of_all)]
            bands += boundary_bands(found, joined, unknown, ignored, classes)
        self.f1 += torch.from_numpy(f1).to(self.device)
        self.bands += torch.from_numpy(bands).to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """The scores so far, of all processes: see the class."""
        sums, counts = self.f1.cpu().double()
        f1 = sums * _UNIT / counts  # 0 / 0 is NaN
        common, either = self.bands.cpu().double()
        iou = common / either
        scores = {"bf": f1[-1], "boundary_iou": iou.nanmean()}
        scores |= {f"bf/{name}": value for name, value in zip(self.class_names, f1, strict=False)}
        scores |= {f"boundary_iou/{name}": value for name, value in zip(self.class_names, iou, strict=True)}
        return super().compute() | self.numbers({name: float(value) for name, value in scores.items()})


def join(truth: np.ndarray, ignored: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Lets classes meet in the middle of the narrow strips between them that are to be ignored; see `BoundaryScores`.

    Args:
        truth: uint8 ``[H, W]``, the true classes.
        ignored: bool ``[H, W]``, the pixels that do not count.
        classes: C; classes are 0..C-1 where they count.

    Returns:
        ``truth`` with the nearest class (of equally near ones the first) at the pixels of strips, uint8 ``[H, W]``,
        and which pixels are still to be ignored, bool ``[H, W]``.
    """
    limit = 2 * BF_TOLERANCE * math.hypot(*truth.shape)
    # With one class at a distance of 1 or more, the other is nearer than limit - 1.
    reach = math.ceil(limit) - 2
    if reach < 1 or not ignored.any():
        return truth, ignored
    smallest, largest = _extremes(truth, ignored, reach)
    between = ignored & (smallest < largest)
    joined, unknown = truth.copy(), ignored.copy()
    for tile in _tiles(truth.shape):
        inner = _trimmed(between, tile)
        if inner is None:
            continue
        around, place = _widened(inner, reach)
        labels, aside, wanted = truth[around], ignored[around], between[inner]
        numbers = np.flatnonzero(np.bincount(labels[~aside], minlength=classes)[:classes])
        others = ((aside | (labels != number)).view(np.uint8) for number in numbers)
        away = [
            cv2.distanceTransform(other, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[place][wanted]
            for other in others
        ]
        # The squares are whole numbers, which OpenCV's square roots of equal ones differ in the last digit.
        squared = np.rint(np.stack(away) ** 2)
        nearest, second = np.sqrt(np.partition(squared, 1, axis=0)[:2])
        strip = nearest + second < limit
        joined[inner][wanted] = np.where(strip, numbers[squared.argmin(0)], truth[inner][wanted])
        unknown[inner][wanted] = ~strip
    return joined, unknown


_Window = tuple[slice, slice]
"""Rows and columns of an image."""


def _tiles(size: tuple[int, ...]) -> Iterator[_Window]:
    """An image of ``size`` in squares: each holds few of the classes, and fits into a processor's cache."""
    for top in range(0, size[0], _TILE):
        for left in range(0, size[1], _TILE):
            yield slice(top, top + _TILE), slice(left, left + _TILE)


def _trimmed(where: np.ndarray, window: _Window) -> _Window | None:
    """The part of ``window`` around its pixels in ``where``, None if there are none."""
    part = where[window]
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    if not len(rows):
        return None
    top, left = window[0].start, window[1].start
    return slice(top + rows[0], top + rows[-1] + 1), slice(left + columns[0], left + columns[-1] + 1)


def _widened(window: _Window, by: int) -> tuple[_Window, _Window]:
    """``window`` with as many more pixels on every side as the image has, and where it lies in that."""
    starts = [max(0, side.start - by) for side in window]
    outer = [slice(start, side.stop + by) for start, side in zip(starts, window, strict=True)]
    inner = [slice(side.start - start, side.stop - start) for start, side in zip(starts, window, strict=True)]
    return (outer[0], outer[1]), (inner[0], inner[1])


def boundary_f1(found: np.ndarray, truth: np.ndarray, ignored: np.ndarray, classes: int) -> np.ndarray:
    """The F1 of each class's boundary in one image; see `BoundaryScores`.

    Args:
        found: int ``[H, W]``, the predicted classes.
        truth: int ``[H, W]``, the true ones.
        ignored: bool ``[H, W]``, the pixels that do not count.
        classes: C; classes are 0..C-1 where they count.

    Returns:
        float64 ``[C]``, NaN for a class that is not in the target, or has no boundary there nor in the prediction.
    """
    present = np.bincount(truth[~ignored], minlength=classes)[:classes] > 0
    tolerance = BF_TOLERANCE * math.hypot(*truth.shape)
    edges = [_edges(labels, ignored) for labels in (found, truth)]
    precision, found_pixels = _shares_near(found, edges[0], truth, edges[1], tolerance, present)
    recall, true_pixels = _shares_near(truth, edges[1], found, edges[0], tolerance, present)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros(classes), where=total > 0)
    f1[~present | (found_pixels + true_pixels == 0)] = np.nan
    return f1


def _edges(labels: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """The pixels beside one of another class, where both count: bool ``[H, W]``."""
    edges = np.zeros(labels.shape, bool)
    for axis in range(2):
        one, other, both = (np.moveaxis(array, axis, 0) for array in (labels, ignored, edges))
        differ = (one[1:] != one[:-1]) & ~(other[1:] | other[:-1])
        both[1:] |= differ
        both[:-1] |= differ
    return edges


def _shares_near(
    labels: np.ndarray,
    edges: np.ndarray,
    other_labels: np.ndarray,
    other_edges: np.ndarray,
    tolerance: float,
    present: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each class, the share of its pixels among ``edges`` that are nearer than ``tolerance`` to one of its pixels
    among ``other_edges`` (0 where there is none), and how many it has.

    A bit stands for a class, so that one pass over a part of the image finds what is near for 8 classes.
    """
    classes = len(present)
    pixels = np.bincount(labels[edges], minlength=classes)[:classes]
    hits = np.zeros(classes, np.int64)
    for tile in _tiles(labels.shape):
        inner = _trimmed(edges, tile)
        if inner is None:
            continue
        around, place = _widened(inner, math.ceil(tolerance))
        own = labels[inner][edges[inner]]
        others = other_labels[around][other_edges[around]]
        both = (
            np.bincount(own, minlength=classes)[:classes] * np.bincount(others, minlength=classes)[:classes]
        )
        numbers = np.flatnonzero(present & (both > 0))
        for chunk in (numbers[first : first + 8] for first in range(0, len(numbers), 8)):
            bits = np.zeros(256, np.uint8)
            bits[chunk] = 1 << np.arange(len(chunk))
            marks = np.zeros(other_edges[around].shape, np.uint8)
            marks[other_edges[around]] = bits[others]
            near = (_spread(marks, tolerance)[place][edges[inner]] & bits[own]) != 0
            hits += np.bincount(own[near], minlength=classes)[:classes]
    return hits / np.maximum(pixels, 1), pixels


def _spread(marks: np.ndarray, radius: float) -> np.ndarray:
    """Each pixel's bits, joined with those of all pixels that are nearer than ``radius``: ``[H, W]``."""
    height, width = marks.shape
    most = max(0, math.ceil(radius) - 1)
    # Row by row of the disk: how far it extends to the left and right at each distance up and down.
    extents = [math.ceil(math.sqrt(radius**2 - dy**2)) - 1 for dy in range(most + 1)]
    spread = np.zeros_like(marks)
    wide = marks.copy()
    reached = 0
    for dy in reversed(range(most + 1)):  # the extent grows towards the middle
        while reached < extents[dy]:
            reached += 1
            if reached < width:
                wide[:, reached:] |= marks[:, :-reached]
                wide[:, :-reached] |= marks[:, reached:]
        if dy < height:
            spread[dy:] |= wide[: height - dy]
            spread[: height - dy] |= wide[dy:]
    return spread


def boundary_bands(
    found: np.ndarray, truth: np.ndarray, unknown: np.ndarray, ignored: np.ndarray, classes: int
) -> np.ndarray:
    """The pixels of the intersection and of the union of each class's two bands; see `BoundaryScores`.

    Args:
        found: int ``[H, W]``, the predicted classes.
        truth: int ``[H, W]``, the true ones.
        unknown: bool ``[H, W]``, the pixels that make no contour.
        ignored: bool ``[H, W]``, the pixels that do not count; those that are unknown are among them.
        classes: C; classes are 0..C-1 where they count.

    Returns:
        int64 ``[2, C]``.
    """
    width = max(1, round(IOU_WIDTH * math.hypot(*truth.shape)))
    in_band = [_near_another(labels, unknown, width) & ~ignored for labels in (found, truth)]
    both = in_band[0] & in_band[1] & (found == truth)
    common, of_found, of_truth = (
        np.bincount(labels[where], minlength=classes)
        for labels, where in ((truth, both), (found, in_band[0]), (truth, in_band[1]))
    )
    return np.stack([common, of_found + of_truth - common])


def _near_another(labels: np.ndarray, ignored: np.ndarray, width: int) -> np.ndarray:
    """The pixels that count and are at most ``width`` steps, also diagonal ones, from a pixel that counts and is of
    another class, or from what lies outside of the image: bool ``[H, W]``."""
    smallest, largest = _extremes(labels, ignored, width)
    near = (smallest != labels) | (largest != labels)
    near[:width] = near[-width:] = True
    near[:, :width] = near[:, -width:] = True
    return near & ~ignored


def _extremes(labels: np.ndarray, ignored: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest class that counts in the square of ``width`` steps around each pixel.

    Returns:
        Each uint8 ``[H, W]``; 255 and 0 where no pixel counts.
    """
    return (
        _over_squares(np.where(ignored, np.uint8(255), labels), width, np.minimum),
        _over_squares(np.where(ignored, np.uint8(0), labels), width, np.maximum),
    )


def _over_squares(values: np.ndarray, width: int, choose: np.ufunc) -> np.ndarray:
    """What ``choose`` makes of the square of ``width`` steps around each pixel, as far as it lies in the image.

    Line by line, then column by column, and each time from twice as far: OpenCV's ``dilate`` looks at every pixel
    of a line.
    """
    for axis in range(2):
        reached = 0
        while reached < width:
            step = min(reached + 1, width - reached)
            reached += step
            wide = values.copy()
            old, new = np.moveaxis(values, axis, 0), np.moveaxis(wide, axis, 0)
            choose(new[step:], old[:-step], out=new[step:])
            choose(new[:-step], old[step:], out=new[:-step])
            values = wide
    return values
