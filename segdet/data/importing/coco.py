"""COCO JSON, also as exported by Roboflow, CVAT and Label Studio, with images anywhere in the source.

Format: https://cocodataset.org/#format-data
"""

from pathlib import Path

from segdet.data.formats.coco import COCOReader
from segdet.data.formats.splits import NO_INSTANCES
from segdet.data.importing.foreign import Foreign, ForeignImage, LeftOut
from segdet.data.importing.source import Source, read_head, split_named
from segdet.data.writers.record import AnnotatedObject
from segdet.util.errors import BadSample

TITLE = "COCO JSON"


def recognize(source: Source) -> list[Path]:
    """Return the JSON files with COCO's keys, except those of COCO's other tasks, such as captions."""
    found = [
        path
        for path in source.of_suffix(".json")
        if not path.name.startswith(NO_INSTANCES) and _is_coco(read_head(path))
    ]
    named = [path for path in found if path.name.startswith("instances_")]
    return named or found


def read(source: Source, files: list[Path], names: list[str] | None) -> Foreign:
    """Return the images that the files list, including those without annotations.

    Raises:
        BadSample: If a file is not in COCO's format.
    """
    left_out: list[LeftOut] = []
    images: dict[Path, ForeignImage] = {}
    ids: dict[str, int] = {}
    notes: list[str] = []
    for path in files:
        reader = COCOReader(path.parent, path.stem, "segmentation", path.resolve(), path.parent.resolve())
        notes += [f"{fault.path}: {fault.fault}; {fault.remedy}" for fault in reader.file_faults()]
        for name, number in zip(reader.class_names, reader.category_ids, strict=True):
            ids.setdefault(name, number)
        for index in range(len(reader)):
            stated, folder = reader.image_path(index), reader.image_folder
            name = str(stated.relative_to(folder) if stated.is_relative_to(folder) else stated)
            image = source.find_image(name, path)
            if image is None:
                left_out.append(LeftOut("annotation without an image", path, name))
                continue
            if image in images:
                left_out.append(LeftOut("second annotation of an image", path, name))
                continue
            try:
                size, upright = source.frame(image, reader.declared_size(index), False, path)
                objects = _objects(reader, index)
            except BadSample as error:
                left_out.append(LeftOut.of(error, image))
                continue
            split = split_named(path.stem) or source.split_of(image) or source.split_of(path)
            key = str(source.relative(image))
            images[image] = ForeignImage(image, key, size, upright, objects, split=split)
    found = list(images.values())
    # Files that number their categories differently may give one id to two classes.
    category_ids = ids if len(set(ids.values())) == len(ids) else {}
    return Foreign(
        TITLE,
        found,
        "detection",
        list(ids),
        category_ids=category_ids,
        from_coco=True,
        left_out=left_out,
        notes=notes,
    )


def _is_coco(data: bytes) -> bool:
    return all(key in data for key in (b'"images"', b'"annotations"', b'"categories"'))


def _objects(reader: COCOReader, index: int) -> list[AnnotatedObject]:
    """Return the objects of an image, the largest first, as `COCOReader.mask` paints them."""
    objects = reader.objects(index)
    rows = zip(
        objects.labels.tolist(),
        objects.boxes.tolist(),
        reader.outlines(index),
        objects.area.tolist(),
        objects.iscrowd.tolist(),
        strict=True,
    )
    made = [
        AnnotatedObject(reader.class_names[label - 1], (x0, y0, x1, y1), outline, area, crowd=crowd)
        for label, (x0, y0, x1, y1), outline, area, crowd in rows
    ]
    # Crowd regions come first, because objects cover them.
    return sorted(made, key=lambda each: (not each.crowd, -(each.area or 0)))
