"""Errors of torch are recognized by its real messages."""

import pytest
import torch
from torch import nn

from segdet.training.torch_messages import is_single_value


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.BatchNorm1d(3), (1, 3)),
        (nn.BatchNorm2d(3), (1, 3, 1, 1)),
        (nn.InstanceNorm2d(3), (2, 3, 1, 1)),
        (nn.GroupNorm(3, 3), (1, 3, 1, 1)),
    ],
)
def test_a_single_value_per_channel(layer: nn.Module, size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected more than 1") as caught:
        layer(torch.zeros(size))
    assert is_single_value(caught.value)


def test_another_error() -> None:
    with pytest.raises(ValueError, match="expected 4D input") as caught:
        nn.BatchNorm2d(3)(torch.zeros(1, 3))
    assert not is_single_value(caught.value)
