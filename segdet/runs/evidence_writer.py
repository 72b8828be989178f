"""The callback that stores the evidence of a test and a gallery of its images in the run's folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np

from segdet.data.images import read_image
from segdet.data.sample import Batch, Prediction, Source
from segdet.metrics.base import Scores
from segdet.runs.evidence import EVIDENCE_NAME, Evidence, write_evidence
from segdet.runs.evidence_from_scores import ImageFile, evidence_from_scores
from segdet.runs.folder_layout import read_record
from segdet.runs.gallery import (
    GALLERY_FOLDER,
    MOST_IMAGES,
    GalleryImage,
    Pictures,
    gallery_order,
    picture_size,
    write_gallery,
)
from segdet.runs.predictions import relative_path
from segdet.runs.record import RECORD_NAME
from segdet.task import Task
from segdet.training.callback_interfaces import ReadsScores
from segdet.util.distributed import gather_objects


@dataclass(frozen=True)
class _Chosen:
    """An image of the gallery, with its masks in the size of the picture."""

    source: Source
    name: str
    truth: np.ndarray | None
    predicted: np.ndarray | None


class EvidenceWriter(pl.Callback, ReadsScores):
    """Write the evidence and the gallery of a test; see `segdet.runs.evidence` and `segdet.runs.gallery`.

    The files are the same for any number of processes. The first process writes them.

    Attributes:
        written: The path of the evidence of this test, relative to the run's folder; None before it is written.
    """

    def __init__(self) -> None:
        self.written: str | None = None
        self._images: dict[int, ImageFile] = {}
        self._gallery: dict[str, _Chosen] = {}
        self._evidence: Evidence | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the metrics of the test keep the counts of each image."""
        self.written = self._evidence = None
        self._images, self._gallery = {}, {}
        if isinstance(pl_module, Task):
            pl_module.scores["test_"].keep_images()  # type: ignore[operator]

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Record the images of a batch, and keep the masks of those that are in the gallery so far."""
        root = Path(trainer.datamodule.root)  # type: ignore[attr-defined]
        for position, source in enumerate(batch.sources):
            if source.duplicate:
                continue
            name = relative_path(source.path, root).as_posix()
            self._images[source.image_id] = ImageFile(name, source.original_size)
            order = gallery_order(name)
            if len(self._gallery) == MOST_IMAGES and order > max(self._gallery):
                continue
            prediction: Prediction = outputs["predictions"][position]
            target = {} if batch.originals is None else batch.originals[position]
            truth, predicted = (
                _reduced(each["mask"].cpu().numpy()) if "mask" in each else None
                for each in (target, prediction)
            )
            self._gallery[order] = _Chosen(source, name, truth, predicted)
            if len(self._gallery) > MOST_IMAGES:
                del self._gallery[max(self._gallery)]

    def read_scores(self, pl_module: pl.LightningModule, stage: str, scores: Scores) -> None:
        """Gather the evidence of all processes from the metrics of a test."""
        if stage != "test":
            return
        parts = gather_objects((self._images, self._gallery))
        images = {image_id: file for part, _ in parts for image_id, file in part.items()}
        chosen = {order: each for _, part in parts for order, each in part.items()}
        self._gallery = {order: chosen[order] for order in sorted(chosen)[:MOST_IMAGES]}
        self._evidence = evidence_from_scores(scores, images)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files. The record names them only after it has the scores of the same test."""
        if not trainer.is_global_zero or self._evidence is None:
            return
        folder = Path(trainer.default_root_dir)
        record = read_record(folder)
        if record is not None and record.per_image is not None:
            replace(record, per_image=None).write(folder / RECORD_NAME)
        write_evidence(folder / EVIDENCE_NAME, self._evidence)
        write_gallery(
            folder / GALLERY_FOLDER,
            [_picture(index, each) for index, each in enumerate(self._gallery.values())],
        )
        self.written = EVIDENCE_NAME
        self._evidence = None


def _picture(index: int, chosen: _Chosen) -> tuple[GalleryImage, Pictures]:
    source = chosen.source
    image = read_image(source.path, source.original_size, source.upright, max_pixels=None)
    size, scale = picture_size(source.original_size)
    picture = image if scale == 1 else cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    entry = GalleryImage(index, source.image_id, chosen.name, scale)
    return entry, Pictures(picture, chosen.truth, chosen.predicted)


def _reduced(mask: np.ndarray) -> np.ndarray:
    """Return a mask in the size of its picture."""
    size, scale = picture_size((mask.shape[0], mask.shape[1]))
    mask = mask.astype(np.uint8)
    return mask if scale == 1 else cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
