"""The batch size as an attribute of the data module, as Lightning's BatchSizeFinder sets it."""

from collections.abc import Mapping
from typing import Any

from segdet.data.dataset import TaskDataset


class SettableBatchSize:
    """A data module whose batch size can be changed between epochs."""

    _datasets: Mapping[Any, TaskDataset]
    _batch_size: int

    @property
    def batch_size(self) -> int:
        """Images per training step on each device.

        Once the training images are known, the batch size is limited to their number. In a small dataset, Lightning's
        BatchSizeFinder therefore ends at this number.
        """
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        training = self._datasets.get(("train", True))
        self._batch_size = size if training is None else min(size, len(training))
