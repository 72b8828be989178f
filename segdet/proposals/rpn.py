"""Proposals of a trained proposal network: what Faster R-CNN's first stage finds, for whoever else wants regions."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from segdet.proposals.base import Proposer, check_image
from segdet.util.errors import UserError

if TYPE_CHECKING:
    from torch import nn

_MODELS_KEPT = 2
"""Checkpoints of which the networks stay in memory."""


@dataclass(frozen=True)
class RPN(Proposer):
    """The boxes of the proposal network (Ren et al., Faster R-CNN, TPAMI 2017) that a checkpoint holds.

    It runs on the CPU, image by image, as all proposers do whose boxes are kept for the whole dataset.

    Attributes:
        checkpoint: Of a Faster R-CNN that ``segdet fit`` trained: a file, or the run's folder, of which it is the best.
        size: What images are resized to: ``[height, width]``, or the shorter side. Null for the size that the network
            was trained with.
        count: The most boxes of an image, also where that is more than the network was made to propose in prediction.
            Null for as many as that.
    """

    version: ClassVar[int] = 2
    checkpoint: str
    size: int | tuple[int, int] | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise UserError(f"count {self.count}: must be at least 1")
        if not _file_of(self.checkpoint).is_file():
            raise UserError(
                f"{_file_of(self.checkpoint)}: no such checkpoint; give the folder of a run of FasterRCNN, or its file"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The fields by name, the checkpoint by its content."""
        path = _file_of(self.checkpoint)
        status = path.stat()
        return {**super().settings, "checkpoint": _digest(path, status.st_size, status.st_mtime_ns)}

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        from segdet.data.transforms import Pipeline, resize

        check_image(image)
        path = _file_of(self.checkpoint)
        model, trained_size = _model(path, path.stat().st_mtime_ns)
        size = self.size if self.size is not None else trained_size
        seen = Pipeline(resize(size))(image)[0]
        pixels = torch.from_numpy(np.ascontiguousarray(seen)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            propose: Callable[..., Any] = model.propose_scored  # type: ignore[assignment]
            boxes, scores = (each[0].numpy() for each in propose(model.normalize(pixels), self.count))  # type: ignore[operator]
        height, width = image.shape[:2]
        scale = np.array([width / seen.shape[1], height / seen.shape[0]] * 2, np.float32)
        boxes = np.minimum(boxes * scale, np.array([width, height] * 2, np.float32))
        # Two anchors may have become the same box at the image's border.
        _, first = np.unique(boxes, axis=0, return_index=True)
        first = np.sort(first)[: self.count]
        return np.ascontiguousarray(boxes[first]), scores[first]


def _file_of(checkpoint: str) -> Path:
    path = Path(checkpoint)
    return path / "checkpoints" / "best.ckpt" if path.is_dir() else path


@lru_cache(maxsize=16)
def _digest(path: Path, size: int, changed: int) -> str:
    """Of the file's content, read again only when its size or time changed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


@lru_cache(maxsize=_MODELS_KEPT)
def _model(path: Path, changed: int) -> tuple[nn.Module, Any]:
    """The network of a checkpoint, ready to predict, and the size that its images were resized to."""
    import torch
    import yaml

    from segdet.nn.weights import restoring

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        about = content["segdet"]
        config = yaml.safe_load(about["config"])
        class_path, arguments = config["model"]["class_path"], dict(config["model"].get("init_args") or {})
        state = content["state_dict"]
    except Exception as error:  # torch and yaml raise many kinds
        raise UserError(f"{path}: no checkpoint of a training; give one that `segdet fit` wrote") from error
    # The checkpoint names the family; nothing here knows any.
    module, _, name = class_path.rpartition(".")
    family = getattr(importlib.import_module(module), name)
    if not hasattr(family, "propose_scored"):
        raise UserError(f"{path}: holds a {name}, which has no proposal network; give one of FasterRCNN")
    for unneeded in ("optim", "class_names", "category_ids"):
        arguments.pop(unneeded, None)
    with restoring(state):
        model = family(about["class_names"], **arguments)
    model.load_state_dict(state)
    recipe = ((config.get("data") or {}).get("init_args") or {}).get("recipe") or {}
    return model.eval(), (recipe.get("init_args") or {}).get("size")
