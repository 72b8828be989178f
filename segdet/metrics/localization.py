"""Scores of classification with localization: one object per image, with a class and a box."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

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
    image_labels: list[Tensor]
    image_boxes: list[Tensor]

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = list(class_names)
        for state in ("images", "correct", "located", "located_top5", "iou"):
            self.add_state(state, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.keeps_images = False

    def keep_images(self) -> None:
        """Keep the predictions and the object of each image from the next update on.

        The state ``image_labels`` has rows int64 ``[., 8]``: the id of the image, the true class, the first five
        predicted classes (0 where there are fewer), and whether one of them has the correct class and box. The state
        ``image_boxes`` has rows ``[., 10]``: the IoU, the box and the score of the first prediction, and the object's
        box.
        """
        if not self.keeps_images:
            self.keeps_images = True
            self.add_state("image_labels", [], dist_reduce_fx="cat")
            self.add_state("image_boxes", [], dist_reduce_fx="cat")

    def empty_state(self, state: str) -> Tensor:
        """Return an empty tensor with the columns and dtype of ``state``."""
        if state == "image_labels":
            return torch.zeros(0, 3 + GUESSES, dtype=torch.int64, device=self.device)
        return torch.zeros(0, 10, dtype=self.float_dtype, device=self.device)

    def update(
        self,
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        image_ids: Sequence[int] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            predictions: One per image, in descending order of score, with at least one box: ``boxes`` float ``[M, 4]``
                xyxy in pixels of the original image, ``labels`` int64 ``[M]``.
            targets: One per image, with one object each: ``boxes`` ``[1, 4]``, ``labels`` ``[1]``.
            image_ids: One per image, after `keep_images`. Predictions then need ``scores`` ``[M]`` too.

        Raises:
            ValueError: If an image has no prediction, its target is not one object, or ``image_ids`` are missing.
        """
        if self.keeps_images and image_ids is None:
            raise ValueError("image_ids are missing; give one per image after keep_images")
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
        located_top5 = self._located_top5(predictions, true_labels, true_boxes)
        self.located_top5 += located_top5.sum()
        if image_ids is not None and self.keeps_images:
            ids = torch.tensor(list(image_ids), device=true_labels.device)
            guesses = [prediction["labels"][:GUESSES] for prediction in predictions]
            padded = torch.stack([pad(each, (0, GUESSES - len(each))) for each in guesses])
            rows = [ids[:, None], true_labels[:, None], padded, located_top5[:, None]]
            self.image_labels.append(torch.cat(rows, 1).to(self.device))
            scores = torch.stack([prediction["scores"][0] for prediction in predictions]).to(self.float_dtype)
            self.image_boxes.append(
                torch.cat([iou[:, None], boxes, scores[:, None], true_boxes], 1).to(self.device)
            )

    def _located_top5(
        self, predictions: Sequence[Prediction], true_labels: Tensor, true_boxes: Tensor
    ) -> Tensor:
        """Return 1 for images where one of the first five predictions has the class and the box: int64 ``[B]``."""
        boxes = torch.cat([prediction["boxes"][:GUESSES] for prediction in predictions]).to(self.float_dtype)
        labels = torch.cat([prediction["labels"][:GUESSES] for prediction in predictions])
        counts = torch.tensor([len(prediction["labels"][:GUESSES]) for prediction in predictions])
        image = torch.arange(len(predictions)).repeat_interleave(counts).to(labels.device)
        located = (labels == true_labels[image]) & (paired_iou(boxes, true_boxes[image]) >= 0.5)
        return torch.zeros_like(true_labels).scatter_reduce(0, image, located.long(), "amax")

    def compute(self) -> dict[str, Tensor]:
        """Return the scores listed above, over all processes."""
        images = self.images.to(self.float_dtype)
        return {
            "top1": self.correct.to(self.float_dtype) / images,
            "loc_acc": self.located.to(self.float_dtype) / images,
            "loc_error_top5": 1 - self.located_top5.to(self.float_dtype) / images,
            "box_iou": self.iou.to(self.float_dtype) * _UNIT / images,
        }
