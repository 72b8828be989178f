"""Write COCO folders. Format: https://cocodataset.org/#format-data"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from segdet.data.writers.folder import save_image, written_folder
from segdet.data.writers.record import AnnotatedImage


def write_coco(
    root: Path | str,
    splits: Mapping[str, Sequence[AnnotatedImage]],
    categories: Sequence[Mapping[str, Any]],
    *,
    info: Mapping[str, Mapping[str, Any]] | None = None,
    licenses: Sequence[Mapping[str, Any]] = (),
    copy: bool = False,
    **options: Any,
) -> Path:
    """Write ``splits`` as a COCO folder: images in ``<split>/`` and ``annotations/instances_<split>.json``.

    Images without objects are listed. An object without an outline has an empty ``segmentation``.

    Args:
        root: The folder to create. If it exists, it must be empty.
        splits: The images of each split.
        categories: The categories, with ``id`` and ``name``.
        info: The entries of ``info`` of each split; default: a description.
        licenses: The licenses; all images have the first one.
        copy: Whether to copy image files instead of linking them.
        options: ``workers``, ``progress`` and ``files`` of `written_folder`.

    Returns:
        ``root``.

    Raises:
        UserError: If ``root`` exists and is not empty, or cannot be written.
    """
    root = Path(root)
    write = partial(_write_image, {entry["name"]: entry["id"] for entry in categories}, copy)
    with written_folder(root, ["annotations", *splits], splits, write, **options) as (folder, records):
        identifiers = count(1)
        for split, written in records.items():
            extra = {"license": licenses[0]["id"]} if licenses else {}
            document = {
                "info": dict(info[split] if info else {"description": f"{split} of {root.name}"}),
                "licenses": list(licenses),
                "images": [image | extra for image, _ in written],
                "annotations": [
                    {**annotation, "id": next(identifiers)}
                    for _, annotations in written
                    for annotation in annotations
                ],
                "categories": list(categories),
            }
            (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return root


def _write_image(
    category_of: Mapping[str, int],
    copy: bool,
    folder: Path,
    split: str,
    position: int,
    number: int,
    record: AnnotatedImage,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    file_name = save_image(record, folder / split / record.name, copy)
    annotations = []
    for each in record.objects:
        x0, y0, x1, y1 = map(float, each.box)
        area = (x1 - x0) * (y1 - y0) if each.area is None else each.area
        annotations.append(
            {
                "image_id": number,
                "category_id": category_of[each.name],
                "segmentation": each.outline or [],
                "area": area,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": int(each.crowd),
            }
        )
    height, width = record.size
    return {"id": number, "file_name": file_name, "width": width, "height": height}, annotations
