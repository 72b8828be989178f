"""Predictions from image files, with every step marked as a stage."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segdet.data.base import DataModule
from segdet.data.cleaning import clip_boxes
from segdet.data.sample import Batch, Prediction, Sample, Source, Target, collate
from segdet.proposals.base import Proposer
from segdet.runs.gallery import gallery_order
from segdet.runs.predictions import relative_path
from segdet.task import Task
from segdet.util.stage_timing import stage


@dataclass
class Images:
    """The images of a profile.

    Attributes:
        indices: Their indices in the reader of the test split.
        names: Their names relative to the dataset's folder, with ``/`` on all systems.
    """

    indices: list[int]
    names: list[str]


def choose_images(data: DataModule, count: int) -> Images:
    """Return ``count`` test images, or all if there are fewer, in the order of a hash of their names.

    The choice depends on the names only, so it is the same for all models.
    """
    reader = data.reader("test")
    names = [relative_path(reader.image_path(index), data.root).as_posix() for index in range(len(reader))]
    chosen = sorted(range(len(names)), key=lambda index: gallery_order(names[index]))[:count]
    return Images(chosen, [names[index] for index in chosen])


class FilePredictor:
    """Predict test images as ``segdet predict`` does: from the file to the prediction in the image's own pixels.

    Args:
        model: The model, on its device and in evaluation mode.
        data: The data module, whose transforms of evaluation and proposals are used.
        precision: A function that returns the context of the forward pass.
    """

    def __init__(
        self, model: Task, data: DataModule, precision: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.model = model
        self.precision = precision
        self.device = model.device
        self._data = data
        self._reader = data.reader("test")
        self._transform = data.recipe.evaluation()
        self._stored: Any = None

    @property
    def reads_proposals(self) -> bool:
        """Whether the proposals come from a file, so that their computation is not measured."""
        return self._data.proposals is not None and not isinstance(self._data.proposals, Proposer)

    def predict(self, index: int) -> list[Prediction]:
        """Predict the image at ``index`` of the reader. Wait for the device at the end."""
        sample = self.sample(index)
        with stage("transfer") if self.device.type == "cuda" else nullcontext():
            images = sample.image[None].to(self.device, non_blocking=True)
            target = Target(**{k: v.to(self.device) for k, v in sample.target.items()})  # type: ignore[attr-defined,typeddict-item]
        with self.precision():
            found = self.model.predict_tensors(images, [sample.source.original_size], [target])
        self.synchronize()
        return found

    def predict_batch(self, batch: Batch) -> list[Prediction]:
        """Predict a batch on the device. Wait for the device at the end."""
        with self.precision():
            found = self.model.predict_batch(batch)
        self.synchronize()
        return found

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return images as a batch on the device."""
        return collate([self.sample(index) for index in indices]).to(self.device)

    def sample(self, index: int) -> Sample:
        """Read and transform an image, and compute its proposals if the model uses proposals."""
        with stage("read"):
            pixels = self._reader.image(index)
        boxes: dict[str, np.ndarray] = {}
        if self._data.proposals is not None:
            with stage("proposals"):
                boxes["proposals"] = self._propose(index, pixels)
        with stage("resize"):
            resized, sets, _ = self._transform(pixels, boxes)
            image = torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)
        target = Target()
        if "proposals" in sets:
            target["proposals"] = torch.from_numpy(sets["proposals"][0])
        reader, size = self._reader, (pixels.shape[0], pixels.shape[1])
        source = Source(reader.image_path(index), reader.image_id(index), size)
        return Sample(image, target, source)

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _propose(self, index: int, pixels: np.ndarray) -> np.ndarray:
        source = self._data.proposals
        assert source is not None
        if isinstance(source, Proposer):
            boxes = source.propose(pixels)
        else:
            if self._stored is None:
                self._stored = source.open(self._reader, [index])
            boxes = self._stored.boxes(index)
        boxes = clip_boxes(boxes[: self._data.max_proposals], (pixels.shape[0], pixels.shape[1]))
        return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
