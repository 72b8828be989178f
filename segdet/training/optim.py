"""Optimizers and learning-rate schedules of all families."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Timer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from segdet.training.muon import Muon
from segdet.util.errors import UserError, check_choice, check_range

Name = Literal["sgd", "adamw", "muon"]
Schedule = Literal["constant", "step", "poly", "cosine"]

DEFAULTS: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
    "adamw": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.01},
    "muon": {"lr": 2e-3, "momentum": 0.95, "weight_decay": 0.01},
}
"""Learning rate, momentum and weight decay of each optimizer, where the user gives none."""


class FactorSchedule(LambdaLR):
    """`LambdaLR` with one factor for all groups of parameters, including those that are added during training.

    Lightning's BackboneFinetuning adds a group. Its learning rate changes in proportion to that of the other groups.
    """

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of each group."""
        rates = super().get_lr()
        added = self.optimizer.param_groups[len(rates) :]
        if added:
            factor = self.lr_lambdas[0]
            before, now = factor(self.last_epoch - 1), factor(self.last_epoch)
            rates += [group["lr"] * (now / before if before else 1.0) for group in added]
        return rates


@dataclass
class Optimization:
    """Optimizer and learning-rate schedule.

    Attributes:
        name: ``adamw``, ``sgd`` (with momentum) or ``muon`` (see `segdet.training.muon.Muon`). Muon learns more per
            step, but a step of wide layers takes longer.
        lr: The learning rate after warm-up; default: the optimizer's in `DEFAULTS`.
        momentum: The momentum of SGD and Muon; default: the optimizer's in `DEFAULTS`.
        nesterov: Whether SGD uses Nesterov momentum.
        betas: The coefficients of AdamW, also for the parameters to which Muon does not apply.
        weight_decay: The weight decay; default: the optimizer's in `DEFAULTS`. It does not apply to biases and
            normalization unless ``decay_all``.
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

    name: Name = "adamw"
    lr: float | None = None
    momentum: float | None = None
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float | None = None
    decay_all: bool = False
    bias_lr_factor: float = 1.0
    schedule: Schedule = "cosine"
    milestones: list[float] = field(default_factory=lambda: [0.67, 0.89])
    gamma: float = 0.1
    power: float = 0.9
    warmup_steps: int = 100
    warmup_factor: float = 0.01
    lr_factors: dict[str, float] = field(default_factory=dict)
    default_lr_factor = 1.0  # not an option: `with_default_lr_factor` sets it

    def __post_init__(self) -> None:
        check_choice("--model.optim.name", self.name, Name)
        check_choice("--model.optim.schedule", self.schedule, Schedule)
        for name in DEFAULTS[self.name]:
            check_range(f"--model.optim.{name}", self.value_of(name), least=0)
        check_range("--model.optim.betas", self.betas, least=0, below=1)

    @classmethod
    def from_saved(cls, saved: Optimization | Mapping[str, Any]) -> Self:
        """Return the optimization in a checkpoint, which holds it as a dictionary."""
        return replace(saved) if isinstance(saved, cls) else cls(**saved)  # type: ignore[arg-type]

    def value_of(self, name: str) -> float:
        """Return ``lr``, ``momentum`` or ``weight_decay``: the given value, or the optimizer's default."""
        given = getattr(self, name)
        if given is None:
            return DEFAULTS[self.name][name] * (self.default_lr_factor if name == "lr" else 1.0)
        return given

    def with_default_lr_factor(self, factor: float) -> Optimization:
        """Return a copy whose default learning rate is ``factor`` times that of the optimizer in `DEFAULTS`."""
        changed = replace(self)
        changed.default_lr_factor = factor
        return changed

    def build(
        self,
        module: nn.Module,
        total_steps: float,
        steps_per_epoch: float,
        elapsed_share: Callable[[], float] | None = None,
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Return the optimizer of ``module``'s parameters and its schedule, which advances every step.

        Args:
            module: The network.
            total_steps: The number of steps of the training. It may be infinite for constant schedules, and for step
                schedules with milestones in epochs.
            steps_per_epoch: The number of steps of an epoch.
            elapsed_share: A function that returns the elapsed share of the time limit, from 0 to 1; None without a
                limit. If the number of steps is infinite, the schedule follows the time.

        Raises:
            UserError: If the schedule depends on an infinite number of steps, or a factor matches no parameter.
        """
        groups = self.groups(module)
        lr, momentum = self.value_of("lr"), self.value_of("momentum")
        optimizer: torch.optim.Optimizer
        # Each group has its own weight decay. The optimizer's own applies to groups that are added later.
        decay = self.value_of("weight_decay")
        if self.name == "sgd":
            optimizer = torch.optim.SGD(groups, lr, momentum, weight_decay=decay, nesterov=self.nesterov)
        elif self.name == "adamw":
            optimizer = torch.optim.AdamW(groups, lr, self.betas, weight_decay=decay)
        else:
            optimizer = Muon(groups, lr, momentum, self.betas, decay)
        return optimizer, FactorSchedule(
            optimizer, self.schedule_factor(total_steps, steps_per_epoch, elapsed_share)
        )

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
        lr, weight_decay = self.value_of("lr"), self.value_of("weight_decay")
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
            groups.setdefault((factor, 0.0 if exempt else weight_decay, matrix), []).append(parameter)
        if unused:
            top = sorted({name.split(".")[0] for name, _ in module.named_parameters()})
            raise UserError(
                f"optim.lr_factors: no parameter begins with {sorted(unused)[0]!r}; there are {top}"
            )
        return [
            {"params": parameters, "lr": lr * factor, "weight_decay": decay}
            | ({"muon": matrix} if self.name == "muon" else {})
            for (factor, decay, matrix), parameters in groups.items()
        ]

    def _lr_factor(self, name: str) -> float:
        """Return the factor in ``lr_factors`` for a parameter: the factor of the last matching prefix."""
        return next((f for prefix, f in reversed(self.lr_factors.items()) if name.startswith(prefix)), 1.0)

    def schedule_factor(
        self,
        total_steps: float,
        steps_per_epoch: float,
        elapsed_share: Callable[[], float] | None = None,
    ) -> Callable[[int], float]:
        """Return the schedule as a function from the step to the learning-rate factor; for arguments see `build`."""
        unlimited = math.isinf(total_steps) and elapsed_share is None
        share = elapsed_share if math.isinf(total_steps) else None
        if self.schedule in ("poly", "cosine") and unlimited:
            raise UserError(
                f"--model.optim.schedule {self.schedule}: depends on the length of the training, which is unlimited; "
                "give --trainer.max_epochs, --trainer.max_steps or --trainer.max_time, or another schedule"
            )
        if self.schedule == "step" and unlimited and any(m < 1 for m in self.milestones):
            raise UserError(
                f"--model.optim.milestones {list(self.milestones)}: values below 1 are fractions of the whole "
                "training, which is unlimited; give epochs, or --trainer.max_epochs, --trainer.max_steps or "
                "--trainer.max_time"
            )

        def passed(milestone: float, step: int) -> bool:
            if milestone >= 1:
                return step >= milestone * steps_per_epoch
            return step >= milestone * total_steps if share is None else share() >= milestone

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
            if self.schedule == "constant":
                return 1.0
            if self.schedule == "step":
                return self.gamma ** sum(passed(milestone, step) for milestone in self.milestones)
            warmup = self.warmup_steps
            done = (step - warmup) / max(1.0, total_steps - warmup) if share is None else share()
            if self.schedule == "poly":
                return (1 - min(1.0, done)) ** self.power
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        return factor


def elapsed_share(trainer: pl.Trainer) -> Callable[[], float] | None:
    """Return a function for the elapsed share of ``--trainer.max_time``, the same in all processes, or None."""
    timer = next((callback for callback in trainer.callbacks if isinstance(callback, Timer)), None)  # type: ignore[attr-defined]
    limit = None if timer is None else timer._duration
    if timer is None or not limit:
        return None
    return lambda: float(trainer.strategy.broadcast(timer.time_elapsed() / limit))
