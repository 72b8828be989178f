"""How well proposals cover the objects of a dataset: recall and mean average best overlap, by number of boxes.

Sources: Uijlings et al., Selective Search (IJCV 2013), section 5 (ABO and MABO); Hosang et al., What makes for
effective detection proposals? (PAMI 2016), section 4 (recall by overlap and by number of proposals).
"""

from collections.abc import Sequence

import numpy as np


def best_overlaps(boxes: np.ndarray, objects: np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The IoU of each object with the best of the first so many boxes.

    Args:
        boxes: float ``[N, 4]``, xyxy, best first.
        objects: float ``[G, 4]``, xyxy, of some area.
        counts: ``[K]``, 1 or more each; where there are fewer boxes, all of them are meant.

    Returns:
        float64 ``[G, K]``; 0 where there is no box.
    """
    if not len(boxes) or not len(objects):
        return np.zeros((len(objects), len(counts)))
    boxes, objects = boxes.astype(np.float64), objects.astype(np.float64)
    low = np.maximum(objects[:, None, :2], boxes[None, :, :2])
    high = np.minimum(objects[:, None, 2:], boxes[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (objects, boxes)]
    iou = common / (areas[0][:, None] + areas[1][None] - common)
    return np.maximum.accumulate(iou, axis=1)[:, np.minimum(counts, len(boxes)) - 1]


class ProposalScores:
    """Recall and MABO of proposals over the images of a dataset, for several numbers of boxes an image.

    What counts as an object is for the caller to say: crowds and difficult objects are usually left out.

    Args:
        counts: The numbers of boxes ``[K]``, 1 or more each.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray) -> None:
        self.counts = np.asarray(counts, np.int64)
        if not len(self.counts) or self.counts.min() < 1:
            raise ValueError(f"numbers of boxes {self.counts.tolist()}: must be 1 or more")
        self.images = 0
        self.proposals = 0
        self._best: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, boxes: np.ndarray, objects: np.ndarray, labels: np.ndarray) -> None:
        """Counts an image: its proposals ``[N, 4]`` best first, its objects ``[G, 4]`` and their labels ``[G]``."""
        self.images += 1
        self.proposals += len(boxes)
        self._best.append(best_overlaps(boxes, objects, self.counts))
        self._labels.append(np.asarray(labels, np.int64))

    @property
    def boxes_per_image(self) -> float:
        """The mean number of proposals; NaN without an image."""
        return self.proposals / self.images if self.images else float("nan")

    @property
    def best(self) -> np.ndarray:
        """The best overlap of each object so far, by number of boxes: float64 ``[G, K]``."""
        return np.concatenate([np.zeros((0, len(self.counts))), *self._best])

    @property
    def labels(self) -> np.ndarray:
        """The objects' labels: int64 ``[G]``."""
        return np.concatenate([np.zeros(0, np.int64), *self._labels])

    def recall(self, threshold: float) -> np.ndarray:
        """The share of all objects that a box overlaps by ``threshold`` or more: ``[K]``, NaN without an object."""
        best = self.best
        return (best >= threshold).mean(0) if len(best) else np.full(len(self.counts), np.nan)

    def abo(self) -> dict[int, np.ndarray]:
        """The average best overlap of each label that occurs: ``[K]``."""
        best, labels = self.best, self.labels
        return {int(label): best[labels == label].mean(0) for label in np.unique(labels)}

    def mabo(self) -> np.ndarray:
        """The mean of the classes' average best overlap: ``[K]``, NaN without an object."""
        each = list(self.abo().values())
        return np.mean(each, axis=0) if each else np.full(len(self.counts), np.nan)
