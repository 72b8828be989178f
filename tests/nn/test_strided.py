"""A convolution that halves a feature map."""

import pytest
import torch
from torch import Tensor, nn

from segdet.nn.strided import HalvingConv2d


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 4), (5, 6)])
def test_equals_a_plain_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    halving, plain = HalvingConv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
    plain.load_state_dict(halving.state_dict())
    features = torch.randn(2, 4, *size)
    outputs = [convolution(features) for convolution in (halving, plain)]
    assert outputs[0].shape == (2, 6, (size[0] + 1) // 2, (size[1] + 1) // 2)
    torch.testing.assert_close(*outputs)
    gradients = [gradient(each, features) for each in (halving, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("height", [1, 3])
def test_gradients_of_a_single_column_are_finite_in_bfloat16(height: int) -> None:
    torch.manual_seed(0)
    convolution = HalvingConv2d(256, 256, 3, 2, 1).bfloat16()
    for _ in range(20):
        features = torch.randn(2, 256, height, 1).bfloat16()
        freed = [torch.full((size,), float("nan")) for size in (1_000, 100_000, 1_000_000)]
        del freed  # the allocator hands out this memory again
        found = gradient(convolution, features)
        assert found.isfinite().all()
        assert not found[..., [0, 2]].any()  # these taps cover only the padding


def gradient(convolution: nn.Conv2d, features: Tensor) -> Tensor:
    convolution.zero_grad()
    convolution(features.requires_grad_()).square().sum().backward()
    assert convolution.weight.grad is not None
    return convolution.weight.grad
