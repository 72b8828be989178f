"""Select the annotated objects to use: clip boxes, drop invalid ones, and find the dominant object.

Boxes that extend beyond the image are clipped. Boxes without area (before or after clipping) and boxes with
coordinates that are not finite are dropped and reported.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from segdet.data.faults import FaultKind
from segdet.data.sample import Objects


class DroppedBox(NamedTuple):
    """A box excluded from training and scores. The description contains the box, its class and the reason."""

    kind: FaultKind
    description: str


def describe_box(box: np.ndarray, label: int, class_names: Sequence[str] | None = None) -> str:
    """Describe a box for a message, such as ``box 453,81,453,182 of class RBC``, in pixels of the stored image."""
    name = class_names[label - 1] if class_names and 1 <= label <= len(class_names) else str(label)
    return f"box {','.join(f'{value:.6g}' for value in box.tolist())} of class {name}"


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Clip boxes float32 ``[N, 4]`` (xyxy pixels) to an image of ``size`` (height, width)."""
    limits = np.array([*size[::-1], *size[::-1]], np.float32)
    return np.clip(boxes.astype(np.float32, copy=False), 0, limits)


def overhang(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return how far each box extends beyond an image of ``size`` (height, width), in pixels: float32 ``[N]``."""
    return np.abs(boxes - clip_boxes(boxes, size)).max(axis=1)


def usable(objects: Objects, size: tuple[int, int]) -> np.ndarray:
    """Return which boxes are finite and have area inside an image of ``size`` (height, width): bool ``[N]``."""
    clipped = clip_boxes(objects.boxes, size)
    return np.isfinite(objects.boxes).all(axis=1) & _has_area(objects.boxes) & _has_area(clipped)


def _has_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def clean_objects(
    objects: Objects, size: tuple[int, int], describe: Callable[[int], str] | None = None
) -> tuple[Objects, list[DroppedBox]]:
    """Clip boxes to the image and drop the invalid ones.

    Args:
        objects: The annotated objects.
        size: ``(height, width)`` of the image.
        describe: Function that describes the object at an index; default: its box and its label.

    Returns:
        The valid objects with clipped boxes (``area`` stays as annotated), and the dropped boxes: those that are not
        finite, degenerate (``x1 <= x0`` or ``y1 <= y0``) or outside the image.
    """
    keep = usable(objects, size)
    kept = objects.select(keep)
    kept.boxes = clip_boxes(kept.boxes, size)
    dropped = []
    for index in np.flatnonzero(~keep):
        box = objects.boxes[index]
        if not np.isfinite(box).all():
            kind, reason = FaultKind.NOT_FINITE, "is not finite"
        elif not _has_area(box[None])[0]:
            kind, reason = FaultKind.DEGENERATE, "is degenerate"
        else:
            kind, reason = FaultKind.OUTSIDE, f"lies outside the image of {size[1]}x{size[0]}"
        described = describe(int(index)) if describe else describe_box(box, int(objects.labels[index]))
        dropped.append(DroppedBox(kind, f"{described} {reason}"))
    return kept, dropped


def dominant_object(objects: Objects, dominance: float = 1.0) -> int | None:
    """Return the index of the object that localization uses, or None if there is none.

    Crowds and difficult objects are not considered. The object with the largest annotated area is used (the first one
    if several are equal). Its area must be at least ``dominance`` times the second-largest area.
    """
    candidates = np.flatnonzero(~(objects.iscrowd | objects.difficult))
    if not len(candidates):
        return None
    areas = objects.area[candidates]
    largest = int(areas.argmax())
    others = np.delete(areas, largest)
    if len(others) and areas[largest] < dominance * others.max():
        return None
    return int(candidates[largest])
