"""The normalization of images: given, from the metadata of pretrained weights, or ImageNet's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdet.nn.weights import IMAGENET, Normalization, is_restoring, normalization
from segdet.util.errors import UserError, check_range


def choose_normalization(
    arguments: Mapping[str, Any],
    start: tuple[Path, dict[str, Any]] | None,
    of_weights: Callable[[Mapping[str, Any]], Normalization | None],
) -> tuple[Normalization, str | None]:
    """Return the given mean and standard deviation. If one is not given, it is that of the weights, or else ImageNet's.

    Args:
        arguments: The model's constructor arguments.
        start: The path and the content of the segdet checkpoint to start from; None if there is none.
        of_weights: Function that returns the normalization of other pretrained weights for the model's arguments.

    Returns:
        The normalization, and a line for the user if pretrained weights decided it, else None.

    Raises:
        UserError: If a given value is not valid.
    """
    for name in ("mean", "std"):
        values = arguments.get(name)
        if values is not None and len(values) != 3:
            raise UserError(f"--model.{name} {list(values)}: must be three numbers, one per channel")
    if arguments.get("std") is not None:
        check_range("--model.std", arguments["std"], above=0)
    mean, std = arguments.get("mean"), arguments.get("std")
    if mean is not None and std is not None:
        return Normalization(tuple(mean), tuple(std)), None
    expected: Normalization | None
    if start is None:
        expected = of_weights(arguments)
    else:
        saved = start[1].get("hyper_parameters") or {}
        known = saved.get("mean") and saved.get("std")
        expected = normalization(saved["mean"], saved["std"]) if known else None
    expected = expected or IMAGENET
    chosen = Normalization(mean or expected.mean, std or expected.std)
    note = None
    if (arguments.get("weights") or arguments.get("weights_backbone")) and not is_restoring():
        values = f"mean {list(chosen.mean)} and std {list(chosen.std)}"
        note = f"images are normalized by {values}, as the weights require; --model.mean and --model.std change it"
    return chosen, note


def register_normalization(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Register buffers ``[1, 3, 1, 1]``: a uint8 image ``x`` is normalized by ``x * module._scale - module._shift``."""
    values = {
        "_scale": [1 / (255 * s) for s in std],
        "_shift": [m / s for m, s in zip(mean, std, strict=True)],
    }
    for name, channels in values.items():
        module.register_buffer(name, torch.tensor(channels).view(1, 3, 1, 1), persistent=False)
