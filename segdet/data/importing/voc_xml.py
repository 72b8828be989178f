"""Pascal VOC XML files beside their images or in another folder, as written by LabelImg, Roboflow and CVAT.

Format: Everingham et al., "The PASCAL Visual Object Classes Challenge 2012 Development Kit", section 4.
"""

import re
from pathlib import Path

from tqdm import tqdm

from segdet.data.formats.voc_xml import half_open, read_annotation
from segdet.data.importing.foreign import Foreign, ForeignImage, LeftOut
from segdet.data.importing.source import Matcher, Source, read_head
from segdet.data.writers.record import AnnotatedObject
from segdet.util.errors import BadSample

TITLE = "Pascal VOC XML"


def recognize(source: Source) -> list[Path]:
    """Return the XML files whose root is ``<annotation>``."""
    return [
        path for path in source.of_suffix(".xml") if re.search(rb"<annotation[\s>]", read_head(path, 4096))
    ]


def read(source: Source, files: list[Path], names: list[str] | None) -> Foreign:
    """Return the images of the XML files."""
    matcher, pictures = Matcher(source, source.images), set(source.images)
    left_out: list[LeftOut] = []
    images = []
    for path in tqdm(files, f"reading {TITLE}", unit=" files", delay=2.0, leave=False):
        image = matcher.find(path)
        try:
            annotation = read_annotation(path)
            name = annotation.filename
            # If a.jpg and a.png are in one folder, the XML file names the one to use.
            if image is None or (image.parent / name in pictures and Path(name).stem == image.stem):
                image = source.find_image(name, path) if image is None else image.parent / name
            if image is None:
                left_out.append(LeftOut("annotation without an image", path, name))
                continue
            if annotation.errors:
                raise annotation.errors[0]
            size, upright = source.frame(image, annotation.size, False, path)
        except BadSample as error:
            left_out.append(LeftOut.of(error, image))
            continue
        boxes, _ = half_open(annotation.raw)
        objects = [
            AnnotatedObject(name, tuple(box), difficult=difficult)
            for name, box, difficult in zip(
                annotation.names, boxes.tolist(), annotation.difficult.tolist(), strict=True
            )
        ]
        split = source.split_of(image) or source.split_of(path)
        images.append(ForeignImage(image, str(source.relative(image)), size, upright, objects, split=split))
    return Foreign(TITLE, images, "detection", left_out=left_out)
