"""The compiled optimizer of a linear SVM. It is a separate module because importing Numba is slow."""

from __future__ import annotations

import numpy as np

from segdet.util.numba_compile import compiled


@compiled
def descend(
    rows: np.ndarray,
    signs: np.ndarray,
    costs: np.ndarray,
    alpha: np.ndarray,
    weights: np.ndarray,
    sweeps: int,
    tolerance: float,
    seed: int,
) -> int:
    """Dual coordinate descent (Hsieh et al., ICML 2008, algorithm 1) for the hinge loss.

    The objective is ``|w|^2 / 2 + sum_i costs_i max(0, 1 - signs_i w rows_i)``.

    Args:
        rows: float32 ``[N, D]``.
        signs: float64 ``[N]``, 1 or -1.
        costs: float64 ``[N]``.
        alpha: float64 ``[N]``, the initial dual variables; modified in place.
        weights: float64 ``[D]``, ``sum_i alpha_i signs_i rows_i``; modified in place.
        sweeps: The maximum number of passes over the examples.
        tolerance: The optimization ends when no projected gradient exceeds it.
        seed: The seed of the order of examples.

    Returns:
        The number of passes.
    """
    np.random.seed(seed)  # noqa: NPY002  Numba's own generator, which nothing else uses
    number, width = rows.shape
    squares = np.zeros(number)
    for i in range(number):
        for d in range(width):
            squares[i] += np.float64(rows[i, d]) * np.float64(rows[i, d])
    order = np.arange(number)
    for sweep in range(sweeps):
        for i in range(number - 1, 0, -1):
            other = np.random.randint(0, i + 1)  # noqa: NPY002
            order[i], order[other] = order[other], order[i]
        worst = 0.0
        for place in range(number):
            i = order[place]
            if squares[i] == 0.0:
                continue
            margin = 0.0
            for d in range(width):
                margin += weights[d] * rows[i, d]
            gradient = signs[i] * margin - 1.0
            projected = gradient
            if alpha[i] == 0.0:
                projected = min(gradient, 0.0)
            elif alpha[i] == costs[i]:
                projected = max(gradient, 0.0)
            if projected == 0.0:
                continue
            worst = max(worst, abs(projected))
            before = alpha[i]
            alpha[i] = min(max(before - gradient / squares[i], 0.0), costs[i])
            step = (alpha[i] - before) * signs[i]
            for d in range(width):
                weights[d] += step * rows[i, d]
        if worst <= tolerance:
            return sweep + 1
    return sweeps
