"""Freezing and compilation of the modules of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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
        The names of the frozen modules, which are in evaluation mode and must stay in it. Names remain valid when
        Lightning replaces batch normalization by synchronized batch normalization.

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


def compile_modules(modules: Iterable[nn.Module], options: dict[str, Any]) -> None:
    """Compile modules in place; the names of their weights do not change.

    Args:
        modules: Modules that the network calls as a whole.
        options: Options of ``torch.compile``.

    Raises:
        UserError: If torch does not accept the options.
    """
    try:
        for module in modules:
            module.compile(**options)
    except (TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--model.compile {options}: {reason}; give true, or options of torch.compile"
        ) from error
