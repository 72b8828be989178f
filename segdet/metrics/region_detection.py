"""Scores of detectors that classify region proposals: detection scores and the recall of the proposals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from segdet.data.sample import Prediction, Target
from segdet.metrics.detection import DetectionScores

IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
"""The smallest IoU with a proposal at which an object is covered, one after the other."""

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
"""The numbers of proposals per image for which the recall is computed, besides all."""

_LOGGED = (0.5, 0.7)


@dataclass(frozen=True)
class ProposalRecall:
    """The recall of proposals by number of proposals per image and by IoU.

    Attributes:
        images: The number of images.
        objects: The number of objects, without crowds and difficult ones.
        proposals: The number of proposals.
        covered: int64 ``[len(COUNTS) + 1, len(IOUS)]``, the number of objects that one of the first proposals of their
            image overlaps; in the last row, one of all proposals.
    """

    images: int
    objects: int
    proposals: int
    covered: np.ndarray

    @property
    def per_image(self) -> float:
        """The mean number of proposals per image; NaN without an image."""
        return self.proposals / self.images if self.images else float("nan")

    @property
    def recall(self) -> np.ndarray:
        """float64: the fraction of the objects that is covered; NaN without an object."""
        return self.covered / self.objects if self.objects else np.full(self.covered.shape, np.nan)


class RegionScores(DetectionScores):
    """`DetectionScores` and the recall of the classified proposals.

    ``compute`` also returns

    - ``proposal_recall_50``, ``proposal_recall_70``: the fraction of objects, without crowds and difficult ones, that
      a proposal overlaps with an IoU of at least .5 or .7 (Hosang et al., PAMI 2016, section 4). They bound the recall
      of a detector without box regression;
    - ``proposals``: the mean number of proposals per image.

    The arguments are those of `DetectionScores`.

    Attributes:
        totals: int64 ``[3]``: images, objects and proposals.
        covered: See `ProposalRecall`.
    """

    totals: Tensor
    covered: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        covered = torch.zeros(len(COUNTS) + 1, len(IOUS), dtype=torch.int64)
        self.add_state("totals", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("covered", covered, dist_reduce_fx="sum")

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
            proposals: One float32 ``[P, 4]`` per image, xyxy, best first.
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
        objects = [_scored_boxes(target) for target in proposal_targets]
        totals = [len(proposals), sum(map(len, objects)), sum(map(len, proposals))]
        self.totals += torch.tensor(totals, device=self.totals.device)
        for boxes, truth in zip(proposals, objects, strict=True):
            if len(truth) and len(boxes):
                last = torch.tensor([min(count, len(boxes)) - 1 for count in COUNTS] + [len(boxes) - 1])
                best = box_iou(truth, boxes).cummax(1).values[:, last.to(boxes.device)]
                self.covered += (best[..., None] >= best.new_tensor(IOUS)).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores listed above and those of `DetectionScores`, over all processes."""
        recall = self._proposal_recall()
        scores = {f"proposal_recall_{100 * iou:.0f}": recall.recall[-1, IOUS.index(iou)] for iou in _LOGGED}
        scores["proposals"] = recall.per_image
        return super().compute() | self.to_tensors({name: float(value) for name, value in scores.items()})

    def proposal_recall(self) -> ProposalRecall:
        """Return the recall of the proposals, over all processes. All processes must call this method."""
        with self.sync_context():
            return self._proposal_recall()

    def _proposal_recall(self) -> ProposalRecall:
        images, objects, proposals = self.totals.tolist()
        return ProposalRecall(images, objects, proposals, self.covered.cpu().numpy().copy())


def _scored_boxes(target: Target) -> Tensor:
    """Return the boxes of a target without crowds and difficult objects."""
    boxes = target["boxes"]
    none = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    return boxes[~(target.get("iscrowd", none).bool() | target.get("difficult", none).bool())]
