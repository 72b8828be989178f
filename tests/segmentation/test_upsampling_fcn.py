"""Test the comparison of upsamplers: overfitting, identical networks, and the use of switches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from segdet.cli.main import main
from segdet.nn.upsampling import MaxUnpooling, TransposedConvolution, Upsampling
from segdet.segmentation.base import Segmenter
from segdet.segmentation.stage_maps import record_outputs
from segdet.segmentation.upsampling_fcn import UpsamplingFCN
from segdet.util.errors import UserError

CLASSES = ["background", "bright", "striped"]
CONFIG = Path(__file__).parents[2] / "configs" / "shapes" / "upsampling_fcn.yaml"
NAMES = get_args(Upsampling)
STEPS = 120
Overfit = Callable[[Segmenter, int, float], float]


def _fcn(upsampling: Upsampling, **kwargs: Any) -> UpsamplingFCN:
    torch.manual_seed(0)
    options = {"channels": [8, 16, 16], "convolutions": 1, "dropout": 0.0}
    return UpsamplingFCN(CLASSES, upsampling, **(options | kwargs))


@pytest.mark.parametrize("name", NAMES)
def test_overfits_four_images(name: Upsampling, overfit: Overfit) -> None:
    assert overfit(_fcn(name), STEPS, 1e-2) >= 0.98


def test_shuffled_switches_do_not_overfit(overfit: Overfit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches of another image and channel put values at wrong positions."""
    unpool = MaxUnpooling.forward

    def shuffled(self: MaxUnpooling, features: Tensor, size: tuple[int, int], indices: Tensor) -> Tensor:
        images, channels = torch.randperm(len(indices)), torch.randperm(indices.shape[1])
        return unpool(self, features, size, indices[images][:, channels])

    monkeypatch.setattr(MaxUnpooling, "forward", shuffled)
    assert overfit(_fcn("max_unpooling"), STEPS, 1e-2) < 0.98


def test_a_zero_kernel_does_not_overfit(overfit: Overfit) -> None:
    model = _fcn("transposed_frozen")
    for layer in model.upsamplers:
        assert isinstance(layer, TransposedConvolution)
        layer.weight.data.zero_()
    assert overfit(model, STEPS, 1e-2) < 0.98


# Identical networks.


def _others(model: UpsamplingFCN) -> dict[str, Tensor]:
    """Return the weights without those of the upsamplers."""
    return {key: value for key, value in model.state_dict().items() if not key.startswith("upsamplers.")}


def test_all_other_weights_are_the_same_for_a_seed() -> None:
    first = _others(_fcn(NAMES[0]))
    for name in NAMES[1:]:
        others = _others(_fcn(name))
        assert list(others) == list(first)
        assert all(torch.equal(others[key], first[key]) for key in first)


def test_only_transposed_convolutions_have_weights() -> None:
    count = {name: sum(p.numel() for p in _fcn(name).upsamplers.parameters()) for name in NAMES}
    learned = 16 * (8**2 + 16**2 + 16**2)
    frozen = 16 * (8 + 16 + 16)
    assert count == dict.fromkeys(NAMES, 0) | {"transposed": learned, "transposed_frozen": frozen}
    optimized = {
        name: sum(p.numel() for p in _fcn(name).parameters() if p.requires_grad)
        for name in ("nearest", "transposed_frozen")
    }
    assert len(set(optimized.values())) == 1


def test_the_decoder_mirrors_the_encoder() -> None:
    model = _fcn("nearest", channels=[4, 8, 16], convolutions=2)

    def widths(stages: nn.ModuleList) -> list[tuple[int, int]]:
        layers = [layer for stage in stages for layer in stage if isinstance(layer, nn.Conv2d)]  # type: ignore[attr-defined]
        return [(layer.in_channels, layer.out_channels) for layer in layers]

    down, up = widths(model.encoder), widths(model.decoder)
    assert down == [(3, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    assert up == [(16, 16), (16, 8), (8, 8), (8, 4), (4, 4), (4, 4)]
    assert [(b, a) for a, b in reversed(down[1:])] == up[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_has_the_sizes_and_channels_of_the_encoder(name: Upsampling) -> None:
    model = _fcn(name).eval()
    with (
        record_outputs([*model.encoder, model.between, *model.upsamplers]) as outputs,
        torch.inference_mode(),
    ):
        assert model(torch.randn(2, 3, 45, 50)).shape == (2, 3, 45, 50)
    down = [outputs[stage].shape for stage in model.encoder]
    assert [tuple(shape[2:]) for shape in down] == [(45, 50), (23, 25), (12, 13)]
    assert outputs[model.between].shape[2:] == (6, 7)
    assert [outputs[layer].shape for layer in model.upsamplers] == down[::-1]


def test_max_unpooling_uses_the_switches_of_its_resolution() -> None:
    model = _fcn("max_unpooling").eval()
    watched = [*model.pools, *model.upsamplers]
    with record_outputs(watched) as outputs, torch.inference_mode():
        model(torch.randn(1, 3, 48, 40))
    for pool, layer in zip(reversed(model.pools), model.upsamplers, strict=True):
        up, indices = outputs[layer].flatten(2), outputs[pool][1].flatten(2)
        elsewhere = up.scatter(2, indices, 0.0)
        assert not elsewhere.any()
        assert up.any()


# Stages, passes and arguments.


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_every_resolution_the_switches_and_heat_maps(name: Upsampling) -> None:
    model = _fcn(name).eval()
    with torch.inference_mode():
        stages = list(model.stages(torch.randn(1, 3, 45, 50)))
    shown = {stage.name: stage.map for stage in stages}
    assert list(shown)[:13] == [
        "down, stride 1", "switches, stride 1", "down, stride 2", "switches, stride 2", "down, stride 4",
        "switches, stride 4", "between, stride 8", f"{name}, stride 4", "up, stride 4", f"{name}, stride 2",
        "up, stride 2", f"{name}, stride 1", "up, stride 1",
    ]  # fmt: skip
    assert list(shown)[13].startswith("heat map ") and list(shown)[-1] == "confidence"
    sizes = {1: (45, 50), 2: (23, 25), 4: (12, 13), 8: (6, 7)}
    for title, map_ in shown.items():
        assert map_ is not None
        stride = int(title.rsplit(" ", 1)[1]) if "stride" in title else 1
        assert tuple(map_.shape) == sizes[stride]
    switches = shown["switches, stride 1"]
    assert switches is not None
    # Each channel has one switch per window. The fractions of channels therefore sum to one over a window, also in the
    # incomplete last column.
    sums = nn.functional.avg_pool2d(switches[None, None], 2, ceil_mode=True, divisor_override=1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    used = "; used by" if name == "max_unpooling" else "; not used by"
    assert all(used in stage.caption for stage in stages if stage.name.startswith("switches"))


def test_an_image_is_one_pass() -> None:
    model = _fcn("nearest").eval()
    with record_outputs([model.pass_module]) as outputs, torch.inference_mode():
        model.predict_tensors(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert len(outputs[model.pass_module]) == 1


def test_mistakes_are_reported_in_one_line() -> None:
    with pytest.raises(UserError, match=r"--model\.upsampling bilinaer: .* did you mean bilinear\?"):
        _fcn("bilinaer")  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"model\.channels \[\]: must be one or more numbers, each at least 1"
    ):
        _fcn("nearest", channels=[])
    with pytest.raises(UserError, match=r"model\.convolutions 0: must be at least 1"):
        _fcn("nearest", convolutions=0)


@pytest.mark.parametrize("name", ["max_unpooling", "transposed_frozen"])
def test_the_command_line_chooses_the_upsampling(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", f"--config={CONFIG}", f"--model.upsampling={name}", "--print_config"]) == 0
    assert f"upsampling: {name}\n" in capsys.readouterr().out


def test_a_misspelled_upsampling_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", f"--config={CONFIG}", "--model.upsampling=bilinaer"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "model.upsampling" in lines[0] and "max_unpooling" in lines[0]
