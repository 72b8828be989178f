"""Find boxes and images that training uses differently from their annotation.

`segdet data check` and the check before a training share these rules.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segdet.data.cleaning import clean_objects, overhang, usable
from segdet.data.faults import Fault, FaultKind
from segdet.data.formats.reader import Reader
from segdet.data.images import ImageInfo
from segdet.data.sample import Objects
from segdet.util.nouns import counted

# Annotations are often rounded, so half a pixel beyond the border is not a fault.
_TOLERANCE = 0.5

_SMALLEST = 1.0
"""Area in pixels below which the transforms drop a box."""


def no_score(validation: bool) -> str:
    """Return the consequence of a split in which nothing counts in scores.

    Args:
        validation: Whether the split is for validation, whose scores determine the best checkpoint.
    """
    return "there will be no score" + (", and no best checkpoint" if validation else "")


_REASONS = {
    FaultKind.NOT_FINITE: "not finite",
    FaultKind.DEGENERATE: "without width or height",
    FaultKind.OUTSIDE: "outside their image",
}


@dataclass
class Tally:
    """Numbers of objects.

    Attributes:
        objects: All objects of the classes.
        counted: Objects that training uses.
        crowds: Crowds, which training and scores ignore.
        difficult: Difficult objects, which training and scores ignore.
        small: Objects smaller than a pixel, which training does not use but scores count.
        dropped: Objects that are left out, by the kind of their fault.
    """

    objects: int = 0
    counted: int = 0
    crowds: int = 0
    difficult: int = 0
    small: int = 0
    dropped: dict[FaultKind, int] = field(default_factory=dict)

    def add(self, other: "Tally") -> None:
        """Add the numbers of another tally."""
        self.objects += other.objects
        self.counted += other.counted
        self.crowds += other.crowds
        self.difficult += other.difficult
        self.small += other.small
        for kind, count in other.dropped.items():
            self.dropped[kind] = self.dropped.get(kind, 0) + count

    def nothing_to_learn(self, path: Path) -> Fault | None:
        """Return the fatal fault of training images without an object to learn from, or None."""
        if self.counted:
            return None
        remedy = "train on annotated images, or fix the annotations"
        return Fault(path, f"training has no object to learn from: {self._reasons()}", True, remedy)

    def nothing_to_score(self, path: Path, validation: bool) -> Fault | None:
        """Return the fault of images without an object that counts in scores, or None; see `no_score`."""
        if self.counted or self.small:
            return None
        fault = f"no object counts in scores: {self._reasons()}"
        return Fault(path, fault, False, no_score(validation))

    def _reasons(self) -> str:
        if not self.objects:
            return "there is no annotation of any class"
        counts = [
            (self.crowds, "crowd" if self.crowds == 1 else "crowds"),
            (self.difficult, "difficult"),
            (self.small, "smaller than a pixel"),
        ]
        counts += [(count, _REASONS[kind]) for kind, count in self.dropped.items()]
        listed = ", ".join(f"{count:,} {name}" for count, name in counts if count)
        return f"of {counted(self.objects, 'annotation')}, {listed}"


def object_faults(
    reader: Reader,
    index: int,
    objects: Objects,
    size: tuple[int, int],
    resized: tuple[int, int] | None = None,
) -> tuple[list[Fault], Tally]:
    """Return the boxes of an image that are dropped or clipped, and the numbers of objects.

    Args:
        reader: The reader.
        index: The image.
        objects: Its objects, as annotated.
        size: ``(height, width)`` of the image.
        resized: Its size after the transforms, if they resize images; boxes may then be too small.
    """
    scale = np.array(resized or size).prod() / np.array(size).prod()
    ordinary = ~(objects.iscrowd | objects.difficult)
    start, end = objects.boxes[:, :2], objects.boxes[:, 2:]
    areas = (end - start).clip(0).prod(1)
    # Most images have no fault and return here. Images with NaN do not, because comparisons with NaN are False.
    if (start >= 0).all() and (end <= size[::-1]).all() and (areas * min(scale, 1) >= _SMALLEST).all():
        difficult = int((objects.difficult & ~objects.iscrowd).sum())
        return [], Tally(len(objects), int(ordinary.sum()), int(objects.iscrowd.sum()), difficult)
    annotation = next(iter(reader.annotation_paths(index, "detection")), reader.image_path(index))
    faults = []

    def add(kind: FaultKind, fault: str, remedy: str) -> None:
        faults.append(Fault(annotation, fault, False, remedy, kind=kind))

    def describe(row: int) -> str:
        return reader.describe_object(index, row)

    kept, dropped = clean_objects(objects, size, describe)
    for box in dropped:
        add(box.kind, box.description, "it is dropped")
    rows = np.flatnonzero(usable(objects, size))
    for row in rows[overhang(objects.boxes[rows], size) > _TOLERANCE]:
        fault = f"{describe(row)} reaches beyond the image of {wh(size)}"
        add(FaultKind.CLIPPED, fault, "it is clipped")
    sides = kept.boxes[:, 2:] - kept.boxes[:, :2]
    ordinary = ~(kept.iscrowd | kept.difficult)
    small = ordinary & (sides.prod(1) * scale < _SMALLEST)
    after = "" if resized in (None, size) else f" after resizing {wh(size)} to {wh(resized)}"
    for row in rows[small]:
        add(FaultKind.SMALL, f"{describe(row)} is smaller than a pixel{after}", "training does not use it")
    tally = Tally(
        objects=len(objects),
        counted=int((ordinary & ~small).sum()),
        crowds=int(kept.iscrowd.sum()),
        difficult=int((kept.difficult & ~kept.iscrowd).sum()),
        small=int(small.sum()),
    )
    for kind in (fault.kind for fault in faults if fault.kind in _REASONS):
        tally.dropped[kind] = tally.dropped.get(kind, 0) + 1
    return faults, tally


def rotation_fault(path: Path, info: ImageInfo, applied: bool) -> Iterator[Fault]:
    """Yield the fault of an image with an EXIF rotation.

    Args:
        path: The image.
        info: Its header.
        applied: Whether the rotation is applied, because the annotation states the rotated size.
    """
    if info.orientation != 1:
        handling = "its pixels are used as they are stored; check that the annotation refers to these"
        if applied:
            handling = "it is turned upright, because the annotation states the rotated size"
        fault = f"has the EXIF orientation {info.orientation}"
        yield Fault(path, fault, False, handling, kind=FaultKind.ROTATION)


def size_fault(path: Path, size: tuple[int, int], declared: tuple[int, int] | None) -> Iterator[Fault]:
    """Yield a fault if an image's ``size``, (height, width), differs from the ``declared`` size in its annotation."""
    if declared is not None and declared != size:
        fault = f"is {wh(size)} but its annotation states {wh(declared)}"
        handling = "the annotation is assumed to be in pixels of the file; check that it is"
        yield Fault(path, fault, False, handling, kind=FaultKind.SIZE)


def wh(size: tuple[int, int]) -> str:
    """Return ``(height, width)`` as text, such as ``64x48`` for a width of 64."""
    return f"{size[1]}x{size[0]}"
