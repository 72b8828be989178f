"""Ridge regression of boxes from features, one for each class: R-CNN's third stage."""

from __future__ import annotations

import numpy as np
import torch

from segdet.training.linear_svm import FittedLinear


def ridge(features: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Return the coefficients ``B`` that minimize ``|features B - targets|^2 + penalty |B|^2``.

    The linear system has the dimension of the features or of the examples, whichever is smaller.

    Args:
        features: ``[N, P]``.
        targets: ``[N, Q]``.
        penalty: Above 0.

    Returns:
        float64 ``[P, Q]``.
    """
    x, y = features.astype(np.float64), targets.astype(np.float64)
    if x.shape[0] < x.shape[1]:
        return x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y)
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


class BoxRidge(FittedLinear):
    """A linear map per class from the features of a region to the offsets of its box (R-CNN, appendix C).

    Features are rescaled to a mean norm of 20 and extended by a constant feature of 1, as in the released code. That
    code also whitens the offsets. Whitening is left out here: the solution is linear in the offsets and does not
    change. The offsets ``[R, K, 4]`` are zero for a class without examples.
    """

    def __init__(self, classes: int, features: int) -> None:
        super().__init__([classes, 4], features)

    def fit(self, label: int, features: np.ndarray, offsets: np.ndarray, penalty: float) -> None:
        """Fit the map of one class.

        Args:
            label: 1..K.
            features: ``[N, P]`` of regions, without ``scale``.
            offsets: ``[N, 4]`` from the regions to the objects that they overlap.
            penalty: The paper's lambda, 1000.
        """
        weight, bias = self.weight[label - 1], self.bias[label - 1]
        weight.zero_()
        bias.zero_()
        if not len(features):
            return
        scaled = float(self.scale) * features.astype(np.float32)
        rows = np.concatenate([scaled, np.ones((len(features), 1), np.float32)], 1)
        # The coefficient of the constant is penalized, so the mean is subtracted first.
        mean = offsets.mean(0)
        found = torch.from_numpy(ridge(rows, offsets - mean, penalty)).float()
        weight.copy_(found[:-1].t())
        bias.copy_(found[-1] + torch.from_numpy(mean).float())


def norm_scale(mean: float, norm: float = 20.0) -> float:
    """Return the factor that scales the mean norm ``mean`` to ``norm``. R-CNN's options assume the default norm."""
    return norm / mean if mean > 0 else 1.0
