"""Read the XML annotation files of Pascal VOC."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segdet.util.errors import BadSample, MissingFile
from segdet.util.nouns import counted

_FLAGS = {"0": False, "false": False, "": False, "1": True, "true": True}


@dataclass(frozen=True)
class VOCAnnotation:
    """Content of an XML file.

    Attributes:
        size: ``(height, width)`` of the image, or None.
        filename: Name of the image file that the annotation states, or an empty string.
        names: Class names of the objects.
        raw: float64 ``[N, 4]``: xmin, ymin, xmax, ymax, 1-based, as written.
        difficult: bool ``[N]``.
        errors: Every fault that makes the file unusable. Objects with such a fault are not in the other attributes.
    """

    size: tuple[int, int] | None
    filename: str
    names: list[str]
    raw: np.ndarray
    difficult: np.ndarray
    errors: list[BadSample] = field(default_factory=list)


def read_annotation(path: Path) -> VOCAnnotation:
    """Read an annotation file.

    Raises:
        BadSample: If the file is missing or is not valid XML. Other faults are in `VOCAnnotation.errors`.
    """
    try:
        content = path.read_bytes()
        tree = ElementTree.fromstring(content)
    except FileNotFoundError:
        raise MissingFile(path, "no such annotation") from None
    except OSError as error:
        raise BadSample(path, f"cannot be read ({error.strerror or error})") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadSample(path, f"not valid XML ({error})") from None
    names: list[str] = []
    raw: list[list[float]] = []
    difficult: list[bool] = []
    errors: list[BadSample] = []
    found = tree.findall("object")
    for row, element in enumerate(found, start=1):
        name = (element.findtext("name") or "").strip()
        faults = [] if name else [f"object {row} has no <name>"]
        described = f"an object of class {name!r}" if name else f"object {row}"
        corners, wrong = _corners(described, element.findall("bndbox"))
        faults += wrong
        flag = (element.findtext("difficult") or "").strip()
        if flag.lower() not in _FLAGS:
            faults.append(f"<difficult> of {described} is {flag!r}, not 0 or 1")
        if faults:
            errors += [BadSample(path, fault) for fault in faults]
            continue
        names.append(name)
        raw.append(corners)
        difficult.append(_FLAGS[flag.lower()])
    # Counting the bytes is much faster than a walk through the elements.
    if content.count(b"<bndbox>") != len(found) and (stray := _stray_boxes(tree)):
        fault = f"{counted(stray, '<bndbox> element')} not in an <object> of <annotation>"
        errors.append(
            BadSample(path, fault, "write each box as <annotation><object><name/><bndbox/></object>")
        )
    elif not found and _local(tree) != "annotation":
        fault = f"its root element is <{_local(tree)}>, not <annotation>"
        errors.append(BadSample(path, fault, "convert it to VOC's format"))
    corners_of_all = np.array(raw, np.float64).reshape(-1, 4)
    filename = (tree.findtext("filename") or "").strip()
    flags = np.array(difficult, bool)
    return VOCAnnotation(_declared(tree.find("size")), filename, names, corners_of_all, flags, errors)


def half_open(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert boxes as written to 0-based half-open boxes; also return which of them are degenerate."""
    start, end = raw[:, :2] - 1, raw[:, 2:]
    empty = np.asarray(end <= raw[:, :2])
    # A box whose first and last pixel are equal would be one pixel wide. It is a mistake in the file, not an object.
    end = np.where(empty, np.minimum(start, end), end)
    return np.concatenate([start, end], axis=1), np.asarray(empty.any(axis=1))


def classes_in(annotations: Path) -> frozenset[str]:
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


def _corners(described: str, boxes: list[ElementTree.Element]) -> tuple[list[float], list[str]]:
    """Return the corners of an object, and the faults of its ``<bndbox>``."""
    if len(boxes) != 1:
        return [], [f"{described} has {len(boxes) or 'no'} <bndbox>"]
    corners: list[float] = []
    faults: list[str] = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = boxes[0].findtext(key)
        if text is None:
            faults.append(f"the <bndbox> of {described} has no <{key}>")
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            faults.append(f"<{key}> of {described} is {text.strip()!r}, not a number")
        corners.append(value)
    return corners, faults


def _stray_boxes(tree: ElementTree.Element) -> int:
    """Return the number of ``<bndbox>`` elements, in any spelling, that belong to no object and no part of one."""
    known = {id(box) for parent in tree.findall("object") for box in parent.findall("bndbox")}
    known |= {id(box) for part in tree.findall("object/part") for box in part.iter("bndbox")}
    return sum(_local(element) == "bndbox" and id(element) not in known for element in tree.iter())


def _local(element: ElementTree.Element) -> str:
    """Return an element's name in lower case, without its namespace."""
    return str(element.tag).rpartition("}")[2].lower()


def _declared(size: ElementTree.Element | None) -> tuple[int, int] | None:
    if size is None:
        return None
    try:
        height, width = (int(float(size.findtext(key) or 0)) for key in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None
