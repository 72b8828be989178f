"""Test SegNet and the decoders of its table 1: parameters, sizes, switches and overfitting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from torch import Tensor, nn

from segdet.nn.upsampling import BedOfNails
from segdet.segmentation.segnet import SegNet, SegNetBasic, Variant
from segdet.util.errors import UserError

CAMVID = [str(number) for number in range(11)]
CLASSES = ["background", "bright", "striped"]


def _segnet(**kwargs: Any) -> SegNet:
    torch.manual_seed(0)
    return SegNet(CLASSES, width=0.25, **kwargs)


def _basic(variant: Any = "segnet_basic", **kwargs: Any) -> SegNetBasic:
    torch.manual_seed(0)
    return SegNetBasic(CLASSES, variant, **({"channels": 16, "kernel_size": 5} | kwargs))


def _count(model: nn.Module, norms: bool) -> int:
    return sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) == norms
        for parameter in module.parameters(recurse=False)
    )


def test_parameters_of_segnet() -> None:
    with torch.device("meta"):
        model = SegNet(CAMVID)
    assert (_count(model, norms=False), _count(model, norms=True)) == (29_433_483, 15_872)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(nn.Conv2d) == 26
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.ReLU) == 25


@pytest.mark.parametrize(
    ("variant", "count", "published"),
    [
        ("bilinear_interpolation", 612_491, 0.625),
        ("segnet_basic", 1_415_563, 1.425),
        ("encoder_addition", 1_415_563, 1.425),
        ("single_channel_decoder", 625_291, 0.625),
        ("fcn_basic", 645_612, 0.65),
        ("fcn_basic_no_addition", 643_467, 0.65),
        ("fcn_basic_no_dim_reduction", 1_661_067, 1.625),
        ("fcn_basic_no_addition_no_dim_reduction", 1_661_067, 1.625),
    ],
)
def test_parameters_of_table_1(variant: Any, count: int, published: float) -> None:
    """The numbers of SegNet-Basic and of the single-channel decoder are exact; the table is rounded."""
    with torch.device("meta"):
        model = SegNetBasic(CAMVID, variant)
    assert _count(model, norms=False) == count
    assert count == pytest.approx(published * 1e6, rel=0.025)
    if "fcn" not in variant and variant != "bilinear_interpolation":
        assert _count(model, norms=True) == 1_024


def test_every_row_of_the_table_is_tested() -> None:
    mark = next(m for m in test_parameters_of_table_1.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert [row[0] for row in mark.args[1]] == list(get_args(Variant))


@pytest.mark.parametrize("variant", get_args(Variant))
def test_odd_sizes_are_restored(variant: Any) -> None:
    with torch.device("meta"):
        assert SegNetBasic(CLASSES, variant)(torch.zeros(1, 3, 45, 61)).shape == (1, 3, 45, 61)


def test_the_size_of_camvid_is_restored() -> None:
    with torch.device("meta"):
        assert SegNet(CAMVID)(torch.zeros(1, 3, 360, 480)).shape == (1, 11, 360, 480)


def test_segnet_basics_decoder_has_no_relu_and_fcn_basics_starts_as_bilinear_interpolation() -> None:
    kinds = [type(module) for module in _basic().decoder.modules()]
    assert nn.ReLU not in kinds
    layer = _basic("fcn_basic_no_addition").decoder.upsamplings[0]
    features = torch.randn(1, 3, 6, 7)
    with torch.inference_mode():
        expected = nn.functional.interpolate(features, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(layer(features)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_a_single_channel_filter_uses_its_own_channel_only() -> None:
    decoder = _basic("single_channel_decoder").decoder.convolutions[0].eval()
    features = torch.zeros(1, 16, 8, 8)
    features[0, 5] = torch.randn(8, 8)
    with torch.inference_mode():
        change = decoder(features) - decoder(torch.zeros_like(features))
    assert (change.abs().amax((0, 2, 3)) > 0).nonzero().flatten().tolist() == [5]


def test_encoder_addition_adds_the_encoders_maps() -> None:
    with_addition, without = _basic("encoder_addition").eval(), _basic("segnet_basic").eval()
    without.load_state_dict(with_addition.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        maps, pooled = without.encoder(images)
        plain, added = without.decoder(maps, pooled), with_addition.decoder(maps, pooled)
    torch.testing.assert_close(added[0], plain[0] + maps[-1])


def test_lrn_is_the_released_one() -> None:
    model = _basic(lrn=True)
    images = torch.randint(0, 256, (1, 3, 4, 4)).float()
    # The sum is over five neighbouring channels, as in Caffe. The image has only three.
    expected = images / (1 + 1e-4 / 5 * images.square().sum(1, keepdim=True)) ** 0.75
    torch.testing.assert_close(model.normalization(images)[:, 1], expected[:, 1])
    assert isinstance(_basic().normalization, nn.Identity)


def test_dropout_is_in_the_three_deeper_stages() -> None:
    model = _segnet(dropout=0.5)
    # The last layer of the three deeper decoders.
    assert [
        [index for index, layer in enumerate(reversed(decoder)) if isinstance(layer, nn.Dropout)]
        for decoder in model.decoders
    ] == [[0], [0], [0], [], []]
    # In training, half of the inputs of the encoder's fourth and fifth stage and of its output are zero.
    inputs: list[Tensor] = []
    for stage in list(model.encoder.stages)[1:]:
        stage.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    torch.manual_seed(0)
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        for training in (True, False):
            inputs.clear()
            last = model.train(training).encoder(images)[-1].features
            dropped = [float((features == 0).float().mean()) > 0.4 for features in [*inputs, last]]
            assert dropped == [False, False, training, training, training]


def test_segnet_overfits_four_images(overfit: Callable[..., float]) -> None:
    assert overfit(_segnet(), 60, 5e-3) >= 0.98


def test_without_switches_it_does_not_overfit(overfit: Callable[..., float]) -> None:
    """With every value at the top left of its window, its position within 32 pixels is lost."""
    model = _segnet()
    model.unpooling = BedOfNails(2)  # type: ignore[assignment]
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        pooled = model.encoder(images)
        last = pooled[-1]
        placed = model.unpooling(last.features, last.size, last.switches)
    assert torch.equal(placed[..., ::2, ::2], last.features) and bool(last.features.any())
    assert overfit(model, 60, 5e-3) < 0.98


@pytest.mark.parametrize("variant", [v for v in get_args(Variant) if v != "bilinear_interpolation"])
def test_every_decoder_but_the_first_overfits_four_images(
    variant: Any, overfit: Callable[..., float]
) -> None:
    slow = variant in ("single_channel_decoder", "fcn_basic_no_addition_no_dim_reduction")
    assert overfit(_basic(variant), 100 if slow else 60, 1e-2) >= 0.98


def test_bilinear_interpolation_overfits_four_large_images(overfit: Callable[..., float]) -> None:
    """The rectangles have sides of 90 pixels, and the cells have sides of 16 pixels."""
    assert overfit(_basic("bilinear_interpolation", kernel_size=3), 60, 1e-2, larger=6) >= 0.98


def test_bilinear_interpolation_does_not_overfit_small_images(overfit: Callable[..., float]) -> None:
    """Cells of 16 pixels cannot represent rectangles of 15."""
    assert overfit(_basic("bilinear_interpolation"), 100, 1e-2) < 0.98


@pytest.mark.parametrize(("model", "stages"), [(_segnet, 5), (_basic, 4)])
def test_stages_are_maps_switches_decoders_and_classes(
    model: Callable[[], SegNet | SegNetBasic], stages: int
) -> None:
    with torch.inference_mode():
        shown = list(model().eval().stages(torch.randn(1, 3, 45, 64)))
    names = [stage.name for stage in shown]
    assert names[:4] == ["encoder 1", "switches 1", "encoder 2", "switches 2"]
    assert f"switches {stages}" in names and f"decoder {stages}" in names and names[-1] == "confidence"
    sizes = {stage.name: tuple(stage.map.shape) for stage in shown if stage.map is not None}
    assert sizes["switches 1"] == sizes["confidence"] == (45, 64)
    assert sizes[f"decoder {stages}"] == sizes[f"switches {stages}"]


def test_mistakes() -> None:
    with pytest.raises(
        UserError, match=r"--model\.variant basic: must be one of bilinear_interpolation, .*segnet_basic"
    ):
        _basic("basic")
    with pytest.raises(UserError, match=r"model\.kernel_size: 4 is even; give an odd number"):
        _basic(kernel_size=4)


def test_each_row_of_the_table_has_a_config_and_all_have_one_recipe() -> None:
    folder = Path(__file__).parents[2] / "configs" / "camvid" / "table1"
    rows = {
        path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml") if path.stem != "data"
    }
    assert set(rows) == set(get_args(Variant))
    for name, row in rows.items():
        assert row["model"]["init_args"].pop("variant") == name
    first, *others = rows.values()
    assert all(other == first for other in others)
