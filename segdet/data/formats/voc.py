"""Read Pascal VOC folders of any year, and other folders of that format.

A folder contains ``JPEGImages/``, ``ImageSets/Main/<split>.txt`` with ``Annotations/<name>.xml`` for boxes, and
``ImageSets/Segmentation/<split>.txt`` with ``SegmentationClass/<name>.png`` for masks. Format: Everingham et al., "The
PASCAL Visual Object Classes Challenge 2012 Development Kit".
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from segdet.data.faults import Fault, FaultKind
from segdet.data.formats.reader import Reader, checked_names, names_from
from segdet.data.images import read_mask
from segdet.data.sample import IGNORE, Objects, TaskName
from segdet.util.errors import BadSample, MissingFile, UserError
from segdet.util.suggest import closest

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
"""The 20 classes of VOC 2007 and later; the value of a class in a mask is its position, counted from 1."""

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png")
_MASKS_TO_CHECK = 8
_MISSING = "add it or remove its name from the split list"


class _Member(NamedTuple):
    """An image of a split list: its VOC folder, and its name without suffix."""

    folder: Path
    name: str


class VOCAnnotation(NamedTuple):
    """Content of an XML file. ``raw`` is float64 ``[N, 4]``: xmin, ymin, xmax, ymax, 1-based, as written."""

    size: tuple[int, int] | None
    names: list[str]
    raw: np.ndarray
    difficult: np.ndarray


class VOCReader(Reader):
    """The images of one or more VOC split lists, with boxes or masks.

    Boxes in the files are 1-based and inclusive. They are converted to 0-based, half-open boxes: ``xmin - 1, ymin - 1,
    xmax, ymax``. A box with ``xmax <= xmin`` or ``ymax <= ymin`` gets a width or height of 0. The ``<part>``
    elements of an object are ignored.

    Class names come from the first of these sources that exists:

    1. ``class_names``.
    2. ``labels.txt`` in the root or the VOC folder.
    3. ``known``.
    4. For boxes, the sorted names in all XML files of the folder. If all sets name a year and the files contain only
       VOC's 20 classes, these 20 are used.
    5. For masks, VOC's 21 classes.

    A leading ``background`` is not an object class. For masks, the names belong to the values 0, 1, 2, ... If
    ``ignore_index`` has a name, this name is left out, and the index of each later class decreases by one.

    Args:
        root: Folder that contains ``JPEGImages/``, or ``VOC2007/`` or ``VOCdevkit/VOC2007/``.
        sets: Split lists, such as ``train`` for the root itself or ``2007/trainval`` for the year 2007. Several lists
            are concatenated.
        task: The task, which determines the split lists and annotations.
        class_names: Class names, or a text file with one per line (looked up in ``root`` first).
        ignore_index: Mask value to ignore, besides 255.
        known: Class names of a model, for folders that do not name their classes.

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
    ) -> None:
        self.root = Path(root)
        self.task = task
        self.ignore_index = ignore_index
        if not self.root.is_dir():
            fix = "give the folder that contains JPEGImages/ or VOC2007/"
            raise UserError(f"{self.root}: no such folder; {fix}")
        names = [sets] if isinstance(sets, str) else list(sets)
        if not names:
            raise UserError(f"{self.root}: no split is given; give, for example, [train]")
        self._members = [member for name in names for member in self._list(name)]
        self._folders = sorted({member.folder for member in self._members})
        given = _given_names(self.root, self._folders, class_names)
        if given is None and known is not None:
            given = _with_ignored(list(known), ignore_index) if task == "segmentation" else list(known)
        if task == "segmentation":
            self._set_mask_names(given)
        else:
            self._set_object_names(given, by_year=all("/" in name for name in names))
        self.category_ids = list(range(1, len(self.class_names) + 1))
        self._label_of = {name: label for label, name in enumerate(self.class_names, start=1)}
        self._images: dict[Path, dict[str, str]] = {}
        self._last: tuple[Path, VOCAnnotation] | None = None

    @property
    def mask_values(self) -> list[int]:
        """The mask values of the classes, without ``ignore_index``."""
        return list(self._values)

    def __len__(self) -> int:
        return len(self._members)

    def image_path(self, index: int) -> Path:
        """Return the image's file; if there is none, the path where a JPEG would be."""
        folder, name = self._members[index]
        if folder not in self._images:
            self._images[folder] = _files_by_stem(folder / "JPEGImages")
        return folder / "JPEGImages" / self._images[folder].get(name, f"{name}.jpg")

    def upright(self, index: int) -> bool:
        """Return whether the image has no annotation, which is allowed for prediction."""
        return not self.annotation_paths(index, self.task)[0].is_file()

    def declared_size(self, index: int) -> tuple[int, int] | None:
        """Return ``(height, width)`` from the XML file; None if it is missing, corrupt or has a size of 0."""
        path = self._xml_path(index)
        try:
            return self._annotation(path).size
        except BadSample:
            return None

    def objects(self, index: int) -> Objects:
        """Return the objects in the XML file; none is a crowd."""
        path = self._xml_path(index)
        annotation = self._annotation(path)
        unknown = sorted(set(annotation.names) - self._label_of.keys())
        if unknown:
            close = closest(unknown[0], self.class_names)
            hint = f" (did you mean {close}?)" if close else ""
            fault = f"unknown class {', '.join(map(repr, unknown))}{hint}"
            fix = f"fix the name or add it to class_names (now {_shortened(self.class_names)})"
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
        """Return the classes in ``SegmentationClass/<name>.png``, a palette or grayscale PNG."""
        path = self._mask_path(index)
        try:
            values = read_mask(path, self.max_pixels)
        except MissingFile:
            raise MissingFile(path, "no such mask", _MISSING) from None
        lookup, valid = self._lookup
        if not cv2.LUT(values, valid).all():
            wrong = np.flatnonzero((np.bincount(values.ravel(), minlength=256) > 0) & (valid == 0))
            fault = f"value {_shortened(wrong.tolist())} is not one of the {len(self.mask_names)} classes"
            fix = "give all names in class_names (one per value, from 0) or another ignore_index"
            raise BadSample(path, fault, fix)
        return cv2.LUT(values, lookup)

    def annotation_paths(self, index: int, task: TaskName) -> list[Path]:
        return [self._mask_path(index) if task == "segmentation" else self._xml_path(index)]

    def faults(self, index: int, task: TaskName) -> Iterator[Fault]:
        """Yield images that are listed twice in the split."""
        member = self._members[index]
        if self._first_place[member] != index:
            fault, fix = "is listed twice in the split", "check that this is intended"
            yield Fault(self.image_path(index), fault, False, fix, kind=FaultKind.SPLIT)

    def describe_object(self, index: int, row: int) -> str:
        annotation = self._annotation(self._xml_path(index))
        xmin, ymin, xmax, ymax = (f"{value:.6g}" for value in annotation.raw[row])
        box = f"xmin={xmin} ymin={ymin} xmax={xmax} ymax={ymax}"
        return f"box {box} of class {annotation.names[row]}"

    @cached_property
    def _first_place(self) -> dict[_Member, int]:
        return {self._members[index]: index for index in reversed(range(len(self)))}

    def _xml_path(self, index: int) -> Path:
        folder, name = self._members[index]
        return folder / "Annotations" / f"{name}.xml"

    def _mask_path(self, index: int) -> Path:
        folder, name = self._members[index]
        return folder / "SegmentationClass" / f"{name}.png"

    def _annotation(self, path: Path) -> VOCAnnotation:
        # The last file is cached, because the size and the objects of an image are read one after the other.
        if self._last is None or self._last[0] != path:
            self._last = path, read_annotation(path)
        return self._last[1]

    def _list(self, name: str) -> list[_Member]:
        folder, split = _folder_of(self.root, name)
        kind = "Segmentation" if self.task == "segmentation" else "Main"
        path = folder / "ImageSets" / kind / f"{split}.txt"
        if not path.is_file():
            raise UserError(f"{path}: no such split list for {self.task}; {_existing_lists(folder)}")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as text ({error}); save it as UTF-8") from None
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise UserError(f"{path}: the split list is empty; {_existing_lists(folder)}")
        # A line contains a name, possibly with spaces, or a name followed by a flag or the path of a mask.
        spaced = _files_by_stem(folder / "JPEGImages") if any(len(line.split()) > 1 for line in lines) else {}
        whole = [_without_image_suffix(line) for line in lines]
        return [
            _Member(folder, name if name in spaced else _without_image_suffix(line.split()[0]))
            for name, line in zip(whole, lines, strict=True)
        ]

    def _set_mask_names(self, given: list[str] | None) -> None:
        if given is None:
            self._expect_voc_values()
            given = ["background", *VOC_CLASSES]
        if len(given) > 256:
            raise UserError(
                f"class_names: {len(given)} names, but a mask of 8 bits has 256 values; give fewer"
            )
        self._values = [value for value in range(len(given)) if value not in (self.ignore_index, IGNORE)]
        self.mask_names = [given[value] for value in self._values]
        self.class_names = [name for name in self.mask_names if not _is_background(name)]

    def _expect_voc_values(self) -> None:
        for index in range(min(len(self), _MASKS_TO_CHECK)):
            path = self._mask_path(index)
            try:
                values = read_mask(path, self.max_pixels)
            except BadSample:
                continue  # reported when the mask is read
            counted = values[(values != IGNORE) & (values != self.ignore_index)]
            if counted.size and counted.max() > len(VOC_CLASSES):
                raise UserError(
                    f"{path}: value {counted.max()} is not one of VOC's 21 classes; give class_names as a "
                    f"list or a file such as {self.root / 'labels.txt'}, with one name per mask value, from 0"
                )

    @cached_property
    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """The class of each mask value, and 1 for each valid value: two arrays uint8 ``[256]``."""
        lookup, valid = np.full(256, IGNORE, np.uint8), np.zeros(256, np.uint8)
        lookup[self._values] = np.arange(len(self._values))
        valid[[*self._values, self.ignore_index, IGNORE]] = 1
        return lookup, valid

    def _set_object_names(self, given: list[str] | None, by_year: bool) -> None:
        if given is not None:
            self.class_names = given[1:] if _is_background(given[0]) else given
            if not self.class_names:
                raise UserError("class_names: contains only the background; add the object classes")
        else:
            found = set().union(*(_classes_in(folder / "Annotations") for folder in self._folders))
            if not found:
                places = ", ".join(str(folder / "Annotations") for folder in self._folders)
                raise UserError(f"{places}: no object of any class in the XML files; give class_names")
            self.class_names = list(VOC_CLASSES) if by_year and found <= set(VOC_CLASSES) else sorted(found)
        self.mask_names = ["background", *self.class_names]
        self._values = list(range(len(self.mask_names)))


def _given_names(
    root: Path, folders: Sequence[Path], class_names: Sequence[str] | Path | str | None
) -> list[str] | None:
    """Return the class names that the user gives, or those in ``labels.txt``; None if there are none."""
    if class_names is None:
        place = next((place for place in (root, *folders) if (place / "labels.txt").is_file()), None)
        return names_from("labels.txt", place) if place else None
    if isinstance(class_names, str | Path):
        return names_from(class_names, root)
    return checked_names(list(class_names), "class_names")


def _with_ignored(names: list[str], ignore_index: int) -> list[str]:
    """Insert a name for ``ignore_index`` into the class names, so that each mask value has a name."""
    return [*names[:ignore_index], "ignored", *names[ignore_index:]] if ignore_index < len(names) else names


def _folder_of(root: Path, name: str) -> tuple[Path, str]:
    """Return the VOC folder and the split of a set name, such as ``2007/trainval``."""
    year, _, split = name.rpartition("/")
    if not year:
        if (root / "ImageSets").is_dir():
            return root, split
        advice = "give the folder that contains JPEGImages/, ImageSets/ and the annotations"
        if years := _years_in(root):
            advice = f"give the year as well, for example {years[0]}/{split} (there are {', '.join(years)})"
        raise UserError(f"{root}: no ImageSets/ folder in it; {advice}")
    for folder in (root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}", root / year):
        if folder.is_dir():
            return folder, split
    years = _years_in(root)
    there = f"there are {', '.join(years)}" if years else "there is no VOC folder"
    raise UserError(f"{root}: neither VOC{year}/ nor VOCdevkit/VOC{year}/ in it; {there}")


def half_open(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert boxes as written to 0-based half-open boxes; also return which of them are degenerate."""
    start, end = raw[:, :2] - 1, raw[:, 2:]
    empty = np.asarray(end <= raw[:, :2])
    # A box whose first and last pixel are equal would be one pixel wide. It is a mistake in the file, not an object.
    end = np.where(empty, np.minimum(start, end), end)
    return np.concatenate([start, end], axis=1), np.asarray(empty.any(axis=1))


def read_annotation(path: Path) -> VOCAnnotation:
    """Read an XML file.

    Raises:
        BadSample: If the file is missing or corrupt, or an object has no name or no valid box.
    """
    try:
        tree = ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise MissingFile(path, "no such annotation", _MISSING) from None
    except OSError as error:
        raise BadSample(path, f"cannot be read ({error.strerror or error})") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadSample(path, f"not valid XML ({error})") from None
    found = tree.findall("object")
    names, raw, difficult = [], np.zeros((len(found), 4)), np.zeros(len(found), bool)
    for row, element in enumerate(found):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise BadSample(path, f"object {row + 1} has no <name>")
        names.append(name)
        raw[row] = _corners(path, name, element.find("bndbox"))
        difficult[row] = (element.findtext("difficult") or "0").strip().lower() in ("1", "true")
    return VOCAnnotation(_declared(tree.find("size")), names, raw, difficult)


def _corners(path: Path, name: str, box: ElementTree.Element | None) -> list[float]:
    if box is None:
        raise BadSample(path, f"an object of class {name!r} has no <bndbox>")
    corners: list[float] = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = box.findtext(key)
        if text is None:
            raise BadSample(path, f"the <bndbox> of an object of class {name!r} has no <{key}>")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise BadSample(path, f"<{key}> of an object of class {name!r} is {text.strip()!r}, not a number")
        corners.append(value)
    return corners


def _declared(size: ElementTree.Element | None) -> tuple[int, int] | None:
    if size is None:
        return None
    try:
        height, width = (int(float(size.findtext(key) or 0)) for key in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _classes_in(annotations: Path) -> frozenset[str]:
    """Return the class names in the XML files of a folder; corrupt files are reported when they are read."""
    # `_classes_at` is cached because all splits read the same folder.
    return _classes_at(annotations, annotations.stat().st_mtime_ns) if annotations.is_dir() else frozenset()


@lru_cache(maxsize=16)
def _classes_at(annotations: Path, changed: int) -> frozenset[str]:
    found: set[str] = set()
    paths = sorted(path for path in annotations.iterdir() if path.suffix.lower() == ".xml")
    for path in tqdm(paths, f"finding the classes in {annotations}", unit="file", delay=2.0, leave=False):
        try:
            tree = ElementTree.fromstring(path.read_bytes())
        except (OSError, ElementTree.ParseError, ValueError, LookupError):
            continue
        found.update((element.findtext("name") or "").strip() for element in tree.findall("object"))
    return frozenset(found - {""})


def _files_by_stem(folder: Path) -> dict[str, str]:
    """Return the image files of a folder by name without suffix. If several have the same name, ``.jpg`` is used."""
    try:
        images = [path.name for path in folder.iterdir() if _suffix(path.name) in _IMAGE_SUFFIXES]
    except OSError:
        return {}
    # Later names replace earlier ones.
    images.sort(key=lambda name: (_IMAGE_SUFFIXES.index(_suffix(name)), name), reverse=True)
    return {_without_image_suffix(name): name for name in images}


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _without_image_suffix(word: str) -> str:
    return word.rpartition(".")[0] if _suffix(word) in _IMAGE_SUFFIXES else word


def _is_background(name: str) -> bool:
    return name.lower() in ("background", "__background__", "_background_")


def _shortened(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:8])) + (f" ... ({len(values)})" if len(values) > 8 else "")


def _existing_lists(folder: Path) -> str:
    by_kind: dict[str, list[str]] = {}
    for path in sorted((folder / "ImageSets").glob("*/*.txt")):
        by_kind.setdefault(path.parent.name, []).append(path.stem)
    found = "; ".join(f"{kind}: {_shortened(names)}" for kind, names in by_kind.items())
    return f"there are {found}" if found else f"there is no list in {folder / 'ImageSets'}"


def _years_in(root: Path) -> list[str]:
    folders = [*root.glob("VOC*"), *root.glob("VOCdevkit/VOC*")]
    return sorted({path.name[3:] for path in folders if (path / "ImageSets").is_dir()})
