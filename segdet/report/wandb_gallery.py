"""The gallery on Weights & Biases: the same test images for all runs, with annotation and prediction as layers."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from segdet.report.gallery_data import Box, Gallery, GalleryGroup, ImagePanels, gallery_of, group_by_images
from segdet.report.page_data import PageData
from segdet.runs.gallery import GALLERY_FOLDER, GalleryImage

_MAX_BOXES = 50
"""The number of predicted boxes of an image, highest scores first."""


@dataclass(frozen=True)
class WandbGallery:
    """The gallery images of the runs of a task.

    Attributes:
        task: The task.
        names: The file names of the images.
        pictures: The images of each run by its name, as ``wandb.Image``, in the order of ``names``.
        disagreement: The disagreement of the runs on each image.
    """

    task: str
    names: list[str]
    pictures: dict[str, list[Any]]
    disagreement: list[float]


def wandb_galleries(page: PageData) -> list[WandbGallery]:
    """Return the galleries of a page; none if no run has gallery images."""
    return [_gallery(gallery_of(group)) for group in group_by_images(page.runs)]


def _gallery(gallery: Gallery) -> WandbGallery:
    group = gallery.group
    files = {image.file_name: image for image in group.images}
    pictures = {
        run.name: [_picture(group, at, files[image.name], image) for image in gallery.images]
        for at, run in enumerate(group.runs)
    }
    disagreement = [image.disagreement for image in gallery.images]
    return WandbGallery(group.task, [image.name for image in gallery.images], pictures, disagreement)


def _picture(group: GalleryGroup, run: int, files: GalleryImage, image: ImagePanels) -> Any:
    """Return an image with the layers ``ground_truth`` and ``prediction``, as in the panels of the training."""
    import wandb

    panel, classes = image.panels[run], group.evidences[run].class_names
    boxes = masks = None
    if image.mask is None:
        boxes = {
            "ground_truth": _layer(image.objects, classes),
            "prediction": _layer(panel.boxes[:_MAX_BOXES], classes),
        }
    else:
        labels = dict(enumerate(classes)) | {255: "ignored"}
        masks = {
            layer: {"mask_data": _values(group.read(run, name)), "class_labels": labels}
            for layer, name in (("ground_truth", files.truth), ("prediction", files.predicted))
        }
    path = group.runs[run].folder / GALLERY_FOLDER / files.picture
    return wandb.Image(str(path), caption=image.name, boxes=boxes, masks=masks)


def _values(content: bytes) -> np.ndarray:
    """Return the values of an index PNG: uint8 ``[H, W]``."""
    with Image.open(io.BytesIO(content)) as opened:
        return np.asarray(opened).astype(np.uint8)


def _layer(boxes: Sequence[Box], classes: Sequence[str]) -> dict[str, Any]:
    data = []
    for box in boxes:
        x, y, width, height = box.box
        score = "" if box.score is None else f" {box.score:.2f}"
        entry: dict[str, Any] = {
            "position": {"minX": x, "minY": y, "maxX": x + width, "maxY": y + height},
            "domain": "pixel",
            "class_id": classes.index(box.label) + 1,
            "box_caption": f"{box.label}{score}",
        }
        if box.score is not None:
            entry["scores"] = {"score": box.score}
        data.append(entry)
    return {"box_data": data, "class_labels": dict(enumerate(classes, start=1))}
