"""Scores of detectors that classify region proposals: detection scores and the recall of the proposals."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from segdet.data.sample import Prediction, Target
from segdet.metrics.detection import DetectionScores

_IOUS = (0.5, 0.7)


class RegionScores(DetectionScores):
    """`DetectionScores` and the recall of the classified proposals.

    ``compute`` also returns

    - ``proposal_recall_50``, ``proposal_recall_70``: the fraction of objects, without crowds and difficult ones, that
      a proposal overlaps with an IoU of at least .5 or .7 (Hosang et al., PAMI 2016, section 4). They bound the recall
      of a detector without box regression;
    - ``proposals``: the mean number of proposals per image.

    The arguments are those of `DetectionScores`.

    Attributes:
        coverage: int64 ``[5]``: images, proposals, objects, and objects covered at each IoU.
    """

    coverage: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_state("coverage", torch.zeros(3 + len(_IOUS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(  # type: ignore[override]
        self,
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        image_ids: Sequence[int],
        proposals: Sequence[Tensor],
        proposal_targets: Sequence[Target] | None = None,
    ) -> None:
        """Add a batch; see `DetectionScores.update`.

        Args:
            proposals: One float32 ``[P, 4]`` per image, xyxy.
            proposal_targets: The targets in the pixels of the proposals, if these are not the original images' pixels.

        Raises:
            ValueError: If the numbers of images differ.
        """
        proposal_targets = targets if proposal_targets is None else proposal_targets
        if not len(proposals) == len(proposal_targets) == len(predictions):
            raise ValueError(
                f"{len(predictions)} predictions, proposals of {len(proposals)} images and {len(proposal_targets)} "
                "targets for them; give one of each per image"
            )
        super().update(predictions, targets, image_ids)
        for boxes, target in zip(proposals, proposal_targets, strict=True):
            objects = _scored_boxes(target)
            best = box_iou(objects, boxes).amax(1) if len(boxes) else objects.new_zeros(len(objects))
            self.coverage[0] += 1
            self.coverage[1] += len(boxes)
            self.coverage[2] += len(objects)
            for index, iou in enumerate(_IOUS, 3):
                self.coverage[index] += (best >= iou).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the scores listed above and those of `DetectionScores`, over all processes."""
        images, proposals, objects, *covered = self.coverage.tolist()
        scores = {
            f"proposal_recall_{100 * iou:.0f}": count / objects if objects else float("nan")
            for iou, count in zip(_IOUS, covered, strict=True)
        }
        scores["proposals"] = proposals / images if images else float("nan")
        return super().compute() | self.to_tensors(scores)


def _scored_boxes(target: Target) -> Tensor:
    """Return the boxes of a target without crowds and difficult objects."""
    boxes = target["boxes"]
    none = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    return boxes[~(target.get("iscrowd", none).bool() | target.get("difficult", none).bool())]
