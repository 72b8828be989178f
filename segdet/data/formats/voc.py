"""Read Pascal VOC folders of any year, and other folders of that format.

A folder contains ``JPEGImages/``, ``ImageSets/Main/<split>.txt`` with ``Annotations/<name>.xml`` for boxes, and
``ImageSets/Segmentation/<split>.txt`` with ``SegmentationClass/<name>.png`` for masks. Format: Everingham et al., "The
PASCAL Visual Object Classes Challenge 2012 Development Kit".
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.faults import Fault, FaultKind
from segdet.data.formats.class_names import (
    ClassList,
    class_files_in,
    class_list,
    is_ignored,
    read_class_file,
)
from segdet.data.formats.mask_classes import MaskClasses
from segdet.data.formats.reader import Reader
from segdet.data.formats.voc_files import (
    Files,
    flagged_lines,
    read_list,
    shortened,
    voc_folder_of,
)
from segdet.data.formats.voc_xml import VOCAnnotation, classes_in, half_open, read_annotation
from segdet.data.images import other_spelling, read_mask
from segdet.data.sample import IGNORE, Objects, TaskName
from segdet.util.background import is_background
from segdet.util.errors import BadSample, MissingFile, UserError
from segdet.util.suggest import closest

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
"""The 20 classes of VOC 2007 and later; the value of a class in a mask is its position, counted from 1."""

_MASKS_TO_CHECK = 8
_MISSING = "add it or remove its name from the split list"


class VOCReader(Reader):
    """The images of one or more VOC split lists, with boxes or masks.

    Boxes in the files are 1-based and inclusive. They are converted to 0-based, half-open boxes: ``xmin - 1, ymin - 1,
    xmax, ymax``. A box with ``xmax <= xmin`` or ``ymax <= ymin`` gets a width or height of 0. The ``<part>``
    elements of an object are ignored.

    Images and masks may have any suffix that `segdet.data.images` reads, and suffixes may be in upper case.

    Class names come from the first of these sources that exists:

    1. ``class_names``.
    2. ``labels.txt``, ``class_names.txt`` or CVAT's ``labelmap.txt`` in the root or the VOC folder.
    3. ``known``.
    4. For boxes, the sorted names in all XML files of the folder. If all sets name a year and the files contain only
       VOC's 20 classes, these 20 are used.
    5. For masks, VOC's 21 classes.

    A leading ``background`` is not an object class. For masks, the names belong to the values 0, 1, 2, ..., or to
    ``mask_values``. If ``ignore_index`` has a name, this name is left out, and the index of each later class decreases
    by one. If the class file is CVAT's, masks may be coded by its colours.

    Args:
        root: Folder that contains ``JPEGImages/``, or ``VOC2007/`` or ``VOCdevkit/VOC2007/``.
        sets: Split lists, such as ``train`` for the root itself or ``2007/trainval`` for the year 2007. Several lists
            are concatenated.
        task: The task, which determines the split lists and annotations.
        class_names: Class names, or a text file with one per line (looked up in ``root`` first).
        ignore_index: Mask value to ignore, besides 255.
        known: Class names of a model, for folders that do not name their classes.
        mask_values: Mask value of each class name, such as ``[0, 255]``; see `MaskClasses`.

    Raises:
        UserError: If a folder, a list or the classes cannot be found.
    """

    def __init__(
        self,
        root: Path | str,
        sets: Sequence[str],
        task: TaskName,
        class_names: Sequence[str] | Path | str | None = None,
        ignore_index: int = IGNORE,
        known: Sequence[str] | None = None,
        mask_values: Sequence[int] | None = None,
    ) -> None:
        self.root = Path(root)
        self.task = task
        if not self.root.is_dir():
            fix = "give the folder that contains JPEGImages/ or VOC2007/"
            raise UserError(f"{self.root}: no such folder; {fix}")
        self.sets = [sets] if isinstance(sets, str) else list(sets)
        if not self.sets:
            raise UserError(f"{self.root}: no split is given; give, for example, [train]")
        self._files = Files()
        self._lists = [voc_folder_of(self.root, name) for name in self.sets]
        self._members = [
            member for folder, split in self._lists for member in read_list(folder, split, task, self._files)
        ]
        self._folders = sorted({member.folder for member in self._members})
        self._class_files = class_files_in([self.root, *self._folders])
        self._assumes_names = False
        given = self._given(class_names)
        if given is None and known is not None:
            names = list(known)
            if task == "segmentation" and mask_values is None:
                names = _with_ignored(names, ignore_index)
            given = ClassList(names)
        if task == "segmentation":
            self._set_mask_names(given, ignore_index, mask_values)
        else:
            self._set_object_names(given)
        self.category_ids = list(range(1, len(self.class_names) + 1))
        self._label_of = {name: label for label, name in enumerate(self.class_names, start=1)}
        self._last: tuple[Path, VOCAnnotation] | None = None

    @property
    def mask_values(self) -> list[int]:
        """The mask values of the classes, without ignored ones."""
        return list(self._masks.values)

    @property
    def mask_encoding(self) -> list[Any]:
        """Names, values, ignored values and colours of the masks."""
        return self._masks.encoding

    def __len__(self) -> int:
        return len(self._members)

    def image_path(self, index: int) -> Path:
        """Return the image's file; if there is none, the path where it would be."""
        return self._files.image(self._members[index])

    def upright(self, index: int) -> bool:
        """Return whether the image has no annotation file. Such images can be used for prediction only."""
        return not self.annotation_paths(index, self.task)[0].is_file()

    def declared_size(self, index: int) -> tuple[int, int] | None:
        """Return ``(height, width)`` from the XML file; None if it is missing, corrupt or has a size of 0."""
        path = self._files.xml(self._members[index])
        try:
            return self._annotation(path).size
        except BadSample:
            return None

    def objects(self, index: int) -> Objects:
        """Return the objects in the XML file; none is a crowd."""
        path = self._files.xml(self._members[index])
        annotation = self._annotation(path)
        if annotation.errors:
            raise annotation.errors[0]
        unknown = sorted(set(annotation.names) - self._label_of.keys())
        if unknown:
            close = closest(unknown[0], self.class_names)
            hint = f" (did you mean {close}?)" if close else ""
            fault = f"unknown class {', '.join(map(repr, unknown))}{hint}"
            fix = f"fix the name or add it to class_names (now {shortened(self.class_names)})"
            raise BadSample(path, fault, fix)
        boxes, _ = half_open(annotation.raw)
        extent = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
        return Objects(
            boxes=boxes.astype(np.float32),
            labels=np.array([self._label_of[name] for name in annotation.names], np.int64),
            iscrowd=np.zeros(len(boxes), bool),
            difficult=annotation.difficult,
            area=(extent[:, 0] * extent[:, 1]).astype(np.float32),
        )

    def mask(self, index: int) -> np.ndarray:
        """Return the classes in ``SegmentationClass/<name>.png``; for the kinds of files see `read_mask`."""
        path = self._files.masks(self._members[index])[0]
        try:
            return self._masks.read(path, self.max_pixels)
        except MissingFile:
            raise MissingFile(path, "no such mask", other_spelling(path) or _MISSING) from None

    def object_masks(self, index: int) -> list[Path]:
        """Return the masks in ``SegmentationObject`` of the image, which segdet does not use."""
        return self._files.object_masks(self._members[index])

    def annotation_paths(self, index: int, task: TaskName) -> list[Path]:
        member = self._members[index]
        return [self._files.masks(member)[0] if task == "segmentation" else self._files.xml(member)]

    def faults(self, index: int, task: TaskName) -> Iterator[Fault]:
        """Yield ambiguous files, all faults of an XML file, and images that are listed twice in the split."""
        member = self._members[index]
        path = self.image_path(index)
        if self._first_place[path] != index:
            fault, fix = "is listed twice in the split", "check that this is intended"
            yield Fault(path, fault, False, fix, kind=FaultKind.SPLIT)
        yield from _ambiguous(path, self._files.images(member), member.suffix)
        annotation_path = self.annotation_paths(index, task)[0]
        if task == "segmentation":
            yield from _ambiguous(annotation_path, self._files.masks(member))
            return
        try:
            annotation = self._annotation(annotation_path)
        except BadSample:
            return
        yield from map(Fault.of, annotation.errors)
        stated = Path(annotation.filename.replace("\\", "/")).name
        if stated != path.name and (path.parent / stated).is_file() and Path(stated).stem != path.stem:
            fault = f"states <filename>{stated}</filename> but is used for the image {path.name}"
            fix = "check that the boxes belong to this image"
            yield Fault(annotation_path, fault, False, fix)

    def unused_class_remedy(self, unused: Sequence[int]) -> str:
        """Return the options that make 255 a class, if the value 255 probably stands for a class without pixels."""
        values, names = self.mask_values, self.mask_names
        if IGNORE in values:
            return ""
        if self._assumes_names and 0 not in unused and len(unused) == len(values) - 1:
            values, names = [0, IGNORE], ["background", "object"]
        elif len(unused) == 1 or (len(values) == 2 and 1 in unused):
            values[unused[-1]] = IGNORE
        else:
            return ""
        listed = ",".join(map(str, values))
        fit, data = f"--data.mask_values [{listed}]", f"--mask_values [{listed}]"
        if self._assumes_names:
            fit += f" --data.class_names [{','.join(names)}]"
            data += f" --class_names {','.join(names)}"
        return f"if {IGNORE} is a class, give {fit} (segdet data: {data})"

    def describe_object(self, index: int, row: int) -> str:
        annotation = self._annotation(self._files.xml(self._members[index]))
        xmin, ymin, xmax, ymax = (f"{value:.6g}" for value in annotation.raw[row])
        box = f"xmin={xmin} ymin={ymin} xmax={xmax} ymax={ymax}"
        return f"box {box} of class {annotation.names[row]}"

    def file_faults(self) -> list[Fault]:
        """Return assumed class names, names that differ in case only, unused class files, and lists with flags."""
        found: list[tuple[Path, str, str, FaultKind]] = []
        if self._assumes_names:
            fault = "does not name its classes; those of VOC are assumed (value 1 is aeroplane, 2 is bicycle, ...)"
            fix = "write the names to labels.txt, one per mask value from 0, or give class_names"
            found.append((self.root, fault, fix, FaultKind.CLASSES))
        for other in self._class_files[1:]:
            if read_class_file(other).names != read_class_file(self._class_files[0]).names:
                fault = f"its class names differ from those in {self._class_files[0]}"
                found.append((other, fault, "that file is used; remove the wrong one", FaultKind.CLASSES))
        folded: dict[str, str] = {}
        for name in self.class_names:
            first = folded.setdefault(name.casefold(), name)
            if first != name:
                fault = f"{first!r} and {name!r} are two classes"
                found.append((self.root, fault, "if they are one, rename it", FaultKind.CLASSES))
        for folder, split in self._lists:
            if flagged_lines(folder, split, self.task):
                fault = f"the split list {split} has a flag after each name; all its images are used, whatever the flag"
                found.append((folder, fault, "check that this is intended", FaultKind.SPLIT))
        return [Fault(path, fault, False, fix, kind=kind) for path, fault, fix, kind in found]

    @cached_property
    def _first_place(self) -> dict[Path, int]:
        return {self.image_path(index): index for index in reversed(range(len(self)))}

    def _annotation(self, path: Path) -> VOCAnnotation:
        # The last file is cached, because the size and the objects of an image are read one after the other.
        if self._last is None or self._last[0] != path:
            try:
                self._last = path, read_annotation(path)
            except MissingFile as error:
                raise MissingFile(path, error.fault, other_spelling(path) or _MISSING) from None
        return self._last[1]

    def _given(self, class_names: Sequence[str] | Path | str | None) -> ClassList | None:
        in_folder = read_class_file(self._class_files[0]) if self._class_files else None
        if class_names is None:
            return in_folder
        given = class_list(class_names, self.root)
        if not given.colours and in_folder is not None:
            return ClassList(given.names, in_folder.colours)
        return given

    def _set_mask_names(
        self, given: ClassList | None, ignore_index: int, mask_values: Sequence[int] | None
    ) -> None:
        if given is None:
            if mask_values is not None:
                raise UserError("mask_values: the classes have no names; give class_names, one per value")
            masks = [self._files.masks(member)[0] for member in self._members[:_MASKS_TO_CHECK]]
            _expect_voc_values(self.root, masks, ignore_index, self.max_pixels)
            self._assumes_names = self.states_masks = not all(
                re.fullmatch(r"VOC\d{4}", folder.name) for folder in self._folders
            )
            given = ClassList(["background", *VOC_CLASSES])
        else:
            self.states_masks = True
        self._masks = MaskClasses(given, ignore_index, mask_values)
        self.mask_names = list(self._masks.names)
        self.class_names = [name for name in self.mask_names if not is_background(name)]

    def _set_object_names(self, given: ClassList | None) -> None:
        if given is not None:
            names = [name for name in given.names if not is_ignored(name)]
            self.class_names = names[1:] if is_background(names[0]) else names
            if not self.class_names:
                raise UserError("class_names: contains only the background; add the object classes")
        else:
            found = set().union(*(classes_in(folder / "Annotations") for folder in self._folders))
            if not found:
                places = ", ".join(str(folder / "Annotations") for folder in self._folders)
                raise UserError(f"{places}: no object of any class in the XML files; give class_names")
            by_year = all("/" in name for name in self.sets)
            self.class_names = list(VOC_CLASSES) if by_year and found <= set(VOC_CLASSES) else sorted(found)
        self._masks = MaskClasses(ClassList(["background", *self.class_names]))
        self.mask_names = list(self._masks.names)


def _expect_voc_values(root: Path, masks: Sequence[Path], ignore_index: int, max_pixels: int) -> None:
    for path in masks:
        try:
            values = read_mask(path, max_pixels)
        except BadSample:
            continue  # reported when the mask is read
        counted = values[(values != IGNORE) & (values != ignore_index)]
        if counted.size and counted.max() > len(VOC_CLASSES):
            raise UserError(
                f"{path}: value {counted.max()} is not one of VOC's 21 classes; give class_names as a list or a file "
                f"such as {root / 'labels.txt'}, with one name per mask value, from 0"
            )


def _ambiguous(used: Path, found: Sequence[Path], listed_suffix: str = "") -> Iterator[Fault]:
    """Yield a fault if several files have one name, or the file has another suffix than in the split list."""
    if listed_suffix and used.is_file() and used.suffix != listed_suffix:
        fault = f"is used for {used.stem}{listed_suffix}, which is in the split list but does not exist"
        yield Fault(used, fault, False, "check that this is intended", kind=FaultKind.SPLIT)
    elif len(found) > 1 and not listed_suffix:
        others = ", ".join(path.name for path in found if path != used)
        fault = f"is used, but {others} has the same name"
        yield Fault(used, fault, False, "remove the wrong file", kind=FaultKind.SPLIT)


def _with_ignored(names: list[str], ignore_index: int) -> list[str]:
    """Insert a name for ``ignore_index`` into the class names, so that each mask value has a name."""
    return [*names[:ignore_index], "ignored", *names[ignore_index:]] if ignore_index < len(names) else names
