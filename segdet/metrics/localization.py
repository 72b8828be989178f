"""Scores of classification with localization: one object an image, its class and its box."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segdet.data.sample import Prediction, Target
from segdet.metrics.base import Scores

GUESSES = 5
"""How many guesses an image has in ILSVRC's localization task."""

_UNIT = 2.0**-40
"""What overlaps are counted in: a sum of integers is the same in any order and over any processes."""


def _paired_iou(one: Tensor, other: Tensor) -> Tensor:
    """The IoU of box ``one[i]`` with ``other[i]``: ``[N]``; 0 where a box is NaN or both are empty."""
    sides = torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])
    common = sides.clamp(min=0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) for boxes in (one, other)]
    return (common / (areas[0] + areas[1] - common)).nan_to_num(nan=0.0)


class LocalizationScores(Scores):
    """How often the class is right, and the box with it.

    ``compute`` gives

    - ``top1``: the share of images whose best prediction has the right class;
    - ``loc_acc``: the share whose best prediction has the right class and a box of IoU >= .5
      (ILSVRC's localization criterion with one guess);
    - ``loc_error_top5``: the share of images none of whose first five predictions has the right class together with
      a box of IoU >= .5 (ILSVRC's localization error, Russakovsky et al., IJCV 2015, section 4.2);
    - ``box_iou``: the mean IoU of the best prediction's box, whatever its class.

    Args:
        class_names: The names of the classes, label 1 first.
    """

    images: Tensor
    right: Tensor
    located: Tensor
    guessed: Tensor
    overlap: Tensor

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = list(class_names)
        for state in ("images", "right", "located", "guessed", "overlap"):
            self.add_state(state, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> None:
        """Count a batch.

        Args:
            predictions: One per image, best first, with at least one box: ``boxes`` float ``[M, 4]`` in
                the pixels of the original image, ``labels`` int64 ``[M]``.
            targets: One per image, of one object each: ``boxes`` ``[1, 4]``, ``labels`` ``[1]``.

        Raises:
            ValueError: If an image has no prediction or its target is not one object.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"{len(predictions)} predictions, but {len(targets)} targets")
        if not predictions:
            return
        for prediction, target in zip(predictions, targets, strict=True):
            if not len(prediction["labels"]):
                raise ValueError("a prediction without a box; localization always answers with one")
            if len(target["labels"]) != 1:
                raise ValueError(
                    f"a target of {len(target['labels'])} objects; localization has one an image"
                )
        found = torch.stack([prediction["boxes"][0] for prediction in predictions]).to(self.precise)
        truth = torch.cat([target["boxes"] for target in targets]).to(self.precise)
        labels = torch.stack([prediction["labels"][0] for prediction in predictions])
        right = labels == torch.cat([target["labels"] for target in targets])
        overlap = _paired_iou(found, truth)
        self.images += len(predictions)
        self.right += right.sum()
        self.located += (right & (overlap >= 0.5)).sum()
        self.overlap += (overlap / _UNIT).round().long().sum()
        self.guessed += self._guessed(predictions, torch.cat([target["labels"] for target in targets]), truth)

    def _guessed(self, predictions: Sequence[Prediction], labels: Tensor, truth: Tensor) -> Tensor:
        """Of how many images some guess has the class and the box."""
        boxes = torch.cat([prediction["boxes"][:GUESSES] for prediction in predictions]).to(self.precise)
        guesses = torch.cat([prediction["labels"][:GUESSES] for prediction in predictions])
        image = torch.arange(len(predictions)).repeat_interleave(
            torch.tensor([len(prediction["labels"][:GUESSES]) for prediction in predictions])
        )
        image = image.to(guesses.device)
        right = (guesses == labels[image]) & (_paired_iou(boxes, truth[image]) >= 0.5)
        return torch.zeros_like(labels).scatter_reduce(0, image, right.long(), "amax").sum()

    def compute(self) -> dict[str, Tensor]:
        """The scores so far, of all processes: see the class."""
        images = self.images.to(self.precise)
        return {
            "top1": self.right.to(self.precise) / images,
            "loc_acc": self.located.to(self.precise) / images,
            "loc_error_top5": 1 - self.guessed.to(self.precise) / images,
            "box_iou": self.overlap.to(self.precise) * _UNIT / images,
        }
