"""The base class of detection: all objects of an image, each with class and box."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from segdet.data.sample import Batch, Prediction, Target
from segdet.metrics.base import Scores
from segdet.metrics.detection import DetectionScores
from segdet.nn.boxes import Selection, mirror, select_detections, suppress, to_original
from segdet.task import Stage, Task, View
from segdet.training.multi_scale import at_scale
from segdet.util.errors import UserError, check_range


class Detector(Task):
    """A network that detects boxes.

    A family's `predict` returns a `Prediction` for each image: boxes float32 ``[M, 4]`` xyxy in pixels of the images,
    scores ``[M]`` and labels ``[M]``, 1..K, best first. The targets of `losses` do not contain crowds or difficult
    objects, and may be empty.

    Args:
        score_threshold: Detections must exceed this score.
        nms_threshold: A box is removed if its IoU with a box of higher score and the same class exceeds this.
        detections_per_image: The maximum number of detections per image; null for no limit.
        category_ids: The dataset's ids of the classes, for results files; null for 1..K. The command line reads them
            from the data.
        class_agnostic_nms: Whether a box also suppresses boxes of other classes.
        tta_flip: Whether to merge the detections of each image and its mirror image.
        tta_scales: The scales for test-time augmentation; the detections of all scales are merged.
        tta_nms_threshold: The IoU threshold of the suppression that merges the views; null for the larger of
            ``nms_threshold`` and 0.5.
        kwargs: See `Task`.

    Attributes:
        detections_per_class: The maximum number of boxes per class before suppression; None for no limit.
        uses_scale: Whether `losses` and `predict` take the ``scale`` of a `View`.
    """

    task = "detection"
    monitor = "val/map"
    uses_scale: ClassVar[bool] = False
    detections_per_class: int | None = None

    def __init__(
        self,
        class_names: list[str],
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int | None = 100,
        category_ids: list[int] | None = None,
        class_agnostic_nms: bool = False,
        tta_flip: bool = False,
        tta_scales: list[float] = [1.0],  # noqa: B006  read only; jsonargparse shows it as the default
        tta_nms_threshold: float | None = None,
        **kwargs: Any,
    ) -> None:
        if category_ids and len(category_ids) != len(class_names):
            raise UserError(
                f"category_ids: {len(category_ids)} ids for {len(class_names)} class_names; give one id per class"
            )
        self.category_ids = category_ids or list(range(1, len(class_names) + 1))
        super().__init__(class_names, **kwargs)
        check_range("--model.tta_scales", tta_scales, above=0)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.class_agnostic_nms = class_agnostic_nms
        self.tta_flip = tta_flip
        self.tta_scales = list(tta_scales)
        self.tta_nms_threshold = tta_nms_threshold

    @property
    def several_views(self) -> bool:
        """Whether each image is predicted more than once."""
        return self.tta_flip or len(self.tta_scales) > 1

    @property
    def selection(self) -> Selection:
        """The thresholds and limits of suppression."""
        return Selection(
            self.score_threshold,
            self.nms_threshold,
            self.detections_per_class,
            self.detections_per_image,
            self.class_agnostic_nms,
        )

    def select(
        self, boxes: Iterable[Tensor], scores: Iterable[Tensor], size: tuple[int, int]
    ) -> list[Prediction]:
        """Select the detections of each image of a batch, see `select_detections`."""
        return [select_detections(b, s, size, self.selection) for b, s in zip(boxes, scores, strict=True)]

    def loss_inputs(self, view: View) -> dict[str, Any]:
        return {"scale": view.scale} if self.uses_scale else {}

    def predict_inputs(self, targets: list[Target], view: View) -> dict[str, Any]:
        return {"scale": view.scale} if self.uses_scale else {}

    def predict_views(self, images: Tensor, targets: list[Target]) -> list[Prediction]:
        """Return the detections in normalized images. Test-time augmentation merges those of all views of an image."""
        if not self.several_views and self.tta_scales == [1.0]:
            found: list[Prediction] = super().predict_views(images, targets)
            return found
        views = [view for scale in self.tta_scales for view in self._views(images, targets, scale)]
        if not self.several_views:
            return views[0]
        return [self._merged(of_image) for of_image in zip(*views, strict=True)]

    def _views(self, images: Tensor, targets: list[Target], scale: float) -> Iterator[list[Prediction]]:
        """Yield the detections in the rescaled images and in their mirror images, in pixels of ``images``."""
        size = (images.shape[2], images.shape[3])
        images = at_scale(images, scale)
        scaled = (images.shape[2], images.shape[3])
        view = View([scaled] * len(images), (scaled[0] / size[0], scaled[1] / size[1]))
        for mirrored in (False, True) if self.tta_flip else (False,):
            seen = [_target_of_view(target, size, scaled, mirrored) for target in targets]
            inputs = self.predict_inputs(seen, view)
            found = self.predict(images.flip(3) if mirrored else images, **inputs)
            for each in found:  # masks are relative to boxes and stay unchanged
                each["boxes"] = to_original(each["boxes"], scaled, size)
            yield [_mirrored(each, size[1]) for each in found] if mirrored else found

    def _merged(self, views: Sequence[Prediction]) -> Prediction:
        """Merge the detections of several views of one image."""
        threshold = self.tta_nms_threshold
        if threshold is None:
            # An object's boxes differ more between views than within one view. On BCCD's blood cells, merging the views
            # of SSD with its own threshold of 0.45 lowered map_50 by 0.002.
            threshold = max(0.5, self.nms_threshold)
        every: Any = {key: torch.cat([view[key] for view in views]) for key in views[0]}  # type: ignore[literal-required]
        boxes, scores = every["boxes"].float(), every["scores"].float()
        kept = suppress(boxes, scores, every["labels"], threshold, self.class_agnostic_nms)
        kept = kept[: self.detections_per_image]
        merged: Prediction = {key: value[kept] for key, value in every.items()}  # type: ignore[assignment]
        return merged

    def build_scores(self) -> Scores:
        return DetectionScores(self.class_names)

    def postprocess(
        self, output: list[Prediction], original_sizes: list[tuple[int, int]], size: tuple[int, int]
    ) -> list[Prediction]:
        return [
            Prediction(
                boxes=to_original(prediction["boxes"].float(), size, original),
                scores=prediction["scores"].float(),
                labels=prediction["labels"],
            )
            for prediction, original in zip(output, original_sizes, strict=True)
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


def _target_of_view(target: Target, size: tuple[int, int], scaled: tuple[int, int], mirrored: bool) -> Target:
    """Map the region proposals of a target, if any, to a view: resized from ``size`` to ``scaled``, maybe mirrored."""
    if "proposals" not in target:
        return Target()
    boxes = to_original(target["proposals"], size, scaled)
    return Target(proposals=mirror(boxes, scaled[1]) if mirrored else boxes)


def _mirrored(found: Prediction, width: int) -> Prediction:
    """Mirror detections in an image of ``width`` pixels."""
    mirrored = Prediction(**{**found, "boxes": mirror(found["boxes"], width)})
    if "masks" in found:
        mirrored["masks"] = found["masks"].flip(-1)
    return mirrored


def best_boxes_stage(name: str, boxes: Tensor, scores: Tensor, caption: str, count: int = 100) -> Stage:
    """Return a stage with the ``count`` boxes of highest score. Boxes are ``[N, 4]``, scores ``[N]``."""
    best = scores.topk(min(count, len(scores))).indices
    return Stage(name, boxes=boxes[best], scores=scores[best], caption=caption)


def detections_stage(final: Prediction, caption: str = "Detections after suppression.") -> Stage:
    """Return the last stage of a family."""
    return Stage("detections", boxes=final["boxes"], scores=final["scores"], caption=caption)
