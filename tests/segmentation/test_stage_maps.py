"""Test the maps of ``stages``: recorded outputs, feature strength and class heat maps."""

import torch
from torch import nn

from segdet.segmentation.stage_maps import class_heat_maps, feature_strength, record_outputs


def test_outputs_are_recorded_for_the_given_modules_within_the_context() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(3, 4)
    with record_outputs([first]) as outputs:
        before = second(first(torch.ones(1, 2)))
    assert list(outputs) == [first]
    torch.testing.assert_close(second(outputs[first]), before)
    kept = outputs[first]
    first(torch.zeros(1, 2))
    assert outputs[first] is kept


def test_feature_strength_is_the_root_mean_square_over_channels() -> None:
    features = torch.tensor([[[[3.0]], [[-4.0]]]]).bfloat16()
    torch.testing.assert_close(feature_strength(features), torch.tensor([[12.5**0.5]]))


def test_heat_maps_of_predicted_classes_the_most_frequent_first() -> None:
    logits = torch.tensor([[[[0.0, 0.0, 9.0]], [[-9.0, -9.0, -9.0]], [[9.0, 9.0, 0.0]]]])
    stages = list(class_heat_maps(logits, ["ground", "sky", "tree"]))
    assert [stage.name for stage in stages] == ["heat map tree", "heat map ground", "confidence"]
    probabilities = logits[0].softmax(0)
    expected = [probabilities[2], probabilities[0], probabilities.amax(0)]
    for stage, expected_map in zip(stages, expected, strict=True):
        assert stage.map is not None
        torch.testing.assert_close(stage.map, expected_map)
