"""Images and annotations of a foreign format, before names and splits for the new folder are chosen."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segdet.data.sample import TaskName
from segdet.data.writers.record import AnnotatedObject
from segdet.util.errors import BadSample

BACKGROUND = "background"
"""Class name of background regions. In a mask they cover the objects that precede them."""


@dataclass(frozen=True)
class LeftOut:
    """A file or an object that is not imported.

    Attributes:
        reason: The reason, without details, so that equal reasons can be counted.
        path: The file.
        detail: The object and the fault.
        image: The image of an unusable annotation.
    """

    reason: str
    path: Path
    detail: str = ""
    image: Path | None = None

    @classmethod
    def of(cls, error: BadSample, image: Path | None = None) -> "LeftOut":
        """Return the entry for the file that ``error`` describes."""
        return cls("unusable file", error.path, error.fault, image)


@dataclass
class ForeignImage:
    """One image of a foreign format.

    Attributes:
        image: The image file, or the content of one.
        key: The path that identifies the image, relative to the source.
        size: ``(height, width)`` of the image to which the annotation refers.
        upright: Whether the annotation refers to the image after its EXIF rotation.
        objects: The objects; in a mask, later ones cover earlier ones.
        mask: Function that reads the class of each pixel, uint8 ``[H, W]``; None without a mask.
        classes: Names of the classes in ``mask``.
        split: ``train``, ``val``, ``test`` or None.
    """

    image: Path | bytes
    key: str
    size: tuple[int, int]
    upright: bool = False
    objects: list[AnnotatedObject] = field(default_factory=list)
    mask: Callable[[], np.ndarray] | None = None
    classes: frozenset[str] = frozenset()
    split: str | None = None


@dataclass
class Foreign:
    """The content of a source in one foreign format.

    Attributes:
        title: Name of the format for messages.
        images: The images.
        task: The task that the annotations imply.
        class_names: Names of the classes in the format's order. Further classes of the objects are added, sorted.
        mask_names: Name of each class in `ForeignImage.mask`, by its value.
        category_ids: COCO's id of each class. If it is empty, the classes are numbered from 1.
        boxes_are_filled: Whether a box is also a rectangular outline, as in tools that draw boxes and polygons.
        from_coco: Whether the source is in COCO's format.
        left_out: The files and objects that are not imported.
        notes: Facts about the source that the user should check.
    """

    title: str
    images: list[ForeignImage]
    task: TaskName
    class_names: list[str] = field(default_factory=list)
    mask_names: list[str] = field(default_factory=list)
    category_ids: dict[str, int] = field(default_factory=dict)
    boxes_are_filled: bool = False
    from_coco: bool = False
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def implied_task(images: Iterable[ForeignImage], boxes_are_filled: bool) -> TaskName:
    """Return the task that the objects imply.

    If a box is also an outline (``boxes_are_filled``), one object with an outline implies segmentation. Otherwise every
    object needs an outline, because the pixels of an object with only a box are unknown.
    """
    outlined = {each.outline is not None for image in images for each in image.objects}
    return "segmentation" if outlined == {True} or (boxes_are_filled and True in outlined) else "detection"
