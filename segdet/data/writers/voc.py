"""Write Pascal VOC folders.

Format: Everingham et al., "The PASCAL Visual Object Classes Challenge 2012 Development Kit".
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segdet.data.sample import TaskName
from segdet.data.writers.folder import save_image, written_folder
from segdet.data.writers.record import AnnotatedImage
from segdet.util.colours import voc_palette

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Suffixes of images that tools for VOC read."""


def write_voc(
    root: Path | str,
    splits: Mapping[str, Sequence[AnnotatedImage]],
    mask_names: Sequence[str],
    tasks: Sequence[TaskName] = ("detection", "segmentation"),
    *,
    database: str = "segdet",
    copy: bool = False,
    **options: Any,
) -> Path:
    """Write ``splits`` as a Pascal VOC folder without a subfolder for the year, such as ``VOC2012``.

    The folder contains ``JPEGImages/``, ``Annotations/*.xml`` (1-based inclusive boxes), ``SegmentationClass`` and, for
    images with `AnnotatedImage.instances`, ``SegmentationObject`` (palette PNGs). Split lists are in
    ``ImageSets/{Main,Segmentation}/{train,val,trainval,test}.txt``. ``labels.txt`` contains ``mask_names``, one per
    line. A crowd region becomes one ``difficult`` object.

    Args:
        root: The folder to create. If it exists, it must be empty.
        splits: The images of each split.
        mask_names: Names of the mask values 0, 1, ..., with ``background`` first if there is a background.
        tasks: detection for boxes, segmentation for masks, or both.
        database: Name of the dataset for the XML files.
        copy: Whether to copy image files instead of linking them.
        options: ``workers``, ``progress`` and ``files`` of `written_folder`.

    Returns:
        ``root``.

    Raises:
        UserError: If ``root`` exists and is not empty, or cannot be written.
    """
    root = Path(root)
    folders, lists = ["JPEGImages"], []
    if "detection" in tasks:
        folders.append("Annotations")
        lists.append("ImageSets/Main")
    if "segmentation" in tasks:
        folders += ["SegmentationClass", "SegmentationObject"]
        lists.append("ImageSets/Segmentation")
    write = partial(_write_image, root.name, tuple(tasks), database, copy)
    with written_folder(root, [*folders, *lists], splits, write, **options) as (folder, stems):
        if "train" in stems and "val" in stems:
            stems["trainval"] = sorted(stems["train"] + stems["val"])
        for sets in lists:
            for split, names in stems.items():
                _write_lines(folder / sets / f"{split}.txt", names)
        _write_lines(folder / "labels.txt", mask_names)
        instances = folder / "SegmentationObject"
        if instances.is_dir() and not any(instances.iterdir()):
            instances.rmdir()
    return root


def can_contain(box: Sequence[float]) -> bool:
    """Return whether VOC can contain a box.

    VOC's coordinates are inclusive. A box of at most one pixel would have ``xmax <= xmin``, like an invalid box.
    """
    x0, y0, x1, y1 = box
    return x1 - x0 > 1 and y1 - y0 > 1


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_image(
    folder_name: str,
    tasks: Sequence[TaskName],
    database: str,
    copy: bool,
    folder: Path,
    split: str,
    position: int,
    number: int,
    record: AnnotatedImage,
) -> str:
    file_name = save_image(record, folder / "JPEGImages" / record.name, copy, IMAGE_SUFFIXES)
    if "segmentation" in tasks:
        for kind, values in (("SegmentationClass", record.mask), ("SegmentationObject", record.instances)):
            if values is not None:
                _save_mask(folder / kind / f"{record.name}.png", values)
    if "detection" in tasks:
        annotation = _annotation(folder_name, file_name, database, record)
        text = ET.tostring(annotation, encoding="unicode") + "\n"
        (folder / "Annotations" / f"{record.name}.xml").write_text(text, encoding="utf-8")
    return record.name


def _annotation(folder_name: str, file_name: str, database: str, record: AnnotatedImage) -> ET.Element:
    annotation = ET.Element("annotation")

    def add(parent: ET.Element, **texts: object) -> None:
        for tag, text in texts.items():
            ET.SubElement(parent, tag).text = str(text)

    add(annotation, folder=folder_name, filename=file_name)
    add(ET.SubElement(annotation, "source"), database=database, annotation=database, image="drawn")
    height, width = record.size
    add(ET.SubElement(annotation, "size"), width=width, height=height, depth=3)
    add(annotation, segmented=int(record.mask is not None))
    for each in record.objects:
        item = ET.SubElement(annotation, "object")
        add(
            item,
            name=each.name,
            pose="Unspecified",
            truncated=int(each.truncated),
            occluded=int(each.occluded),
            difficult=int(each.difficult or each.crowd),
        )
        x0, y0, x1, y1 = map(_shortest, each.box)
        add(ET.SubElement(item, "bndbox"), xmin=_shortest(x0 + 1), ymin=_shortest(y0 + 1), xmax=x1, ymax=y1)
    ET.indent(annotation, "\t")
    return annotation


def _shortest(value: float) -> float:
    """Return a whole number as an int, so that it is written without a fraction."""
    return int(value) if float(value).is_integer() else float(value)


def _save_mask(path: Path, values: np.ndarray) -> None:
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(voc_palette().tobytes())  # changes the mode from L to P
    picture.save(path)
