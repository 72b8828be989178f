"""The base of semantic segmentation: a class for every pixel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.data.sample import IGNORE, Batch, Prediction
from segdet.errors import UserError
from segdet.metrics.base import Scores
from segdet.metrics.confusion import SegmentationScores, classes_of
from segdet.task import Task


class Segmenter(Task):
    """A network that gives logits ``[B, C, h, w]`` for images ``[B, 3, H, W]``.

    A family's ``predict`` returns logits at the images' resolution or a coarser one. They are resized
    to the original image before the best class is taken, so that scores are those of the pixels on disk.

    Args:
        class_weights: How much each class counts in the loss: null for all the same, or a number a class.
        kwargs: As for `Task`.
    """

    task = "segmentation"
    monitor = "val/miou"

    def __init__(
        self, class_names: list[str], class_weights: list[float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(class_names, **kwargs)
        if class_weights is not None and len(class_weights) != len(class_names):
            raise UserError(
                f"model.class_weights: {len(class_weights)} numbers for {len(class_names)} classes "
                f"({', '.join(class_names)}); give one a class"
            )
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def cross_entropy(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The mean cross entropy of logits ``[B, C, H, W]`` over the pixels of ``masks`` that are not 255.

        A batch without any such pixel has a loss of zero, not of NaN.
        """
        weights = self.class_weights
        losses = F.cross_entropy(logits.float(), masks, weights, ignore_index=IGNORE, reduction="sum")  # type: ignore[arg-type]
        valid = masks != IGNORE
        if weights is None:
            return losses / valid.sum().clamp(min=1)
        counted = torch.where(valid, weights[masks.clamp(max=len(weights) - 1)], 0.0)  # type: ignore[arg-type,index]
        return losses / counted.sum().clamp(min=1e-6)

    def build_scores(self) -> Scores:
        return SegmentationScores(self.class_names)

    def map_back(
        self, answer: Tensor, originals: list[tuple[int, int]], size: tuple[int, int]
    ) -> list[Prediction]:
        logits = answer.float()
        if len(set(originals)) == 1:
            return [Prediction(mask=mask) for mask in classes_of(_resized(logits, originals[0]))]
        return [
            Prediction(mask=classes_of(_resized(one[None], original))[0])
            for one, original in zip(logits, originals, strict=True)
        ]

    def score(
        self, scores: Scores, predictions: list[Prediction], batch: Batch, positions: list[int]
    ) -> None:
        assert batch.originals is not None
        for prediction, position in zip(predictions, positions, strict=True):
            scores.update(prediction["mask"], batch.originals[position]["mask"])


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
