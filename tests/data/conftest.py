"""Small valid folders of each format, in which tests change one thing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Box = tuple[str, float | str, float | str, float | str, float | str]


def picture(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Return a smooth colour image of (height, width) that differs for each seed."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [
        np.sin(x / (7 + seed % 5) + channel + seed) + np.cos(y / (5 + channel) + seed) for channel in range(3)
    ]
    return np.clip(np.stack(waves, -1) * 60 + 128, 0, 255).astype(np.uint8)


def voc_xml(name: str, boxes: list[Box], size: tuple[int, int] = (48, 64)) -> str:
    """Return the text of an annotation file; boxes are (class, xmin, ymin, xmax, ymax) as written."""
    objects = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for label, x0, y0, x1, y1 in boxes
    )
    size_text = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size_text}{objects}</annotation>"


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    """A valid VOC folder: a and b in train, c in val; classes cat and dog; 64x48 pixels."""
    root = tmp_path / "voc"
    for name in (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "ImageSets/Main",
        "ImageSets/Segmentation",
    ):
        (root / name).mkdir(parents=True)
    boxes: dict[str, list[Box]] = {
        "a": [("cat", 1, 1, 20, 20), ("dog", 30, 10, 60, 40)],
        "b": [("dog", 5, 5, 50, 45)],
        "c": [("cat", 2, 2, 40, 30)],
    }
    for seed, (name, objects) in enumerate(boxes.items()):
        Image.fromarray(picture(seed)).save(root / f"JPEGImages/{name}.jpg", quality=90)
        (root / f"Annotations/{name}.xml").write_text(voc_xml(name, objects))
        mask = np.zeros((48, 64), np.uint8)
        for label, x0, y0, x1, y1 in objects:
            mask[int(y0) - 1 : int(y1), int(x0) - 1 : int(x1)] = ("cat", "dog").index(label) + 1
        mask[0] = 255
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
    for kind in ("Main", "Segmentation"):
        (root / f"ImageSets/{kind}/train.txt").write_text("a\nb\n")
        (root / f"ImageSets/{kind}/val.txt").write_text("c\n")
    (root / "labels.txt").write_text("background\ncat\ndog\n")
    return root


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """A valid COCO folder: splits train and val with two images each, the second without objects."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for first, split in enumerate(("train", "val")):
        (root / split).mkdir()
        images = []
        for place in (0, 1):
            number = 10 * first + place + 1
            name = f"{number:04}.jpg"
            Image.fromarray(picture(number)).save(root / split / name, quality=90)
            images.append({"id": number, "file_name": name, "height": 48, "width": 64})
        annotation = {
            "id": first + 1,
            "image_id": images[0]["id"],
            "category_id": 7,
            "bbox": [4, 4, 20, 10],
            "area": 200,
            "iscrowd": 0,
            "segmentation": [[4, 4, 24, 4, 24, 14, 4, 14]],
        }
        document = {
            "images": images,
            "annotations": [annotation],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(document))
    return root


@pytest.fixture
def cityscapes_folder(tmp_path: Path) -> Path:
    """A valid Cityscapes folder: splits train and val with one image each, a car on a road."""
    root = tmp_path / "cityscapes"
    for seed, (split, city) in enumerate((("train", "aachen"), ("val", "ulm"))):
        images, annotations = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        stem = f"{city}_000000_000019"
        Image.fromarray(picture(seed)).save(images / f"{stem}_leftImg8bit.png")
        values = np.full((48, 64), 7, np.uint16)
        values[10:30, 20:50] = 26001
        Image.fromarray(values).save(annotations / f"{stem}_gtFine_instanceIds.png")
        labels = np.where(values > 1000, values // 1000, values).astype(np.uint8)
        Image.fromarray(labels).save(annotations / f"{stem}_gtFine_labelIds.png")
    return root


@pytest.fixture(name="picture")
def picture_fixture() -> Callable[..., np.ndarray]:
    """See `picture`."""
    return picture


@pytest.fixture(name="voc_xml")
def voc_xml_fixture() -> Callable[..., str]:
    """See `voc_xml`."""
    return voc_xml


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[dict], None]], None]:
    """Return a function that changes a JSON file in place."""

    def edit(path: Path, change: Callable[[dict], None]) -> None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edit
