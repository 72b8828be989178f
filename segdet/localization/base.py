"""The base class of classification with localization: one object per image, with a class and a box."""

from __future__ import annotations

from torch import Tensor

from segdet.data.sample import Batch, Prediction
from segdet.metrics.base import Scores
from segdet.metrics.localization import GUESSES, LocalizationScores
from segdet.nn.boxes import to_original
from segdet.task import Task


class Localizer(Task):
    """A network that predicts class logits ``[B, K]`` and a box for each image.

    A family's ``predict`` returns ``(logits [B, K], boxes)``. The boxes are xyxy in pixels of the images, either
    ``[B, 4]`` (one for all classes) or ``[B, K, 4]``. Labels are 1..K; logit ``k`` belongs to label ``k + 1``.

    Args:
        kwargs: See `Task`.
    """

    task = "localization"
    monitor = "val/loc_acc"
    guesses = GUESSES
    """The number of classes per prediction (ILSVRC's top-5)."""

    def build_scores(self) -> Scores:
        return LocalizationScores(self.class_names)

    def postprocess(
        self, output: tuple[Tensor, Tensor], original_sizes: list[tuple[int, int]], size: tuple[int, int]
    ) -> list[Prediction]:
        logits, boxes = output
        scores, best = logits.float().softmax(1).topk(min(self.guesses, logits.shape[1]), dim=1)
        if boxes.ndim == 2:
            boxes = boxes[:, None].expand(-1, best.shape[1], -1)
        else:
            boxes = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        return [
            Prediction(boxes=to_original(own.float(), size, original), scores=s, labels=k)
            for own, s, k, original in zip(boxes, scores, best + 1, original_sizes, strict=True)
        ]

    def update_scores(
        self, scores: Scores, predictions: list[Prediction], batch: Batch, positions: list[int]
    ) -> None:
        assert batch.originals is not None
        scores.update(
            predictions,
            [batch.originals[position] for position in positions],
            [batch.sources[position].image_id for position in positions],
        )
