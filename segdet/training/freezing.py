"""Parts of a network that are not learned."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from segdet.util.errors import UserError
from segdet.util.suggest import closest


def freeze(network: nn.Module, prefixes: Sequence[str], batch_norm: bool) -> list[str]:
    """Takes parts of a network out of the training, parameters and running statistics.

    Args:
        network: The whole.
        prefixes: Names of modules; what lies below one is frozen with it.
        batch_norm: Whether all batch normalization is frozen, too.

    Returns:
        The names of the frozen modules, now in evaluation mode, in which they are to stay. What bears a name may be
        replaced, as Lightning replaces batch normalization by one that is synchronized.

    Raises:
        UserError: If a name is no module's, or there is no batch normalization.
    """
    modules = dict(network.named_modules())
    frozen: list[str] = []
    for prefix in prefixes:
        if not prefix or prefix not in modules:
            near = closest(prefix, [name for name in modules if name])
            there = ", ".join(name for name, child in network.named_children() if list(child.parameters()))
            remedy = f"did you mean {near}?" if near else f"there are {there}"
            raise UserError(f"--model.freeze {prefix!r}: the network has no such part; {remedy}")
        frozen.append(prefix)
    if batch_norm:
        layers = [name for name, m in modules.items() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not layers:
            raise UserError(
                "--model.frozen_batch_norm true: the network has no batch normalization that is learned; leave it out"
            )
        frozen += layers
    for name in frozen:
        modules[name].requires_grad_(False)
        modules[name].eval()
    return frozen
