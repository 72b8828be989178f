"""Test the FCN at full resolution: overfitting, map sizes and receptive fields."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from segdet.segmentation.base import Segmenter
from segdet.segmentation.full_resolution import FullResolutionFCN
from segdet.segmentation.stage_maps import record_outputs
from segdet.util.errors import UserError

CLASSES = ["background", "bright", "striped"]
STEPS = 80
Overfit = Callable[[Segmenter, int, float], float]


def _fcn(**kwargs: Any) -> FullResolutionFCN:
    torch.manual_seed(0)
    options = {"depth": 5, "width": 12, "dilations": [1, 2, 4, 2, 1], "dropout": 0.0}
    return FullResolutionFCN(CLASSES, **(options | kwargs))


def _smaller(model: FullResolutionFCN, size: tuple[int, int]) -> list[str]:
    """Return the modules whose output differs in size from the image."""
    names = {module: name for name, module in model.named_modules() if not name.startswith("scores")}
    with record_outputs(names) as outputs, torch.inference_mode():
        model(torch.randn(1, 3, *size))
    assert len(outputs) == len(names) > 3 * 5
    return [names[module] for module, output in outputs.items() if tuple(output.shape[2:]) != size]


def test_overfits_four_images(overfit: Overfit) -> None:
    assert overfit(_fcn(depth=4, width=8, dilations=[1, 2, 4, 1]), STEPS, 1e-2) >= 0.98


def test_1x1_kernels_do_not_overfit(overfit: Overfit) -> None:
    """With 3x3 kernels reduced to their centres, the class of a pixel depends on that pixel only."""
    model = _fcn(depth=4, width=8, dilations=[1, 2, 4, 1])
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1
    for convolution in model.convolutions:
        weight: nn.Parameter = convolution[0].weight  # type: ignore[index,assignment]
        weight.data.mul_(centre)
        weight.register_hook(lambda gradient: gradient * centre)
    assert overfit(model, STEPS, 1e-2) < 0.98


@pytest.mark.parametrize("size", [(32, 48), (33, 17)])
def test_no_map_is_smaller_than_the_image(size: tuple[int, int]) -> None:
    assert _smaller(_fcn().eval(), size) == []
    assert _smaller(_fcn(dilations=None).eval(), size) == []


@pytest.mark.parametrize(
    "smaller", [nn.Conv2d(12, 12, 3, stride=2, padding=1), nn.Conv2d(12, 12, 3), nn.MaxPool2d(2)]
)
def test_a_smaller_map_is_detected(smaller: nn.Module) -> None:
    model = _fcn().eval()
    model.convolutions[2][0] = smaller  # type: ignore[operator]
    assert "convolutions.2.0" in _smaller(model, (32, 48))


def test_depth_and_width_determine_the_parameters() -> None:
    model = _fcn(depth=7, width=10, dilations=None)
    weights = 3 * 10 * 9 + 6 * 10 * 10 * 9 + 7 * 2 * 10 + 10 * 3 + 3
    assert sum(p.numel() for p in model.parameters()) == weights


@pytest.mark.parametrize(("dilations", "field"), [(None, 11), ([1, 2, 4, 2, 1], 21)])
def test_receptive_field(dilations: list[int] | None, field: int) -> None:
    model = _fcn(dilations=dilations, depth=5).eval()
    for convolution in model.convolutions:
        convolution[2] = nn.Identity()  # type: ignore[operator]  # ReLU may block a gradient
    image = torch.zeros(1, 3, 65, 65, requires_grad=True)
    model(image)[0, :, 32, 32].sum().backward()
    assert image.grad is not None
    rows = image.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows[-1] - rows[0]) + 1 == field


def test_stages_are_a_map_per_convolution_and_heat_maps() -> None:
    model = _fcn().eval()
    with torch.inference_mode():
        stages = list(model.stages(torch.randn(1, 3, 32, 40)))
    names = [stage.name for stage in stages]
    assert names[:5] == [f"features {number}" for number in range(1, 6)]
    assert names[-1] == "confidence" and names[5].startswith("heat map ")
    assert "receptive field is 21x21." in stages[4].caption
    assert all(stage.map is not None and stage.map.shape == (32, 40) for stage in stages)


def test_an_image_is_one_pass() -> None:
    model = _fcn().eval()
    with record_outputs([model.pass_module]) as outputs, torch.inference_mode():
        model.predict_tensors(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert len(outputs[model.pass_module]) == 1


def test_mistakes_are_reported_in_one_line() -> None:
    with pytest.raises(
        UserError, match=r"model.dilations: \[1, 2\] for a depth of 5; give 5 integers of at least 1"
    ):
        _fcn(dilations=[1, 2])
    with pytest.raises(UserError, match=r"model\.dilations"):
        _fcn(dilations=[1, 2, 0, 2, 1])
    with pytest.raises(UserError, match=r"--model\.depth 0: must be at least 1"):
        _fcn(depth=0, dilations=None)
