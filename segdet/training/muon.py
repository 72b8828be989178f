"""Muon: an optimizer that orthogonalizes the step of each weight matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration. It raises small singular values fast; all end between about 0.7 and 1.2."""


class Muon(Optimizer):
    """Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) for weight matrices, and
    AdamW (Loshchilov, Hutter, ICLR 2019) for all other parameters.

    A few directions dominate the gradient of a weight matrix. A step of SGD or Adam hardly changes the weak directions,
    although rare examples depend on them. Muon's step is the semi-orthogonal matrix nearest to the gradient's
    momentum. The weights of a convolution form a matrix with one row per output channel. Steps are scaled to a root
    mean square of 0.2, which is that of AdamW's steps (Liu et al., "Muon is scalable for LLM training", 2025, section
    2.2). Learning rates and weight decays that were found for AdamW can therefore be used.

    A step takes several matrix products per layer, independent of the batch size. The optimizer's state needs half of
    the memory of AdamW's.

    ``torch.optim.Muon`` does not support convolutions, and timm's Muon leaves narrow matrices to AdamW. Both iterate in
    bfloat16, which changes a step by 0.7% on random gradients, so they would not reproduce the recorded results.

    Args:
        params: Parameters or groups of them. AdamW updates groups with ``muon: False``. The parameters of all other
            groups have two or more dimensions.
        lr: The learning rate.
        momentum: Nesterov momentum of Muon.
        betas: Coefficients of AdamW.
        weight_decay: Decoupled weight decay of both.
        eps: Epsilon of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, defaults | {"muon": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    # A group that is added during training may hold biases too.
                    rule = self._muon if group["muon"] and parameter.ndim > 1 else self._adam
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    rule(parameter, parameter.grad, group)
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(state["momentum"], group["momentum"])
        step = orthogonalize(nesterov.flatten(1))
        scale = 0.2 * max(step.shape) ** 0.5
        parameter.add_(step.reshape(parameter.shape).to(parameter.dtype), alpha=-group["lr"] * scale)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        root = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - first ** state["step"]))


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return approximately the nearest semi-orthogonal matrix, float32.

    The result has the singular vectors of ``matrix`` ``[R, C]`` and singular values of about one. It is computed by
    Newton-Schulz iterations with a quintic polynomial. A matrix of zeros stays zero.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().mT if tall else matrix.float()
    x = x / x.norm().clamp(min=1e-7)
    # Each iteration multiplies x from the left by a polynomial of x x^T. The product of these polynomials is a square
    # matrix, which is computed without x: in a convolution, x has several times as many columns as rows.
    gram = x @ x.mT
    identity = torch.eye(len(x), device=x.device)
    product = factor = identity
    for iteration in range(iterations):
        if iteration:
            gram = factor @ gram @ factor
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c).add_(identity, alpha=a)
        product = factor @ product if iteration else factor
    x = product @ x
    return x.mT if tall else x
