"""Coverage of objects by region proposals: recall and mean average best overlap, by number of boxes.

Sources: Uijlings et al., Selective Search (IJCV 2013), section 5 (ABO and MABO); Hosang et al., What makes for
effective detection proposals? (PAMI 2016), section 4 (recall by IoU and by number of proposals).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import box_iou


def best_overlaps(boxes: np.ndarray, objects: np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the largest IoU of each object with the first ``k`` boxes, for each ``k`` in ``counts``.

    Args:
        boxes: float ``[N, 4]``, xyxy, best first.
        objects: float ``[G, 4]``, xyxy, with positive areas.
        counts: ``[K]``, at least 1 each. A count above ``N`` selects all boxes.

    Returns:
        float64 ``[G, K]``; 0 where there is no box.
    """
    if not len(boxes) or not len(objects):
        return np.zeros((len(objects), len(counts)))
    truth, proposed = (torch.from_numpy(each.astype(np.float64)) for each in (objects, boxes))
    iou = box_iou(truth, proposed).numpy()
    return np.maximum.accumulate(iou, axis=1)[:, np.minimum(counts, len(boxes)) - 1]


class ProposalScores:
    """Recall and MABO of proposals over the images of a dataset, for several numbers of boxes per image.

    The caller selects the objects; crowds and difficult objects are usually left out.

    Args:
        counts: The numbers of boxes per image ``[K]``, at least 1 each.

    Attributes:
        images: The number of images.
        proposals: The number of proposals.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray) -> None:
        self.counts = np.asarray(counts, np.int64)
        if not len(self.counts) or self.counts.min() < 1:
            raise ValueError(f"numbers of boxes {self.counts.tolist()}: must be 1 or more")
        self.images = 0
        self.proposals = 0
        self._best: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def update(self, boxes: np.ndarray, objects: np.ndarray, labels: np.ndarray) -> None:
        """Add an image: its proposals ``[N, 4]``, best first, its objects ``[G, 4]`` and their labels ``[G]``."""
        self.images += 1
        self.proposals += len(boxes)
        self._best.append(best_overlaps(boxes, objects, self.counts))
        self._labels.append(np.asarray(labels, np.int64))

    @property
    def boxes_per_image(self) -> float:
        """The mean number of proposals per image; NaN without an image."""
        return self.proposals / self.images if self.images else float("nan")

    @property
    def best(self) -> np.ndarray:
        """The best overlap of each object, by number of boxes: float64 ``[G, K]``."""
        return np.concatenate([np.zeros((0, len(self.counts))), *self._best])

    @property
    def labels(self) -> np.ndarray:
        """The labels of the objects: int64 ``[G]``."""
        return np.concatenate([np.zeros(0, np.int64), *self._labels])

    def recall(self, threshold: float) -> np.ndarray:
        """Return the fraction of objects with a best overlap >= ``threshold``: ``[K]``, NaN without an object."""
        best = self.best
        return (best >= threshold).mean(0) if len(best) else np.full(len(self.counts), np.nan)

    def abo(self) -> dict[int, np.ndarray]:
        """Return the average best overlap of each label that occurs: ``[K]`` each."""
        best, labels = self.best, self.labels
        return {int(label): best[labels == label].mean(0) for label in np.unique(labels)}

    def mabo(self) -> np.ndarray:
        """Return the mean over classes of the average best overlap: ``[K]``, NaN without an object."""
        by_class = list(self.abo().values())
        return np.mean(by_class, axis=0) if by_class else np.full(len(self.counts), np.nan)
