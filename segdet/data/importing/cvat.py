"""CVAT XML 1.1 for images: one XML file for many images.

Format: https://docs.cvat.ai/docs/manual/advanced/xml_format/ CVAT applies the EXIF rotation. Shapes with a higher
``z_order`` cover others.
"""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from segdet.data.importing.foreign import BACKGROUND, Foreign, ForeignImage, LeftOut, implied_task
from segdet.data.importing.geometry import (
    box_object,
    ellipse_object,
    mask_object,
    polygon_object,
    rotated_box_object,
)
from segdet.data.importing.source import Source, read_head, split_named
from segdet.data.writers.record import AnnotatedObject
from segdet.util.errors import BadSample

TITLE = "CVAT for images 1.1"

_SHAPES = ("box", "polygon", "ellipse", "mask", "polyline", "points", "cuboid", "skeleton")


def recognize(source: Source) -> list[Path]:
    """Return the XML files whose root is ``<annotations>``."""
    return [
        path for path in source.of_suffix(".xml") if re.search(rb"<annotations[\s>]", read_head(path, 4096))
    ]


def read(source: Source, files: list[Path], names: list[str] | None) -> Foreign:
    """Return the images of the XML files.

    Raises:
        BadSample: If a file is not valid XML or contains tracks of a video.
    """
    left_out: list[LeftOut] = []
    images: list[ForeignImage] = []
    labels: dict[str, None] = {}
    for path in files:
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            raise BadSample(path, f"not valid XML ({error})", "export it again") from None
        if root.find("track") is not None:
            raise BadSample(path, "contains tracks of a video", "export it as 'CVAT for images 1.1'")
        labels |= dict.fromkeys(
            label.findtext("name", "").strip()
            for label in root.iterfind("./meta//labels/label")
            if label.findtext("type") != "skeleton"
        )
        for element in root.iterfind("image"):
            image = source.find_image(element.get("name", ""), path)
            if image is None:
                left_out.append(LeftOut("annotation without an image", path, element.get("name", "")))
                continue
            try:
                declared = (int(element.attrib["height"]), int(element.attrib["width"]))
                size, upright = source.frame(image, declared, True, path)
            except (KeyError, ValueError):
                left_out.append(
                    LeftOut("unusable file", path, f"{image.name} has no width and height", image)
                )
                continue
            except BadSample as error:
                left_out.append(LeftOut.of(error, image))
                continue
            split = split_named(element.get("subset", "")) or source.split_of(image)
            objects = _objects(path, element, size, left_out)
            images.append(
                ForeignImage(image, str(source.relative(image)), size, upright, objects, split=split)
            )
    class_names = [name for name in labels if name and name != BACKGROUND]
    task = implied_task(images, boxes_are_filled=True)
    return Foreign(TITLE, images, task, class_names, boxes_are_filled=True, left_out=left_out)


def _objects(
    path: Path, image: ElementTree.Element, size: tuple[int, int], left_out: list[LeftOut]
) -> list[AnnotatedObject]:
    shapes = [shape for shape in image if shape.tag in _SHAPES]
    shapes.sort(key=_z_order)
    objects = []
    for shape in shapes:
        try:
            objects.append(_object_of(shape, size))
        except (ValueError, KeyError) as error:
            detail = f"{image.get('name')}: {shape.tag} of class {shape.get('label')}: {error}"
            left_out.append(LeftOut("shape that cannot be used", path, detail))
    return objects


def _z_order(shape: ElementTree.Element) -> int:
    text = shape.get("z_order", "")
    return int(text) if text.lstrip("-").isdecimal() else 0


def _object_of(shape: ElementTree.Element, size: tuple[int, int]) -> AnnotatedObject:
    name, occluded = shape.attrib["label"].strip(), shape.get("occluded") == "1"

    def number(key: str) -> float:
        return float(shape.attrib[key])

    degrees = float(shape.get("rotation") or 0)
    if shape.tag == "box":
        x0, y0, x1, y1 = (number(key) for key in ("xtl", "ytl", "xbr", "ybr"))
        if degrees:
            return rotated_box_object(name, (x0, y0, x1, y1), degrees, occluded=occluded)
        return box_object(name, [(x0, y0), (x1, y1)], occluded=occluded)
    if shape.tag == "polygon":
        points = [[float(value) for value in pair.split(",")] for pair in shape.attrib["points"].split(";")]
        return polygon_object(name, points, occluded=occluded)
    if shape.tag == "ellipse":
        centre, radii = (number("cx"), number("cy")), (number("rx"), number("ry"))
        return ellipse_object(name, centre, radii, degrees, occluded=occluded)
    if shape.tag == "mask":
        height, width = int(number("height")), int(number("width"))
        runs = np.array(shape.attrib["rle"].split(","), np.int64)
        if (runs < 0).any() or runs.sum() != height * width:
            raise ValueError(f"its runs do not add up to {height * width} pixels")
        # Row-major, starting with a run of background.
        part = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        return mask_object(name, part, int(number("left")), int(number("top")), size, occluded=occluded)
    raise ValueError("has no area")
