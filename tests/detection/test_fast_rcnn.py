"""Tests of Fast R-CNN: the network and loss of the paper, overfitting, proposals, and commands."""

import json
from pathlib import Path
from typing import Any

import lightning as pl
import numpy as np
import pytest
import torch
import yaml
from region_scenes import map_50, scenes, train
from torchvision.ops import box_iou

from segdet.cli.main import main
from segdet.data import ShapesDataModule
from segdet.data.sample import Target
from segdet.detection.fast_rcnn import FastRCNN
from segdet.detection.faster_rcnn import FasterRCNN
from segdet.detection.rcnn import RCNN
from segdet.detection.rpn_proposer import RPN
from segdet.nn.roi import SampledRoIs
from segdet.proposals import UniformWindows
from segdet.runs.cost import measure_cost
from segdet.task import Task
from segdet.util.errors import UserError


def small(**kwargs: Any) -> FastRCNN:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "backbone": "small_vgg", "backbone_options": {"channels": [16, 32], "convolutions": 1}, "stride": 4, "pool": 4,
        "width": 64, "dropout": 0.0, "rois_per_image": 16, "positive_share": 0.5,
    }  # fmt: skip
    return FastRCNN(["red", "green"], **options | kwargs)


def test_the_network_matches_the_paper() -> None:
    with torch.device("meta"):
        model = FastRCNN([str(k) for k in range(20)], backbone="torchvision:vgg16", width=4096)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_690_729
    assert (model.rois_per_image, model.positive_share, model.background) == (64, 0.25, (0.1, 0.5))
    assert (
        model.nms_threshold == 0.3 and model.pooling.kind == "max" and model.coder.std == (0.1, 0.1, 0.2, 0.2)
    )


def test_the_loss_matches_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of cross entropy, and of smooth L1 for positive RoIs, are divided by the number of RoIs."""
    rois = torch.tensor([[0.0, 4, 6, 30, 40], [1, 50, 10, 80, 50], [1, 2, 2, 20, 20], [0, 0, 0, 9, 9]])
    sampled = SampledRoIs(rois, torch.tensor([2, 1, 0, -1]), rois[:, 1:] + torch.tensor([2.0, -3, 5, 40]))
    monkeypatch.setattr("segdet.detection.fast_rcnn.sample_rois", lambda *_, **__: sampled)
    model = small().eval()
    pictures, targets = scenes(images=2)
    images = model.normalize(pictures)
    losses = model.losses(images, targets)
    logits, offsets = model(images, rois)
    class_loss = -sum(logits.log_softmax(1)[i, k] for i, k in ((0, 2), (1, 1), (2, 0))) / 3
    box_loss = 0.0
    for i in (0, 1):
        (x, y, w, h), (gx, gy, gw, gh) = (
            ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1])
            for b in (rois[i, 1:], sampled.boxes[i])
        )
        target_offsets = [(gx - x) / w / 0.1, (gy - y) / h / 0.1, (gw / w).log() / 0.2, (gh / h).log() / 0.2]
        for predicted, target in zip(offsets[i, sampled.labels[i]], target_offsets, strict=True):
            error = abs(predicted - target)
            box_loss += error**2 / 2 if error < 1 else error - 0.5
    torch.testing.assert_close(losses["class"], class_loss)
    torch.testing.assert_close(losses["box"], box_loss / 3)


@pytest.fixture(scope="module", params=["max", "align"])
def trained(request: pytest.FixtureRequest) -> FastRCNN:
    model = small(pooling=request.param)
    train(model, *scenes(), steps=60, rate=3e-3)
    return model


def test_overfits_a_few_images(trained: FastRCNN) -> None:
    assert map_50(trained, *scenes()) >= 0.95


def test_without_box_regression_or_own_features_the_score_is_low(
    trained: FastRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without box regression, shifted proposals miss their objects. Features of other RoIs give wrong classes."""
    model = trained
    pictures, targets = scenes()

    def shifted(target: Any) -> torch.Tensor:
        boxes, sides = target["boxes"], target["boxes"][:, 2:] - target["boxes"][:, :2]
        return boxes + torch.cat([sides * 0.33, sides * 0.0], 1)

    ious = torch.cat([box_iou(shifted(target), target["boxes"]).diagonal() for target in targets])
    assert ious.max() < 0.5
    with monkeypatch.context() as broken:
        broken.setattr(model.coder, "decode", lambda offsets, boxes: boxes.expand_as(offsets))
        assert map_50(model, pictures, targets, shifted) == 0
    pool = model.pooling.forward

    def pool_others(features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        return pool(features, torch.cat([rois[:, :1], rois.roll(1, 0)[:, 1:]], 1))

    with monkeypatch.context() as broken:
        broken.setattr(model.pooling, "forward", pool_others)
        assert map_50(model, pictures, targets) < 0.5
    assert map_50(model, pictures, targets) >= 0.95


def test_fast_rcnn_and_rcnn_classify_the_same_proposals() -> None:
    pictures, targets = scenes(images=3)
    proposals = [target["proposals"][: 20 - number] for number, target in enumerate(targets)]
    fast = small().eval()
    slow = RCNN(
        ["red", "green"], backbone="small_vgg", backbone_options={"channels": [8]}, stride=2, pool=2, width=16,
        warp_size=16, context=1, classifier="softmax", box_regression=False,
    ).eval()  # fmt: skip
    seen: list[torch.Tensor] = []
    slow.backbone.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    fast.pooling.register_forward_hook(lambda _, args, __: seen.append(args[1]))
    with torch.inference_mode():
        images = fast.normalize(pictures)
        for model in (fast, slow):
            scores, boxes = model.classify(images, proposals)
            assert scores.shape == (20 + 19 + 18, 2)
            assert len(boxes) == len(scores)
        torch.testing.assert_close(boxes[:, 0], torch.cat(proposals))
    torch.testing.assert_close(seen[0][:, 1:], torch.cat(proposals))
    assert seen[0][:, 0].long().bincount().tolist() == [20, 19, 18]
    assert sum(map(len, seen[1:])) == 57


def test_an_image_takes_one_pass_and_all_stages_are_timed() -> None:
    model = small().eval()
    model.proposer, model.max_proposals = UniformWindows(), 40
    pictures, _ = scenes(images=1)
    cost = measure_cost(model, pictures, repeats=1)
    assert cost.passes_per_image == 1
    assert list(cost.stages_ms) == ["proposals", "network", "warps", "head", "nms"]
    assert all(time > 0 for time in cost.stages_ms.values())


def test_proposals_of_the_original_image_are_scaled() -> None:
    model = small()
    model.proposer, model.max_proposals = UniformWindows(), 15
    pictures, _ = scenes(images=1)
    original = pictures[0].permute(1, 2, 0).repeat_interleave(3, 0).repeat_interleave(2, 1).numpy()
    (scaled,) = model.propose(pictures, [original])
    expected = UniformWindows()(original)[0][:15]
    torch.testing.assert_close(scaled * torch.tensor([2.0, 3, 2, 3]), torch.from_numpy(expected))


def test_an_image_without_proposals_has_no_detections() -> None:
    pictures, targets = scenes(images=2)
    with torch.inference_mode():
        none, some = (
            small(score_threshold=0.0)
            .eval()
            .predict_tensors(
                pictures,
                targets=[Target(proposals=torch.zeros(0, 4)), Target(proposals=targets[1]["proposals"])],
            )
        )
    assert none["boxes"].shape == (0, 4) and len(some["boxes"]) > 0


def test_stages() -> None:
    model = small().eval()
    model.proposer = UniformWindows()
    pictures, targets = scenes(images=1)
    image = model.normalize(pictures)
    with torch.inference_mode():
        found = {stage.name: stage for stage in model.stages(image, targets[0]["proposals"])}
        assert [stage.name for stage in model.stages(image)] == list(found)
        (prediction,) = model.predict(image, [targets[0]["proposals"]])
    assert list(found) == [
        "proposals", "features", "regions of interest", "classified proposals", "regressed boxes", "detections",
    ]  # fmt: skip
    assert torch.equal(found["detections"].boxes, prediction["boxes"])


def test_a_checkpoint_contains_the_settings_of_the_proposer(tmp_path: Path) -> None:
    """A missing checkpoint of the RPN is an error when proposals are computed, not when Fast R-CNN is loaded."""
    options = {
        "backbone": "small_vgg",
        "backbone_options": {"channels": [8]},
        "strides": [2],
        "pyramid": False,
    }
    network = FasterRCNN(["a"], **options, head_width=8)
    _save(network, tmp_path / "rpn.ckpt")
    model = small()
    model.proposer, model.max_proposals = RPN(str(tmp_path / "rpn.ckpt"), count=9), 7
    _save(model, tmp_path / "fast.ckpt")
    loaded = FastRCNN.load_from_checkpoint(tmp_path / "fast.ckpt")
    assert (loaded.proposer, loaded.max_proposals) == (model.proposer, 7)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    assert torch.equal(loaded.predict_image(image)["boxes"], model.eval().predict_image(image)["boxes"])
    (tmp_path / "rpn.ckpt").unlink()
    loaded = FastRCNN.load_from_checkpoint(tmp_path / "fast.ckpt")
    with pytest.raises(UserError, match=r"rpn\.ckpt: no such checkpoint"):
        loaded.predict_image(image)


def _save(model: Task, path: Path) -> None:
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(content)
    torch.save(content, path)


DATA = [
    "--data=ShapesDataModule", "--data.num_train=8", "--data.num_val=3", "--data.num_test=3",
    "--data.image_size=[64, 64]", "--data.batch_size=2", "--data.num_workers=0", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
MODEL = [
    "--model=FastRCNN", "--model.backbone=small_vgg", "--model.backbone_options={channels: [8, 8]}", "--model.stride=4",
    "--model.pool=3", "--model.width=16", "--model.score_threshold=0.001",
]  # fmt: skip


def test_fit_test_validate_and_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [*DATA, f"--data.root={tmp_path / 'shapes'}"]
    run = tmp_path / "run"
    proposals = ["--data.proposals=UniformWindows", "--data.max_proposals=30"]
    fit = ["fit", *MODEL, *data, *proposals, f"--run_dir={run}", "--trainer.max_epochs=1"]
    assert main(fit) == 0
    # In both commands, truncated layers have fewer parameters and give different scores.
    scores: list[torch.Tensor] = []
    classify = FastRCNN.classify

    def record(self: FastRCNN, *rest: Any) -> Any:
        output = classify(self, *rest)
        scores.append(output[0].clone())
        return output

    monkeypatch.setattr(FastRCNN, "classify", record)
    for command in ("test", "validate"):
        records, outputs = [], []
        for name, ranks in (("whole", "null"), ("thin", "[4, 2]")):
            folder = tmp_path / f"{command}-{name}"
            scores.clear()
            arguments = [f"--ckpt_path={run}", f"--model.svd_ranks={ranks}", f"--run_dir={folder}"]
            assert main([command, *arguments]) == 0
            records.append(json.loads((folder / "result.json").read_text()))
            outputs.append(torch.cat(scores))
        # The layers map 72 and 16 features to 16; their ranks are 4 and 2.
        fewer = 72 * 16 + 16 * 16 - 4 * (72 + 16) - 2 * (16 + 16)
        whole, thin = (record["cost"]["parameters"] for record in records)
        assert whole - thin == fewer
        if command == "test":
            assert records[1]["cost"]["passes_per_image"] == 1
        assert len(outputs[0]) == len(outputs[1]) > 0
        assert (outputs[0] - outputs[1]).abs().max() > 1e-6
    photographs = [
        "--images",
        str(tmp_path / "shapes" / "JPEGImages"),
        "--data.recipe=Plain",
        "--data.recipe.size=[48, 48]",
    ]
    assert main(["predict", f"--ckpt_path={run}", *photographs]) == 0
    assert '"bbox"' in (run / "predictions" / "predictions.json").read_text()


def test_the_command_chooses_proposals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [*DATA, f"--data.root={tmp_path / 'shapes'}"]
    assert main(["fit", *MODEL, *data, f"--run_dir={tmp_path / 'run'}", "--trainer.max_epochs=1"]) == 0
    assert "data.proposals SelectiveSearch" in capsys.readouterr().err
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"]["init_args"]["proposals"]["class_path"] == "segdet.proposals.SelectiveSearch"
    assert main(["test", f"--ckpt_path={tmp_path / 'run'}"]) == 0


def test_data_without_proposals_is_an_error_in_a_script(tmp_path: Path) -> None:
    data = ShapesDataModule(
        tmp_path / "shapes",
        num_train=2,
        num_val=2,
        num_test=2,
        image_size=(64, 64),
        batch_size=2,
        num_workers=0,
    )
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(UserError, match="FastRCNN needs region proposals and the data has none"):
        trainer.fit(small(), data)


def test_svd_ranks_are_at_least_one() -> None:
    with pytest.raises(UserError, match="svd_ranks \\[0, 4\\]: must be one or more numbers, each at least 1"):
        small(svd_ranks=(0, 4))
