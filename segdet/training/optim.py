"""Optimizers and learning-rate schedules, as every family takes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from segdet.training.muon import Muon
from segdet.util.errors import UserError, check_choice

Name = Literal["sgd", "adamw", "muon"]
Schedule = Literal["constant", "step", "poly", "cosine"]


@dataclass
class Optimization:
    """How weights are learned.

    Attributes:
        name: ``sgd`` (with momentum), ``adamw`` or ``muon`` (see `segdet.training.muon.Muon`).
        lr: The learning rate after warm-up.
        momentum: Of SGD and Muon (which wants 0.95).
        nesterov: Of SGD.
        betas: Of AdamW, and of what Muon leaves to it.
        weight_decay: On all weights but biases and normalization, unless ``decay_all``.
        decay_all: Decays biases and normalization too, as the older papers do.
        bias_lr_factor: The factor on the rate of biases (2 in Caffe's recipes).
        schedule: ``constant``, ``step`` (times ``gamma`` at each milestone), ``poly`` (to zero with ``power``) or
            ``cosine`` (to zero).
        milestones: The epochs of ``step``; fractions below 1 are of the whole training.
        gamma: See ``schedule``.
        power: See ``schedule``.
        warmup_steps: Steps over which the rate rises linearly from ``warmup_factor`` of itself.
        warmup_factor: See ``warmup_steps``.
        lr_factors: Factors on the rate of the parameters whose names begin so, such as ``{backbone: 0.1}``;
            0 freezes them.
    """

    name: Name = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay_all: bool = False
    bias_lr_factor: float = 1.0
    schedule: Schedule = "cosine"
    milestones: list[float] = field(default_factory=lambda: [0.67, 0.89])
    gamma: float = 0.1
    power: float = 0.9
    warmup_steps: int = 100
    warmup_factor: float = 0.01
    lr_factors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("--model.optim.name", self.name, Name)
        check_choice("--model.optim.schedule", self.schedule, Schedule)

    def build(
        self, module: nn.Module, total_steps: float, steps_per_epoch: float
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimizer of ``module``'s parameters and its schedule, which advances every step.

        Args:
            module: Whose parameters are learned.
            total_steps: The steps of the whole training; may be infinite for constant and, at epochs, step schedules.
            steps_per_epoch: The steps of an epoch.

        Raises:
            UserError: If the schedule needs an end and there is none, or a factor names no parameter.
        """
        groups = self.groups(module)
        optimizer: torch.optim.Optimizer
        if self.name == "sgd":
            optimizer = torch.optim.SGD(groups, self.lr, self.momentum, nesterov=self.nesterov)
        elif self.name == "adamw":
            optimizer = torch.optim.AdamW(groups, self.lr, self.betas)
        else:
            optimizer = Muon(groups, self.lr, self.momentum, self.betas)
        return optimizer, LambdaLR(optimizer, self.factor(total_steps, steps_per_epoch))

    def freeze(self, module: nn.Module) -> None:
        """Takes what a factor of 0 names out of the training; to be called before processes are joined."""
        for name, parameter in module.named_parameters():
            if self._factor_of(name) == 0:
                parameter.requires_grad_(False)

    def groups(self, module: nn.Module) -> list[dict]:
        """The parameters in groups of one rate, one decay and, for Muon, one rule."""
        # A table's rows are looked up one by one: it is no matrix that anything is multiplied with.
        tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        norms = {
            id(p)
            for m in module.modules()
            if isinstance(m, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)
            for p in m.parameters(recurse=False)
        }
        unused = set(self.lr_factors)
        groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            unused.difference_update(prefix for prefix in self.lr_factors if name.startswith(prefix))
            factor = self._factor_of(name)
            if factor == 0.0 or not parameter.requires_grad:
                continue
            bias = parameter.ndim <= 1 and name.endswith("bias")
            if bias:
                factor *= self.bias_lr_factor
            exempt = not self.decay_all and (bias or id(parameter) in norms)
            matrix = self.name == "muon" and parameter.ndim > 1 and id(parameter) not in tables
            groups.setdefault((factor, 0.0 if exempt else self.weight_decay, matrix), []).append(parameter)
        if unused:
            top = sorted({name.split(".")[0] for name, _ in module.named_parameters()})
            raise UserError(
                f"optim.lr_factors: no parameter begins with {sorted(unused)[0]!r}; there are {top}"
            )
        return [
            {"params": parameters, "lr": self.lr * factor, "weight_decay": decay}
            | ({"muon": matrix} if self.name == "muon" else {})
            for (factor, decay, matrix), parameters in groups.items()
        ]

    def _factor_of(self, name: str) -> float:
        """The factor on the rate of a parameter: that of the last prefix that fits."""
        return next((f for prefix, f in reversed(self.lr_factors.items()) if name.startswith(prefix)), 1.0)

    def factor(self, total_steps: float, steps_per_epoch: float) -> Callable[[int], float]:
        """The schedule as a function from the step to the factor on the rate."""
        if self.schedule in ("poly", "cosine") and math.isinf(total_steps):
            raise UserError(
                f"--model.optim.schedule {self.schedule}: ends with the training, which has no end; give "
                "--trainer.max_epochs or --trainer.max_steps, or another schedule"
            )
        if self.schedule == "step" and math.isinf(total_steps) and any(m < 1 for m in self.milestones):
            raise UserError(
                f"--model.optim.milestones {list(self.milestones)}: a fraction below 1 is one of the whole training, "
                "which has no end; give epochs, or --trainer.max_epochs or --trainer.max_steps"
            )
        drops = [m * total_steps if m < 1 else m * steps_per_epoch for m in self.milestones]

        def at(step: int) -> float:
            if step < self.warmup_steps:
                return self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
            if self.schedule == "constant":
                return 1.0
            if self.schedule == "step":
                return self.gamma ** sum(step >= drop for drop in drops)
            done = min(1.0, (step - self.warmup_steps) / max(1.0, total_steps - self.warmup_steps))
            return (
                (1 - done) ** self.power if self.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * done))
            )

        return at
