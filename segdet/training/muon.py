"""Muon: gradient descent whose step on a matrix of weights has all its directions equally long."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: they blow small singular values up fast and leave all of them in about 0.7..1.2."""


class Muon(Optimizer):
    """Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) for weights that are
    matrices, AdamW (Loshchilov, Hutter, ICLR 2019) for all others.

    The gradient of a layer's weights is mostly a few strong directions; a step along it, and Adam's too, hardly
    moves the weak ones, which hold the rarer distinctions. Muon keeps a momentum of the gradient
    and takes the nearest semi-orthogonal matrix as its step. Convolutions are matrices of one row an output channel.
    The step is scaled to the root mean square of 0.2 that steps of AdamW have (Liu et al., "Muon is scalable for
    LLM training", 2025, section 2.2), so that rates and decays found for AdamW are the right ones here.

    It costs some products of such matrices a step and a layer, whatever the batch, and half of AdamW's memory.

    Args:
        params: Parameters or groups of them. A group with ``muon: False`` is AdamW's; the parameters of all others
            have two or more dimensions.
        lr: The learning rate.
        momentum: Of Muon, in Nesterov's form.
        betas: Of AdamW.
        weight_decay: Decoupled, of both.
        eps: Of AdamW.
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
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "betas": betas,
                "weight_decay": weight_decay,
                "eps": eps,
                "muon": True,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rule = self._muon if group["muon"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    rule(parameter, parameter.grad, group)
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])
        step = orthogonalize(ahead.flatten(1))
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
    """About the nearest semi-orthogonal matrix, float32: the singular vectors of ``matrix`` ``[R, C]`` with singular
    values of about one, by iterations of a quintic polynomial in the manner of Newton and Schulz.

    A matrix of zeros stays one.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().mT if tall else matrix.float()
    x = x / x.norm().clamp(min=1e-7)
    # An iteration multiplies x from the left with a polynomial of x x^T. All of them together are one small matrix,
    # found without x itself, whose rows are several times as long as it has rows in a convolution.
    gram = x @ x.mT
    identity = torch.eye(len(x), device=x.device)
    whole = factor = identity
    for iteration in range(iterations):
        if iteration:
            gram = factor @ gram @ factor
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c).add_(identity, alpha=a)
        whole = factor @ whole if iteration else factor
    x = whole @ x
    return x.mT if tall else x
