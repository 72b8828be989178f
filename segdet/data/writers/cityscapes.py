"""Write Cityscapes folders.

Format: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", 2016.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segdet.data.formats.cityscapes import LABELS
from segdet.data.formats.outlines import mask_polygons
from segdet.data.images import read_image
from segdet.data.writers.folder import is_rotated, save_image, upright_pixels, with_suffix, written_folder
from segdet.data.writers.record import AnnotatedImage

LABEL_OF = {label.name: label for label in LABELS if label.id >= 0}
"""The labels of Cityscapes by name, without ``license plate``, which has no id of its own."""


def write_cityscapes(
    root: Path | str,
    splits: Mapping[str, Sequence[AnnotatedImage]],
    *,
    ground: str = "unlabeled",
    copy: bool = False,
    **options: Any,
) -> Path:
    """Write ``splits`` as a Cityscapes folder.

    The images are ``leftImg8bit/<split>/<city>/*_leftImg8bit.png``; the city is the name of the image up to the first
    underscore. The annotations are in ``gtFine``: ``*_gtFine_labelIds.png``, ``*_gtFine_instanceIds.png``,
    ``*_gtFine_color.png`` and ``*_gtFine_polygons.json``. The instance ids have 16 bits. The id of object n of a class
    with instances is label id * 1000 + n. The id of a crowd region or of another class is the label id.

    Args:
        root: The folder to create. If it exists, it must be empty.
        splits: The images of each split. Names of objects are labels of Cityscapes, and `AnnotatedImage.instances`
            contains their pixels.
        ground: Label of the pixels without an object.
        copy: Whether to copy PNG files instead of linking them. Other images are always written as PNG.
        options: ``workers``, ``progress`` and ``files`` of `written_folder`.

    Returns:
        ``root``.

    Raises:
        UserError: If ``root`` exists and is not empty, or cannot be written.
    """
    root = Path(root)
    with written_folder(
        root, ["leftImg8bit", "gtFine"], splits, partial(_write_image, ground, copy), **options
    ):
        return root


def _write_image(
    ground: str, copy: bool, folder: Path, split: str, position: int, number: int, record: AnnotatedImage
) -> str:
    city = record.name.partition("_")[0]
    places = [folder / kind / split / city for kind in ("leftImg8bit", "gtFine")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    images, truth = places
    _save_png(record, images / f"{record.name}_leftImg8bit", copy)

    assert record.instances is not None
    labels, ids, colours = (
        [value] for value in (LABEL_OF[ground].id, LABEL_OF[ground].id, (*LABEL_OF[ground].color, 255))
    )
    numbers: defaultdict[int, Iterator[int]] = defaultdict(count)
    for each in record.objects:
        label = LABEL_OF[each.name]
        single = label.has_instances and not each.crowd
        labels.append(label.id)
        colours.append((*label.color, 255))
        ids.append(label.id * 1000 + next(numbers[label.id]) if single else label.id)
    for kind, values in (
        ("labelIds", np.array(labels, np.uint8)),
        ("instanceIds", np.array(ids, np.uint16)),
        ("color", np.array(colours, np.uint8)),
    ):
        Image.fromarray(values[record.instances]).save(truth / f"{record.name}_gtFine_{kind}.png")
    height, width = record.instances.shape
    document = {"imgHeight": height, "imgWidth": width, "objects": label_polygons(record, ground)}
    (truth / f"{record.name}_gtFine_polygons.json").write_text(json.dumps(document))
    return record.name


def _save_png(record: AnnotatedImage, target: Path, copy: bool) -> None:
    source = record.image
    if isinstance(source, Path) and source.suffix.lower() == ".png" and not is_rotated(source):
        save_image(record, target, copy)
        return
    if isinstance(source, Path):
        pixels = read_image(source, record.size, record.upright)
    else:
        pixels = upright_pixels(source) if isinstance(source, bytes) else source
    Image.fromarray(pixels).save(with_suffix(target, ".png"), compress_level=3)


def label_polygons(record: AnnotatedImage, ground: str) -> list[dict[str, Any]]:
    """Return labelled polygons as in Cityscapes, where each polygon covers those before it.

    Visible parts are disjoint or lie in each other's holes. Painting them from the largest to the smallest, each
    followed by its holes as background, gives the label image.
    """
    assert record.instances is not None
    height, width = record.instances.shape
    frame = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    polygons = [(2 * height * width + 1, ground, frame)]
    for index, each in enumerate(record.objects):
        outlines, holes = mask_polygons(record.instances == index + 1)
        name = each.name + ("group" if each.crowd and LABEL_OF[each.name].has_instances else "")
        polygons += [(_enclosed(points), name, points) for points in outlines]
        polygons += [(_enclosed(points), ground, points) for points in holes]
    # If an object fills a hole, both areas are equal, and the object must come after the hole.
    polygons.sort(key=lambda polygon: (-polygon[0], polygon[1] != ground))
    return [{"label": name, "polygon": points.tolist()} for _, name, points in polygons]


def _enclosed(points: np.ndarray) -> int:
    """Return twice the area of a polygon (shoelace formula)."""
    x, y = points.T.astype(np.int64)
    return abs(int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()))
