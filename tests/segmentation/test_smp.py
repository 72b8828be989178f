"""Test the adapter to segmentation_models_pytorch: training, prediction at any size, and error messages."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from segdet.data.sample import Target
from segdet.nn.weights import Normalization
from segdet.segmentation.base import Segmenter
from segdet.segmentation.smp import SMP
from segdet.util.errors import UserError

smp = pytest.importorskip("segmentation_models_pytorch", reason="pip install 'segdet[smp]'")

CLASSES = ["background", "bright", "striped"]
NARROW = {"channels": [16, 24, 32, 48]}  # an option of timm's ResNets
VIT = {
    "dynamic_img_size": True, "encoder_depth": 2, "decoder_intermediate_channels": [16, 16],
    "decoder_fusion_channels": 16,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Unet": ("resnet18", {"decoder_channels": [32, 32, 16, 16, 16]}),
    "FPN": (
        "tu-resnet10t",
        {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32, "decoder_dropout": 0.0},
    ),
    "DeepLabV3Plus": ("resnet18", {"decoder_channels": 32}),
    "UPerNet": ("tu-resnet10t", {**NARROW, "decoder_channels": 32}),
    "Segformer": ("mit_b0", {"decoder_segmentation_channels": 32}),
    "DPT": ("tu-vit_tiny_patch16_224", VIT),
}
Overfit = Callable[[Segmenter, int, float], float]


def _model(architecture: str, **kwargs: Any) -> SMP:
    torch.manual_seed(0)
    encoder, options = KINDS[architecture]
    return SMP(CLASSES, architecture, encoder, options=options, **kwargs)


@pytest.mark.parametrize("architecture", KINDS)
def test_trains_and_predicts_at_any_size(architecture: str) -> None:
    model = _model(architecture)
    images, masks = torch.randn(2, 3, 33, 50), torch.randint(0, 3, (2, 33, 50))
    losses = model.losses(images, [Target(mask=mask) for mask in masks])
    assert set(losses) == {"segmentation"}
    losses["segmentation"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.inference_mode():
        assert model.predict(images).shape == (2, 3, 33, 50)
        whole = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(model.predict(whole), model.network(whole))
        stages = list(model.stages(images[:1]))
    assert stages[-1].name == "confidence" and stages[-1].map is not None
    assert stages[-1].map.shape == (33, 50)
    assert [stage.name.split()[0] for stage in stages].count("encoder") >= 2
    assert all(stage.map is not None and stage.map.shape <= (33, 50) for stage in stages)


def test_logits_equal_the_librarys() -> None:
    model = _model("DeepLabV3Plus").eval()
    theirs = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=3, decoder_channels=32).eval()
    theirs.load_state_dict(model.network.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(model.predict(images), theirs(images))


def test_padding_is_the_mean_colour_at_the_right_and_bottom() -> None:
    model = _model("FPN").eval()
    images = torch.randn(1, 3, 40, 50)
    padded = torch.zeros(1, 3, 64, 64)
    padded[:, :, :40, :50] = images
    with torch.inference_mode():
        torch.testing.assert_close(model.predict(images), model.network(padded)[:, :, :40, :50])


@pytest.mark.parametrize("architecture", ["Unet", "FPN"])
def test_overfits_four_images(architecture: str, overfit: Overfit) -> None:
    assert overfit(_model(architecture), 80, 5e-3) >= 0.98


def test_does_not_overfit_without_encoder_features(overfit: Overfit) -> None:
    model = _model("Unet")
    model.network.encoder.register_forward_hook(  # type: ignore[union-attr,operator]
        lambda module, images, maps: [0 * features for features in maps]
    )
    assert overfit(model, 80, 5e-3) < 0.98


def test_encoder_weights_from_a_file(tmp_path: Path) -> None:
    theirs = smp.encoders.get_encoder("resnet18", weights=None)
    torch.save(theirs.state_dict(), tmp_path / "encoder.pth")
    model = SMP(CLASSES, "FPN", "resnet18", weights=str(tmp_path / "encoder.pth"))
    ours = model.network.encoder.state_dict()  # type: ignore[union-attr]
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours[key], value)
    (tmp_path / "corrupt.pth").write_bytes(b"corrupt")
    with pytest.raises(UserError, match="the file is corrupt or holds no weights"):
        SMP(CLASSES, "FPN", "resnet18", weights=str(tmp_path / "corrupt.pth"))
    torch.save({}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no weights by parameter name"):
        SMP(CLASSES, "FPN", "resnet18", weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "DeeplabV3plus"}, "no such decoder; did you mean DeepLabV3Plus?"),
        ({"architecture": "Zzz"}, "no such decoder; choose from Unet, UnetPlusPlus"),
        ({"encoder": "resnet81"}, "no such encoder; did you mean resnet18?"),
        ({"encoder": "tu-resnet10x"}, "no such encoder; did you mean tu-resnet1"),
        ({"weights": "imagenat"}, "no weights 'imagenat' of resnet18; choose from imagenet"),
        (
            {"options": {"decoder_chanels": 8}},
            "options.decoder_chanels: DeepLabV3Plus has no such option; did",
        ),
        ({"options": {"classes": 8}}, "options.classes: is set by SMP itself"),
        ({"options": {"encoder_output_stride": 5}}, "output stride 8 or 16, got 5; give another encoder or"),
        ({"encoder": "tu-resnet10t", "options": {"strange": 1}}, "strange"),
        ({"architecture": "DPT"}, "Encoder name must start with 'tu-'"),
    ],
)
def test_mistakes_are_reported_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        SMP(CLASSES, **({"encoder": "resnet18"} | arguments))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_normalization_follows_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = {"encoder": "tu-vit_tiny_patch16_224", "weights": "augreg_in21k"}
    assert SMP.weights_normalization(vit) == Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    params = {"input_range": [0, 255], "input_space": "RGB", "mean": [51, 51, 51], "std": [255, 255, 255]}
    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", lambda *_: params)
    assert SMP.weights_normalization({"encoder": "resnet18", "weights": "imagenet"}) == Normalization(
        (0.2, 0.2, 0.2), (1.0, 1.0, 1.0)
    )
    monkeypatch.setitem(params, "input_space", "BGR")
    with pytest.raises(UserError, match="those of resnet18 expect BGR, images are RGB; choose other weights"):
        SMP.weights_normalization({"encoder": "resnet18", "weights": "imagenet"})
    assert SMP.weights_normalization(
        {"encoder": "tu-tf_efficientnet_lite0", "weights": "a.pth"}
    ) == Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("no connection to the hub")

    monkeypatch.setattr(smp.encoders, "hf_hub_download", offline)
    with pytest.raises(
        UserError, match=r"encoder resnet18: its weights cannot be downloaded \(no connection to"
    ):
        SMP(CLASSES, encoder="resnet18", weights="imagenet")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"encoder tu-resnet18\.a1_in1k: its weights cannot be downloaded"):
        SMP(CLASSES, encoder="tu-resnet18", weights="a1_in1k")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=r"not installed; pip install 'segdet\[smp\]'"):
        SMP(CLASSES)


def test_a_transformer_for_one_image_size() -> None:
    encoder, options = KINDS["DPT"]
    model = SMP(
        CLASSES, "DPT", encoder, options={k: v for k, v in options.items() if k != "dynamic_img_size"}
    )
    with pytest.raises(UserError, match=r"Input height \(64\) doesn't match .*dynamic_img_size"):
        model.predict(torch.zeros(1, 3, 64, 64))
