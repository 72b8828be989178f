"""What all our scores share: states that survive any number of processes, and named numbers as the result."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Scores(Metric):
    """A set of scores over a whole dataset: ``update`` per batch, ``compute`` gives ``{name: float tensor}``.

    The states of several processes are gathered once, in ``compute``; a process may have seen nothing at
    all, and so may all of them, in which case every score is NaN. Scores whose value is undefined (a class
    without any object) are NaN too, never 0 or -1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    @property
    def update_called(self) -> bool:
        """True even before the first update: a process without a sample is no cause for a warning."""
        return True

    @property
    def precise(self) -> torch.dtype:
        """The widest float of the device: float64, but float32 where there is none (Apple's GPUs)."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def empty(self, state: str) -> Tensor:
        """The list state ``state`` of a process that has seen nothing, as a tensor of its shape and dtype."""
        raise NotImplementedError(f"{type(self).__name__} has no list state {state}")

    def joined(self, state: str) -> Tensor:
        """The list state ``state`` as one tensor, which it is already once the processes were gathered."""
        value = getattr(self, state)
        if isinstance(value, Tensor):
            return value
        return torch.cat(value) if value else self.empty(state)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes, those that have no sample included."""
        for state, value in self._defaults.items():
            if isinstance(value, list) and not self._is_synced:
                # An empty list would be gathered as a one-dimensional float32 tensor, which fits no other
                # process's, so that it hangs or raises on all of them.
                setattr(self, state, [self.joined(state)])
        super().sync(*args, **kwargs)

    def numbers(self, scores: dict[str, float]) -> dict[str, Tensor]:
        """Plain numbers as tensors on the metric's device, as Lightning logs them."""
        return {
            name: torch.tensor(value, dtype=self.precise, device=self.device)
            for name, value in scores.items()
        }
