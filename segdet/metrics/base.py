"""The base class of all scores: states that can be gathered from any number of processes, and named results."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Scores(Metric):
    """Scores of a whole dataset: ``update`` takes a batch, ``compute`` returns ``{name: float tensor}``.

    ``compute`` gathers the states of all processes once. Processes without a sample are valid. Undefined scores,
    such as the AP of a class without an object, are NaN, never 0 or -1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    @property
    def update_called(self) -> bool:
        """True even before the first update, so that a process without a sample causes no warning."""
        return True

    @property
    def float_dtype(self) -> torch.dtype:
        """The widest float type of the device: float64, or float32 on Apple's GPUs, which have no float64."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def keep_images(self) -> None:
        """Keep the counts of each image from the next update on. Metrics that need them for `compute` always do."""

    def empty_state(self, state: str) -> Tensor:
        """Return an empty tensor with the shape and dtype of the list state ``state``."""
        raise NotImplementedError(f"{type(self).__name__} has no list state {state}")

    def concatenated_state(self, state: str) -> Tensor:
        """Return the list state ``state`` as one tensor, before or after the states of all processes are gathered."""
        value = getattr(self, state)
        if isinstance(value, Tensor):
            return value
        return torch.cat(value) if value else self.empty_state(state)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes, including those without a sample."""
        for state, value in self._defaults.items():
            if isinstance(value, list) and not self._is_synced:
                # torchmetrics gathers an empty list as a one-dimensional float32 tensor. The shapes of the processes
                # then differ, which makes all of them hang or raise.
                setattr(self, state, [self.concatenated_state(state)])
        super().sync(*args, **kwargs)

    def to_tensors(self, scores: dict[str, float]) -> dict[str, Tensor]:
        """Return the numbers as tensors on the metric's device, as Lightning logs them."""
        return {
            name: torch.tensor(value, dtype=self.float_dtype, device=self.device)
            for name, value in scores.items()
        }
