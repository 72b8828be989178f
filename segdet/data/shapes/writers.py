"""Write annotated scenes as Pascal VOC, COCO and Cityscapes folders.

A folder is written under a temporary name in the same parent folder and renamed at the end. It is therefore either
complete or missing.
"""

import json
import multiprocessing
import signal
import warnings
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from segdet.data.formats.outlines import mask_polygons, outline_of
from segdet.data.shapes.scenes import Scene
from segdet.util.drawing import voc_palette
from segdet.util.errors import UserError
from segdet.util.files import create_folder_atomically

COCO_CATEGORY_IDS: list[int] = [1, 3, 4, 7, 9, 13, 14, 18]
"""Category ids of classes 1, 2, ..., with gaps like COCO's own."""

CITYSCAPES_THINGS: dict[str, tuple[int, tuple[int, int, int]]] = {
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
"""Label id and colour of the Cityscapes labels used for classes 1, 2, ..., in this order."""

CITYSCAPES_GROUND = ("road", 7, (128, 64, 128))
"""Name, label id and colour of the Cityscapes label used for the background."""

_Write = Callable[[Path, str, int, int, Scene], Any]
_JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}
_POOL_FROM = 64  # with fewer scenes, starting processes takes more time than it saves


def write_voc(
    root: Path | str, splits: Mapping[str, Sequence[Scene]], class_names: Sequence[str], **options: Any
) -> Path:
    """Write ``splits`` as a Pascal VOC folder without a year level.

    The folder contains ``JPEGImages/*.jpg``, ``Annotations/*.xml`` (1-based inclusive boxes), ``SegmentationClass`` and
    ``SegmentationObject`` (palette PNGs; pixels on both sides of each outline are 255). Split lists are in
    ``ImageSets/{Main,Segmentation}/{train,val,trainval,test}.txt``. ``labels.txt`` has one name per line,
    ``background`` first. A crowd region becomes one ``difficult`` object.

    Args:
        root: The folder to create. If it exists, it must be empty.
        splits: The scenes of each split.
        class_names: Names of labels 1, 2, ...
        options: ``workers``, ``progress`` and ``files`` of `_written`.

    Returns:
        ``root``.

    Raises:
        UserError: If ``root`` exists and is not empty, or cannot be written.
    """
    root = Path(root)
    folders = ["JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"]
    lists = [f"ImageSets/{task}" for task in ("Main", "Segmentation")]
    write = partial(_write_voc_scene, root.name, list(class_names))
    with _written(root, [*folders, *lists], splits, write, **options) as (folder, stems):
        if "train" in stems and "val" in stems:
            stems["trainval"] = sorted(stems["train"] + stems["val"])
        for sets in lists:
            for split, names in stems.items():
                (folder / sets / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in ["background", *class_names]))
    return root


def write_coco(
    root: Path | str, splits: Mapping[str, Sequence[Scene]], class_names: Sequence[str], **options: Any
) -> Path:
    """Write ``splits`` as a COCO folder: ``train2017/*.jpg``, ``annotations/instances_train2017.json``, ...

    A segmentation consists of polygons along pixel edges, one per connected part. Objects with holes have a compressed
    RLE instead, and crowd regions have an uncompressed RLE. ``area`` is the number of pixels, category ids are sparse
    (`COCO_CATEGORY_IDS`), and images without objects are listed. The arguments are those of `write_voc`.
    """
    root = Path(root)
    _check_classes(class_names, len(COCO_CATEGORY_IDS))
    folders = ["annotations", *(f"{split}2017" for split in splits)]
    categories = [
        {"id": number, "name": name, "supercategory": "shape"}
        for number, name in zip(COCO_CATEGORY_IDS, class_names, strict=False)
    ]
    with _written(root, folders, splits, _write_coco_scene, **options) as (folder, records):
        identifiers = count(1)
        for split, scenes in records.items():
            document = {
                "info": {"description": f"{split} scenes drawn by segdet", "version": "1.0", "year": 2017},
                "licenses": [{"id": 1, "name": "as segdet's", "url": ""}],
                "images": [image for image, _ in scenes],
                "annotations": [
                    {**annotation, "id": next(identifiers)}
                    for _, annotations in scenes
                    for annotation in annotations
                ],
                "categories": categories,
            }
            (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    return root


def write_cityscapes(
    root: Path | str, splits: Mapping[str, Sequence[Scene]], class_names: Sequence[str], **options: Any
) -> Path:
    """Write ``splits`` as a Cityscapes folder.

    The images are ``leftImg8bit/<split>/<city>/*_leftImg8bit.png``. The annotations are in ``gtFine``:
    ``*_gtFine_labelIds.png``, ``*_gtFine_instanceIds.png`` (16 bits: label id * 1000 + n; only the label id for a crowd
    region), ``*_gtFine_color.png`` and ``*_gtFine_polygons.json``. Cityscapes' labels are fixed, so class k is written
    as the k-th label of `CITYSCAPES_THINGS`, and the background as road. The arguments are those of `write_voc`.
    """
    root = Path(root)
    _check_classes(class_names, len(CITYSCAPES_THINGS))
    cities = [f"{split}/{city}" for split in splits for city in _cities(split)]
    folders = [f"{kind}/{city}" for kind in ("leftImg8bit", "gtFine") for city in cities]
    with _written(root, folders, splits, _write_cityscapes_scene, **options):
        return root


def _cities(split: str) -> list[str]:
    return {"train": ["circleton", "ringburg"], "val": ["starfield"], "test": ["crossville"]}.get(
        split, [split]
    )


def _check_classes(class_names: Sequence[str], most: int) -> None:
    if len(class_names) > most:
        raise UserError(f"class_names: {len(class_names)} classes, but this format supports {most}; use VOC")


@contextmanager
def _written(
    root: Path,
    folders: Iterable[str],
    splits: Mapping[str, Sequence[Scene]],
    write: _Write,
    *,
    workers: int = 1,
    progress: bool = False,
    files: Mapping[str, str] | None = None,
) -> Iterator[tuple[Path, dict[str, list[Any]]]]:
    """Write all scenes to a folder that becomes ``root`` if the block succeeds.

    Args:
        root: The folder to create.
        folders: Its subfolders.
        splits: The scenes of each split. With several ``workers``, the sequences are indexed in worker processes.
        write: Function to write one scene: ``write(folder, split, position, number, scene)``, with
            the position in the split and a running number from 1.
        workers: Number of processes.
        progress: Whether to show a progress bar.
        files: Additional small text files, by name.

    Yields:
        The folder to write in, and the results of ``write`` by split.
    """
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f"{root}: exists already; choose another folder or remove this one")
    with create_folder_atomically(root, "choose another folder or free some space") as folder:
        for name in folders:
            (folder / name).mkdir(parents=True)
        places = [(split, position) for split, scenes in splits.items() for position in range(len(scenes))]
        results: dict[str, list[Any]] = {split: [] for split in splits}
        write_at = partial(_write_at, folder, splits, write)
        with _mapping(write_at, workers if len(places) >= _POOL_FROM else 1) as mapping:
            done = mapping(places, range(1, len(places) + 1))
            bar = tqdm(done, f"writing {root.name}", len(places), unit="image", disable=not progress)
            for (split, _), result in zip(places, bar, strict=True):
                results[split].append(result)
        yield folder, results
        for name, text in (files or {}).items():
            (folder / name).write_text(text)


def _write_at(
    folder: Path,
    splits: Mapping[str, Sequence[Scene]],
    write: _Write,
    place: tuple[str, int],
    number: int,
) -> Any:
    split, position = place
    return write(folder, split, position, number, splits[split][position])


@contextmanager
def _mapping(function: Callable[..., Any], workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a function that maps ``function`` over its arguments, in a pool of processes if ``workers`` > 1."""
    if workers <= 1:
        yield partial(map, function)
        return
    # A forked process has all modules imported already.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with warnings.catch_warnings():
        # The children use NumPy, Pillow and OpenCV on small arrays only, which starts no threads.
        warnings.filterwarnings("ignore", message=r".*use of fork\(\).*", category=DeprecationWarning)
        context = multiprocessing.get_context(method)
        # The function, with all splits, is sent once per process, not with each task.
        pool = ProcessPoolExecutor(workers, context, _start_worker, (function,))
        try:
            yield partial(pool.map, _call_in_worker, chunksize=16)
        finally:
            pool.shutdown(cancel_futures=True)


_worker_function: list[Callable[..., Any]] = []  # in a worker process: the function to call


def _start_worker(function: Callable[..., Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles interrupts
    cv2.setNumThreads(0)
    _worker_function[:] = [function]


def _call_in_worker(*arguments: Any) -> Any:
    return _worker_function[0](*arguments)


def _save_voc_png(path: Path, values: np.ndarray, border: np.ndarray) -> None:
    picture = Image.fromarray(np.where(border, 255, values).astype(np.uint8))
    picture.putpalette(voc_palette().tobytes())  # changes the mode from L to P
    picture.save(path)


def _outline_band(instances: np.ndarray) -> np.ndarray:
    """Return the pixels on both sides of all outlines: bool ``[H, W]``."""
    band = np.zeros(instances.shape, bool)
    across, down = instances[:, 1:] != instances[:, :-1], instances[1:] != instances[:-1]
    band[:, 1:] |= across
    band[:, :-1] |= across
    band[1:] |= down
    band[:-1] |= down
    return band


def _write_voc_scene(
    name: str, class_names: list[str], folder: Path, split: str, position: int, number: int, scene: Scene
) -> str:
    stem = f"{number:06d}"
    height, width = scene.instances.shape
    Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{stem}.jpg", **_JPEG)
    border = _outline_band(scene.instances)
    _save_voc_png(folder / "SegmentationClass" / f"{stem}.png", scene.mask(), border)
    _save_voc_png(folder / "SegmentationObject" / f"{stem}.png", scene.instances, border)

    annotation = ET.Element("annotation")

    def add(parent: ET.Element, **texts: object) -> None:
        for tag, text in texts.items():
            ET.SubElement(parent, tag).text = str(text)

    add(annotation, folder=name, filename=f"{stem}.jpg")
    add(ET.SubElement(annotation, "source"), database="Shapes", annotation="Shapes", image="drawn")
    add(ET.SubElement(annotation, "size"), width=width, height=height, depth=3)
    add(annotation, segmented=1)
    for index, (x0, y0, x1, y1) in enumerate(scene.boxes.tolist()):
        item = ET.SubElement(annotation, "object")
        add(
            item,
            name=class_names[scene.labels[index] - 1],
            pose="Unspecified",
            truncated=int(scene.truncated[index]),
            occluded=int(scene.occluded[index]),
            difficult=int(scene.crowd[index]),
        )
        add(ET.SubElement(item, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    ET.indent(annotation, "\t")
    (folder / "Annotations" / f"{stem}.xml").write_text(ET.tostring(annotation, encoding="unicode") + "\n")
    return stem


def _write_coco_scene(
    folder: Path, split: str, position: int, number: int, scene: Scene
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    file_name = f"{number:012d}.jpg"
    Image.fromarray(scene.image).save(folder / f"{split}2017" / file_name, **_JPEG)
    annotations = []
    for index, (x0, y0, x1, y1) in enumerate(scene.boxes.tolist()):
        mask = scene.instances == index + 1
        annotations.append(
            {
                "image_id": number,
                "category_id": COCO_CATEGORY_IDS[scene.labels[index] - 1],
                "segmentation": outline_of(mask, bool(scene.crowd[index])),
                "area": float(mask.sum()),
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                "iscrowd": int(scene.crowd[index]),
            }
        )
    height, width = scene.instances.shape
    image = {"id": number, "file_name": file_name, "width": width, "height": height, "license": 1}
    return image, annotations


def _write_cityscapes_scene(folder: Path, split: str, position: int, number: int, scene: Scene) -> str:
    cities = _cities(split)
    city = cities[position % len(cities)]
    stem = f"{city}_{position // len(cities):06d}_{number:06d}"
    ground_name, ground_id, ground_colour = CITYSCAPES_GROUND
    things = list(CITYSCAPES_THINGS.items())

    labels, ids, colours = [ground_id], [ground_id], [ground_colour]
    numbers: defaultdict[int, Iterator[int]] = defaultdict(count)
    for label, crowd in zip(scene.labels.tolist(), scene.crowd.tolist(), strict=True):
        _, (identifier, colour) = things[label - 1]
        labels.append(identifier)
        colours.append(colour)
        ids.append(identifier if crowd else identifier * 1000 + next(numbers[identifier]))

    path = folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    Image.fromarray(scene.image).save(path, compress_level=3)
    truth = folder / "gtFine" / split / city
    for kind, values in (
        ("labelIds", np.array(labels, np.uint8)),
        ("instanceIds", np.array(ids, np.uint16)),
        ("color", np.array([(*colour, 255) for colour in colours], np.uint8)),
    ):
        Image.fromarray(values[scene.instances]).save(truth / f"{stem}_gtFine_{kind}.png")
    document = {
        "imgHeight": scene.instances.shape[0],
        "imgWidth": scene.instances.shape[1],
        "objects": _cityscapes_polygons(scene, ground_name, [name for name, _ in things]),
    }
    (truth / f"{stem}_gtFine_polygons.json").write_text(json.dumps(document))
    return stem


def _cityscapes_polygons(scene: Scene, ground: str, things: list[str]) -> list[dict[str, Any]]:
    """Return labelled polygons as in Cityscapes, where each polygon covers those before it.

    Visible parts are disjoint or lie in each other's holes. Painting them from the largest to the smallest, each
    followed by its holes as background, gives the label image.
    """
    height, width = scene.instances.shape
    frame = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    polygons = [(2 * height * width + 1, ground, frame)]
    for index, (label, crowd) in enumerate(zip(scene.labels.tolist(), scene.crowd.tolist(), strict=True)):
        outlines, holes = mask_polygons(scene.instances == index + 1)
        name = things[label - 1] + ("group" if crowd else "")
        polygons += [(_enclosed(points), name, points) for points in outlines]
        polygons += [(_enclosed(points), ground, points) for points in holes]
    # If an object fills a hole, both areas are equal, and the object must come after the hole.
    polygons.sort(key=lambda polygon: (-polygon[0], polygon[1] != ground))
    return [{"label": name, "polygon": points.tolist()} for _, name, points in polygons]


def _enclosed(points: np.ndarray) -> int:
    """Return twice the area of a polygon (shoelace formula)."""
    x, y = points.T.astype(np.int64)
    return abs(int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()))
