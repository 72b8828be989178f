"""Parts of a network that are not learned."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

from segdet.errors import UserError


def freeze(network: nn.Module, prefixes: Sequence[str], batch_norm: bool) -> list[nn.Module]:
    """Takes parts of a network out of the training, parameters and running statistics.

    Args:
        network: The whole.
        prefixes: Names of modules; what lies below one is frozen with it.
        batch_norm: Whether all batch normalization is frozen, too.

    Returns:
        The frozen modules, in evaluation mode, in which they are to stay.

    Raises:
        UserError: If a name is no module's, or there is no batch normalization.
    """
    modules = dict(network.named_modules())
    frozen: list[nn.Module] = []
    for prefix in prefixes:
        if not prefix or prefix not in modules:
            near = get_close_matches(prefix, [name for name in modules if name], 1)
            there = ", ".join(name for name, child in network.named_children() if list(child.parameters()))
            remedy = f"did you mean {near[0]}?" if near else f"there are {there}"
            raise UserError(f"--model.freeze {prefix!r}: the network has no such part; {remedy}")
        frozen.append(modules[prefix])
    if batch_norm:
        layers = [m for m in modules.values() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not layers:
            raise UserError(
                "--model.frozen_batch_norm true: the network has no batch normalization that is learned; leave it out"
            )
        frozen += layers
    for module in frozen:
        module.requires_grad_(False)
        module.eval()
    return frozen
