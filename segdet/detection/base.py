"""The base of detection: all objects of an image, each with its class and its box."""

from __future__ import annotations

from typing import Any

from segdet.data.sample import Batch, Prediction
from segdet.metrics.base import Scores
from segdet.metrics.detection import DetectionScores
from segdet.nn.boxes import to_original
from segdet.task import Stage, Task


class Detector(Task):
    """A network that finds boxes.

    A family's ``predict`` returns a `Prediction` for each image: boxes float32 ``[M, 4]`` xyxy in pixels of the
    images, scores ``[M]`` and labels ``[M]`` of 1..K, best first. Targets of ``losses`` hold neither crowds nor
    difficult objects, and may be empty.

    Args:
        category_ids: The dataset's own id of each class, which results files are written with; linked
            from the data by the command. 1..K when null.
        kwargs: As for `Task`.
    """

    task = "detection"
    monitor = "val/map"

    def __init__(self, class_names: list[str], category_ids: list[int] | None = None, **kwargs: Any) -> None:
        self.category_ids = category_ids or list(range(1, len(class_names) + 1))
        super().__init__(class_names, **kwargs)

    def build_scores(self) -> Scores:
        return DetectionScores(self.class_names, self.category_ids)

    def map_back(
        self, answer: list[Prediction], originals: list[tuple[int, int]], size: tuple[int, int]
    ) -> list[Prediction]:
        return [
            Prediction(
                boxes=to_original(prediction["boxes"].float(), size, original),
                scores=prediction["scores"].float(),
                labels=prediction["labels"],
            )
            for prediction, original in zip(answer, originals, strict=True)
        ]

    def score(
        self, scores: Scores, predictions: list[Prediction], batch: Batch, positions: list[int]
    ) -> None:
        assert batch.originals is not None
        scores.update(
            predictions,
            [batch.originals[position] for position in positions],
            [batch.sources[position].image_id for position in positions],
        )


def detections_stage(final: Prediction) -> Stage:
    """The last stage of a family whose last step is non-maximum suppression."""
    return Stage("detections", boxes=final["boxes"], scores=final["scores"], about="What suppression leaves.")
