"""Find the operations of a training step for which a GPU would wait, on any device."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import segdet

PACKAGE = Path(segdet.__file__).parent

WAITING = {
    "aten._local_scalar_dense": "item",
    "aten.is_nonzero": "bool",
    "aten.equal": "equal",
    "aten.nonzero": "nonzero",
    "aten.masked_select": "masked_select",
    "aten._unique2": "unique",
    "aten.unique_dim": "unique",
    "aten.bincount": "bincount",
    "aten.repeat_interleave": "repeat_interleave",
    "torchvision.nms": "nms",
}
"""Operators whose result, or its size, the host needs."""


class HostSyncs(TorchDispatchMode):
    """Count the operations that make the host wait for a GPU, by operator and line of segdet.

    Copies between host and device are visible on a GPU only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rpartition(".")[0]
        waits = WAITING.get(name)
        if name == "aten.index" and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        ):
            waits = "boolean index"
        if name == "aten.index_put_" and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        ):
            waits = "boolean assignment"
        if waits and not (waits == "item" and _is_of_the_cpu()):
            self.found[f"{waits} in {_place()}"] += 1
        return func(*args, **(kwargs or {}))


def _is_of_the_cpu() -> bool:
    """Return whether the host reads a number only on a CPU: the step counts of optimizers, and the check of one_hot."""
    frames = traceback.extract_stack()[:-2]
    return any("torch/optim" in frame.filename for frame in frames) or "one_hot(" in (frames[-1].line or "")


def _place() -> str:
    """Return the innermost line of segdet in the current call, else of any file outside torch."""
    frames = traceback.extract_stack()[:-2]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    frame = own[-1] if own else frames[-1]
    path = Path(frame.filename)
    shown = path.relative_to(PACKAGE.parent) if own else Path(path.name)
    return f"{shown}:{frame.lineno} ({frame.name})"


class StepSyncs(pl.Callback):
    """Count the waits in the training steps from ``first`` on, from the start of a batch to its end."""

    def __init__(self, first: int = 1) -> None:
        self.first = first
        self.steps = 0
        self.mode = HostSyncs()

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step >= self.first:
            self.mode.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step > self.first:
            self.mode.__exit__(None, None, None)
            self.steps += 1
