"""Annotated images, the common input of all writers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segdet.data.formats.outlines import Outline, outline_mask
from segdet.data.sample import IGNORE


@dataclass
class AnnotatedObject:
    """One object of an image.

    Attributes:
        name: Name of the class.
        box: ``x0, y0, x1, y1`` in pixels, with x1 and y1 exclusive.
        outline: The outline in COCO's format; None if the object has only a box.
        area: Area in pixels; default: of the box.
        crowd: Whether the object is a region of many objects.
        difficult: VOC's flag.
        truncated: VOC's flag: a part of the object is outside the image.
        occluded: VOC's flag: a part of the object is covered.
    """

    name: str
    box: tuple[float, float, float, float]
    outline: Outline | None = None
    area: float | None = None
    crowd: bool = False
    difficult: bool = False
    truncated: bool = False
    occluded: bool = False


@dataclass
class AnnotatedImage:
    """One image with its annotation.

    Attributes:
        image: The image file, the content of an image file, or uint8 ``[H, W, 3]`` RGB.
        size: ``(height, width)`` of the image to which the annotation refers.
        name: File name in the written folder, without suffix.
        objects: The objects.
        mask: Class of each pixel, uint8 ``[H, W]``, 255 = ignore; None without a mask.
        instances: Object of each pixel, int ``[H, W]``: 0 for none, n for object n - 1; None if not known.
        upright: Whether the annotation refers to the image after its EXIF rotation. Such a file is written rotated.
    """

    image: Path | bytes | np.ndarray
    size: tuple[int, int]
    name: str = ""
    objects: list[AnnotatedObject] = field(default_factory=list)
    mask: np.ndarray | None = None
    instances: np.ndarray | None = None
    upright: bool = False


def painted_mask(
    objects: Sequence[AnnotatedObject], size: tuple[int, int], class_names: Sequence[str]
) -> np.ndarray:
    """Return the classes of all pixels: uint8 ``[H, W]``, 0 for background, else the place in ``class_names`` + 1.

    Later objects cover earlier ones. Crowd regions, and objects whose class is not in ``class_names``, are ignored
    (255).
    Objects without an outline are not painted.

    Raises:
        ValueError: If an outline is invalid, see `outline_mask`.
    """
    mask = np.zeros(size, np.uint8)
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    for each in objects:
        if each.outline is not None:
            mask[outline_mask(each.outline, size)] = IGNORE if each.crowd else label_of.get(each.name, IGNORE)
    return mask
