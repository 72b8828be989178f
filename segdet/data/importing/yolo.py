"""YOLO: one text file per image, with a line ``class cx cy w h`` for a box or ``class x y x y ...`` for a polygon.

Format: https://docs.ultralytics.com/datasets/detect/ and https://docs.ultralytics.com/datasets/segment/.

Class names are read from ``data.yaml``, ``classes.txt`` or the ``obj.names`` of Darknet and CVAT. Coordinates are
fractions of the image after its EXIF rotation. An image without a text file, or with an empty one, has no objects.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from segdet.data.formats.class_names import read_class_file
from segdet.data.importing.foreign import Foreign, ForeignImage, LeftOut, implied_task
from segdet.data.importing.geometry import NoArea, box_object, polygon_object
from segdet.data.importing.source import Matcher, Source, folded, read_head, split_named
from segdet.data.writers.record import AnnotatedObject
from segdet.util.errors import BadSample, UserError
from segdet.util.nouns import counted

TITLE = "YOLO text files"

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "names.txt", "class_names.txt")
_LINE = re.compile(rb"\s*\d+(\.0+)?(\s+[-+.\deE]+){4,}\s*")
_TOLERANCE = 1e-3
_DECIMALS = 4


def recognize(source: Source) -> list[Path]:
    """Return the text files whose first line is a YOLO label.

    If there are any, also return the empty text files that have the name of an image.
    """
    stems = {folded(path.stem) for path in source.images}
    found, empty = [], []
    for path in source.of_suffix(".txt"):
        if path.name.casefold() in _NAME_FILES or folded(path.stem) not in stems:
            continue
        head = read_head(path, 65536)
        if _LINE.fullmatch(head.strip().partition(b"\n")[0]):
            found.append(path)
        elif not head.strip():
            empty.append(path)
    return sorted(found + empty) if found else []


def read(source: Source, files: list[Path], names: list[str] | None) -> Foreign:
    """Return all images of the source; ``names`` are the classes 0, 1, ... if no file lists them.

    Raises:
        UserError: If the class names are unknown, or the labels are key points.
    """
    settings = _settings(source)
    class_names = _class_names(source, settings, names)
    matcher = Matcher(source, source.images)
    left_out: list[LeftOut] = []
    labels: dict[Path, Path] = {}
    for path in files:
        image = matcher.find(path)
        if image is None:
            left_out.append(LeftOut("annotation without an image", path))
        elif image in labels:
            left_out.append(LeftOut("second annotation of an image", path, f"the first is {labels[image]}"))
        else:
            labels[image] = path
    images, without = [], 0
    for image in tqdm(source.images, f"reading {TITLE}", unit=" images", delay=2.0, leave=False):
        try:
            size, upright = source.frame(image, None, True)
            label = labels.get(image)
            objects = _objects(label, size, class_names, left_out) if label is not None else []
        except BadSample as error:
            left_out.append(LeftOut.of(error, image))
            continue
        without += label is None
        split = _listed_split(source, settings, image) or source.split_of(image)
        images.append(ForeignImage(image, str(source.relative(image)), size, upright, objects, split=split))
    notes = []
    if without:
        kept = counted(without, "image without a text file is", "images without a text file are")
        notes.append(f"{kept} kept without objects, as YOLO does")
    task = implied_task(images, boxes_are_filled=False)
    return Foreign(TITLE, images, task, class_names, left_out=left_out, notes=notes)


def _settings(source: Source) -> dict[str, Any]:
    """Return the content of ``data.yaml``, or of another YAML file with class names; else nothing."""
    files = [*source.of_suffix(".yaml"), *source.of_suffix(".yml")]
    for path in sorted(files, key=lambda path: (path.stem.casefold() != "data", path)):
        try:
            settings = yaml.safe_load(read_head(path).decode("utf-8", "replace"))
        except yaml.YAMLError as error:
            raise BadSample(path, f"not valid YAML ({' '.join(str(error).split())})", "fix it") from None
        if isinstance(settings, dict) and "names" in settings:
            if "kpt_shape" in settings:
                fault = "describes key points (kpt_shape), which segdet does not support"
                raise BadSample(path, fault, "export the labels as boxes or polygons")
            return settings
    return {}


def _class_names(source: Source, settings: dict[str, Any], given: list[str] | None) -> list[str]:
    names = settings.get("names")
    if isinstance(names, dict):
        wrong = next((key for key in names if not str(key).isdecimal()), None)
        if wrong is not None or not names:
            fault = f"the key {wrong!r} under 'names'" if names else "no class under 'names'"
            raise UserError(f"{source.root}: data.yaml has {fault}; number the classes from 0")
        by_number = {int(key): str(name) for key, name in names.items()}
        return [by_number.get(number, f"class_{number}") for number in range(max(by_number) + 1)]
    if isinstance(names, list):
        return [str(name) for name in names]
    for wanted in _NAME_FILES:
        for path in source.files:
            if path.name.casefold() == wanted:
                return read_class_file(path).names
    if given:
        return given
    raise UserError(
        f"{source.root}: the class names are unknown: there is no data.yaml, classes.txt or obj.names; give "
        "--class_names A,B,C (the classes 0, 1, 2) or a text file"
    )


def _listed_split(source: Source, settings: dict[str, Any], image: Path) -> str | None:
    """Return the split whose folder in ``data.yaml`` contains the image."""
    parts = [folded(part) for part in source.relative(image).parts[:-1]]
    for key in ("train", "val", "test"):
        value = settings.get(key)
        for folder in value if isinstance(value, list) else [value]:
            wanted = [folded(part) for part in Path(str(folder or "")).parts if part not in ("..", ".", "/")]
            if wanted and any(parts[at : at + len(wanted)] == wanted for at in range(len(parts))):
                return split_named(key)
    return None


def _objects(
    path: Path, size: tuple[int, int], class_names: list[str], left_out: list[LeftOut]
) -> list[AnnotatedObject]:
    height, width = size
    objects = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSample(path, f"cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label, *values = line.split()
            name = class_names[_class_index(label, len(class_names))]
            numbers = [float(value) for value in values]
            if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in numbers):
                raise ValueError("a coordinate is not between 0 and 1")
            if len(numbers) == 4:
                x, y, w, h = numbers
                corners = [(x - w / 2, y - h / 2), (x + w / 2, y + h / 2)]
            elif len(numbers) >= 6 and len(numbers) % 2 == 0:
                corners = list(zip(numbers[::2], numbers[1::2], strict=True))
            else:
                raise ValueError(f"{len(numbers)} numbers after the class are neither a box nor a polygon")
            pixels = [(round(x * width, _DECIMALS), round(y * height, _DECIMALS)) for x, y in corners]
            objects.append(box_object(name, pixels) if len(numbers) == 4 else polygon_object(name, pixels))
        except NoArea as error:
            left_out.append(LeftOut("shape that cannot be used", path, f"line {number}: {error}"))
        except ValueError as error:
            raise BadSample(path, f"line {number}: {error}") from None
    return objects


def _class_index(text: str, count: int) -> int:
    number = float(text)  # some tools write 0.0
    if not number.is_integer() or not 0 <= number < count:
        raise ValueError(f"class {text} is not one of {counted(count, 'class', 'classes')}")
    return int(number)
