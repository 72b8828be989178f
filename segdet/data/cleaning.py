"""What becomes of boxes that cannot be used as they are: the one rule that training and checking share.

A box that leaves the image is clipped to it. A box without any area, before or after that, or with a
coordinate that is no number, is dropped and named.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from segdet.data.sample import Objects


def describe_box(box: np.ndarray, label: int, class_names: Sequence[str] | None = None) -> str:
    """``box 453,81,453,182 of class RBC``: a box as messages name it, in pixels of the stored image."""
    named = class_names is not None and 1 <= label <= len(class_names)
    name = class_names[label - 1] if class_names is not None and named else str(label)
    return f"box {','.join(f'{value:.6g}' for value in box.tolist())} of class {name}"


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes float32 ``[N, 4]`` (xyxy pixels) cut off at the borders of an image of ``size`` (h, w)."""
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes.astype(np.float32, copy=False), 0, limits)


def overhang(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """How many pixels each box reaches beyond the image of ``size`` (height, width): float32 ``[N]``."""
    if not len(boxes):
        return np.zeros(0, np.float32)
    return np.abs(boxes - clip_boxes(boxes, size)).max(axis=1)


def usable(objects: "Objects", size: tuple[int, int]) -> np.ndarray:
    """Which objects have a finite box with some area inside an image of ``size`` (h, w): bool ``[N]``."""
    clipped = clip_boxes(objects.boxes, size)
    return np.isfinite(objects.boxes).all(axis=1) & _has_area(objects.boxes) & _has_area(clipped)


def _has_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def clean_objects(
    objects: "Objects", size: tuple[int, int], class_names: Sequence[str] | None = None
) -> "tuple[Objects, list[str]]":
    """The objects that can be learned from and scored, and what was wrong with the others.

    Args:
        objects: As the annotation has them.
        size: ``(height, width)`` of the image.
        class_names: Names for the messages, label 1 first; without them labels are given as numbers.

    Returns:
        The objects with their boxes clipped to the image (their areas stay the annotation's), without
        those whose box is not finite, degenerate (``x1 <= x0`` or ``y1 <= y0``) or wholly outside; and one
        phrase for each object left out.
    """
    keep = usable(objects, size)
    kept = objects.select(keep)
    kept.boxes = clip_boxes(kept.boxes, size)
    height, width = size
    dropped = []
    for index in np.flatnonzero(~keep):
        box = objects.boxes[index]
        if not np.isfinite(box).all():
            fault = "is not finite"
        elif not _has_area(box[None])[0]:
            fault = "is degenerate"
        else:
            fault = f"lies outside the image of {width}x{height}"
        dropped.append(f"{describe_box(box, int(objects.labels[index]), class_names)} {fault}")
    return kept, dropped
