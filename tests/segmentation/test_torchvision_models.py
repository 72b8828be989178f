"""Test DeepLabV3, LR-ASPP and FCN against torchvision: logits, weights, normalization; and error messages."""

import importlib
import urllib.error
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from segdet.data.sample import Target
from segdet.segmentation.base import Segmenter
from segdet.segmentation.torchvision_models import LRASPP, DeepLabV3, TorchvisionFCN, TorchvisionSegmenter
from segdet.util.errors import UserError

CLASSES = ["background", "bright", "striped"]
KINDS: dict[str, tuple[type[TorchvisionSegmenter], str]] = {
    "fcn_resnet50": (TorchvisionFCN, "resnet50"),
    "deeplabv3_resnet50": (DeepLabV3, "resnet50"),
    "deeplabv3_mobilenet_v3_large": (DeepLabV3, "mobilenet_v3_large"),
    "lraspp_mobilenet_v3_large": (LRASPP, "mobilenet_v3_large"),
}
Overfit = Callable[[Segmenter, int, float, int], float]


@pytest.fixture(autouse=True)
def _short_resnets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace torchvision's ResNet-50 by one with a single block per stage, which takes a tenth of the time."""

    def short(*, weights: Any = None, **options: Any) -> ResNet:
        network = ResNet(Bottleneck, [1, 1, 1, 1], **options)
        if weights is not None:
            network.load_state_dict(weights.get_state_dict())
        return network

    for name in ("fcn", "deeplabv3"):
        monkeypatch.setattr(
            importlib.import_module(f"torchvision.models.segmentation.{name}"), "resnet50", short
        )


def _theirs(name: str, classes: int = 3) -> nn.Module:
    torch.manual_seed(1)
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    network = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes, **auxiliary
    )
    for module in network.modules():  # other statistics than those of a new layer
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return network.eval()


@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_torchvisions(name: str, tmp_path: Path) -> None:
    kind, backbone = KINDS[name]
    theirs = _theirs(name)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = kind(CLASSES, backbone, weights=str(tmp_path / "weights.pth")).eval()
    images = torch.randint(0, 256, (2, 3, 50, 67), dtype=torch.uint8)
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    normal = torchvision.transforms.functional.normalize(images / 255, preset.mean, preset.std)
    torch.testing.assert_close(ours.normalize(images), normal, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        expected = theirs(normal)
        torch.testing.assert_close(ours.predict(normal), expected["out"])
        masks = torch.randint(0, 3, (2, 50, 67))
        losses = ours.losses(normal, [Target(mask=mask) for mask in masks])
        torch.testing.assert_close(losses["segmentation"], F.cross_entropy(expected["out"], masks))
        if name.startswith("lraspp"):
            assert set(losses) == {"segmentation"}
        else:
            assert set(losses) == {"segmentation", "auxiliary"}
            torch.testing.assert_close(losses["auxiliary"], 0.5 * F.cross_entropy(expected["aux"], masks))


@pytest.mark.parametrize("name", ["fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_with_other_classes_all_other_weights_are_loaded(name: str, tmp_path: Path) -> None:
    kind, backbone = KINDS[name]
    theirs = _theirs(name, classes=21)
    torch.save(
        {"model": theirs.state_dict()}, tmp_path / "weights.pth"
    )  # as torchvision's training script does
    ours = kind(CLASSES, backbone, weights=str(tmp_path / "weights.pth")).eval()
    before, after = theirs.state_dict(), ours.network.state_dict()
    assert set(before) == set(after)
    new = {key for key in before if before[key].shape != after[key].shape}
    assert {key.rsplit(".", 1)[0] for key in new} == set(kind.heads)
    assert all(after[key].shape[0] == 3 for key in new)
    for key in set(before) - new:
        torch.testing.assert_close(after[key], before[key])


def test_published_weights_of_21_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    state = _theirs("deeplabv3_mobilenet_v3_large", classes=21).state_dict()
    enum = torchvision.models.segmentation.DeepLabV3_MobileNet_V3_Large_Weights
    requested = []

    def get_state_dict(self: Any, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        requested.append(self)
        return state

    monkeypatch.setattr(enum, "get_state_dict", get_state_dict)
    for weights in ("COCO_WITH_VOC_LABELS_V1", True):
        model = DeepLabV3(
            CLASSES,
            "mobilenet_v3_large",
            weights=weights,
            weights_backbone="IMAGENET1K_V1",
            auxiliary_weight=0,
        )
        ours = model.network.state_dict()
        assert not any(key.startswith("aux_classifier") for key in ours)
        assert ours["classifier.4.weight"].shape[0] == 3
        torch.testing.assert_close(
            ours["classifier.0.project.0.weight"], state["classifier.0.project.0.weight"]
        )
    assert requested == [enum.COCO_WITH_VOC_LABELS_V1] * 2
    full = DeepLabV3([str(i) for i in range(21)], "mobilenet_v3_large", weights="COCO_WITH_VOC_LABELS_V1")
    torch.testing.assert_close(full.network.state_dict()["classifier.4.weight"], state["classifier.4.weight"])


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "lraspp_mobilenet_v3_large"])
def test_weights_of_the_backbone(name: str, tmp_path: Path) -> None:
    kind, backbone = KINDS[name]
    theirs = (
        ResNet(Bottleneck, [1, 1, 1, 1]) if backbone == "resnet50" else torchvision.models.get_model(backbone)
    )
    torch.save(theirs.state_dict(), tmp_path / "backbone.pth")
    ours = kind(CLASSES, backbone, weights_backbone=str(tmp_path / "backbone.pth"))
    of_theirs = [p for key, p in theirs.state_dict().items() if not key.startswith(("fc.", "classifier."))]
    of_ours = ours.network.backbone.state_dict().values()  # type: ignore[union-attr]
    for mine, its in zip(of_ours, of_theirs, strict=True):
        torch.testing.assert_close(mine, its)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace torchvision's backbones and heads by narrow ones for the CPU."""
    from torchvision.models.segmentation import deeplabv3, fcn, lraspp

    monkeypatch.setattr(lraspp, "mobilenet_v3_large", torchvision.models.mobilenet_v3_small)
    for module in (fcn, deeplabv3):
        monkeypatch.setattr(module, "resnet50", _narrow_backbone)
        # torchvision passes 1024 and 2048 channels, those of a ResNet.
        head = module.FCNHead
        monkeypatch.setattr(
            module, "FCNHead", lambda channels, classes, head=head: head(channels // 32, classes)
        )
    deeplab = deeplabv3.DeepLabHead
    monkeypatch.setattr(
        deeplabv3, "DeepLabHead", lambda channels, classes: deeplab(channels // 32, classes, (1, 2, 3))
    )


def _narrow_backbone(**_: Any) -> nn.Module:
    """Return stages named like those of a ResNet, up to stride 8."""
    widths = {"layer1": (3, 16, 2), "layer2": (16, 32, 2), "layer3": (32, 32, 2), "layer4": (32, 64, 1)}
    stages = {
        name: nn.Sequential(
            nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)
        )
        for name, (i, o, stride) in widths.items()
    }
    return nn.Sequential(OrderedDict(stages))


def _for_few_steps(model: TorchvisionSegmenter) -> TorchvisionSegmenter:
    """Remove dropout, and let batch statistics converge within tens of steps (hundreds in MobileNetV3)."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("kind", "steps", "rate"), [(TorchvisionFCN, 120, 1e-2), (DeepLabV3, 50, 1e-3), (LRASPP, 40, 1e-2)]
)
def test_overfits_four_images(
    kind: type[TorchvisionSegmenter], steps: int, rate: float, overfit: Overfit
) -> None:
    torch.manual_seed(0)
    assert overfit(_for_few_steps(kind(CLASSES)), steps, rate, 2) >= 0.98


@pytest.mark.usefixtures("narrow")
def test_lraspp_without_its_fine_map_does_not_overfit(overfit: Overfit) -> None:
    torch.manual_seed(0)
    model = _for_few_steps(LRASPP(CLASSES))
    for parameter in model.network.classifier.low_classifier.parameters():
        nn.init.zeros_(parameter).requires_grad_(False)
    assert overfit(model, 40, 1e-2, 2) < 0.98


@pytest.mark.usefixtures("narrow")
def test_deeplab_with_a_frozen_classifier_does_not_overfit(overfit: Overfit) -> None:
    """The auxiliary head is still trained, but its output is not the prediction."""
    torch.manual_seed(0)
    model = _for_few_steps(DeepLabV3(CLASSES))
    model.network.classifier.requires_grad_(False)
    assert overfit(model, 50, 1e-3, 2) < 0.98


def test_stages() -> None:
    images = torch.randn(1, 3, 64, 64)
    expected = {
        "fcn_resnet50": ["features", "auxiliary confidence"],
        "deeplabv3_resnet50": [
            "features", "1x1", "dilation 12", "dilation 24", "dilation 36", "auxiliary confidence",
        ],
        "lraspp_mobilenet_v3_large": ["low features", "high features", "weighted features"],
    }  # fmt: skip
    for name, names in expected.items():
        kind, backbone = KINDS[name]
        with torch.inference_mode():
            stages = list(kind(CLASSES, backbone).eval().stages(images))
        assert [stage.name for stage in stages][: len(names)] == names
        assert stages[-1].name == "confidence"
        assert all(stage.map is not None and stage.map.ndim == 2 for stage in stages)


def test_mistakes_are_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="torchvision has no such DeepLabV3; did you mean resnet50"):
        DeepLabV3(CLASSES, "resnet5")
    with pytest.raises(UserError, match="torchvision has no such LRASPP; did you mean mobilenet_v3_large"):
        LRASPP(CLASSES, "resnet50")
    with pytest.raises(UserError, match=r"no weights 'COCO' of lraspp_\w+; it has COCO_WITH_VOC_LABELS_V1"):
        LRASPP(CLASSES, weights="COCO")
    with pytest.raises(
        UserError, match=r"no weights 'IMAGENET9' of mobilenet_v3_large; it has IMAGENET1K_V1"
    ):
        LRASPP(CLASSES, weights_backbone="IMAGENET9")
    with pytest.raises(UserError, match=r"absent\.pth: no such file of weights for LRASPP"):
        LRASPP(CLASSES, weights=str(tmp_path / "absent.pth"))
    (tmp_path / "corrupt.pth").write_bytes(b"PK\x03\x04 cut")
    for option in ("weights", "weights_backbone"):
        with pytest.raises(UserError, match="the file is corrupt or holds no weights"):
            LRASPP(CLASSES, **{option: str(tmp_path / "corrupt.pth")})
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the weights of LRASPP mobilenet_v3_large"):
        LRASPP(CLASSES, weights=str(tmp_path / "other.pth"))

    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        UserError, match=r"cannot be downloaded \(<urlopen error Name or service not known>\)"
    ):
        LRASPP(CLASSES, weights="COCO_WITH_VOC_LABELS_V1")
    with pytest.raises(UserError, match="cannot be downloaded"):
        LRASPP(CLASSES, weights_backbone=True)
