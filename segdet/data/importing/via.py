"""VGG Image Annotator (VIA) 1 and 2: a project or an export as JSON, or an export as CSV.

Format: https://www.robots.ox.ac.uk/~vgg/software/via/docs/ A browser shows images after their EXIF rotation.
"""

import csv
import json
import math
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

from segdet.data.importing.foreign import BACKGROUND, Foreign, ForeignImage, LeftOut, implied_task
from segdet.data.importing.geometry import box_object, ellipse_object, polygon_object
from segdet.data.importing.source import Source, read_head
from segdet.data.writers.record import AnnotatedObject
from segdet.util.errors import BadSample

TITLE = "VGG Image Annotator"

_CLASS_KEYS = ("class", "label", "name", "category", "type", "object", "object_name")
_ONLY_CLASS = "object"
_Regions = dict[str, list[dict[str, Any]]]


def recognize(source: Source) -> list[Path]:
    """Return the JSON files with the keys of VIA, and the CSV files with its columns."""
    found = [
        path
        for path in source.of_suffix(".json")
        if b'"_via_img_metadata"' in (data := read_head(path))
        or (b'"regions"' in data and (b'"shape_attributes"' in data or b'"file_attributes"' in data))
    ]
    tables = [
        path for path in source.of_suffix(".csv") if b"region_shape_attributes" in read_head(path, 4096)
    ]
    return found or tables  # a project is often beside its own export


def read(source: Source, files: list[Path], names: list[str] | None) -> Foreign:
    """Return the images of the projects.

    Raises:
        BadSample: If a file cannot be read, or belongs to VIA 3.
    """
    left_out: list[LeftOut] = []
    images = []
    chosen: Counter[str] = Counter()
    for path in files:
        regions_of = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
        attribute = _class_attribute(regions_of)
        chosen[attribute or ""] += 1
        for name, regions in regions_of.items():
            image = source.find_image(name, path)
            if image is None:
                left_out.append(LeftOut("annotation without an image", path, name))
                continue
            try:
                size, upright = source.frame(image, None, True, path)
            except BadSample as error:
                left_out.append(LeftOut.of(error, image))
                continue
            objects = []
            for place, region in enumerate(regions, start=1):
                try:
                    objects.append(_object_of(region, attribute))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    detail = f"{name}: region {place}: {error}"
                    left_out.append(LeftOut("shape that cannot be used", path, detail))
            split = source.split_of(image) or source.split_of(path)
            images.append(
                ForeignImage(image, str(source.relative(image)), size, upright, objects, split=split)
            )
    notes = [
        f"class names are the values of the attribute {name!r}"
        if name
        else f"the regions have no attributes, so all belong to one class, {_ONLY_CLASS!r}"
        for name in chosen
    ]
    task = implied_task(images, boxes_are_filled=True)
    return Foreign(TITLE, images, task, boxes_are_filled=True, left_out=left_out, notes=notes)


def _read_json(path: Path) -> _Regions:
    try:
        document = json.loads(path.read_bytes())
        entries = document.get("_via_img_metadata", document)
        found: _Regions = {}
        for entry in entries.values():
            regions = entry.get("regions") or []
            # VIA 1 numbers the regions: {"0": {...}, "1": {...}}.
            listed = list(regions.values()) if isinstance(regions, dict) else list(regions)
            found.setdefault(str(entry["filename"]), []).extend(listed)
    except (ValueError, OSError) as error:
        raise BadSample(path, f"not valid JSON ({error})", "export it again") from None
    except (AttributeError, KeyError, TypeError):
        fix = "export the annotations of VIA 2 as JSON or CSV"
        raise BadSample(path, "is not a project of VIA 1 or 2", fix) from None
    return found


def _read_csv(path: Path) -> _Regions:
    found: _Regions = {}
    text = read_head(path).decode("utf-8-sig", errors="replace")
    try:
        for row in csv.DictReader(StringIO(text)):
            name = row.get("filename") or row["#filename"]
            regions = found.setdefault(name, [])
            shape = json.loads(row["region_shape_attributes"] or "{}")
            if shape:
                attributes = json.loads(row["region_attributes"] or "{}")
                regions.append({"shape_attributes": shape, "region_attributes": attributes})
    except (ValueError, KeyError, csv.Error) as error:
        raise BadSample(path, f"not a CSV export of VIA ({error})", "export it again") from None
    return found


def _class_attribute(regions_of: _Regions) -> str | None:
    """Return the attribute that contains the class: one with a usual name, else the one that most regions have."""
    counts: Counter[str] = Counter()
    for regions in regions_of.values():
        for region in regions:
            attributes = region.get("region_attributes") if isinstance(region, dict) else None
            counts.update(key for key, value in (attributes or {}).items() if value)
    usual = [key for word in _CLASS_KEYS for key in counts if key.casefold() == word]
    ranked = sorted(counts, key=lambda key: (-counts[key], key))
    return next(iter([*usual, *ranked]), None)


def _object_of(region: dict[str, Any], attribute: str | None) -> AnnotatedObject:
    shape = region["shape_attributes"]
    name = _ONLY_CLASS
    if attribute is not None:
        value = (region.get("region_attributes") or {}).get(attribute)
        if isinstance(value, dict):  # check boxes
            ticked = [key for key, state in value.items() if state]
            if len(ticked) > 1:
                raise ValueError(f"has {len(ticked)} classes ({', '.join(ticked)})")
            value = ticked[0] if ticked else None
        name = str(value or "").strip()
        if not name:
            raise ValueError(f"has no {attribute!r}")
    name = BACKGROUND if name == BACKGROUND else name
    kind = shape["name"]
    if kind == "rect":
        x, y = shape["x"], shape["y"]
        return box_object(name, [(x, y), (x + shape["width"], y + shape["height"])])
    if kind in ("polygon", "polyline"):
        if kind == "polyline":
            raise ValueError(f"a polyline of class {name} has no area")
        points = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
        return polygon_object(name, points)
    if kind == "circle":
        return ellipse_object(name, (shape["cx"], shape["cy"]), (shape["r"], shape["r"]))
    if kind == "ellipse":
        turn = math.degrees(float(shape.get("theta") or 0))
        return ellipse_object(name, (shape["cx"], shape["cy"]), (shape["rx"], shape["ry"]), turn)
    raise ValueError(f"a {kind} of class {name} has no area")
