"""Test backbones: declared channels and strides, weights from files, and error messages."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from segdet.nn.backbones import backbone_normalization, build_backbone
from segdet.nn.weights import IMAGENET, Normalization
from segdet.util.errors import UserError


@pytest.mark.parametrize(
    "name",
    [
        "small_vgg",
        "resnet10t",
        "mobilenetv3_small_050",
        "dla46_c",
        "mambaout_femto",  # channels last
        "torchvision:resnet18",
        "torchvision:vgg11",
        "torchvision:mobilenet_v3_small",
    ],
)
def test_maps_have_the_declared_channels_and_strides(name: str) -> None:
    network = build_backbone(name).eval()
    assert network.strides == sorted(network.strides)
    with torch.inference_mode():
        maps = network(torch.randn(1, 3, 96, 160))
    assert [m.shape[1] for m in maps] == network.channels
    for features, stride in zip(maps, network.strides, strict=True):
        assert features.shape[2:] == (96 // stride, 160 // stride)


def test_selected_strides() -> None:
    network = build_backbone("resnet10t", strides=[8, 32])
    assert network.strides == [8, 32]
    assert len(network(torch.randn(1, 3, 64, 64))) == 2
    with pytest.raises(UserError, match="no feature map of stride 64"):
        build_backbone("resnet10t", strides=[64])


@pytest.mark.parametrize(
    "name",
    [
        "small_vgg",
        "resnet10t",
        "mobilenetv3_small_050",
        "efficientnet_lite0",
        "dla46_c",
        "torchvision:resnet18",
    ],
)
def test_layers_after_the_last_stride_are_removed(name: str) -> None:
    network = build_backbone(name, strides=[4, 8])
    sum(features.sum() for features in network(torch.randn(2, 3, 64, 64))).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_network_for_a_single_image_size_raises() -> None:
    network = build_backbone("swin_tiny_patch4_window7_224", strides=[4])
    assert network(torch.zeros(1, 3, 224, 224))[0].shape == (1, 96, 56, 56)
    with pytest.raises(UserError, match=r"does not accept images of 96x64 .*; .*'\{img_size: \[64, 96\]\}'"):
        network(torch.zeros(1, 3, 64, 96))


def test_a_truncated_small_vgg_has_the_same_random_weights() -> None:
    torch.manual_seed(0)
    whole, after = build_backbone("small_vgg"), torch.rand(1)
    torch.manual_seed(0)
    cut = build_backbone("small_vgg", strides=[4, 8])
    assert torch.rand(1) == after
    assert (cut.strides, cut.channels) == ([4, 8], [64, 96])
    kept = {name.removeprefix("body."): value for name, value in cut.state_dict().items()}
    assert len(kept) == len(whole.state_dict()) * 3 // 5
    for name, value in kept.items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=0, atol=0)
    images = torch.randn(2, 3, 64, 64)
    for features, expected in zip(cut(images), whole(images)[1:3], strict=True):
        torch.testing.assert_close(features, expected)


def test_pretrained_weights_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    build, calls = timm.create_model, []

    def create_model(*args: object, pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        network = build(*args, **kwargs)
        calls.append((pretrained, next(network.parameters()).device.type))
        return network

    monkeypatch.setattr(timm, "create_model", create_model)
    build_backbone("resnet18", weights=True, strides=[4, 8])
    assert calls == [(False, "meta"), (True, "cpu")]


def test_a_network_that_cannot_be_built_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    build = timm.create_model

    def create_model(*args: object, **kwargs: object) -> torch.nn.Module:
        torch.zeros(1).item()  # as constructors do that compute drop rates per layer
        return build(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", create_model)
    torch.manual_seed(0)
    network = build_backbone("resnet10t", strides=[4, 8])
    monkeypatch.undo()
    torch.manual_seed(0)
    same = build_backbone("resnet10t", strides=[4, 8])
    for one, other in zip(network.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_dilation_limits_the_stride() -> None:
    assert max(build_backbone("resnet18", output_stride=8).strides) == 8


def test_the_last_of_several_maps_of_one_stride() -> None:
    network = build_backbone("resnet18", strides=[4, 8], output_stride=8)
    assert (network.strides, network.channels) == ([4, 8], [64, 512])
    network(torch.zeros(2, 3, 64, 64))[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())  # DDP requires it


def test_weights_from_a_local_file_of_either_library(tmp_path: Path) -> None:
    model = timm.create_model("resnet18")
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    network = build_backbone("resnet18", weights=str(tmp_path / "timm.pth"))
    torch.testing.assert_close(
        network.state_dict()["body.layer4.1.conv2.weight"], model.layer4[1].conv2.weight
    )
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    ours = build_backbone("torchvision:resnet18", weights=str(tmp_path / "tv.pth")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        features = torch.nn.Sequential(*list(theirs.eval().children())[:-2])(images)
        torch.testing.assert_close(ours(images)[-1], features)


def test_mistakes_are_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="timm has no such model; did you mean resnet18"):
        build_backbone("resnet81")
    with pytest.raises(UserError, match=r"did you mean small_vgg\?$"):
        build_backbone("small_vg")
    with pytest.raises(UserError, match="did you mean torchvision:vgg1"):
        build_backbone("torchvision:vgg61")
    with pytest.raises(UserError, match="no such file of weights"):
        build_backbone("resnet10t", weights=str(tmp_path / "absent.pth"))
    (tmp_path / "corrupt.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="the file is corrupt or holds no weights"):
        build_backbone("resnet10t", weights=str(tmp_path / "corrupt.pth"))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the weights of backbone resnet10t"):
        build_backbone("resnet10t", weights=str(tmp_path / "other.pth"))
    with pytest.raises(UserError, match="no weights 'IMAGENET9'"):
        build_backbone("torchvision:resnet18", weights="IMAGENET9")


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
@pytest.mark.parametrize(
    "name",
    ["resnet10t", "mobilenetv3_small_050", "tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"],
)
def test_a_file_of_timm_gives_the_features_of_its_network(name: str, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.1, 0.1)
    torch.save({prefix + key: value for key, value in theirs.state_dict().items()}, tmp_path / "timm.pth")
    torch.manual_seed(1)
    ours = build_backbone(name, weights=str(tmp_path / "timm.pth")).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        found = ours(images)[-1]
        expected = theirs.forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(found, expected)


def test_a_file_without_the_classifier_and_safetensors_are_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = torchvision.models.resnet18().eval()
    state = {f"backbone.{k}": v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    save_file(state, tmp_path / "body.safetensors")
    ours = build_backbone("torchvision:resnet18", weights=str(tmp_path / "body.safetensors")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = torchvision.models.feature_extraction.create_feature_extractor(theirs, ["layer4"])(images)
        torch.testing.assert_close(ours(images)[-1], expected["layer4"])
    assert capsys.readouterr().err == (
        f"segdet: backbone torchvision:resnet18: 120 weights from {tmp_path / 'body.safetensors'}\n"
    )


def test_layers_that_are_not_used_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "a.pth")
    build_backbone("resnet10t", weights=str(tmp_path / "a.pth"))
    assert ", without 2 (fc.weight, fc.bias) from " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet10t", "torchvision:resnet18"])
def test_a_broken_mapping_of_names_is_refused(name: str, tmp_path: Path) -> None:
    network = timm.create_model(name) if name == "resnet10t" else torchvision.models.resnet18()
    state = {key.replace("layer2", "stage2"): value for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(
        UserError, match=r"broken\.pth: not the weights of backbone .* are missing, such as layer2\.0"
    ):
        build_backbone(name, weights=str(tmp_path / "broken.pth"))


def test_the_normalization_follows_the_metadata_of_the_weights() -> None:
    half = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert backbone_normalization("tf_efficientnet_lite0", "weights.pth") == half
    assert backbone_normalization("tf_efficientnet_lite0", True) == half
    assert backbone_normalization("vit_tiny_patch16_224", "augreg_in21k") == half
    assert backbone_normalization("resnet18", "a1_in1k") == IMAGENET
    assert backbone_normalization("torchvision:vgg16", "IMAGENET1K_FEATURES") != IMAGENET
    assert backbone_normalization("torchvision:resnet18", "weights.pth") == IMAGENET
    assert backbone_normalization("tf_efficientnet_lite0", None) is None
    assert backbone_normalization("small_vgg", "weights.pth") is None
