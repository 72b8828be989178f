"""Region proposals of a trained Faster R-CNN: its region proposal network as a `Proposer` for other detectors."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import yaml

from segdet.data.transforms import Pipeline, resize
from segdet.nn.weights import restoring
from segdet.proposals.base import Proposer, check_image
from segdet.util.errors import UserError

if TYPE_CHECKING:
    from segdet.detection.faster_rcnn import TwoStageDetector

_CACHED_MODELS = 2
"""The number of checkpoints whose networks stay in memory."""


@dataclass(frozen=True)
class RPN(Proposer):
    """Boxes of the region proposal network (Ren et al., Faster R-CNN, TPAMI 2017) in a checkpoint.

    It runs on the CPU, image by image, as all proposers whose boxes are cached for a whole dataset.

    Attributes:
        checkpoint: A Faster R-CNN trained by ``segdet fit``: a checkpoint file, or the run's folder for its best one.
        size: The size that images are resized to: ``[height, width]``, or the shorter side. Null for the size of the
            training.
        count: The maximum number of boxes per image, which may exceed the network's own limit for prediction. Null
            for the network's own limit.
    """

    version: ClassVar[int] = 2
    checkpoint: str
    size: int | tuple[int, int] | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise UserError(f"count {self.count}: must be at least 1")
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
        model, trained_size = _load_model(path, path.stat().st_mtime_ns)
        size = self.size if self.size is not None else trained_size
        resized = Pipeline(resize(size))(image)[0]
        pixels = torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            proposed = model.propose_scored(model.normalize(pixels), self.count)
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
    """Return a digest of the file's content, computed again only if its size or time changed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


@lru_cache(maxsize=_CACHED_MODELS)
def _load_model(path: Path, changed: int) -> tuple[TwoStageDetector, Any]:
    """Return the model of a checkpoint in evaluation mode, and the image size of its training."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        training = content["segdet"]
        config = yaml.safe_load(training["config"])
        class_path, arguments = config["model"]["class_path"], dict(config["model"].get("init_args") or {})
        state = content["state_dict"]
    except Exception as error:  # torch and yaml raise errors of many types
        raise UserError(
            f"{path}: the file is corrupt or is not a checkpoint of a training; give one of `segdet fit`"
        ) from error
    module, _, name = class_path.rpartition(".")
    family = getattr(importlib.import_module(module), name)
    if not hasattr(family, "propose_scored"):
        raise UserError(f"{path}: holds a {name}, which has no proposal network; give one of FasterRCNN")
    for unused in ("optim", "class_names", "category_ids"):
        arguments.pop(unused, None)
    with restoring(state):
        model = family(training["class_names"], **arguments)
    model.load_state_dict(state)
    recipe = ((config.get("data") or {}).get("init_args") or {}).get("recipe") or {}
    return model.eval(), (recipe.get("init_args") or {}).get("size")
