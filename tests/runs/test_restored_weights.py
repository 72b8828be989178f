"""A checkpoint contains all weights: pretrained weights are neither read nor downloaded again, but still decide how the
network is built."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from torch import nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import faster_rcnn, retinanet
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from segdet.cli.main import main
from segdet.data.sample import Batch, Prediction
from segdet.detection.base import Detector
from segdet.detection.detr import DETR
from segdet.detection.faster_rcnn import FasterRCNN, TorchvisionFasterRCNN
from segdet.detection.retinanet import TorchvisionRetinaNet
from segdet.detection.rpn_proposer import RPN
from segdet.detection.ssd_vgg16 import SSD300
from segdet.detection.yolo_v1 import YOLOv1
from segdet.nn.backbones import build_backbone
from segdet.nn.weights import restoring
from segdet.segmentation.fcn_vgg16 import VGG16FCN
from segdet.segmentation.torchvision_models import LRASPP, DeepLabV3
from segdet.training.load_checkpoint import DESCRIPTION

TINY = [
    "--data=ShapesDataModule", "--data.num_train=2", "--data.num_val=2", "--data.num_test=2",
    "--data.image_size=[64, 64]", "--data.batch_size=2", "--data.num_workers=0", "--panels.images=0",
    "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture
def short_resnets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the ResNet-50 of torchvision's detectors by one with a single block per stage."""

    def short(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
        assert weights is None
        return ResNet(Bottleneck, [1, 1, 1, 1], **options)

    for module in (faster_rcnn, retinanet):
        monkeypatch.setattr(module, "resnet50", short)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse all downloads."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something is downloaded")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", refuse)


def coco_like(network: str, path: Path) -> str:
    """Write weights like torchvision's for COCO: no ``num_batches_tracked``, and some channels of tiny variance."""
    torch.manual_seed(1)
    whole = torchvision.models.get_model(network, weights=None, weights_backbone=None, num_classes=5)
    state = {key: value for key, value in whole.state_dict().items() if "num_batches" not in key}
    for key, value in state.items():
        if key.endswith("running_var"):
            value[::3] = 1e-5
            state[key.replace("running_var", "weight")][::3] = 1e-5**0.5
    torch.save(state, path)
    return str(path)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[list[Prediction]]:
    """The predictions that are scored from now on, batch by batch."""
    scored: list[list[Prediction]] = []
    update_scores = Detector.update_scores

    def keep(self: Detector, scores: Any, predictions: list[Prediction], batch: Batch, places: Any) -> None:
        scored.append(predictions)
        update_scores(self, scores, predictions, batch, places)

    monkeypatch.setattr(Detector, "update_scores", keep)
    return scored


def test_a_network_with_frozen_normalization_predicts_as_in_its_training(
    short_resnets: None, scored: list[list[Prediction]], shapes: Path, tmp_path: Path
) -> None:
    weights = Path(coco_like("retinanet_resnet50_fpn", tmp_path / "coco.pth"))
    run = tmp_path / "run"
    model = [
        "--model=TorchvisionRetinaNet", f"--model.weights={weights}", "--model.score_threshold=0",
        "--model.detections_per_image=20", "--model.optim.lr=1e-6",
    ]  # fmt: skip
    assert main(["fit", *model, *TINY, f"--data.root={shapes}", f"--run_dir={run}"]) == 0
    expected = scored[-1]
    weights.rename(tmp_path / "elsewhere.pth")
    assert main(["validate", f"--ckpt_path={run}"]) == 0
    assert len(scored) == 2
    for found, one in zip(scored[-1], expected, strict=True):
        assert len(found["scores"]) == 20
        assert torch.equal(found["boxes"], one["boxes"]) and torch.equal(found["scores"], one["scores"])
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["weights"] == str(weights)
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]) == 0
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("num_batches" in name for name in state)


def test_a_staged_training_is_resumed_without_the_previous_stage(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [*TINY, f"--data.root={shapes}"]
    model = ["--model=VGG16FCN", "--model.pad=1", "--model.width=0.05", "--model.fc_channels=8"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["fit", *model, "--model.stride=32", *tiny, f"--run_dir={first}"]) == 0
    stage = ["--model.stride=16", f"--model.weights={first}"]
    assert main(["fit", *model, *stage, *tiny, f"--run_dir={second}"]) == 0
    assert f"starts from {first}" in capsys.readouterr().err
    shutil.rmtree(first)
    assert main(["fit", f"--ckpt_path={second}", "--trainer.max_epochs=2"]) == 0
    assert "starts from" not in capsys.readouterr().err
    assert json.loads((second / "result.json").read_text())["status"] == "finished"
    assert main(["test", f"--ckpt_path={second}"]) == 0
    assert main(["fit", *model, *stage, *tiny, f"--run_dir={tmp_path}/third"]) == 2  # a new run needs it
    assert f"{first}: no such file of weights for VGG16" in capsys.readouterr().err


def test_smp_needs_no_connection(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="pip install 'segdet[smp]'")
    run = tmp_path / "run"
    model = ["--model=SMP", "--model.architecture=FPN", "--model.encoder=resnet18"]
    assert main(["fit", *model, *TINY, f"--data.root={shapes}", f"--run_dir={run}"]) == 0
    for file in (run / "checkpoints").glob("*.ckpt"):
        content = torch.load(file, weights_only=True)
        config = content[DESCRIPTION]["config"]
        assert " weights: null" in config
        content[DESCRIPTION]["config"] = config.replace(" weights: null", " weights: imagenet")
        torch.save(content, file)

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no connection to the hub")

    monkeypatch.setattr(smp.encoders, "hf_hub_download", offline)
    assert main(["test", f"--ckpt_path={run}"]) == 0
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]) == 0
    assert main(["fit", *model, "--model.weights=imagenet", *TINY, f"--run_dir={tmp_path}/new"]) == 2


DETR_SMALL = {
    "backbone": "test_resnet", "width": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_backbone("resnet10t", weights="c3_in1k"),
        lambda: build_backbone("torchvision:resnet18", weights=True),
        lambda: build_backbone("small_vgg", weights="gone.pth"),
        lambda: FasterRCNN(["a"], "torchvision:vgg16", "IMAGENET1K_V1", strides=[16], pyramid=False),
        lambda: DETR(["a"], weights="gone.pth", **DETR_SMALL),
        lambda: DETR(["a"], weights_backbone="gone.pth", **DETR_SMALL),
        lambda: YOLOv1(["a"], backbone=None, weights="gone.pth", width=8, hidden=8),
        lambda: SSD300(["a"], weights="COCO_V1", sizes="coco"),
        lambda: VGG16FCN(["a"], weights=True, width=0.05, fc_channels=8),
        lambda: DeepLabV3(["a", "b"], "mobilenet_v3_large", weights=True, auxiliary_weight=0.4),
        lambda: LRASPP(["a", "b"], weights="gone.pth"),
        lambda: LRASPP(["a", "b"], weights_backbone="IMAGENET1K_V1"),
        lambda: TorchvisionFasterRCNN(["a"], "mobilenet_v3_large_320_fpn", weights_backbone=True),
    ],
)
def test_nothing_is_downloaded_or_read(build: Callable[[], nn.Module], offline: None) -> None:
    with restoring([]):
        built = build()
    heads = [
        module for name, module in built.named_modules() if name.endswith(("classifier.4", "low_classifier"))
    ]
    assert all(head.out_channels == 2 for head in heads)
    with pytest.raises(Exception, match=r"something is downloaded|gone\.pth: no such file"):
        build()


# The auxiliary classifiers, which exist in training only, are not among the requested nodes.
@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing the model in eval mode")
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_network_that_normalizes_its_input_does_so_when_restored(name: str, offline: None) -> None:
    """torchvision builds these networks with a normalization of the input only for its pretrained weights."""
    torch.manual_seed(0)
    images = torch.rand(1, 3, 80, 80)
    with restoring([]):
        restored = build_backbone(f"torchvision:{name}", True, [2]).eval()
    plain = build_backbone(f"torchvision:{name}", None, [2], init_weights=False).eval()
    asked = build_backbone(f"torchvision:{name}", None, [2], init_weights=False, transform_input=True).eval()
    for other in (plain, asked):
        other.load_state_dict(restored.state_dict())
    with torch.inference_mode():
        assert torch.equal(restored(images)[0], asked(images)[0])
        assert not torch.allclose(restored(images)[0], plain(images)[0])


@pytest.mark.parametrize("frozen", [True, False])
def test_the_checkpoint_decides_on_the_normalization(
    frozen: bool, short_resnets: None, tmp_path: Path
) -> None:
    weights = coco_like("retinanet_resnet50_fpn", tmp_path / "coco.pth")
    if not frozen:
        whole = torchvision.models.get_model(
            "retinanet_resnet50_fpn", weights=None, weights_backbone=None, num_classes=3
        )
        torch.save(whole.state_dict(), weights)
    model = TorchvisionRetinaNet(["a", "b"], weights=weights)
    kinds = {type(part) for part in model.modules() if hasattr(part, "running_var")}
    assert kinds == {FrozenBatchNorm2d if frozen else nn.BatchNorm2d}
    Path(weights).unlink()
    with restoring(model.state_dict()):
        other = TorchvisionRetinaNet(["a", "b"], weights=weights)
    assert {type(part) for part in other.modules() if hasattr(part, "running_var")} == kinds
    other.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for one, two in zip(model.eval()(images)[:2], other.eval()(images)[:2], strict=True):
            assert torch.equal(one, two)


def test_proposals_of_a_network_with_frozen_normalization(short_resnets: None, tmp_path: Path) -> None:
    weights = coco_like("fasterrcnn_resnet50_fpn", tmp_path / "coco.pth")
    model = TorchvisionFasterRCNN(["a", "b"], weights=weights).eval()
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        DESCRIPTION: {"class_path": "segdet.detection.faster_rcnn.TorchvisionFasterRCNN"},
    }
    torch.save(content, tmp_path / "a.ckpt")
    Path(weights).unlink()
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    boxes, _ = RPN(str(tmp_path / "a.ckpt"))(image)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = np.unique(model.propose(model.normalize(pixels))[0][0].numpy(), axis=0)
    assert len(expected) > 10
    np.testing.assert_allclose(np.unique(boxes, axis=0), expected, atol=1e-3)


def test_outside_of_a_restoration_weights_are_loaded(offline: None) -> None:
    with pytest.raises(ZeroDivisionError), restoring([]):
        raise ZeroDivisionError
    with pytest.raises(AssertionError, match="something is downloaded"):
        build_backbone("torchvision:resnet18", weights=True)
