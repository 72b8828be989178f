"""Compilation of a network's modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from segdet.util.errors import UserError


def compile_modules(modules: Iterable[nn.Module], options: dict[str, Any]) -> None:
    """Compile modules in place, so that the names of their weights stay.

    Args:
        modules: Modules that the network calls as a whole.
        options: Options of ``torch.compile``.

    Raises:
        UserError: If torch refuses the options.
    """
    try:
        for module in modules:
            module.compile(**options)
    except (TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--model.compile {options}: {reason}; give true, or options of torch.compile"
        ) from error
