"""What ``stages`` show: outputs by module, the strength of features, classes that win."""

import torch
from torch import nn

from segdet.segmentation.pictures import heat_maps, outputs, strength


def test_outputs_are_those_of_the_modules_and_only_meanwhile() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(3, 4)
    with outputs([first]) as seen:
        before = second(first(torch.ones(1, 2)))
    assert list(seen) == [first]
    torch.testing.assert_close(second(seen[first]), before)
    kept = seen[first]
    first(torch.zeros(1, 2))
    assert seen[first] is kept


def test_strength_is_the_root_mean_square_over_channels() -> None:
    features = torch.tensor([[[[3.0]], [[-4.0]]]]).bfloat16()
    torch.testing.assert_close(strength(features), torch.tensor([[12.5**0.5]]))


def test_heat_maps_are_of_the_classes_that_win_the_most_frequent_first() -> None:
    logits = torch.tensor([[[[0.0, 0.0, 9.0]], [[-9.0, -9.0, -9.0]], [[9.0, 9.0, 0.0]]]])
    stages = list(heat_maps(logits, ["ground", "sky", "tree"]))
    assert [stage.name for stage in stages] == ["heat map tree", "heat map ground", "confidence"]
    expected = logits[0].softmax(0)
    for stage, wanted in zip(stages, [expected[2], expected[0], expected.amax(0)], strict=True):
        assert stage.map is not None
        torch.testing.assert_close(stage.map, wanted)
