"""Tests of max pooling with switches: a worked example, odd sizes, and the map of the switches."""

import torch

from segdet.nn.pooling import MaxPooling, switch_map
from segdet.nn.upsampling import MaxUnpooling


def test_pooling_and_unpooling_of_a_worked_example() -> None:
    image = torch.tensor([[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])[None, None]
    pooled = MaxPooling()(image)
    assert pooled.features.flatten().tolist() == [5, 6, 7, 8]
    assert pooled.switches.flatten().tolist() == [5, 2, 12, 15]
    assert pooled.size == (4, 4)
    back = MaxUnpooling()(torch.tensor([[1.0, 2], [3, 4]])[None, None], pooled.size, pooled.switches)
    assert back.flatten().tolist() == [0, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 4]
    assert switch_map(pooled).tolist() == (back[0, 0] > 0).float().tolist()


def test_odd_sides_are_rounded_up_and_restored() -> None:
    image = torch.randn(2, 3, 7, 5)
    pooled = MaxPooling()(image)
    assert pooled.features.shape == (2, 3, 4, 3)
    back = MaxUnpooling()(pooled.features, pooled.size, pooled.switches)
    assert back.shape == image.shape
    torch.testing.assert_close(back[back != 0], image[back != 0])


def test_the_switch_map_is_the_share_of_channels() -> None:
    image = torch.zeros(1, 4, 2, 2)
    image[0, :3, 0, 1] = 1
    image[0, 3, 1, 0] = 1
    assert switch_map(MaxPooling()(image)).tolist() == [[0, 0.75], [0.25, 0]]
    several = torch.randn(1, 5, 6, 8)
    torch.testing.assert_close(switch_map(MaxPooling()(several)).sum(), torch.tensor(12.0))
