"""Linear SVMs, one per class against the rest, trained with hard-negative mining."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


class FittedLinear(nn.Module):
    """A linear map of rescaled features, with weights from a solver instead of gradients.

    Args:
        outputs: The shape of the outputs of one row of features.
        features: The number of features D.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, outputs: Sequence[int], features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(*outputs, features))
        self.register_buffer("bias", torch.zeros(*outputs))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``[R, D]`` to float32 ``[R, *outputs]``."""
        # In half precision many margins would be equal, and average precision depends on their order.
        with torch.autocast(features.device.type, enabled=False):
            scaled = self.scale.float() * features.float()
            weight = self.weight.float().flatten(0, -2)
            flat = torch.addmm(self.bias.float().flatten(), scaled, weight.t())
        return flat.unflatten(1, self.bias.shape)


class LinearSVMs(FittedLinear):
    """The linear SVMs of K classes. The outputs are margins ``[R, K]``; a margin above 0 predicts the class."""

    def __init__(self, classes: int, features: int) -> None:
        super().__init__([classes], features)

    def set(self, weight: np.ndarray, bias: np.ndarray, scale: float) -> None:
        """Set the weights that `mine` returned for features multiplied by ``scale``."""
        self.weight.copy_(torch.from_numpy(weight))
        self.bias.copy_(torch.from_numpy(bias))
        self.scale.fill_(scale)
        self.fitted.fill_(True)


@dataclass(frozen=True)
class Mining:
    """Options of SVM training (R-CNN, CVPR 2014, section 2.3 and appendix B, and its released code).

    Attributes:
        cost: The cost of margin violations, "C".
        positive_weight: The factor on the cost of positive examples.
        bias: The value of the constant feature; its weight is regularized like all others.
        hard: Negatives with a greater margin are hard and become examples.
        easy: Negative examples with a smaller margin are easy and are dropped after each training.
        retrain: The number of new hard negatives of a class after which its SVM is trained again.
        tolerance: The tolerance of the optimizer.
        sweeps: The maximum number of passes of the optimizer in one training.
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
    """The result of one training of one class's SVM."""

    label: int  # the class, counted from 0
    added: int  # the number of hard negatives added since the previous training
    negatives: int  # the number of negative examples
    left: int  # the number of negative examples that remain after easy ones were dropped
    positives: int  # the number of positive examples
    accuracy: float  # the fraction of examples that are classified correctly
    objective: float  # the value of the minimized function
    gap: float  # the relative duality gap: 0 at the optimum


class _SVM:
    """The SVM of one class: examples, dual variables and weights."""

    def __init__(self, label: int, positives: np.ndarray, mining: Mining) -> None:
        self.label, self.mining = label, mining
        self.rows = _with_constant(positives, mining.bias)
        self.positives = len(positives)
        self.alpha = np.zeros(self.positives)
        self.weights = np.zeros(self.rows.shape[1])
        self.new: list[np.ndarray] = []
        self.added = 0

    def add(self, negatives: np.ndarray) -> None:
        """Add hard negatives ``[n, D]`` to the examples of the next training."""
        self.new.append(_with_constant(negatives, self.mining.bias))
        self.added += len(negatives)

    def train(self) -> Round:
        """Train on all examples, then drop easy negatives."""
        from segdet.training.dual_descent import descend

        mining = self.mining
        self.rows = np.concatenate([self.rows, *self.new])
        self.alpha = np.concatenate([self.alpha, np.zeros(self.added)])
        negatives = len(self.rows) - self.positives
        signs = np.repeat([1.0, -1.0], [self.positives, negatives])
        costs = np.repeat([mining.cost * mining.positive_weight, mining.cost], [self.positives, negatives])
        # The dropped examples contributed only rounding errors to the weights.
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
    log: Callable[[Round], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Train the SVM of each class in one pass over the negatives.

    A negative becomes an example of a class if its margin under the current SVM is above ``mining.hard``. An SVM is
    trained again whenever there are enough new examples, and at the end.

    Args:
        positives: The positive examples of each class, float32 ``[P_k, D]``.
        blocks: Features float32 ``[n, D]``, and bool ``[n, K]`` that marks the negatives of each class. Each block is
            read once.
        mining: The options.
        log: A function to call after every training.

    Returns:
        Weights float32 ``[K, D]`` and biases float32 ``[K]``.
    """
    svms = [_SVM(label, rows, mining) for label, rows in enumerate(positives)]

    def train(svm: _SVM) -> None:
        result = svm.train()
        if log is not None:
            log(result)

    first = True
    weights = np.stack([svm.weights for svm in svms]).astype(np.float32)
    for features, negative in blocks:
        margins = features @ weights[:, :-1].T + mining.bias * weights[:, -1]
        hard = negative & (margins > mining.hard)
        for svm in svms:
            own = hard[:, svm.label]
            if own.any():
                svm.add(features[own])
            if svm.added >= mining.retrain or (first and svm.added):
                train(svm)
                weights[svm.label] = svm.weights
        first = False
    for svm in svms:
        train(svm)
        weights[svm.label] = svm.weights
    return np.ascontiguousarray(weights[:, :-1]), mining.bias * weights[:, -1]


def _with_constant(rows: np.ndarray, constant: float) -> np.ndarray:
    return np.concatenate([rows, np.full((len(rows), 1), constant)], 1).astype(np.float32)
