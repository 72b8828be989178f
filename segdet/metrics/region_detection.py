"""Detection's scores, and beside them how much of the objects the region proposals let a detector find at all."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from segdet.data.sample import Prediction, Target
from segdet.metrics.detection import DetectionScores

_OVERLAPS = (0.5, 0.7)


class RegionScores(DetectionScores):
    """`DetectionScores`, and of the proposals that were classified

    - ``proposal_recall_50``, ``proposal_recall_70``: the share of the objects, crowds and difficult ones left out,
      that a proposal overlaps by an IoU of at least so much: without box regression no detector finds more;
    - ``proposals``: how many an image has.

    Args:
        args: As for `DetectionScores`.
        kwargs: As for `DetectionScores`.
    """

    covered: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Images, proposals, objects, and those of the objects that are covered at each overlap.
        self.add_state("covered", torch.zeros(3 + len(_OVERLAPS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(  # type: ignore[override]
        self,
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        image_ids: Sequence[int],
        proposals: Sequence[Tensor],
        covered: Sequence[Target] | None = None,
    ) -> None:
        """As `DetectionScores.update`.

        Args:
            predictions: See there.
            targets: See there.
            image_ids: See there.
            proposals: Of each image float32 ``[P, 4]``.
            covered: The targets in the pixels of the proposals, if these are others than the original images'.

        Raises:
            ValueError: If the numbers of images differ.
        """
        covered = targets if covered is None else covered
        if not len(proposals) == len(covered) == len(predictions):
            raise ValueError(
                f"{len(predictions)} predictions, proposals of {len(proposals)} images and {len(covered)} targets "
                "for them; give one of each per image"
            )
        super().update(predictions, targets, image_ids)
        for boxes, target in zip(proposals, covered, strict=True):
            wanted = _ordinary(target)
            best = box_iou(wanted, boxes).amax(1) if len(boxes) else wanted.new_zeros(len(wanted))
            self.covered[0] += 1
            self.covered[1] += len(boxes)
            self.covered[2] += len(wanted)
            for place, overlap in enumerate(_OVERLAPS, 3):
                self.covered[place] += (best >= overlap).sum()

    def compute(self) -> dict[str, Tensor]:
        """See the class."""
        images, proposals, objects, *found = self.covered.tolist()
        scores = {
            f"proposal_recall_{100 * overlap:.0f}": count / objects if objects else float("nan")
            for overlap, count in zip(_OVERLAPS, found, strict=True)
        }
        scores["proposals"] = proposals / images if images else float("nan")
        return super().compute() | self.numbers(scores)


def _ordinary(target: Target) -> Tensor:
    """The boxes of a target that are neither crowds nor difficult."""
    boxes = target["boxes"]
    aside = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for name in ("iscrowd", "difficult"):
        if name in target:
            aside |= target[name].bool()
    return boxes[~aside]
