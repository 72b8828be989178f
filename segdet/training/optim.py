"""Optimizers and learning-rate schedules of all families."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from segdet.training.muon import Muon
from segdet.util.errors import UserError, check_choice, check_range

Name = Literal["sgd", "adamw", "muon"]
Schedule = Literal["constant", "step", "poly", "cosine"]


@dataclass
class Optimization:
    """Optimizer and learning-rate schedule.

    Attributes:
        name: ``sgd`` (with momentum), ``adamw`` or ``muon`` (see `segdet.training.muon.Muon`).
        lr: The learning rate after warm-up.
        momentum: The momentum of SGD and Muon (0.95 is usual for Muon).
        nesterov: Whether SGD uses Nesterov momentum.
        betas: The coefficients of AdamW, also for the parameters to which Muon does not apply.
        weight_decay: The weight decay. It does not apply to biases and normalization unless ``decay_all``.
        decay_all: Whether biases and normalization decay too, as in older papers.
        bias_lr_factor: The factor of the learning rate of biases (2 in Caffe's recipes).
        schedule: ``constant``, ``step`` (times ``gamma`` at each milestone), ``poly`` (to zero with ``power``) or
            ``cosine`` (to zero).
        milestones: The epochs of ``step``; values below 1 are fractions of the whole training.
        gamma: The factor at each milestone.
        power: The exponent of ``poly``.
        warmup_steps: The number of steps over which the learning rate rises linearly from ``warmup_factor * lr``.
        warmup_factor: The initial factor of the warm-up.
        lr_factors: Factors of the learning rate by prefix of the parameter names, such as ``{backbone: 0.1}``; 0
            freezes the parameters.
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
        for name in ("lr", "momentum", "weight_decay"):
            check_range(f"--model.optim.{name}", getattr(self, name), least=0)
        check_range("--model.optim.betas", self.betas, least=0, below=1)

    def build(
        self, module: nn.Module, total_steps: float, steps_per_epoch: float
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Return the optimizer of ``module``'s parameters and its schedule, which advances every step.

        Args:
            module: The network.
            total_steps: The number of steps of the training. It may be infinite for constant schedules, and for step
                schedules with milestones in epochs.
            steps_per_epoch: The number of steps of an epoch.

        Raises:
            UserError: If the schedule depends on an infinite number of steps, or a factor matches no parameter.
        """
        groups = self.groups(module)
        optimizer: torch.optim.Optimizer
        if self.name == "sgd":
            optimizer = torch.optim.SGD(groups, self.lr, self.momentum, nesterov=self.nesterov)
        elif self.name == "adamw":
            optimizer = torch.optim.AdamW(groups, self.lr, self.betas)
        else:
            optimizer = Muon(groups, self.lr, self.momentum, self.betas)
        return optimizer, LambdaLR(optimizer, self.schedule_factor(total_steps, steps_per_epoch))

    def freeze(self, module: nn.Module) -> None:
        """Freeze parameters with a factor of 0 in ``lr_factors``; call this before the strategy wraps the module."""
        for name, parameter in module.named_parameters():
            if self._lr_factor(name) == 0:
                parameter.requires_grad_(False)

    def groups(self, module: nn.Module) -> list[dict]:
        """Return the parameters in groups of equal learning rate, weight decay and, for Muon, update rule."""
        # The rows of an embedding are used separately, never as a matrix in a product.
        embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
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
            factor = self._lr_factor(name)
            if factor == 0.0 or not parameter.requires_grad:
                continue
            bias = parameter.ndim <= 1 and name.endswith("bias")
            if bias:
                factor *= self.bias_lr_factor
            exempt = not self.decay_all and (bias or id(parameter) in norms)
            matrix = self.name == "muon" and parameter.ndim > 1 and id(parameter) not in embeddings
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

    def _lr_factor(self, name: str) -> float:
        """Return the factor in ``lr_factors`` for a parameter: the factor of the last matching prefix."""
        return next((f for prefix, f in reversed(self.lr_factors.items()) if name.startswith(prefix)), 1.0)

    def schedule_factor(self, total_steps: float, steps_per_epoch: float) -> Callable[[int], float]:
        """Return the schedule as a function from the step to the learning-rate factor."""
        if self.schedule in ("poly", "cosine") and math.isinf(total_steps):
            raise UserError(
                f"--model.optim.schedule {self.schedule}: depends on the length of the training, which is "
                "unlimited; give --trainer.max_epochs or --trainer.max_steps, or another schedule"
            )
        if self.schedule == "step" and math.isinf(total_steps) and any(m < 1 for m in self.milestones):
            raise UserError(
                f"--model.optim.milestones {list(self.milestones)}: values below 1 are fractions of the whole "
                "training, which is unlimited; give epochs, or --trainer.max_epochs or --trainer.max_steps"
            )
        drops = [m * total_steps if m < 1 else m * steps_per_epoch for m in self.milestones]

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
            if self.schedule == "constant":
                return 1.0
            if self.schedule == "step":
                return self.gamma ** sum(step >= drop for drop in drops)
            done = min(1.0, (step - self.warmup_steps) / max(1.0, total_steps - self.warmup_steps))
            if self.schedule == "poly":
                return (1 - done) ** self.power
            return 0.5 * (1 + math.cos(math.pi * done))

        return factor
