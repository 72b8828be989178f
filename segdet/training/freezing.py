"""Frozen parts of a network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from segdet.util.errors import UserError
from segdet.util.suggest import closest


def freeze(network: nn.Module, prefixes: Sequence[str], batch_norm: bool) -> list[str]:
    """Exclude modules from training: their parameters and running statistics stay as they are.

    Args:
        network: The network.
        prefixes: Names of modules; their submodules are frozen too.
        batch_norm: Whether all batch normalization is frozen too.

    Returns:
        The names of the frozen modules. They are in evaluation mode and have to stay in it. Names remain valid when
        modules are replaced, as Lightning replaces batch normalization by synchronized batch normalization.

    Raises:
        UserError: If a module does not exist, or there is no batch normalization.
    """
    modules = dict(network.named_modules())
    frozen: list[str] = []
    for prefix in prefixes:
        if not prefix or prefix not in modules:
            near = closest(prefix, [name for name in modules if name])
            names = ", ".join(name for name, child in network.named_children() if list(child.parameters()))
            remedy = f"did you mean {near}?" if near else f"there are {names}"
            raise UserError(f"--model.freeze {prefix!r}: the network has no such part; {remedy}")
        frozen.append(prefix)
    if batch_norm:
        layers = [name for name, m in modules.items() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not layers:
            raise UserError(
                "--model.frozen_batch_norm true: the network has no trainable batch normalization; leave it out"
            )
        frozen += layers
    for name in frozen:
        modules[name].requires_grad_(False)
        modules[name].eval()
    return frozen
