"""What ``stages`` of segmentation families show: maps of features and of classes as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from segdet.task import Stage


@contextmanager
def outputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """What each of ``modules`` returned when it last ran, by module, while the context lasts."""
    seen: dict[nn.Module, Any] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        seen[module] = output

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def strength(features: Tensor) -> Tensor:
    """How strong the features ``[1, C, h, w]`` are at every place: their root mean square, float32 ``[h, w]``."""
    return features[0].float().square().mean(0).sqrt()


def heat_maps(logits: Tensor, class_names: Sequence[str]) -> Iterator[Stage]:
    """The probability of each class that wins somewhere, the most frequent one first, and how sure the winner is.

    Args:
        logits: ``[1, C, h, w]``.
        class_names: Of the C classes.
    """
    probabilities = logits[0].float().softmax(0)
    winners = probabilities.argmax(0).flatten().bincount(minlength=len(class_names))
    for index in winners.argsort(descending=True).tolist():
        if winners[index]:
            name = class_names[index]
            yield Stage(
                f"heat map {name}", map=probabilities[index], about=f"The probability of {name}, 0 to 1."
            )
    yield Stage("confidence", map=probabilities.amax(0), about="How sure it is of each pixel's best class.")
