"""Tests of the proposals of a trained Faster R-CNN: boxes in image pixels, and the key of the cache."""

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from proposal_images import make_voc, noisy_scene

from segdet.cli.main import main
from segdet.detection.faster_rcnn import FasterRCNN
from segdet.detection.fcos import FCOS
from segdet.detection.rpn_proposer import RPN
from segdet.task import Task
from segdet.training.load_checkpoint import DESCRIPTION
from segdet.util.errors import UserError

OPTIONS: dict[str, Any] = {
    "backbone": "small_vgg", "backbone_options": {"channels": [8, 8, 8, 8]}, "strides": [8, 16], "width": 8,
    "head_width": 8, "before_nms": [200, 100], "proposals": [100, 60], "weights": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGDET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("shapes") / "voc")


@pytest.fixture
def scene() -> np.ndarray:
    return noisy_scene()


def _save(path: Path, model: Task, options: dict[str, Any], size: Any = None) -> Path:
    description = {"class_path": f"{type(model).__module__}.{type(model).__name__}", "image_size": size}
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": {**model.hparams, **options},
        DESCRIPTION: description,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def _model(seed: int = 0) -> FasterRCNN:
    torch.manual_seed(seed)
    model = FasterRCNN(["a", "b"], **OPTIONS).eval()
    torch.nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.05)  # type: ignore[union-attr,arg-type]
    return model


def test_boxes_equal_those_of_the_network(tmp_path: Path, scene: np.ndarray) -> None:
    model = _model()
    path = _save(tmp_path / "run" / "checkpoints" / "best.ckpt", model, OPTIONS)
    pixels = torch.from_numpy(scene.copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = model.propose(model.normalize(pixels))[0][0].numpy()
    boxes, scores = RPN(str(path))(scene)
    assert boxes.dtype == scores.dtype == np.float32
    assert len(boxes) == len(scores) > 20
    np.testing.assert_allclose(boxes, np.unique(expected, axis=0)[_order_in(expected)], atol=1e-3)
    assert (np.diff(scores) <= 0).all()
    few, _ = RPN(str(tmp_path / "run"), count=5)(scene)
    assert np.array_equal(few, boxes[:5])


def test_count_may_exceed_the_limits_of_the_network(tmp_path: Path, scene: np.ndarray) -> None:
    """``count`` overrides the numbers of boxes before and after suppression."""
    tight = OPTIONS | {"before_nms": [200, 12], "proposals": [100, 10]}
    path = _save(tmp_path / "model.ckpt", _model(), tight)
    own, scores = RPN(str(path))(scene)
    assert 5 < len(own) <= 10
    many, more_scores = RPN(str(path), count=60)(scene)
    assert len(many) > 30
    assert (np.diff(more_scores) <= 0).all() and more_scores[0] == scores[0]
    assert len(RPN(str(path), count=4)(scene)[0]) == 4
    assert np.array_equal(RPN(str(path))(scene)[0], own)  # the limits of the network are restored
    roomy = _save(
        tmp_path / "roomy.ckpt", _model(), OPTIONS | {"before_nms": [200, 60], "proposals": [100, 60]}
    )
    assert np.array_equal(RPN(str(roomy))(scene)[0], many)


def _order_in(boxes: np.ndarray) -> np.ndarray:
    """Return the order of the unique rows by first occurrence."""
    return np.argsort(np.unique(boxes, axis=0, return_index=True)[1])


@pytest.mark.parametrize("given", [True, False])
def test_images_are_resized_as_in_training_and_boxes_mapped_back(
    given: bool, tmp_path: Path, scene: np.ndarray
) -> None:
    path = _save(tmp_path / "model.ckpt", _model(), OPTIONS, None if given else [48, 64])
    boxes, _ = RPN(str(path), size=(48, 64) if given else None)(scene)
    import cv2

    small, _ = RPN(str(_save(tmp_path / "small.ckpt", _model(), OPTIONS)))(
        cv2.resize(scene, (64, 48), interpolation=cv2.INTER_LINEAR)
    )
    np.testing.assert_allclose(boxes, small * ([120 / 64, 90 / 48] * 2), atol=1e-2)
    assert boxes[:, 2].max() <= 120 and boxes[:, 3].max() <= 90


def test_the_key_depends_on_the_content_of_the_checkpoint(tmp_path: Path) -> None:
    path = _save(tmp_path / "model.ckpt", _model(), OPTIONS)
    key = RPN(str(path)).key
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(path.read_bytes())
    assert RPN(str(copy)).key == key
    _save(path, _model(1), OPTIONS)
    os.utime(path, ns=(0, 0))
    assert RPN(str(path)).key != key
    assert RPN(str(copy), count=7).key != key


def test_mistakes_are_reported_in_one_line(tmp_path: Path, scene: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"absent\.ckpt: no such checkpoint"):
        RPN(str(tmp_path / "absent.ckpt"))
    with pytest.raises(UserError, match=r"best\.ckpt: no such checkpoint; give the folder of a run"):
        RPN(str(tmp_path))
    (tmp_path / "corrupt.ckpt").write_bytes(b"PK")
    with pytest.raises(UserError, match="the file is corrupt or is not a checkpoint"):
        RPN(str(tmp_path / "corrupt.ckpt"))(scene)
    options = {"backbone": "small_vgg", "strides": [8], "width": 8}
    other = _save(tmp_path / "fcos.ckpt", FCOS(["a", "b"], **options), options)
    with pytest.raises(UserError, match="holds a FCOS, which has no proposal network"):
        RPN(str(other))(scene)
    with pytest.raises(UserError, match="count 0: must be at least 1"):
        RPN(str(other), count=0)


@pytest.mark.parametrize("named", ["run", "run/checkpoints/best.ckpt"])
def test_the_command_compares_the_rpn_with_other_proposers(
    named: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(tmp_path / "run" / "checkpoints" / "best.ckpt", _model(), OPTIONS)
    network = str(tmp_path / named)
    arguments = ["proposals", str(shapes), "--split", "val", "--counts", "10", "--workers", "1"]
    assert main([*arguments, "--proposer", "windows", network]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {network} ")]
    assert len(lines) == 2
    assert 0 <= float(lines[1].split("|")[3]) <= 1
    assert main([*arguments, "--proposer", str(tmp_path)]) == 2
    assert "no such checkpoint" in capsys.readouterr().err


def test_a_configuration_names_the_rpn_without_its_module(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--model=FastRCNN", "--data=ShapesDataModule", "--data.proposals=RPN"]
    assert main([*arguments, "--data.proposals.checkpoint=runs/x", "--print_config"]) == 0
    proposals = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["proposals"]
    module, _, name = proposals["class_path"].rpartition(".")
    assert getattr(importlib.import_module(module), name) is RPN
    assert proposals["init_args"]["checkpoint"] == "runs/x"
