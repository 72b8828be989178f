"""Detection's scores, and beside them how much of the objects the region proposals let a detector find at all."""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

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

    def cover(self, proposals: Tensor, objects: Tensor) -> None:
        """Counts an image: its proposals ``[P, 4]`` and its objects ``[G, 4]``; to be called before ``update``."""
        best = box_iou(objects, proposals).amax(1) if len(proposals) else objects.new_zeros(len(objects))
        self.covered[0] += 1
        self.covered[1] += len(proposals)
        self.covered[2] += len(objects)
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
