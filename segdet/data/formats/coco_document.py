"""Parse a COCO annotation file into arrays, and collect every fault of its entries."""

import json
import marshal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segdet.data.faults import Fault, FaultKind
from segdet.util.errors import BadSample
from segdet.util.suggest import closest

_MOST_FAULTS = 200
_NO_ID = np.iinfo(np.int64).min
_CHECK = "check that this is intended"

# `place` is the index of the image, `category` the position in `Document.categories` or -1, `number` the id or
# `_NO_ID`, and `entry` the position in the file.
_COLUMNS = np.dtype(
    [("place", "i8"), ("category", "i8"), ("number", "i8"), ("entry", "i8"), ("crowd", "?"), ("area", "f8"),
     ("box", "f8", 4)]
)  # fmt: skip


class Category(NamedTuple):
    """A category of a COCO file."""

    number: int
    name: str
    supercategory: str
    annotations: int


class EntryFault(NamedTuple):
    """A fault of one annotation. If `fatal`, the image is unusable. If `of_box`, segmentation is not affected."""

    fault: str
    fatal: bool
    remedy: str = "fix or remove the annotation"
    of_box: bool = False


@dataclass
class Document:
    """The content of a COCO annotation file. Annotations are sorted by image.

    Attributes:
        path: The file.
        annotated: Whether the file has the key ``annotations``.
        categories: The categories, sorted by id.
        ids: int64 ``[N]``, ids of the images.
        names: str ``[N]``, their file names.
        sizes: int64 ``[N, 2]``, their stated heights and widths, 0 if missing.
        starts: int64 ``[N + 1]``, the first annotation of each image.
        table: The annotations, a structured array ``[A]`` of `_COLUMNS`.
        outlines: The ``segmentation`` of each annotation, if kept.
        faults: Faults of the whole file.
        entry_faults: Faults of annotations, by their position in the file.
    """

    path: Path
    annotated: bool = True
    categories: list[Category] = field(default_factory=list)
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    names: np.ndarray = field(default_factory=lambda: np.zeros(0, "U1"))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    table: np.ndarray = field(default_factory=lambda: np.zeros(0, _COLUMNS))
    outlines: "Outlines | None" = None
    faults: list[Fault] = field(default_factory=list)
    entry_faults: dict[int, list[EntryFault]] = field(default_factory=dict)
    _other_ids: dict[int, Any] = field(default_factory=dict)

    def rows(self, index: int) -> slice:
        """Return the annotations of image ``index``."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def describe(self, index: int, row: int) -> str:
        """Describe an annotation of image ``index`` for a message, such as ``annotation 17 of a.jpg``."""
        number, entry = int(self.table["number"][row]), int(self.table["entry"][row])
        if number == _NO_ID:
            number = self._other_ids.get(entry, _NO_ID)
        named = f"annotations[{entry}]" if number == _NO_ID else f"annotation {number}"
        return f"{named} of {self.names[index]}"

    def faults_of(self, row: int) -> Sequence[EntryFault]:
        """Return the faults of an annotation."""
        return self.entry_faults.get(int(self.table["entry"][row]), ())


class Outlines:
    """The outlines of all annotations in one array.

    Reference counting would copy lists of objects into each forked worker; an array stays shared.
    """

    def __init__(self, outlines: Sequence[bytes]) -> None:
        lengths = np.array([len(outline) for outline in outlines], np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self._bytes = np.frombuffer(b"".join(outlines), np.uint8)

    def __getitem__(self, row: int) -> Any:
        start, stop = self._starts[row], self._starts[row + 1]
        return marshal.loads(self._bytes[start:stop].data)


def read_document(path: Path, keep_outlines: bool) -> Document:
    """Read a COCO annotation file.

    Entries that cannot be used are left out; each is a fatal fault of the file.

    Raises:
        BadSample: If the file is not valid JSON, lacks a list, or has no image or category.
    """
    content = _load(path)
    document = Document(path, annotated="annotations" in content)
    parser = _Parser(document)
    number_of = parser.read_categories(content["categories"])
    place_of = parser.read_images(content["images"])
    counts = parser.read_annotations(content.get("annotations", []), place_of, number_of, keep_outlines)
    document.categories = [
        category._replace(annotations=int(count))
        for category, count in zip(document.categories, counts, strict=True)
    ]
    parser.check_units()
    parser.finish()
    return document


class _Parser:
    """The parser of a COCO file, which fills a `Document`."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.unlisted = 0
        self.unlisted_fatal = False

    def note(
        self, fault: str, fatal: bool, remedy: str = _CHECK, kind: FaultKind = FaultKind.ANNOTATION
    ) -> None:
        """Add a fault of the file."""
        if len(self.document.faults) < _MOST_FAULTS:
            self.document.faults.append(Fault(self.document.path, fault, fatal, remedy, kind=kind))
        else:
            self.unlisted += 1
            self.unlisted_fatal |= fatal

    def finish(self) -> None:
        """Add a fault that states how many faults are not listed."""
        if self.unlisted:
            fault = f"has {self.unlisted:,} more faults, which are not listed"
            self.document.faults.append(
                Fault(self.document.path, fault, self.unlisted_fatal, "fix those that are listed")
            )

    def value(self, entry: Any, key: str, place: int, field: str, kind: type) -> Any:
        """Return ``entry[field]`` of item ``place`` of the list ``key``. If it is unusable, note a fatal fault."""
        if not isinstance(entry, dict):
            self.note(f"{key}[{place}] is not an object", True, "fix or remove it")
        elif field not in entry:
            self.note(f"{key}[{place}] has no key {field!r}", True, "add it or remove the entry")
        elif kind is int and (not isinstance(entry[field], int) or isinstance(entry[field], bool)):
            self.note(
                f"{key}[{place}] has {field} {_shown(entry[field])}, not an integer", True, "fix the entry"
            )
        elif kind is int and not -(2**63) < entry[field] < 2**63:
            fault = f"{key}[{place}] has {field} {entry[field]}, which is not a 64-bit integer"
            self.note(fault, True, "number the entries again")
        elif kind is str and (not isinstance(entry[field], str | int) or entry[field] == ""):
            self.note(f"{key}[{place}] has {field} {_shown(entry[field])}, not a name", True, "fix the entry")
        else:
            return kind(entry[field])
        return None

    def read_categories(self, entries: list[Any]) -> dict[int, int]:
        """Read the categories; return the position of each id in the list sorted by id."""
        found: dict[int, Category] = {}
        for place, entry in enumerate(entries):
            number = self.value(entry, "categories", place, "id", int)
            name = self.value(entry, "categories", place, "name", str) if number is not None else None
            if number is None or name is None:
                continue
            if number in found:
                fault = f"two categories have the id {number} ({found[number].name}, {name})"
                self.note(fault, True, "give each its own id")
                continue
            found[number] = Category(number, name, str(entry.get("supercategory") or ""), 0)
        if not entries:
            raise BadSample(self.document.path, "has no categories", "list the classes under 'categories'")
        self.document.categories = [found[number] for number in sorted(found)]
        return {category.number: place for place, category in enumerate(self.document.categories)}

    def read_images(self, entries: list[Any]) -> dict[int, int]:
        """Read the images; return the index of each id."""
        if not entries:
            raise BadSample(self.document.path, "lists no images", "list them under 'images'")
        ids: list[int] = []
        names: list[str] = []
        sizes: list[list[int]] = []
        place_of: dict[int, int] = {}
        times: dict[str, int] = {}
        for place, entry in enumerate(entries):
            number = self.value(entry, "images", place, "id", int)
            name = self.value(entry, "images", place, "file_name", str) if number is not None else None
            if number is None or name is None:
                continue
            name = name.replace("\\", "/")  # Windows writes the separators of folders as backslashes
            if number in place_of:
                first = names[place_of[number]]
                self.note(
                    f"image id {number} is given to {first} and to {name}", True, "give each its own id"
                )
            place_of.setdefault(number, len(ids))
            times[name] = times.get(name, 0) + 1
            ids.append(number)
            names.append(name)
            sizes.append([_positive(entry.get("height")), _positive(entry.get("width"))])
        for name, count in times.items():
            if count > 1:
                fault = f"lists the image {name} {count} times; it is read {count} times"
                self.note(fault, False, "list it once, with all its annotations", FaultKind.SPLIT)
        self.document.ids = np.array(ids, np.int64)
        self.document.names = np.array(names)
        self.document.sizes = np.array(sizes, np.int64).reshape(-1, 2)
        return place_of

    def read_annotations(
        self, entries: list[Any], place_of: dict[int, int], number_of: dict[int, int], keep_outlines: bool
    ) -> np.ndarray:
        """Read the annotations; return the number of annotations of each category."""
        document = self.document
        rows: list[tuple[Any, ...]] = []
        outlines: list[bytes] = []
        orphans: dict[int, int] = {}
        for entry, annotation in enumerate(entries):
            image = self.value(annotation, "annotations", entry, "image_id", int)
            if image is None:
                continue
            number = self.value(annotation, "annotations", entry, "category_id", int)
            if number is None:
                continue
            place = place_of.get(image)
            if place is None:
                orphans[image] = orphans.get(image, 0) + 1
                continue
            category = number_of.get(number, -1)
            crowd, area, box, faults = _fields(annotation)
            if category < 0:
                fault = f"category_id {number} is not among the categories"
                faults = [EntryFault(fault, True, "fix it or list the category"), *faults]
            if faults:
                document.entry_faults[entry] = faults
            rows.append((place, category, self._identity(entry, annotation), entry, crowd, area, box))
            if keep_outlines:
                outlines.append(marshal.dumps(annotation.get("segmentation")))
        for image, count in orphans.items():
            refer = "annotation refers" if count == 1 else "annotations refer"
            self.note(f"{count} {refer} to the image id {image}, which is not among the images", False)
        table = np.array(rows, _COLUMNS)
        self._check_identities(table["number"])
        # Sort by image, so that the annotations of an image are a slice.
        order = np.argsort(table["place"], kind="stable")
        document.table = table = table[order]
        document.starts = np.searchsorted(table["place"], np.arange(len(document.ids) + 1))
        if keep_outlines:
            document.outlines = Outlines([outlines[row] for row in order])
        known = table["category"][table["category"] >= 0]
        return np.bincount(known, minlength=len(document.categories))

    def _identity(self, entry: int, annotation: dict[str, Any]) -> int:
        """Return the id of an annotation, or `_NO_ID` for an id that is not a 64-bit integer (see `_other_ids`)."""
        number = annotation.get("id")
        if type(number) is int and -(2**63) < number < 2**63:
            return number
        if number is not None:
            self.document._other_ids[entry] = number
        return _NO_ID

    def _check_identities(self, numbers: np.ndarray) -> None:
        values, counts = np.unique(numbers[numbers != _NO_ID], return_counts=True)
        repeated: list[tuple[Any, int]] = list(
            zip(values[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True)
        )
        others: dict[str, int] = {}
        for number in self.document._other_ids.values():
            others[str(number)] = others.get(str(number), 0) + 1
        repeated += [(number, count) for number, count in others.items() if count > 1]
        for number, count in repeated:
            self.note(f"{count} annotations have the id {number}", False)

    def check_units(self) -> None:
        """Report boxes that seem to be fractions of the image, or corners instead of a corner and a size."""
        document = self.document
        boxes, sizes = document.table["box"], document.sizes[document.table["place"]]
        finite = np.isfinite(boxes).all(axis=1)
        boxes, sizes = boxes[finite], sizes[finite]
        if not len(boxes):
            return
        if ((boxes >= 0) & (boxes <= 1)).all():
            fault = f"all {len(boxes):,} boxes lie between 0 and 1, like fractions of the image"
            remedy = "COCO's boxes are in pixels: multiply them by the image's width and height"
            self.note(fault, False, remedy)
            return
        stated = (sizes > 0).all(axis=1)
        boxes, limits = boxes[stated], sizes[stated][:, ::-1] + 0.5
        beyond = (boxes[:, :2] + boxes[:, 2:] > limits).any(axis=1)
        corners = (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= limits)
        if len(boxes) and corners.all() and 10 * beyond.sum() >= len(boxes):
            fault = (
                f"{beyond.sum():,} of {len(boxes):,} boxes reach beyond their image as x, y, width, height, but all "
                "lie inside it as x0, y0, x1, y1"
            )
            self.note(
                fault, False, "write the width and height of each box, as COCO does, if these are corners"
            )


def _fields(annotation: dict[str, Any]) -> tuple[bool, float, tuple[float, ...], list[EntryFault]]:
    """Return ``iscrowd``, ``area`` (NaN if missing), ``bbox`` (NaN if invalid) and the faults of an annotation."""
    faults = []
    crowd, area, box = annotation.get("iscrowd"), annotation.get("area"), annotation.get("bbox")
    is_crowd = _crowd(crowd)
    if is_crowd is None:
        faults.append(EntryFault(f"iscrowd is {_shown(crowd)}, which is neither 0 nor 1", True))
    extent = _number(area)
    if area is not None and not isfinite(extent):
        fault = f"area is {_shown(area)}, not a number; the area of the box is used"
        faults.append(EntryFault(fault, False, "fix it"))
    sides = tuple(map(_number, box)) if isinstance(box, list) and len(box) == 4 else (np.nan,) * 4
    if not all(map(isfinite, sides)):
        faults.append(EntryFault(f"bbox is not four finite numbers but {_shown(box)}", True, of_box=True))
        sides = (np.nan,) * 4
    return bool(is_crowd), extent, sides, faults


def _crowd(value: Any) -> bool | None:
    """Return ``iscrowd`` as a bool. It may be 0, 1, false or true, also as text, or missing; else return None."""
    if value is None or value is False:
        return False
    if isinstance(value, str):
        return {"0": False, "false": False, "1": True, "true": True}.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def _number(value: Any) -> float:
    """Return a number, which may be written as text; NaN for any other value."""
    if type(value) is float:  # the common case
        return value
    if isinstance(value, bool) or not isinstance(value, int | str):
        return np.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return np.nan


def _positive(value: Any) -> int:
    number = _number(value)
    return int(number) if 0 < number < 1e9 else 0


def _shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def without_placeholders(document: Document, kept: Sequence[str]) -> tuple[list[Category], list[Fault]]:
    """Return the categories except placeholders, and a note for each placeholder.

    A placeholder has no annotations. In addition, its name is that of another category with annotations, or is the
    supercategory of another category.

    Args:
        document: The file.
        kept: Names of supercategories to keep.
    """
    found = document.categories
    used, faults = [], []
    for category in found:
        others = [other for other in found if other.number != category.number]
        twin = any(other.name == category.name and other.annotations for other in others)
        parent = any(other.supercategory == category.name for other in others)
        if category.annotations or not (twin or (parent and category.name not in kept)):
            used.append(category)
            continue
        reason = "its name is that of another" if twin else "it is only the supercategory of others"
        fault = f"category {category.name!r} (id {category.number}) has no annotations, and {reason}"
        faults.append(Fault(document.path, fault, False, "it is left out", True, FaultKind.CATEGORY))
    return used, faults


def category_faults(
    path: Path, categories: Sequence[Category], known: Mapping[str, int], origin: str
) -> Iterator[Fault]:
    """Yield the differences between the categories of a file and the classes ``known`` from ``origin``.

    Args:
        path: The file.
        categories: Its categories.
        known: The id of each known class.
        origin: Origin of the known classes, for messages.
    """
    own = {category.name: category for category in categories}
    missing = [name for name in known if name not in own]
    for name, category in own.items():
        if name in known or not category.annotations:
            continue
        near = closest(name, missing)
        remedy = (
            f"rename it to {near!r}, if it is the same"
            if near
            else "add the category there, or leave it out with class_names"
        )
        objects = "object is" if category.annotations == 1 else "objects are"
        fault = f"{category.annotations:,} {objects} left out: {origin} lacks the category {name!r}"
        yield Fault(path, fault, False, remedy, kind=FaultKind.CATEGORY)
    if missing:
        names = ", ".join(map(repr, missing[:5])) + (f" ... ({len(missing)})" if len(missing) > 5 else "")
        yield Fault(
            path,
            f"lacks the category {names} of {origin}",
            False,
            "no object has it",
            True,
            FaultKind.CATEGORY,
        )
    if any(own[name].number != number for name, number in known.items() if name in own):
        fault, remedy = f"numbers its categories differently from {origin}", "they are matched by name"
        yield Fault(path, fault, False, remedy, True, FaultKind.CATEGORY)


def repeated(document: Document, index: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of annotations of image ``index`` with the same category and box: the later, then the first one."""
    first: dict[bytes, int] = {}
    rows = document.rows(index)
    table = document.table[rows]
    for row, (category, crowd, box) in enumerate(
        zip(table["category"], table["crowd"], table["box"], strict=True), rows.start
    ):
        earlier = first.setdefault(category.tobytes() + crowd.tobytes() + box.tobytes(), row)
        if earlier != row and np.isfinite(box).all():
            yield row, earlier


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            document = json.load(file)
    except json.JSONDecodeError as error:
        if not path.stat().st_size:
            raise BadSample(path, "the file is empty (0 bytes)") from None
        fault = f"not valid JSON at line {error.lineno}, column {error.colno} ({error.msg})"
        raise BadSample(path, fault, "download or export it again") from None
    except (UnicodeDecodeError, OSError, RecursionError, ValueError) as error:
        raise BadSample(path, f"cannot be read as JSON ({error})", "download or export it again") from None
    if not isinstance(document, dict):
        fault = f"contains a {type(document).__name__}, not an object with images, annotations and categories"
        raise BadSample(path, fault, "give the annotation file, not a results file")
    for key in ("images", "annotations", "categories"):
        if key == "annotations" and key not in document and path.name.startswith("image_info_"):
            continue
        if not isinstance(document.get(key), list):
            fault = f"{key!r} is not a list" if key in document else f"has no key {key!r}"
            raise BadSample(path, fault, "give an instances file in COCO's format")
    return document
