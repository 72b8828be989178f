"""Linear support vector machines, one for each class against the rest, with hard-negative mining."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


class LinearSVMs(nn.Module):
    """The margins of K classes from features, linear in them.

    Args:
        classes: K.
        features: D.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(classes, features))
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[R, D]`` to float32 margins ``[R, K]``: above 0 is the class, about 1 is sure of it."""
        # Margins in half the precision would be tied, and average precision hangs on their order.
        with torch.autocast(features.device.type, enabled=False):
            scaled = self.scale.float() * features.float()
            return torch.addmm(self.bias.float(), scaled, self.weight.float().t())

    def set(self, weight: np.ndarray, bias: np.ndarray, scale: float) -> None:
        """Takes what `mine` found for features that were rescaled by ``scale``."""
        self.weight.copy_(torch.from_numpy(weight))
        self.bias.copy_(torch.from_numpy(bias))
        self.scale.fill_(scale)
        self.fitted.fill_(True)


@dataclass(frozen=True)
class Mining:
    """How the machines are trained (R-CNN, CVPR 2014, section 2.3 and appendix B, and its released code).

    Attributes:
        cost: Of an example on the wrong side; "C".
        positive_weight: The factor on the cost of a positive example.
        bias: The constant feature, whose weight is penalized as the others' are.
        hard: Negatives of a greater margin are hard: they are kept.
        easy: Of those that are kept, negatives of a smaller margin are let go after each training.
        retrain: So many new hard negatives of a class make it be trained again.
        tolerance: Of the optimizer.
        sweeps: Of the optimizer, at most, each time.
    """

    cost: float = 1e-3
    positive_weight: float = 2.0
    bias: float = 10.0
    hard: float = -1.0001
    easy: float = -1.2
    retrain: int = 2000
    tolerance: float = 1e-3
    sweeps: int = 1000


@dataclass(frozen=True)
class Round:
    """One training of one class's machine.

    Attributes:
        label: The class, counted from 0.
        added: New hard negatives since the one before.
        negatives: All that it was trained on.
        left: Those that were not let go after it.
        positives: All that there are.
        accuracy: The share of the examples on their right side.
        objective: What was minimized.
        gap: The difference to the dual problem's value, relative: 0 at the optimum.
    """

    label: int
    added: int
    negatives: int
    left: int
    positives: int
    accuracy: float
    objective: float
    gap: float


class _Machine:
    """One class: its examples, their dual variables and its weights."""

    def __init__(self, label: int, positives: np.ndarray, mining: Mining) -> None:
        self.label, self.mining = label, mining
        self.rows = _with_constant(positives, mining.bias)
        self.positives = len(positives)
        self.alpha = np.zeros(self.positives)
        self.weights = np.zeros(self.rows.shape[1])
        self.new: list[np.ndarray] = []
        self.added = 0

    def add(self, negatives: np.ndarray) -> None:
        """Keeps hard negatives ``[n, D]`` for the next training."""
        self.new.append(_with_constant(negatives, self.mining.bias))
        self.added += len(negatives)

    def train(self) -> Round:
        """Trains on all that is kept, then lets go of what is easy."""
        from segdet.training.dual_descent import descend

        mining = self.mining
        self.rows = np.concatenate([self.rows, *self.new])
        self.alpha = np.concatenate([self.alpha, np.zeros(self.added)])
        negatives = len(self.rows) - self.positives
        signs = np.repeat([1.0, -1.0], [self.positives, negatives])
        costs = np.repeat([mining.cost * mining.positive_weight, mining.cost], [self.positives, negatives])
        # Those that were let go had no share in it, but for rounding.
        self.weights = (self.alpha * signs) @ self.rows
        descend(
            self.rows, signs, costs, self.alpha, self.weights, mining.sweeps, mining.tolerance, self.label
        )
        margins = self.rows @ self.weights
        square = self.weights @ self.weights
        objective = square / 2 + (costs * np.maximum(0, 1 - signs * margins)).sum()
        dual = self.alpha.sum() - square / 2
        accuracy = float(((margins > 0) == (signs > 0)).mean()) if len(signs) else 1.0
        keep = (signs > 0) | (margins >= mining.easy)
        self.rows, self.alpha = self.rows[keep], self.alpha[keep]
        left = len(self.rows) - self.positives
        done = Round(
            self.label, self.added, negatives, left, self.positives, accuracy, float(objective),
            float((objective - dual) / max(objective, 1e-12)),
        )  # fmt: skip
        self.new, self.added = [], 0
        return done


def mine(
    positives: Sequence[np.ndarray],
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    mining: Mining = Mining(),
    tell: Callable[[Round], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Trains a machine for each class in one pass over the negatives.

    A negative becomes an example of a class when the class's machine of that moment is not sure of it; whenever
    there are enough new ones, and at the end, the machine is trained again.

    Args:
        positives: The positive examples of each class, float32 ``[P_k, D]``.
        blocks: Features float32 ``[n, D]``, each block once, with bool ``[n, K]``: whose negatives they are.
        mining: See there.
        tell: Is told of every training.

    Returns:
        Weights float32 ``[K, D]`` and biases float32 ``[K]``.
    """
    machines = [_Machine(label, rows, mining) for label, rows in enumerate(positives)]

    def train(machine: _Machine) -> None:
        done = machine.train()
        if tell is not None:
            tell(done)

    first = True
    weights = np.stack([machine.weights for machine in machines]).astype(np.float32)
    for features, negative in blocks:
        margins = features @ weights[:, :-1].T + mining.bias * weights[:, -1]
        hard = negative & (margins > mining.hard)
        for machine in machines:
            mine_ = hard[:, machine.label]
            if mine_.any():
                machine.add(features[mine_])
            if machine.added >= mining.retrain or (first and machine.added):
                train(machine)
                weights[machine.label] = machine.weights
        first = False
    for machine in machines:
        train(machine)
        weights[machine.label] = machine.weights
    return np.ascontiguousarray(weights[:, :-1]), mining.bias * weights[:, -1]


def _with_constant(rows: np.ndarray, constant: float) -> np.ndarray:
    return np.concatenate([rows, np.full((len(rows), 1), constant)], 1).astype(np.float32)
