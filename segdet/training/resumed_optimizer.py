"""Resume a training with new settings of the optimizer or the schedule.

A checkpoint holds the settings and the state of each parameter group, and torch restores both. The functions of this
module keep the state and replace the settings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from segdet.training.optim import Optimization
from segdet.util.errors import UserError

Length = tuple[float, float]
"""The numbers of optimizer steps of a training and of one of its epochs."""


class ResumedSettings:
    """The settings of the optimizer and schedule of a model that resumes a training.

    Settings in the checkpoint that differ from them are replaced.

    Args:
        optim: The settings.

    Attributes:
        length: The length of the training, once it is known.
    """

    def __init__(self, optim: Optimization) -> None:
        self.optim = optim
        self.length: Length | None = None
        self._groups: list[dict[str, Any]] = []
        self._saved: tuple[Optimization, Length | None] | None = None

    def configure(self, optimizer: torch.optim.Optimizer, length: Length) -> None:
        """Keep the settings of a new optimizer, before Lightning restores those of the checkpoint."""
        self._groups, self.length = settings_of(optimizer), length

    def load(self, checkpoint: dict[str, Any], length: Length | None, module: nn.Module) -> None:
        """Adapt the state of the optimizer in ``checkpoint`` to the settings.

        Args:
            checkpoint: The checkpoint, which is changed in place. It holds the arguments of the model.
            length: The length of the training when the checkpoint was saved; None if it is unknown.
            module: The network.
        """
        arguments = (checkpoint.get("hyper_parameters") or {}).get("optim")
        if arguments is None:
            return
        saved = arguments if isinstance(arguments, Optimization) else Optimization(**arguments)
        self._saved = (saved, length)
        if saved != self.optim and len(checkpoint.get("optimizer_states", [])) == 1:
            states = checkpoint["optimizer_states"]
            checkpoint["optimizer_states"] = [regroup(states[0], module, saved, self.optim)]

    def apply(self, optimizer: torch.optim.Optimizer, schedule: LambdaLR, max_steps: int) -> None:
        """Replace restored settings that differ from the model's, before the first step of a resumed training."""
        saved, self._saved = self._saved, None
        if saved is None or self.length is None or saved == (self.optim, self.length):
            return
        position = schedule_position(
            schedule.last_epoch, saved[1], self.length, self.optim.warmup_steps, max_steps
        )
        apply_settings(optimizer, schedule, self._groups, position)


def regroup(
    state: dict[str, Any], module: nn.Module, earlier: Optimization, now: Optimization
) -> dict[str, Any]:
    """Return the saved state of an optimizer for the parameter groups of other settings.

    Groups contain parameters of equal learning rate and weight decay, so other settings may group them differently.

    Args:
        state: The state in a checkpoint. Its groups contain the numbers of their parameters. It is returned unchanged
            if it belongs to other parameters; torch then reports the difference.
        module: The network.
        earlier: The settings in the checkpoint.
        now: The new settings.
    """
    try:
        old, new = (
            [id(parameter) for group in optim.groups(module) for parameter in group["params"]]
            for optim in (earlier, now)
        )
    except UserError:  # a prefix in the earlier `lr_factors` matches no parameter of this network
        return state
    saved = [number for group in state["param_groups"] for number in group["params"]]
    if len(saved) != len(old) or set(old) != set(new):
        return state
    number_of = dict(zip(old, saved, strict=True))
    values = {position: state["state"].get(number_of[key]) for position, key in enumerate(new)}
    groups, start = [], 0
    for group in now.groups(module):
        end = start + len(group["params"])
        groups.append(state["param_groups"][0] | group | {"params": list(range(start, end))})
        start = end
    return {"state": {n: value for n, value in values.items() if value is not None}, "param_groups": groups}


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each parameter group, without the learning rate of the current step."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def apply_settings(
    optimizer: torch.optim.Optimizer, schedule: LambdaLR, settings: list[dict[str, Any]], position: int
) -> None:
    """Replace the restored settings of the parameter groups, and continue the schedule at ``position``.

    Args:
        optimizer: The optimizer, whose state is kept.
        schedule: Its schedule.
        settings: The result of `settings_of` before the state was restored.
        position: The step of the schedule.
    """
    schedule.last_epoch = position
    schedule.base_lrs = [own["initial_lr"] for own in settings]
    rates = zip(optimizer.param_groups, settings, schedule.base_lrs, schedule.lr_lambdas, strict=False)
    for group, own, base, factor in rates:
        group.update(own)
        group["lr"] = base * factor(position)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def schedule_position(position: int, saved: Length | None, now: Length, warmup_steps: int, limit: int) -> int:
    """Return the step at which the schedule continues if an epoch has another number of steps than before.

    The number of completed epochs stays the same: with twice the batch size, the schedule continues at half the
    number of steps. The position does not change during the warm-up, or if the length of the training is given in steps
    (``--trainer.max_steps``).

    Args:
        position: The step of the schedule in the checkpoint.
        saved: The length of the training when the checkpoint was saved; None if it is unknown.
        now: The length of the training now.
        warmup_steps: The steps of the warm-up.
        limit: ``max_steps`` of the trainer.
    """
    if saved is None or saved[1] == now[1] or position <= warmup_steps or now[0] == limit:
        return position
    return max(warmup_steps, round(position * now[1] / saved[1]))
