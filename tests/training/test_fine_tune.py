"""Test fine-tuning: a network that starts from a checkpoint predicts the same for the classes that both have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segdet.detection import (
    DETR,
    FCOS,
    RCNN,
    SSD,
    YOLOX,
    FasterRCNN,
    FastRCNN,
    MaskRCNN,
    OverFeat,
    RetinaNet,
    SlidingWindowDetector,
    YOLOv1,
)
from segdet.localization import BoxHead
from segdet.nn.weights import DESCRIPTION, restoring
from segdet.segmentation import FCN, VGG16FCN, SegNetBasic, UNet, UpsamplingFCN
from segdet.task import Task
from segdet.training.fine_tune import start_from
from segdet.util.errors import UserError

OLD = ["cat", "dog", "cow"]
NEW = ["cow", "cat", "dog"]

_VGG = {"backbone": "small_vgg", "backbone_options": {"channels": [8, 8, 8, 8]}}
_PYRAMID = {**_VGG, "strides": [8, 16], "width": 16}
_DETECTOR = {"score_threshold": -10.0}
_DETR = {
    "stride": 16, "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 8, "queries": 9,
}  # fmt: skip

SEGMENTATION: list[tuple[type[Task], dict[str, Any]]] = [
    (FCN, {**_VGG, "strides": [4, 8], "width": 8}),
    (UNet, {**_VGG, "strides": [2, 4, 8], "widths": [8, 8]}),
    (VGG16FCN, {"width": 0.05, "fc_channels": 8, "pad": 1, "upsampling": "all"}),
    (SegNetBasic, {}),
    (SegNetBasic, {"variant": "fcn_basic"}),
    (UpsamplingFCN, {}),
]
DETECTION: list[tuple[type[Task], dict[str, Any]]] = [
    (SlidingWindowDetector, {"windows_per_image": 8}),
    (OverFeat, {"regression": "per_class", "merging": "nms"}),
    (FastRCNN, {**_VGG, "stride": 8, "pool": 2, "width": 16}),
    (FasterRCNN, {**_PYRAMID, "head_width": 16, "proposals": [20, 20]}),
    (
        MaskRCNN,
        {**_PYRAMID, "head_width": 16, "proposals": [20, 20], "mask_width": 8, "mask_convolutions": 1},
    ),
    (YOLOv1, {**_VGG, "stride": 16, "grid": 4, "hidden": 16, "width": 8}),
    (YOLOv1, {**_VGG, "stride": 16, "grid": 4, "hidden": 0, "width": 8}),
    (SSD, {**_VGG, "strides": [8, 16], "extra_maps": 1, "width": 8}),
    (RetinaNet, {**_PYRAMID, "extra_levels": 1}),
    (FCOS, {**_PYRAMID, "extra_levels": 1}),
    (YOLOX, {**_VGG, "strides": [8, 16], "width": 8}),
    (DETR, {**_VGG, **_DETR}),
]
IDS = [f"{family.__name__}-{place}" for place, (family, _) in enumerate(DETECTION)]


def build(family: type[Task], names: list[str], options: dict[str, Any], seed: int = 0) -> Task:
    """Return a model with random weights, all of them different."""
    torch.manual_seed(seed)
    model = family(names, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def checkpoint_of_model(model: Task, **description: Any) -> dict[str, Any]:
    """Return the content of a checkpoint of ``model``."""
    content: dict[str, Any] = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(content)
    content[DESCRIPTION] |= description
    return content


def predict(model: Task) -> Any:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    inputs = {}
    if isinstance(model, FastRCNN | RCNN):
        inputs["proposals"] = [torch.tensor([[0.0, 0, 40, 40], [20, 10, 60, 50], [5, 30, 25, 64]])]
    with torch.inference_mode():
        return model.predict(images, **inputs)


@pytest.mark.parametrize(("family", "options"), SEGMENTATION)
def test_segmentation_networks_predict_the_same_for_classes_in_another_order(
    family: type[Task], options: dict[str, Any]
) -> None:
    old, new = build(family, OLD, options), build(family, NEW, options, seed=1)
    start_from(new, (Path("old.ckpt"), checkpoint_of_model(old)))
    expected: Tensor = predict(old)
    torch.testing.assert_close(
        predict(new), expected[:, [OLD.index(name) for name in NEW]], rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(expected[:, 0], expected[:, 2])


@pytest.mark.parametrize(("family", "options"), DETECTION, ids=IDS)
def test_detectors_predict_the_same_for_classes_in_another_order(
    family: type[Task], options: dict[str, Any]
) -> None:
    options = {**options, **_DETECTOR}
    old, new = build(family, OLD, options), build(family, NEW, options, seed=1)
    start_from(new, (Path("old.ckpt"), checkpoint_of_model(old)))
    (expected,), (found,) = predict(old), predict(new)
    assert len(expected["scores"]) > 0
    assert objects(found, NEW) == pytest.approx(objects(expected, OLD), abs=1e-2)


def objects(prediction: Any, names: list[str]) -> dict[str, list[float]]:
    """Return the sorted scores, and the sum of the coordinates of the boxes, of each class."""
    listed: dict[str, list[float]] = {}
    for index, name in enumerate(names, 1):
        mine = prediction["labels"] == index
        listed[f"{name} scores"] = prediction["scores"][mine].sort().values.tolist()
        listed[f"{name} boxes"] = prediction["boxes"][mine].sum(0).tolist()
    return {f"{key} {i}": value for key, values in listed.items() for i, value in enumerate(values)}  # type: ignore[misc]


def test_localizers_predict_the_same_for_classes_in_another_order() -> None:
    options = {**_VGG, "strides": [16], "width": 8, "per_class": True}
    old, new = build(BoxHead, OLD, options), build(BoxHead, NEW, options, seed=1)
    start_from(new, (Path("old.ckpt"), checkpoint_of_model(old)))
    order = [OLD.index(name) for name in NEW]
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        for found, expected in zip(new(images), old(images), strict=True):
            torch.testing.assert_close(found, expected[:, order])


def test_the_layers_of_rcnn_after_the_network_follow_the_classes() -> None:
    options = {**_VGG, "stride": 16, "width": 8}
    old, new = build(RCNN, OLD, options), build(RCNN, NEW, options, seed=1)
    with torch.no_grad():
        old.svms.weight.normal_()  # type: ignore[union-attr,operator]
        old.regressors.weight.normal_()  # type: ignore[union-attr,operator]
    start_from(new, (Path("old.ckpt"), checkpoint_of_model(old)))
    order = [OLD.index(name) for name in NEW]
    for layer in ("svms", "regressors"):
        mine, theirs = new.get_submodule(layer).weight, old.get_submodule(layer).weight
        assert torch.equal(mine, theirs[order])  # type: ignore[arg-type,index]
    assert torch.equal(new.classifier.weight, old.classifier.weight[[0, *(1 + i for i in order)]])  # type: ignore[union-attr,index,arg-type]


def test_new_classes_keep_their_initial_weights_and_everything_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {**_VGG, "strides": [4, 8], "width": 8}
    old = build(FCN, OLD, options)
    new = build(FCN, ["cow", "horse", "cat", "hen"], options, seed=1)
    before = {key: value.clone() for key, value in new.state_dict().items()}
    start_from(
        new, (Path("runs/old.ckpt"), checkpoint_of_model(old) | {"current_model_state": {}, "global_step": 7})
    )
    rows = new.classifier[-1].weight  # type: ignore[index]
    assert torch.equal(rows[[0, 2]], old.classifier[-1].weight[[2, 0]])  # type: ignore[index]
    assert torch.equal(rows[[1, 3]], before["classifier.5.weight"][[1, 3]])
    count = len(before)
    assert capsys.readouterr().err == (
        f"segdet: starts from runs/old.ckpt (FCN, step 7, moving average): {count} of {count} weights fit\n"
        "segdet: classes kept: 2 (cow, cat); classes added: 2 (horse, hen); classes left out: 1 (dog)\n"
    )


def test_another_family_gives_its_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    old = build(FCN, OLD, {**_VGG, "strides": [8, 16], "width": 8})
    new = build(FCOS, OLD, {**_PYRAMID, "extra_levels": 1}, seed=1)
    start_from(new, (Path("old.ckpt"), checkpoint_of_model(old)))
    for key, value in new.backbone.state_dict().items():  # type: ignore[union-attr,operator]
        assert torch.equal(value, old.backbone.state_dict()[key])  # type: ignore[union-attr,operator]
    lines = capsys.readouterr().err
    assert "new: " in lines and "not used: 20 (laterals.0.0.weight, " in lines


def test_a_checkpoint_of_another_backbone_is_reported_in_one_line() -> None:
    old = build(FCN, OLD, {**_VGG, "strides": [4, 8], "width": 8})
    wide = {
        "backbone": "small_vgg",
        "backbone_options": {"channels": [8, 16, 16]},
        "strides": [4, 8],
        "width": 8,
    }
    new = build(FCN, OLD, wide, seed=1)
    with pytest.raises(
        UserError,
        match=r"^old\.ckpt: only \d+ of \d+ weights fit this FCN; backbone\.body\.body\.stages\.1",
    ):
        start_from(new, (Path("old.ckpt"), checkpoint_of_model(old)))


def test_the_model_starts_when_it_is_configured_and_takes_the_normalization(tmp_path: Path) -> None:
    options = {**_VGG, "strides": [4, 8], "width": 8}
    old = build(FCN, OLD, options | {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)})
    torch.save(checkpoint_of_model(old), tmp_path / "old.ckpt")
    new = FCN(NEW, **options, weights=str(tmp_path / "old.ckpt"))
    assert new.hparams["mean"] == (0.1, 0.2, 0.3) and new.hparams["std"] == (0.4, 0.5, 0.6)
    new.configure_model()
    assert torch.equal(new.classifier[-1].bias, old.classifier[-1].bias[[2, 0, 1]])  # type: ignore[index]
    trained = {key: value + 1 for key, value in new.state_dict().items()}
    new.load_state_dict(trained)
    new.configure_model()  # a second trainer does not start again
    assert torch.equal(new.state_dict()["classifier.5.bias"], trained["classifier.5.bias"])
    with restoring(new.state_dict()):
        FCN(NEW, **options, weights="gone").configure_model()
    given = FCN(NEW, **options, weights=str(tmp_path / "old.ckpt"), mean=(0.5, 0.5, 0.5))
    assert given.hparams["mean"] == (0.5, 0.5, 0.5) and given.hparams["std"] == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("use", ["predict", "read", "write", "train"])
def test_a_model_of_a_script_starts_when_it_is_first_used(use: str, tmp_path: Path) -> None:
    options = {**_VGG, "strides": [4, 8], "width": 8}
    old = build(FCN, NEW, options)
    torch.save(checkpoint_of_model(old), tmp_path / "old.ckpt")
    new = FCN(NEW, **options, weights=str(tmp_path / "old.ckpt")).eval()
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    if use == "predict":
        assert torch.equal(new.predict_tensors(images)[0]["mask"], old.predict_tensors(images)[0]["mask"])
    elif use == "write":  # later uses do not replace what the script has loaded
        new.load_state_dict({"classifier.5.bias": torch.tensor([7.0, 8, 9])}, strict=False)
        new.predict_tensors(images)
        assert new.classifier[-1].bias.tolist() == [7, 8, 9]  # type: ignore[index]
    elif use == "train":
        new.normalize(images)
    values = new.state_dict()
    assert all(
        torch.equal(values[key], value) for key, value in old.state_dict().items() if "5.bias" not in key
    )
    assert use == "write" or torch.equal(values["classifier.5.bias"], old.state_dict()["classifier.5.bias"])


def test_the_normalization_of_weights_is_reported_after_they_were_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**_VGG, "strides": [4, 8], "width": 8}
    old = build(FCN, OLD, options)
    torch.save(checkpoint_of_model(old), tmp_path / "old.ckpt")
    body = old.backbone.body.state_dict()  # type: ignore[union-attr]
    torch.save(body, tmp_path / "body.pth")
    for name in ("old.ckpt", "body.pth"):
        model = FCN(OLD, **options, weights=str(tmp_path / name))
        assert "normalized" not in capsys.readouterr().err
        model.configure_model()
        model.configure_model()
        assert capsys.readouterr().err.count("images are normalized by mean [0.485, 0.456, 0.406]") == 1
    torch.save(dict(list(body.items())[2:]), tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth: not the weights of small_vgg"):
        FCN(OLD, **options, weights=str(tmp_path / "part.pth"))
    assert capsys.readouterr().err == ""


def test_a_family_without_a_pretrained_network_takes_a_checkpoint_only(tmp_path: Path) -> None:
    old = build(SegNetBasic, OLD, {})
    torch.save(checkpoint_of_model(old), tmp_path / "old.ckpt")
    SegNetBasic(OLD, weights=str(tmp_path / "old.ckpt")).configure_model()
    with pytest.raises(
        UserError, match="SegNetBasic has no pretrained network; give a run or checkpoint of segdet"
    ):
        SegNetBasic(OLD, weights=True)


def test_a_checkpoint_is_no_file_of_a_backbone(tmp_path: Path) -> None:
    torch.save(checkpoint_of_model(build(SegNetBasic, OLD, {})), tmp_path / "old.ckpt")
    with pytest.raises(
        UserError, match=r"weights_backbone .*old\.ckpt: a checkpoint of segdet; give it as --model"
    ):
        DETR(OLD, **_VGG, **_DETR, weights_backbone=str(tmp_path / "old.ckpt"))
