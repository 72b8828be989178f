"""Feature maps and class heat maps for the ``stages`` of segmentation families."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from segdet.nn.pooling import Pooled, switch_map
from segdet.task import Stage


@contextmanager
def record_outputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """Yield a dict that receives the last output of each of ``modules`` within the context."""
    outputs: dict[nn.Module, Any] = {}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        outputs[module] = output

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def feature_strength(features: Tensor) -> Tensor:
    """Return the root mean square over the channels of features ``[1, C, h, w]``: float32 ``[h, w]``."""
    return features[0].float().square().mean(0).sqrt()


def feature_stage(name: str, features: Tensor, caption: str) -> Stage:
    """Return the stage that shows the `feature_strength` of features ``[1, C, h, w]``."""
    return Stage(name, map=feature_strength(features), caption=caption)


def confidence_stage(name: str, logits: Tensor, caption: str) -> Stage:
    """Return the stage that shows the largest probability of each pixel, from logits ``[1, C, h, w]``."""
    return Stage(name, map=logits[0].float().softmax(0).amax(0), caption=caption)


def class_heat_maps(logits: Tensor, class_names: Sequence[str]) -> Iterator[Stage]:
    """Yield the probability map of each predicted class, the most frequent first, and the largest probability.

    Args:
        logits: ``[1, C, h, w]``.
        class_names: The names of the C classes.
    """
    probabilities = logits[0].float().softmax(0)
    pixels = probabilities.argmax(0).flatten().bincount(minlength=len(class_names))
    for index in pixels.argsort(descending=True).tolist():
        if pixels[index]:
            name = class_names[index]
            caption = f"The probability of {name}, 0 to 1."
            yield Stage(f"heat map {name}", map=probabilities[index], caption=caption)
    yield confidence_stage("confidence", logits, "The probability of the predicted class of each pixel.")


def encoder_stages(pooled: list[Pooled]) -> Iterator[Stage]:
    """Yield the strength of the pooled features and the switches of each encoder stage."""
    for number, stage in enumerate(pooled, 1):
        caption = f"The feature strength of encoder {number} after pooling."
        yield feature_stage(f"encoder {number}", stage.features, caption)
        caption = (
            f"The fraction of channels of encoder {number} in which a pixel is the maximum of its window."
        )
        yield Stage(f"switches {number}", map=switch_map(stage), caption=caption)
