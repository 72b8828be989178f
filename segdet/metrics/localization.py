"""Scores of classification with localization: one object per image, with a class and a box."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segdet.data.sample import Prediction, Target
from segdet.metrics.base import Scores
from segdet.nn.boxes import paired_iou

GUESSES = 5
"""The number of predictions per image in ILSVRC's localization task."""

_UNIT = 2.0**-40
"""Sums of IoU are kept in integer multiples of this unit, so that they do not depend on the order of summation."""


class LocalizationScores(Scores):
    """Accuracy of the class, and of the class together with the box.

    ``compute`` returns

    - ``top1``: the fraction of images whose first prediction has the correct class;
    - ``loc_acc``: the fraction of images whose first prediction has the correct class and a box of IoU >= .5
      (ILSVRC's localization criterion with one prediction);
    - ``loc_error_top5``: the fraction of images for which none of the first five predictions has both the correct class
      and a box of IoU >= .5 (ILSVRC's localization error, Russakovsky et al., IJCV 2015, section 4.2);
    - ``box_iou``: the mean IoU of the first prediction's box, of any class. The IoU equals that of
      ``torchvision.ops.box_iou``.

    Args:
        class_names: The names of the classes, label 1 first.
    """

    images: Tensor
    correct: Tensor
    located: Tensor
    located_top5: Tensor
    iou: Tensor

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = list(class_names)
        for state in ("images", "correct", "located", "located_top5", "iou"):
            self.add_state(state, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> None:
        """Add a batch.

        Args:
            predictions: One per image, in descending order of score, with at least one box: ``boxes`` float ``[M, 4]``
                xyxy in pixels of the original image, ``labels`` int64 ``[M]``.
            targets: One per image, with one object each: ``boxes`` ``[1, 4]``, ``labels`` ``[1]``.

        Raises:
            ValueError: If an image has no prediction, or its target is not one object.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"{len(predictions)} predictions, but {len(targets)} targets")
        if not predictions:
            return
        for prediction, target in zip(predictions, targets, strict=True):
            if not len(prediction["labels"]):
                raise ValueError("a prediction without a box; localization needs at least one per image")
            if len(target["labels"]) != 1:
                raise ValueError(
                    f"a target of {len(target['labels'])} objects; localization needs exactly one per image"
                )
        boxes = torch.stack([prediction["boxes"][0] for prediction in predictions]).to(self.float_dtype)
        labels = torch.stack([prediction["labels"][0] for prediction in predictions])
        true_boxes = torch.cat([target["boxes"] for target in targets]).to(self.float_dtype)
        true_labels = torch.cat([target["labels"] for target in targets])
        correct = labels == true_labels
        iou = paired_iou(boxes, true_boxes).nan_to_num(nan=0.0)
        self.images += len(predictions)
        self.correct += correct.sum()
        self.located += (correct & (iou >= 0.5)).sum()
        self.iou += (iou / _UNIT).round().long().sum()
        self.located_top5 += self._count_located_top5(predictions, true_labels, true_boxes)

    def _count_located_top5(
        self, predictions: Sequence[Prediction], true_labels: Tensor, true_boxes: Tensor
    ) -> Tensor:
        """Return the number of images where one of the first five predictions has the class and the box."""
        boxes = torch.cat([prediction["boxes"][:GUESSES] for prediction in predictions]).to(self.float_dtype)
        labels = torch.cat([prediction["labels"][:GUESSES] for prediction in predictions])
        counts = torch.tensor([len(prediction["labels"][:GUESSES]) for prediction in predictions])
        image = torch.arange(len(predictions)).repeat_interleave(counts).to(labels.device)
        located = (labels == true_labels[image]) & (paired_iou(boxes, true_boxes[image]) >= 0.5)
        return torch.zeros_like(true_labels).scatter_reduce(0, image, located.long(), "amax").sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the scores listed above, over all processes."""
        images = self.images.to(self.float_dtype)
        return {
            "top1": self.correct.to(self.float_dtype) / images,
            "loc_acc": self.located.to(self.float_dtype) / images,
            "loc_error_top5": 1 - self.located_top5.to(self.float_dtype) / images,
            "box_iou": self.iou.to(self.float_dtype) * _UNIT / images,
        }
