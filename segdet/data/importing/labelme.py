"""LabelMe: one JSON file per image, with polygons, rectangles, circles and masks.

Format: the label files and ``labelme.utils.shape`` of https://github.com/wkentaro/labelme. LabelMe applies the EXIF
rotation. Shapes of the same label and ``group_id`` are one object.
"""

import base64
import binascii
import json
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from segdet.data.importing.foreign import BACKGROUND, Foreign, ForeignImage, LeftOut, implied_task
from segdet.data.importing.geometry import box_object, ellipse_object, mask_object, merged, polygon_object
from segdet.data.importing.source import Matcher, Source, read_head
from segdet.data.writers.record import AnnotatedObject
from segdet.util.background import is_background
from segdet.util.errors import BadSample

TITLE = "LabelMe JSON"

_NO_AREA = ("point", "points", "line", "linestrip")


def recognize(source: Source) -> list[Path]:
    """Return the JSON files with the keys of LabelMe."""
    return [path for path in source.of_suffix(".json") if _is_labelme(read_head(path))]


def read(source: Source, files: list[Path], names: list[str] | None) -> Foreign:
    """Return the images of the JSON files; an embedded image is used if its file is missing."""
    matcher = Matcher(source, source.images)
    left_out: list[LeftOut] = []
    images = []
    for path in tqdm(files, f"reading {TITLE}", unit=" files", delay=2.0, leave=False):
        try:
            images.append(_image_of(source, matcher, path, left_out))
        except BadSample as error:
            left_out.append(LeftOut.of(error, matcher.find(path)))
    found = [image for image in images if image is not None]
    return Foreign(
        TITLE, found, implied_task(found, boxes_are_filled=True), boxes_are_filled=True, left_out=left_out
    )


def _is_labelme(data: bytes) -> bool:
    return b'"shapes"' in data and (b'"imagePath"' in data or b'"imageData"' in data)


def _image_of(source: Source, matcher: Matcher, path: Path, left_out: list[LeftOut]) -> ForeignImage | None:
    try:
        document = json.loads(path.read_bytes())
        shapes = document["shapes"]
        declared = _declared(document)
        if not isinstance(shapes, list):
            raise BadSample(path, "'shapes' is not a list")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BadSample(path, f"cannot be read as LabelMe JSON ({error})") from None
    stated = str(document.get("imagePath") or "")
    image: Path | bytes | None = source.find_image(stated, path) or matcher.find(path)
    size, upright = declared or (0, 0), False
    if isinstance(image, Path):
        size, upright = source.frame(image, declared, True, path)
        key, split = str(source.relative(image)), source.split_of(image) or source.split_of(path)
    elif document.get("imageData"):
        image, size = _embedded(path, document["imageData"])
        key, split = str(source.relative(path).with_suffix(".png")), source.split_of(path)
    else:
        left_out.append(LeftOut("annotation without an image", path, stated))
        return None
    objects: list[AnnotatedObject] = []
    groups: defaultdict[Any, list[AnnotatedObject]] = defaultdict(list)
    for place, shape in enumerate(shapes, start=1):
        try:
            made = _object_of(shape, size)
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            left_out.append(LeftOut("shape that cannot be used", path, f"shape {place}: {error}"))
            continue
        group = shape.get("group_id")
        if group is not None and not isinstance(made.outline, dict):
            groups[(made.name, str(group), made.outline is None)].append(made)
        objects.append(made)
    for members in groups.values():
        if len(members) > 1:
            objects[objects.index(members[0])] = merged(members)
            for other in members[1:]:
                objects.remove(other)
    return ForeignImage(image, key, size, upright, objects, split=split)


def _declared(document: dict[str, Any]) -> tuple[int, int] | None:
    height, width = document.get("imageHeight"), document.get("imageWidth")
    return (int(height), int(width)) if height and width else None


def _embedded(path: Path, text: str) -> tuple[bytes, tuple[int, int]]:
    try:
        content = base64.b64decode(text)
        with Image.open(BytesIO(content)) as image:
            return content, (image.height, image.width)
    except (binascii.Error, OSError, TypeError, ValueError):
        raise BadSample(path, "no image file of this name, and imageData is not an image") from None


def _object_of(shape: dict[str, Any], size: tuple[int, int]) -> AnnotatedObject:
    name = str(shape["label"]).strip()
    if not name:
        raise ValueError("no label")
    name = BACKGROUND if is_background(name) else name
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind in _NO_AREA:
        raise ValueError(f"a {kind} of class {name} has no area")
    if kind == "rectangle":
        return box_object(name, points)
    if kind == "circle":
        (x, y), (x1, y1) = points
        radius = float(np.hypot(x1 - x, y1 - y))
        return ellipse_object(name, (x, y), (radius, radius))
    if kind == "mask":
        with Image.open(BytesIO(base64.b64decode(shape["mask"]))) as picture:
            part = np.asarray(picture.convert("L")) > 0
        (left, top), _ = points
        return mask_object(name, part, int(left), int(top), size)
    if kind in ("polygon", "rotation"):
        return polygon_object(name, points)
    raise ValueError(f"the shape type {kind} is unknown")
