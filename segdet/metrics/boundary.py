"""Boundary scores of segmentation: boundary F1 and boundary IoU, in addition to the scores of pixels."""

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from segdet.data.sample import IGNORE
from segdet.metrics.confusion import SegmentationScores

BF_TOLERANCE = 0.0075
"""The largest distance of matching boundary pixels, as a fraction of the image's diagonal (SegNet)."""

IOU_WIDTH = 0.02
"""The width of the bands, as a fraction of the image's diagonal (Boundary IoU)."""

_TILE = 128
"""The side of the tiles in which an image is processed."""

F1_UNIT = 2.0**-40
"""Sums of F1 are kept in integer multiples of this unit, so that they do not depend on the order of summation."""


class BoundaryScores(SegmentationScores):
    """`SegmentationScores`, boundary F1 and boundary IoU.

    ``compute`` also returns

    - ``bf``: the boundary F1 of SegNet (Badrinarayanan, Kendall, Cipolla, PAMI 2017, section 4, after Csurka, Larlus,
      Perronnin, BMVC 2013). Boundary pixels of a class are those with a 4-neighbour of another class. Precision is the
      fraction of predicted boundary pixels that are nearer than .75 % of the image's diagonal to a true boundary
      pixel of the class. Recall is the fraction of true boundary pixels near a predicted one. F1 is averaged over
      the classes in the image's target, then over the images.
    - ``boundary_iou``: Boundary IoU (Cheng et al., CVPR 2021), the IoU of a true and a predicted band per class. The
      band of a class consists of its pixels near its contour. Near means up to 2 % of the image's diagonal, counted in
      8-connected steps (at least one). As in the authors' code, the edge of the image is a contour too. Intersections
      and unions are summed over the dataset as for mIoU; the IoU is averaged over the classes that occur.
    - ``bf/<class>``: the mean F1 of the class over the images where it is defined.
    - ``boundary_iou/<class>``.

    Ignored pixels and the edges of ignored regions are not boundaries. Some annotations have a strip of ignored pixels
    along contours; in VOC it is five pixels wide. The contour then runs somewhere within the strip. If the strip is
    narrower than twice .75 % of the diagonal, the contour is assumed in its middle. No point of the strip is then
    farther from the contour than the tolerance, and predicted contours in the strip count for ``bf``. All other ignored
    pixels are left out of ``bf``, and all ignored pixels are left out of the bands of ``boundary_iou``. (In MATLAB's
    ``bfscore``, ignored pixels are a separate class, and both edges of the strip are true contours.)

    A class that covers all annotated pixels of target and prediction has no boundary and is left out of ``bf``. An
    image without any other class is left out too.

    The computation runs on the CPU. One core of an AMD EPYC takes about 10 ms for an image of 360x480 with 11 classes
    and 0.2 s for one of 1024x2048 with 19; with ignored strips along every contour, 30 ms and 0.45 s.
    `SegmentationScores` is ten to forty times faster.

    Attributes:
        f1: int64 ``[2, C + 1]``: sums of F1 in units of 2^-40, and their numbers of terms, for each class and, in the
            last column, for the images.
        bands: int64 ``[2, C]``: the pixels of intersections and unions.
    """

    f1: Tensor
    bands: Tensor
    image_boundaries: list[Tensor]

    def __init__(self, class_names: Sequence[str], ignore_index: int = IGNORE) -> None:
        super().__init__(class_names, ignore_index)
        classes = len(self.class_names)
        self.add_state("f1", torch.zeros(2, classes + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bands", torch.zeros(2, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def keep_images(self) -> None:
        """Keep the confusion matrix and the boundary scores of each image from the next update on.

        The state ``image_boundaries`` has rows int64 ``[., 1 + 3 * C]``: the id of the image, F1 in units of 2^-40 (-1
        where undefined), and the pixels of intersections and unions. See `SegmentationScores.keep_images` too.
        """
        if not self.keeps_images:
            super().keep_images()
            self.add_state("image_boundaries", [], dist_reduce_fx="cat")

    def empty_state(self, state: str) -> Tensor:
        """Return an empty tensor with the columns of ``state``."""
        if state != "image_boundaries":
            return super().empty_state(state)
        return torch.zeros(0, 1 + 3 * len(self.class_names), dtype=torch.int64, device=self.device)

    def update(self, prediction: Tensor, target: Tensor, image_id: int | None = None) -> None:
        """Add the pixels and boundaries of a batch or of one image, at the original resolution.

        Args:
            prediction: int64 ``[B, H, W]`` or ``[H, W]`` with values 0..C-1.
            target: Of the same shape, with values 0..C-1 or ``ignore_index``.
            image_id: The id of the image, after `keep_images`.

        Raises:
            ValueError: If the shapes differ, a value is out of range, or ``image_id`` is missing.
        """
        super().update(prediction, target, image_id)
        if not target.numel():
            return
        pairs = torch.stack([prediction.to(torch.uint8), target.to(torch.uint8)]).cpu().numpy()
        classes = len(self.class_names)
        f1 = np.zeros((2, classes + 1), np.int64)
        bands = np.zeros((2, classes), np.int64)
        for predicted, truth in pairs.reshape(2, -1, *target.shape[-2:]).swapaxes(0, 1):
            ignored = truth == self.ignore_index
            filled, unfilled = fill_strips(truth, ignored, classes)
            class_f1 = boundary_f1(predicted, filled, unfilled, classes)
            defined = ~np.isnan(class_f1)
            if defined.any():
                values = [*class_f1[defined], class_f1[defined].mean()]
                f1[:, np.append(defined, True)] += [[round(v / F1_UNIT) for v in values], [1] * len(values)]
            image_bands = boundary_bands(predicted, filled, unfilled, ignored, classes)
            bands += image_bands
            if self.keeps_images:
                units = np.where(defined, np.rint(np.nan_to_num(class_f1) / F1_UNIT), -1).astype(np.int64)
                row = np.concatenate([[image_id], units, *image_bands])
                self.image_boundaries.append(torch.from_numpy(row).to(self.device)[None])
        self.f1 += torch.from_numpy(f1).to(self.device)
        self.bands += torch.from_numpy(bands).to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores listed above and those of `SegmentationScores`, over all processes."""
        sums, counts = self.f1.cpu().double()
        f1 = sums * F1_UNIT / counts  # 0 / 0 is NaN
        intersection, union = self.bands.cpu().double()
        iou = intersection / union
        scores = {"bf": f1[-1], "boundary_iou": iou.nanmean()}
        scores |= {f"bf/{name}": value for name, value in zip(self.class_names, f1, strict=False)}
        scores |= {f"boundary_iou/{name}": value for name, value in zip(self.class_names, iou, strict=True)}
        return super().compute() | self.to_tensors({name: float(value) for name, value in scores.items()})


def fill_strips(truth: np.ndarray, ignored: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill narrow ignored strips between classes with the nearest class; see `BoundaryScores`.

    Args:
        truth: uint8 ``[H, W]``, the true classes.
        ignored: bool ``[H, W]``, the pixels to ignore.
        classes: C; the classes are 0..C-1 where they are not ignored.

    Returns:
        ``truth`` with filled strips, uint8 ``[H, W]`` (the first of equally near classes), and the pixels that are
        still ignored, bool ``[H, W]``.
    """
    limit = 2 * BF_TOLERANCE * math.hypot(*truth.shape)
    # A strip pixel is at least 1 pixel from each of the two classes. Its distances to both sum to less than the limit,
    # so each is below limit - 1.
    reach = math.ceil(limit) - 2
    if reach < 1 or not ignored.any():
        return truth, ignored
    smallest, largest = _extremes(truth, ignored, reach)
    candidates = ignored & (smallest < largest)
    filled, unfilled = truth.copy(), ignored.copy()
    for tile in _tiles(truth.shape):
        inner = _bounding_window(candidates, tile)
        if inner is None:
            continue
        outer, place = _expand(inner, reach)
        labels, outer_ignored, selected = truth[outer], ignored[outer], candidates[inner]
        present = np.flatnonzero(np.bincount(labels[~outer_ignored], minlength=classes)[:classes])
        outside = ((outer_ignored | (labels != label)).view(np.uint8) for label in present)
        distances = [
            cv2.distanceTransform(each, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[place][selected]
            for each in outside
        ]
        # Squared distances are integers. OpenCV's square roots of equal integers can differ in the last digit.
        squared = np.rint(np.stack(distances) ** 2)
        nearest, second = np.sqrt(np.partition(squared, 1, axis=0)[:2])
        strip = nearest + second < limit
        filled[inner][selected] = np.where(strip, present[squared.argmin(0)], truth[inner][selected])
        unfilled[inner][selected] = ~strip
    return filled, unfilled


_Window = tuple[slice, slice]
"""Rows and columns of an image."""


def _tiles(size: tuple[int, ...]) -> Iterator[_Window]:
    """Yield square tiles of an image of ``size``, which contain few classes and fit into the processor's cache."""
    for top in range(0, size[0], _TILE):
        for left in range(0, size[1], _TILE):
            yield slice(top, top + _TILE), slice(left, left + _TILE)


def _bounding_window(where: np.ndarray, window: _Window) -> _Window | None:
    """Return the smallest part of ``window`` that contains its pixels in ``where``; None if there are none."""
    part = where[window]
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    if not len(rows):
        return None
    top, left = window[0].start, window[1].start
    return slice(top + rows[0], top + rows[-1] + 1), slice(left + columns[0], left + columns[-1] + 1)


def _expand(window: _Window, margin: int) -> tuple[_Window, _Window]:
    """Return ``window`` expanded by ``margin`` pixels within the image, and the position of ``window`` in it."""
    starts = [max(0, side.start - margin) for side in window]
    outer = [slice(start, side.stop + margin) for start, side in zip(starts, window, strict=True)]
    inner = [slice(side.start - start, side.stop - start) for start, side in zip(starts, window, strict=True)]
    return (outer[0], outer[1]), (inner[0], inner[1])


def boundary_f1(predicted: np.ndarray, truth: np.ndarray, ignored: np.ndarray, classes: int) -> np.ndarray:
    """Return the F1 of each class's boundary in one image; see `BoundaryScores`.

    Args:
        predicted: int ``[H, W]``, the predicted classes.
        truth: int ``[H, W]``, the true classes.
        ignored: bool ``[H, W]``, the pixels to ignore.
        classes: C; the classes are 0..C-1 where they are not ignored.

    Returns:
        float64 ``[C]``; NaN for a class that is not in the target, or without a boundary in target and prediction.
    """
    present = np.bincount(truth[~ignored], minlength=classes)[:classes] > 0
    tolerance = BF_TOLERANCE * math.hypot(*truth.shape)
    edges = [_edges(labels, ignored) for labels in (predicted, truth)]
    precision, predicted_pixels = _fractions_near(predicted, edges[0], truth, edges[1], tolerance, present)
    recall, true_pixels = _fractions_near(truth, edges[1], predicted, edges[0], tolerance, present)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros(classes), where=total > 0)
    f1[~present | (predicted_pixels + true_pixels == 0)] = np.nan
    return f1


def _edges(labels: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Return the pixels with a 4-neighbour of another class, neither of them ignored: bool ``[H, W]``."""
    edges = np.zeros(labels.shape, bool)
    for axis in range(2):
        values, skip, result = (np.moveaxis(array, axis, 0) for array in (labels, ignored, edges))
        differ = (values[1:] != values[:-1]) & ~(skip[1:] | skip[:-1])
        result[1:] |= differ
        result[:-1] |= differ
    return edges


def _fractions_near(
    labels: np.ndarray,
    edges: np.ndarray,
    other_labels: np.ndarray,
    other_edges: np.ndarray,
    tolerance: float,
    present: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return, per class, the fraction of ``edges`` near one of ``other_edges``, and the number of ``edges``.

    Pixels are near if their distance is less than ``tolerance``. The fraction is 0 for a class without edge pixels.
    Each class has a bit, so that one pass over a tile handles 8 classes.
    """
    classes = len(present)
    pixels = np.bincount(labels[edges], minlength=classes)[:classes]
    hits = np.zeros(classes, np.int64)
    for tile in _tiles(labels.shape):
        inner = _bounding_window(edges, tile)
        if inner is None:
            continue
        outer, place = _expand(inner, math.ceil(tolerance))
        own = labels[inner][edges[inner]]
        others = other_labels[outer][other_edges[outer]]
        both = (
            np.bincount(own, minlength=classes)[:classes] * np.bincount(others, minlength=classes)[:classes]
        )
        relevant = np.flatnonzero(present & (both > 0))
        for chunk in (relevant[first : first + 8] for first in range(0, len(relevant), 8)):
            bits = np.zeros(256, np.uint8)
            bits[chunk] = 1 << np.arange(len(chunk))
            marks = np.zeros(other_edges[outer].shape, np.uint8)
            marks[other_edges[outer]] = bits[others]
            near = (_dilate_disk(marks, tolerance)[place][edges[inner]] & bits[own]) != 0
            hits += np.bincount(own[near], minlength=classes)[:classes]
    return hits / np.maximum(pixels, 1), pixels


def _dilate_disk(marks: np.ndarray, radius: float) -> np.ndarray:
    """Return for each pixel the bitwise or of all pixels that are nearer than ``radius``: ``[H, W]``."""
    height, width = marks.shape
    rows = max(0, math.ceil(radius) - 1)
    # Half the width of the disk at each vertical distance from its centre.
    extents = [math.ceil(math.sqrt(radius**2 - dy**2)) - 1 for dy in range(rows + 1)]
    dilated = np.zeros_like(marks)
    wide = marks.copy()
    reached = 0
    for dy in reversed(range(rows + 1)):  # the width grows towards the centre
        while reached < extents[dy]:
            reached += 1
            if reached < width:
                wide[:, reached:] |= marks[:, :-reached]
                wide[:, :-reached] |= marks[:, reached:]
        if dy < height:
            dilated[dy:] |= wide[: height - dy]
            dilated[: height - dy] |= wide[dy:]
    return dilated


def boundary_bands(
    predicted: np.ndarray, truth: np.ndarray, unfilled: np.ndarray, ignored: np.ndarray, classes: int
) -> np.ndarray:
    """Return the pixels of the intersection and of the union of each class's two bands; see `BoundaryScores`.

    Args:
        predicted: int ``[H, W]``, the predicted classes.
        truth: int ``[H, W]``, the true classes.
        unfilled: bool ``[H, W]``, the pixels that form no contour.
        ignored: bool ``[H, W]``, the pixels that are left out, which include ``unfilled``.
        classes: C; the classes are 0..C-1 where they are not ignored.

    Returns:
        int64 ``[2, C]``.
    """
    width = max(1, round(IOU_WIDTH * math.hypot(*truth.shape)))
    bands = [_band(labels, unfilled, width) & ~ignored for labels in (predicted, truth)]
    both = bands[0] & bands[1] & (predicted == truth)
    intersection, predicted_pixels, true_pixels = (
        np.bincount(labels[where], minlength=classes)
        for labels, where in ((truth, both), (predicted, bands[0]), (truth, bands[1]))
    )
    return np.stack([intersection, predicted_pixels + true_pixels - intersection])


def _band(labels: np.ndarray, ignored: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels within ``width`` 8-connected steps of another class or of the edge: bool ``[H, W]``.

    Ignored pixels are neither in a band nor another class.
    """
    smallest, largest = _extremes(labels, ignored, width)
    near = (smallest != labels) | (largest != labels)
    near[:width] = near[-width:] = True
    near[:, :width] = near[:, -width:] = True
    return near & ~ignored


def _extremes(labels: np.ndarray, ignored: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest class within ``width`` 8-connected steps of each pixel: uint8 ``[H, W]``.

    Ignored pixels are left out; where all are ignored, the smallest is 255 and the largest 0.
    """
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    smallest = cv2.erode(np.where(ignored, np.uint8(255), labels), square)
    return smallest, cv2.dilate(np.where(ignored, np.uint8(0), labels), square)
