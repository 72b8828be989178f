"""float32 outputs where bfloat16 would be too coarse: logits and boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def at_least_float32(values: Tensor) -> Tensor:
    """Convert logits or boxes to float32; float64 stays float64.

    If logits are interpolated in bfloat16, two classes tie at about one pixel in a hundred.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def output_float32(module: nn.Module) -> None:
    """Add a hook that converts the outputs of ``module`` to float32."""

    def convert(_: nn.Module, __: Any, output: Any) -> Any:
        return _float32(output)

    module.register_forward_hook(convert)


def _float32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {key: _float32(value) for key, value in output.items()}
    return type(output)(_float32(value) for value in output)
