"""Images with masks: PNG files whose values or colours are classes, in another folder or beside the images.

Masks may contain 0 and 255, class indices, or colours.

- Files that name colours: CVAT's ``labelmap.txt`` (``name:r,g,b::``), a CSV file with the columns ``name, r, g, b``,
  and CamVid's ``label_colors.txt`` (``r g b name``).
- Files that name indices: ``labels.txt``, ``class_names.txt`` and Roboflow's ``_classes.csv``.
"""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from segdet.data.formats.class_names import CLASS_FILES, IGNORED, read_class_file
from segdet.data.images import Colour, read_image, read_mask
from segdet.data.importing.foreign import BACKGROUND, Foreign, ForeignImage, LeftOut
from segdet.data.importing.source import Matcher, Source, folded, read_head
from segdet.data.sample import IGNORE
from segdet.util.background import is_background
from segdet.util.errors import BadSample, UserError

TITLE = "images with masks"

_MASK_WORDS = (
    "mask", "masks", "segmentationclass", "seg", "segs", "segmentation", "segmentations", "label", "labels", "annot",
    "annots", "annotation", "annotations", "gt", "groundtruth", "labelids",
)  # fmt: skip
_STEM_END = re.compile(rf"(.+?)[_\-.\s]({'|'.join([*_MASK_WORDS, 'l'])})", re.IGNORECASE)
_MASK_FOLDER = re.compile(
    rf"(?:.*[_\-.\s])?({'|'.join(_MASK_WORDS)})(?:[_\-.\s].*)?|(train|val|test)(annot|_?masks?)"
)
_INSTANCES = "segmentationobject"
_NAME_FILES = (*CLASS_FILES, "classes.txt")
_MOST_COLOURS = 255
# In a black-and-white mask saved as JPEG, most values are within this distance of 0 or 255.
_NEAR = 48
_MOSTLY = 0.95


@dataclass(frozen=True)
class _Values:
    """The distinct values of a mask: class indices, or colours as ``r << 16 | g << 8 | b``."""

    indices: frozenset[int] | None
    colours: frozenset[int] | None
    compressed: bool = False


def recognize(source: Source) -> list[Path]:
    """Return the masks that belong to an image. A mask is recognized by its folder or its file name."""
    return sorted(_pairs(source))


def read(source: Source, files: list[Path], names: list[str] | None) -> Foreign:
    """Return the images that have a mask. ``names`` are the class names of the values or colours in ascending order.

    Raises:
        UserError: If the masks contain too many values, or the number of ``names`` does not fit.
    """
    image_of = _pairs(source)
    left_out: list[LeftOut] = []
    found: dict[Path, _Values] = {}
    for path in tqdm(files, "reading masks", unit=" files", delay=2.0, leave=False):
        try:
            found[path] = _values_of(path)
        except BadSample as error:
            left_out.append(LeftOut.of(error, image_of[path]))
    if not found:
        raise UserError(
            f"{source.root}: no mask can be read; the first: {left_out[0].path}: {left_out[0].detail}"
        )
    colours = any(values.colours is not None for values in found.values())
    table, mask_names, notes = (_colour_table if colours else _index_table)(source, found, names)
    images = []
    for path, values in found.items():
        image = image_of[path]
        try:
            mask_size = source.info(path).size
            size, upright = source.frame(image, mask_size, False, path)
        except BadSample as error:
            left_out.append(LeftOut.of(error, image))
            continue
        numbers = _as_colours(values) if colours else values.indices or frozenset()
        labels = {table[number] for number in numbers} - {IGNORE}
        classes = frozenset(mask_names[label] for label in labels)
        key, split = str(source.relative(image)), source.split_of(image) or source.split_of(path)
        mask = partial(_read_classes, path, table, colours, values.compressed)
        images.append(ForeignImage(image, key, size, upright, mask=mask, classes=classes, split=split))
    if any(values.compressed for values in found.values()):
        notes.append("masks are JPEG files; values from 128 on are white, others black")
    return Foreign(TITLE, images, "segmentation", mask_names=mask_names, left_out=left_out, notes=notes)


def mask_files(source: Source) -> set[Path]:
    """Return the image files that are masks, including masks without an image.

    They are not reported as images without annotation.
    """
    return {path for path in source.images if _is_mask(source, path)} | set(_pairs(source))


def _is_mask(source: Source, path: Path) -> bool:
    parts = source.relative(path).parts[:-1]
    return any(_MASK_FOLDER.fullmatch(folded(part)) or folded(part) == _INSTANCES for part in parts)


def _pairs(source: Source) -> dict[Path, Path]:
    """Return the image of each mask."""
    in_folders = {path for path in source.images if _is_mask(source, path)}
    pictures = [path for path in source.images if path not in in_folders]
    matcher = Matcher(source, pictures)
    found: dict[Path, Path] = {}
    for path in source.images:
        if _INSTANCES in map(folded, path.parts):
            continue
        match = _STEM_END.fullmatch(path.stem)
        stems = [path.stem] if path in in_folders else []
        stems += [match[1]] if match else []
        image = next((image for stem in stems if (image := matcher.find(path, stem)) is not None), None)
        if image is not None and image != path:
            found[path] = image
    return found


def _values_of(path: Path) -> _Values:
    if path.suffix.lower() in (".jpg", ".jpeg"):
        pixels = read_image(path)
        near = np.minimum(pixels, 255 - pixels) <= _NEAR
        if near.mean() < _MOSTLY:
            raise BadSample(path, "JPEG has changed the values of the mask", "save masks as PNG")
        return _Values(frozenset(np.unique(_thresholded(pixels)).tolist()), None, compressed=True)
    try:
        return _Values(frozenset(np.flatnonzero(np.bincount(read_mask(path).ravel())).tolist()), None)
    except BadSample:
        colours = np.unique(_packed(read_image(path)))
    if all(value == (value & 255) * 0x010101 for value in colours.tolist()):
        return _Values(frozenset(int(value) & 255 for value in colours), None)
    if len(colours) > _MOST_COLOURS:
        fault = f"has {len(colours):,} colours, too many for classes"
        raise BadSample(path, fault, "save the masks without smooth edges")
    return _Values(None, frozenset(colours.tolist()))


def _as_colours(values: _Values) -> frozenset[int]:
    """Return the values of a mask as colours. Index ``i`` becomes the gray ``(i, i, i)``."""
    if values.colours is not None:
        return values.colours
    return frozenset(index * 0x010101 for index in values.indices or ())


def _packed(image: np.ndarray) -> np.ndarray:
    wide = image.astype(np.int64)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _thresholded(pixels: np.ndarray) -> np.ndarray:
    return np.where(pixels[..., 1] >= 128, 255, 0).astype(np.uint8)


def _read_classes(path: Path, table: dict[int, int], colours: bool, compressed: bool) -> np.ndarray:
    """Return the class of each pixel of a mask: uint8 ``[H, W]``."""
    if colours:
        packed = _packed(read_image(path))
        values, place = np.unique(packed, return_inverse=True)
        return np.array([table[value] for value in values.tolist()], np.uint8)[place.reshape(packed.shape)]
    if compressed:
        gray = _thresholded(read_image(path))
    else:
        try:
            gray = read_mask(path)
        except BadSample:
            gray = np.ascontiguousarray(read_image(path)[..., 0])
    lookup = np.full(256, IGNORE, np.uint8)
    lookup[list(table)] = list(table.values())
    return cv2.LUT(gray, lookup)


_Table = tuple[dict[int, int], list[str], list[str]]


def _index_table(source: Source, found: dict[Path, _Values], names: list[str] | None) -> _Table:
    """Return the class of each mask value, the names of the classes, and notes."""
    counts = Counter(index for values in found.values() for index in values.indices or ())
    present = sorted(counts)
    shown = ", ".join(map(str, present[:12])) + (" ..." if len(present) > 12 else "")
    notes = [f"the masks contain the values {shown}"]
    known = names or _index_names(source)
    # A binary mask: 0 is the background, and 255 is the object.
    if len(present) <= 2 and present[-1] == IGNORE:
        known = known or [BACKGROUND, "foreground"]
        if len(known) != 2:
            raise _wrong_count(known, present)
        notes.append(f"255 is the class {known[1]!r}")
        return _without_ignored({0: 0, IGNORE: 1}, known, notes)
    indices = [value for value in present if value != IGNORE]
    if IGNORE in present and ((known and len(known) > indices[-1]) or indices[-1] < len(indices)):
        notes.append("the value 255 is ignored")
    elif IGNORE in present:
        # The other values are gray levels instead of indices 0, 1, 2, ..., so 255 is a gray level too.
        indices.append(IGNORE)
        notes.append(f"255 is a class; to ignore it, give --class_names with the name {IGNORED} for it")
    if known and len(known) > indices[-1]:
        table = {value: value for value in range(len(known))} | {IGNORE: IGNORE}
        return _without_ignored(table, known, notes)
    values = sorted({0, *indices})
    if known and len(known) == len(values):
        chosen = known
    elif known:
        raise _wrong_count(known, values)
    else:
        chosen = [BACKGROUND, *(f"value_{value}" for value in values[1:])]
        notes.append("no file names the classes; give --class_names A,B,C, with a name for each value")
    if len(chosen) > IGNORE:
        raise UserError(f"{source.root}: the masks have {len(chosen)} values; a mask has at most 255 classes")
    table = {IGNORE: IGNORE} | {value: label for label, value in enumerate(values)}
    return _without_ignored(table, chosen, notes)


def _colour_table(source: Source, found: dict[Path, _Values], names: list[str] | None) -> _Table:
    """Return the class of each colour, the names of the classes, and notes."""
    present = sorted({colour for values in found.values() for colour in _as_colours(values)})
    if len(present) > _MOST_COLOURS:
        raise UserError(
            f"{source.root}: the masks have {len(present):,} colours, too many for classes; save the masks without "
            "smooth edges, as PNG"
        )
    notes = [f"the masks contain {len(present)} colours"]
    named = _colour_names(source)
    if named and not names:
        unknown = [colour for colour in present if colour not in named]
        if unknown:
            text = ", ".join(f"#{colour:06x}" for colour in unknown[:5])
            notes.append(f"{len(unknown)} colours without a name are ignored ({text})")
        chosen = list(dict.fromkeys(named.values()))
        chosen.sort(key=lambda name: not is_background(name))
        table = {colour: chosen.index(name) for colour, name in named.items()}
        return _without_ignored(table | dict.fromkeys(unknown, IGNORE), chosen, notes)
    if names and len(names) != len(present):
        raise _wrong_count(names, [f"#{colour:06x}" for colour in present])
    chosen = names or [BACKGROUND if colour == 0 else f"colour_{colour:06x}" for colour in present]
    if not names:
        order = ", ".join(f"#{colour:06x}" for colour in present)
        notes.append(f"no file names the colours; give --class_names A,B,C, in the order {order}")
    return _without_ignored({colour: label for label, colour in enumerate(present)}, chosen, notes)


def _without_ignored(table: dict[int, int], names: list[str], notes: list[str]) -> _Table:
    """Remove the class of regions to ignore, and give the background its usual name."""
    names = [BACKGROUND if is_background(name) else name for name in names]
    if IGNORED in names:
        dropped = names.index(IGNORED)
        names = [name for name in names if name != IGNORED]
        table = {
            value: IGNORE if label in (dropped, IGNORE) else label - (label > dropped)
            for value, label in table.items()
        }
    return table, names, notes


def _wrong_count(names: list[str], values: list[int] | list[str]) -> UserError:
    shown = ", ".join(map(str, values[:12])) + (" ..." if len(values) > 12 else "")
    return UserError(
        f"{len(names)} class names ({', '.join(names)}), but the masks contain {shown}; give --class_names "
        "with a name for each, in this order"
    )


def _index_names(source: Source) -> list[str] | None:
    """Return the names of the mask values in a file of the source."""
    files = [path for wanted in _NAME_FILES for path in source.files if path.name.casefold() == wanted]
    if files:
        return read_class_file(files[0]).names
    for path in source.of_suffix(".csv"):
        # Roboflow's _classes.csv
        rows = csv.DictReader(StringIO(read_head(path).decode("utf-8-sig", "replace")), skipinitialspace=True)
        if {"pixel value", "class"} <= {folded(name) for name in rows.fieldnames or ()}:
            return [list(row.values())[1].strip() for row in rows]
    named = _colour_names(source)
    return list(named.values()) if named else None


def _colour_names(source: Source) -> dict[int, str]:
    """Return the name of each colour in a colour map of the source; empty without one."""
    for path in source.files:
        name = path.name.casefold()
        if name == "labelmap.txt":
            named = {_number(colour): label for colour, label in read_class_file(path).colours.items()}
        elif name == "label_colors.txt" or name.endswith(".csv"):
            text = read_head(path).decode("utf-8-sig", "replace")
            named = _csv_colours(text) if name.endswith(".csv") else _camvid_colours(text)
        else:
            continue
        if named:
            return named
    return {}


def _camvid_colours(text: str) -> dict[int, str]:
    found = re.findall(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S.*?)\s*$", text, re.MULTILINE)
    return {_number((int(r), int(g), int(b))): name for r, g, b, name in found}


def _csv_colours(text: str) -> dict[int, str]:
    rows = csv.DictReader(StringIO(text), skipinitialspace=True)
    columns = {folded(name): name for name in rows.fieldnames or ()}
    if not {"name", "r", "g", "b"} <= columns.keys():
        return {}
    try:
        return {
            _number((int(row[columns["r"]]), int(row[columns["g"]]), int(row[columns["b"]]))): row[
                columns["name"]
            ]
            for row in rows
        }
    except (ValueError, TypeError):
        return {}


def _number(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue
