"""Region proposals of a trained Faster R-CNN: its region proposal network as a `Proposer` for other detectors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from segdet.data.transforms import Pipeline, resize
from segdet.detection.base import Detector
from segdet.detection.faster_rcnn import TwoStageDetector
from segdet.proposals.base import Proposer, check_image
from segdet.util.errors import UserError, check_range

_CACHED_MODELS = 2
"""The number of networks that stay in memory, one per checkpoint."""


@dataclass(frozen=True)
class RPN(Proposer):
    """A proposer that uses the region proposal network of a checkpoint (Ren et al., Faster R-CNN, TPAMI 2017).

    The network runs on the CPU, image by image, like all proposers. Boxes are cached for a whole dataset.

    Attributes:
        checkpoint: A Faster R-CNN trained by ``segdet fit``: a checkpoint file, or the run's folder for its best
            checkpoint.
        size: The size that images are resized to: ``[height, width]``, or the shorter side. Null for the training size.
        count: The maximum number of boxes per image, which may exceed the network's own limit for prediction. Null
            for the network's own limit.
    """

    version: ClassVar[int] = 2
    checkpoint: str
    size: int | tuple[int, int] | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None:
            check_range("count", self.count, least=1)
        if not _checkpoint_file(self.checkpoint).is_file():
            raise UserError(
                f"{_checkpoint_file(self.checkpoint)}: no such checkpoint; give the folder of a run of FasterRCNN, "
                "or its checkpoint file"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The fields by name, with a digest of the checkpoint's content instead of its path."""
        path = _checkpoint_file(self.checkpoint)
        status = path.stat()
        return {**super().settings, "checkpoint": _digest(path, status.st_size, status.st_mtime_ns)}

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_image(image)
        path = _checkpoint_file(self.checkpoint)
        model = _load_model(path, path.stat().st_mtime_ns)
        size = self.size if self.size is not None else model.image_size
        resized = Pipeline(resize(size))(image)[0]
        pixels = torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            proposed = model.propose(model.normalize(pixels), self.count)
        boxes, scores = (each[0].numpy() for each in proposed)
        height, width = image.shape[:2]
        scale = np.array([width / resized.shape[1], height / resized.shape[0]] * 2, np.float32)
        boxes = np.minimum(boxes * scale, np.array([width, height] * 2, np.float32))
        # Clipping to the image can make two boxes equal.
        _, first = np.unique(boxes, axis=0, return_index=True)
        first = np.sort(first)[: self.count]
        return np.ascontiguousarray(boxes[first]), scores[first]


def _checkpoint_file(checkpoint: str) -> Path:
    path = Path(checkpoint)
    return path / "checkpoints" / "best.ckpt" if path.is_dir() else path


@lru_cache(maxsize=16)
def _digest(path: Path, size: int, changed: int) -> str:
    """Return a digest of the file's content. It is computed again only if the file's size or time changed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


@lru_cache(maxsize=_CACHED_MODELS)
def _load_model(path: Path, changed: int) -> TwoStageDetector:
    model = Detector.load_from_checkpoint(path, compile=False)
    if not isinstance(model, TwoStageDetector):
        raise UserError(
            f"{path}: holds a {type(model).__name__}, which has no proposal network; give one of FasterRCNN"
        )
    return model
