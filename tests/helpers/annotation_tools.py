"""Files as annotation tools write them, for tests of `segdet data import`."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (40, 60)
"""``(height, width)`` of the images."""

ORIENTATION = 0x0112


def save_picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    """Save a picture with an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    if orientation != 1:
        exif[ORIENTATION] = orientation
    kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower())
    picture.save(path, kind, exif=exif)
    return path


def write(path: Path, content: str | dict[str, Any] | list[Any]) -> Path:
    """Write text, or a document as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def voc_xml(
    name: str, objects: list[tuple[str, list[int]]], size: tuple[int, int] = SIZE, more: str = ""
) -> str:
    """Return LabelImg's XML; boxes are xmin, ymin, xmax, ymax as written."""
    items = "".join(
        f"<object><name>{label}</name><pose>Unspecified</pose><truncated>0</truncated>{more}<bndbox>"
        f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for label, box in objects
    )
    return (
        f"<annotation><folder>photos</folder><filename>{name}</filename><path>C:\\photos\\{name}</path>"
        f"<source><database>Unknown</database></source><size><width>{size[1]}</width><height>{size[0]}</height>"
        f"<depth>3</depth></size><segmented>0</segmented>{items}</annotation>"
    )


def labelme_shape(label: str, kind: str, points: list[list[float]], **more: Any) -> dict[str, Any]:
    """Return a shape of LabelMe 5."""
    return {
        "label": label, "points": points, "group_id": None, "description": "", "shape_type": kind, "flags": {},
        "mask": None, **more,
    }  # fmt: skip


def labelme(
    image: str, shapes: list[dict[str, Any]], size: tuple[int, int] = SIZE, **more: Any
) -> dict[str, Any]:
    """Return a file of LabelMe 5."""
    return {
        "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None,
        "imageHeight": size[0], "imageWidth": size[1], **more,
    }  # fmt: skip


def base64_png(pixels: np.ndarray) -> str:
    """Return an image as LabelMe embeds it."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def coco(
    images: list[str], annotations: list[dict[str, Any]], categories: list[str], size: tuple[int, int] = SIZE
) -> dict[str, Any]:
    """Return a COCO file; image ids and annotation ids count from 1, category ids are 3, 6, ..."""
    return {
        "info": {},
        "licenses": [],
        "images": [
            {"id": number, "file_name": name, "height": size[0], "width": size[1]}
            for number, name in enumerate(images, start=1)
        ],
        "annotations": [
            {"id": number, "iscrowd": 0, **annotation}
            for number, annotation in enumerate(annotations, start=1)
        ],
        "categories": [{"id": 3 * place, "name": name} for place, name in enumerate(categories, start=1)],
    }


def boxes_of(root: Path, **options: Any) -> dict[str, list[tuple[str, list[float]]]]:
    """Return the objects of a dataset folder, as read by the project: class and box by image name."""
    from readers import open_readers

    found = {}
    for reader in open_readers(root, task="detection", **options).values():
        for index in range(len(reader)):
            objects = reader.objects(index)
            labels = [reader.class_names[label - 1] for label in objects.labels.tolist()]
            found[reader.image_path(index).stem] = sorted(zip(labels, objects.boxes.tolist(), strict=True))
    return found


def masks_of(root: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the names of the mask values and the masks of a dataset folder by image name."""
    from readers import open_readers

    found, names = {}, []
    for reader in open_readers(root, task="segmentation").values():
        names = reader.mask_names
        found |= {reader.image_path(index).stem: reader.mask(index) for index in range(len(reader))}
    return names, found
