"""Annotated images, the common input of all writers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np

from segdet.data.formats.outlines import Outline, outline_mask, outline_of
from segdet.data.sample import IGNORE


@dataclass
class AnnotatedObject:
    """One object of an image.

    Attributes:
        name: Name of the class.
        box: ``x0, y0, x1, y1`` in pixels, with x1 and y1 exclusive.
        outline: The outline in COCO's format; None if the object has only a box.
        area: Area in pixels; default: the area of the box.
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
        instances: Object of each pixel, int ``[H, W]``: 0 for no object, n for ``objects[n - 1]``; None if not known.
        upright: Whether the annotation refers to the image after its EXIF rotation. If so, the image is written
            rotated.
    """

    image: Path | bytes | np.ndarray
    size: tuple[int, int]
    name: str = ""
    objects: list[AnnotatedObject] = field(default_factory=list)
    mask: np.ndarray | None = None
    instances: np.ndarray | None = None
    upright: bool = False


class LazyImages(Sequence[AnnotatedImage], ABC):
    """A sequence whose images are made on access, so that the annotations of a split need not fit into memory."""

    @abstractmethod
    def image_at(self, position: int) -> AnnotatedImage:
        """Return the image at a position."""

    @overload
    def __getitem__(self, position: int) -> AnnotatedImage: ...
    @overload
    def __getitem__(self, position: slice) -> list[AnnotatedImage]: ...
    def __getitem__(self, position: int | slice) -> AnnotatedImage | list[AnnotatedImage]:
        """Return the image at a position, or the images of a slice."""
        if isinstance(position, slice):
            return [self.image_at(place) for place in range(len(self))[position]]
        return self.image_at(position)


def painted_mask(
    objects: Sequence[AnnotatedObject], size: tuple[int, int], class_names: Sequence[str]
) -> np.ndarray:
    """Return the class of each pixel: uint8 ``[H, W]``, 0 for background, else 1 + the index in ``class_names``.

    Later objects cover earlier ones. Objects named ``background`` have the value 0. Crowd regions, and objects whose
    class is not in ``class_names``, are ignored (255). Objects without an outline are not painted.

    Raises:
        ValueError: If an outline is invalid, see `outline_mask`.
    """
    mask = np.zeros(size, np.uint8)
    label_of = {"background": 0} | {name: label for label, name in enumerate(class_names, start=1)}
    for each in objects:
        if each.outline is not None:
            mask[outline_mask(each.outline, size)] = IGNORE if each.crowd else label_of.get(each.name, IGNORE)
    return mask


def class_objects(mask: np.ndarray, mask_names: Sequence[str]) -> list[AnnotatedObject]:
    """Return one object for each class in a mask, and a crowd region of the first class for ignored pixels (255).

    If background is the only class, the list is empty.

    Args:
        mask: Class of each pixel, uint8 ``[H, W]``.
        mask_names: Names of the values. A leading ``background`` has no object.
    """
    first = 1 if mask_names[0] == "background" else 0
    objects = []
    for label in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist():
        if label < first:
            continue
        ignored = label == IGNORE
        if ignored and first == len(mask_names):
            continue
        inside = mask == label
        y, x = np.nonzero(inside)
        box = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
        name = mask_names[first if ignored else label]
        area = float(inside.sum())
        objects.append(AnnotatedObject(name, box, outline_of(inside, ignored), area, crowd=ignored))
    return objects
