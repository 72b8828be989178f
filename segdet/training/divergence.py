"""Detection of a training that diverged: its losses and weights are NaN or infinite."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from segdet.util.errors import UserError


class DivergedError(UserError):
    """The weights, or the state of the optimizer, are NaN or infinite."""


class LossHistory:
    """The step at which each part of the loss became NaN or infinite.

    The step numbers are kept on the device, so that training does not wait for them. A finite loss resets its number,
    because the gradient scaler of mixed precision skips single steps with overflowing values.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._first = torch.empty(0)

    def add(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Add the losses of the batch of ``step``, counted from 1."""
        finite = torch.stack([value.float() for value in losses.values()]).isfinite()
        if self._names != list(losses):
            self._names = list(losses)
            self._first = finite.new_full(finite.shape, -1, dtype=torch.long)
        self._first = torch.where(finite, -1, torch.where(self._first < 0, step, self._first))

    def __str__(self) -> str:
        """The first step of the current series of non-finite losses, and the parts that were not finite in it."""
        steps = dict(zip(self._names, self._first.tolist(), strict=True))
        start = min((step for step in steps.values() if step >= 0), default=None)
        if start is None:
            return "the losses are finite, but the weights are NaN or infinite"
        parts = [name for name, step in steps.items() if step == start]
        named = [name for name in parts if name != "loss"] or parts
        return f"{' and '.join(named)} became NaN or infinite at step {start}, and then the weights"


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor], *, allow_infinite: bool = False) -> bool:
    """Return whether no value is NaN or infinite, in one transfer from the device.

    Args:
        tensors: The tensors. Tensors of integers are skipped.
        allow_infinite: Whether infinite values are valid.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            alike[tensor.device, tensor.dtype].append(tensor)
    # The maximum norm of a tensor is NaN if a value is NaN, and infinite if a value is infinite.
    norms = [torch.stack(list(torch._foreach_norm(each, math.inf))) for each in alike.values()]
    return all(bool(not norm.isnan().any() if allow_infinite else norm.isfinite().all()) for norm in norms)


def check_weights(model: pl.LightningModule) -> None:
    """Check the weights. All processes of a run have the same weights, so all of them raise the error or none.

    Raises:
        DivergedError: If a weight is NaN or infinite.
    """
    if not all_finite(model.parameters()):
        raise _diverged(model)


def check_checkpoint(model: pl.LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Check the weights, their moving average and the state of the optimizers in a new checkpoint.

    All processes of the run call this. Buffers may differ between the processes and may contain infinite constants.

    Raises:
        DivergedError: In all processes, if a value is not finite in one of them.
    """
    parameters = {name for name, _ in model.named_parameters()}
    states = [checkpoint.get(key) or {} for key in ("state_dict", "current_model_state")]
    weights = [value for state in states for name, value in state.items() if name in parameters]
    buffers = [value for state in states for name, value in state.items() if name not in parameters]
    of_optimizers = [
        value
        for optimizer in checkpoint.get("optimizer_states", [])
        for state in optimizer["state"].values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    finite = all_finite(weights + of_optimizers) and all_finite(buffers, allow_infinite=True)
    if model._trainer is not None:
        finite = model._trainer.strategy.reduce_boolean_decision(finite)
    if not finite:
        raise _diverged(model)


def _diverged(model: pl.LightningModule) -> DivergedError:
    history = getattr(model, "loss_history", None)
    where = f" ({history})" if isinstance(history, LossHistory) else ""
    return DivergedError(
        f"the training diverged{where}; give a lower --model.optim.lr, a longer --model.optim.warmup_steps or "
        "--trainer.gradient_clip_val 1"
    )
