"""Write the scenes of Shapes as Pascal VOC, COCO and Cityscapes folders."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.formats.cityscapes import THING_NAMES
from segdet.data.formats.outlines import outline_of
from segdet.data.shapes.scenes import Scene
from segdet.data.writers.cityscapes import write_cityscapes as write_cityscapes_folder
from segdet.data.writers.coco import write_coco as write_coco_folder
from segdet.data.writers.record import AnnotatedImage, AnnotatedObject, LazyImages
from segdet.data.writers.voc import write_voc as write_voc_folder
from segdet.util.errors import UserError

COCO_CATEGORY_IDS: list[int] = [1, 3, 4, 7, 9, 13, 14, 18]
"""Category ids of classes 1, 2, ..., with gaps like COCO's own."""

_Name = Callable[[str, int, int], str]  # the name of an image by split, position and running number
_Complete = Callable[[Scene, AnnotatedImage], None]


def write_voc(
    root: Path | str, splits: Mapping[str, Sequence[Scene]], class_names: Sequence[str], **options: Any
) -> Path:
    """Write ``splits`` as a Pascal VOC folder; see `segdet.data.writers.voc.write_voc`.

    In the masks, pixels on both sides of each outline are 255.

    Args:
        root: The folder to create. If it exists, it must be empty.
        splits: The scenes of each split.
        class_names: Names of labels 1, 2, ...
        options: ``workers``, ``progress`` and ``files`` of `segdet.data.writers.folder.written_folder`.

    Returns:
        ``root``.

    Raises:
        UserError: If ``root`` exists and is not empty, or cannot be written.
    """
    records = _records(splits, class_names, _voc_name, _with_masks)
    return write_voc_folder(root, records, ["background", *class_names], database="Shapes", **options)


def write_coco(
    root: Path | str, splits: Mapping[str, Sequence[Scene]], class_names: Sequence[str], **options: Any
) -> Path:
    """Write ``splits`` as a COCO folder: ``train2017/*.jpg``, ``annotations/instances_train2017.json``, ...

    A segmentation consists of polygons along pixel edges, one per connected part. Objects with holes have a compressed
    RLE instead, and crowd regions have an uncompressed RLE. ``area`` is the number of pixels, category ids are sparse
    (`COCO_CATEGORY_IDS`), and images without objects are listed. The arguments are those of `write_voc`.
    """
    _check_classes(class_names, len(COCO_CATEGORY_IDS))
    categories = [
        {"id": number, "name": name, "supercategory": "shape"}
        for number, name in zip(COCO_CATEGORY_IDS, class_names, strict=False)
    ]
    records = _records(splits, class_names, _coco_name, _with_outlines)
    named = {f"{split}2017": images for split, images in records.items()}
    info = {
        f"{split}2017": {"description": f"{split} scenes drawn by segdet", "version": "1.0", "year": 2017}
        for split in splits
    }
    licenses = [{"id": 1, "name": "as segdet's", "url": ""}]
    return write_coco_folder(root, named, categories, info=info, licenses=licenses, **options)


def write_cityscapes(
    root: Path | str, splits: Mapping[str, Sequence[Scene]], class_names: Sequence[str], **options: Any
) -> Path:
    """Write ``splits`` as a Cityscapes folder; see `segdet.data.writers.cityscapes.write_cityscapes`.

    Cityscapes' labels are fixed, so class k is written as the k-th label with instances (`THING_NAMES`), and the
    background as road. The arguments are those of `write_voc`.
    """
    _check_classes(class_names, len(THING_NAMES))
    records = _records(splits, THING_NAMES, _cityscapes_name, _with_instances)
    return write_cityscapes_folder(root, records, ground="road", **options)


def _voc_name(split: str, position: int, number: int) -> str:
    return f"{number:06d}"


def _coco_name(split: str, position: int, number: int) -> str:
    return f"{number:012d}"


def _cityscapes_name(split: str, position: int, number: int) -> str:
    cities = {"train": ["circleton", "ringburg"], "val": ["starfield"], "test": ["crossville"]}
    here = cities.get(split, [split])
    return f"{here[position % len(here)]}_{position // len(here):06d}_{number:06d}"


def _check_classes(class_names: Sequence[str], most: int) -> None:
    if len(class_names) > most:
        raise UserError(f"class_names: {len(class_names)} classes, but this format supports {most}; use VOC")


class _Records(LazyImages):
    """The records of scenes. A scene is drawn when its record is accessed."""

    def __init__(
        self,
        scenes: Sequence[Scene],
        class_names: Sequence[str],
        split: str,
        start: int,
        name: _Name,
        complete: _Complete,
    ) -> None:
        self.scenes, self.class_names = scenes, class_names
        self.split, self.start, self.name, self.complete = split, start, name, complete

    def __len__(self) -> int:
        return len(self.scenes)

    def image_at(self, position: int) -> AnnotatedImage:
        scene = self.scenes[position]
        objects = [
            AnnotatedObject(
                self.class_names[label - 1],
                (x0, y0, x1, y1),
                crowd=bool(scene.crowd[index]),
                truncated=bool(scene.truncated[index]),
                occluded=bool(scene.occluded[index]),
            )
            for index, (label, (x0, y0, x1, y1)) in enumerate(
                zip(scene.labels.tolist(), scene.boxes.tolist(), strict=True)
            )
        ]
        height, width = scene.instances.shape
        record = AnnotatedImage(
            scene.image, (height, width), self.name(self.split, position, self.start + position), objects
        )
        self.complete(scene, record)
        return record


def _records(
    splits: Mapping[str, Sequence[Scene]],
    class_names: Sequence[str],
    name: _Name,
    complete: _Complete,
) -> dict[str, _Records]:
    """Return the records of all splits; running numbers start at 1."""
    starts = accumulate([1, *map(len, splits.values())])
    return {
        split: _Records(scenes, class_names, split, start, name, complete)
        for (split, scenes), start in zip(splits.items(), starts, strict=False)
    }


def _with_masks(scene: Scene, record: AnnotatedImage) -> None:
    band = _outline_band(scene.instances)
    record.mask = np.where(band, 255, scene.mask())
    record.instances = np.where(band, 255, scene.instances)


def _with_outlines(scene: Scene, record: AnnotatedImage) -> None:
    for index, each in enumerate(record.objects):
        mask = scene.instances == index + 1
        each.outline, each.area = outline_of(mask, each.crowd), float(mask.sum())


def _with_instances(scene: Scene, record: AnnotatedImage) -> None:
    record.instances = scene.instances


def _outline_band(instances: np.ndarray) -> np.ndarray:
    """Return the pixels on both sides of all outlines: bool ``[H, W]``."""
    band = np.zeros(instances.shape, bool)
    across, down = instances[:, 1:] != instances[:, :-1], instances[1:] != instances[:-1]
    band[:, 1:] |= across
    band[:, :-1] |= across
    band[1:] |= down
    band[:-1] |= down
    return band
