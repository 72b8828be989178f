"""Tests of OverFeat: the box regression, the merging of boxes, and the numbers of the paper."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dense_classifier import DenseClassifier
from torch import nn
from torchvision.ops import box_iou

from segdet.data.sample import Prediction
from segdet.detection.overfeat import OverFeat, merge
from segdet.nn.windows import window_stages

CONFIGS = Path(__file__).parents[2] / "configs"


def _model(**kwargs: Any) -> OverFeat:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "window": 10,
        "stride": 4,
        "channels": [6],
        "kernels": [3],
        "pools": [4],
        "hidden": [8],
        "box_hidden": [12],
        "scales": [0.3, 0.5],
    }
    return OverFeat(["a", "b", "c"], **(options | kwargs))


def test_the_papers_spatial_sizes() -> None:
    """The accurate network maps 245 px to 17x17 and 5x5 after its poolings, and 281x317 px to 20x23 and 6x7.

    The 3x3 convolutions between the last two poolings keep the size and are left out here. The input of the classifier
    is 5x5: at one of the 3x3 offsets it has one output for 245 px, and 2x3 for 281x317.
    """
    stages = {"channels": [4, 4], "kernels": [7, 7], "conv_strides": [2, 1]}
    layers, features = window_stages(245, stages["channels"], [7, 7], [3, 2], [2, 1])
    trunk = nn.Sequential(*layers).eval()
    assert trunk(torch.zeros(1, 3, 245, 245)).shape[-2:] == (17, 17) and features == 4 * 17 * 17
    assert trunk(torch.zeros(1, 3, 281, 317)).shape[-2:] == (20, 23)
    pooled = nn.Sequential(trunk, nn.MaxPool2d(3))
    assert pooled(torch.zeros(1, 3, 245, 245)).shape[-2:] == (5, 5)
    assert pooled(torch.zeros(1, 3, 281, 317)).shape[-2:] == (6, 7)
    classifier = nn.Sequential(pooled, nn.Flatten(), nn.Linear(4 * 25, 2)).eval()
    # The offsets 0, 1, 2 of the last pooling are 12 pixels apart; all nine offsets give an output every 12 pixels.
    one, all_offsets = DenseClassifier(classifier, 245), DenseClassifier(classifier, 245, 12, "fragments")
    assert one.own_stride == (36, 36)
    image = torch.randn(1, 3, 281, 317)
    with torch.inference_mode():
        assert one(image).shape[-2:] == (2, 3)
        assert all_offsets(image).shape[-2:] == (4, 7)
        torch.testing.assert_close(all_offsets(image)[:, :, ::3, ::3], one(image), rtol=0, atol=1e-5)


def test_the_shipped_paper_form_has_the_papers_layers() -> None:
    arguments = yaml.safe_load((CONFIGS / "voc" / "overfeat.yaml").read_text())["model"]["init_args"]
    assert (arguments["window"], arguments["stride"]) == (245, 12)
    assert arguments["channels"] == [96, 256, 512, 512, 1024]
    assert arguments["hidden"] == [4096, 4096] and arguments["box_hidden"] == [4096, 1024]
    del arguments["optim"]
    narrow = {"channels": [4] * 5, "hidden": [8, 8], "box_hidden": [8, 4], "weights": None}
    model = OverFeat(["a", "b"], **(arguments | narrow))
    assert model.dense is not None and model.dense.own_stride == (36, 36)
    assert model.box_head[-1].out_features == 4


def test_box_offsets_are_relative_to_the_sides_of_the_window() -> None:
    model = _model(regression="per_class").eval()
    windows = torch.tensor([[0.0, 0, 10, 20], [5, 5, 15, 15]])
    model.box_head[-1].weight.data.zero_()
    model.box_head[-1].bias.data = torch.tensor([0.0, 0, 0, 0, 0.1, 0.2, -0.3, -0.4, 1, 1, 1, 1])
    _, boxes = model.classify(torch.randn(1, 2, 20), windows)
    assert boxes.shape == (1, 2, 3, 4)
    torch.testing.assert_close(boxes[0, :, 0], windows)
    torch.testing.assert_close(boxes[0, :, 1], torch.tensor([[1.0, 4, 7, 12], [6, 7, 12, 11]]))
    torch.testing.assert_close(boxes[0, 0, 2], torch.tensor([10.0, 20, 20, 40]))


@pytest.mark.parametrize("regression", ["single", "per_class"])
@pytest.mark.parametrize("box_loss", ["l2", "smooth_l1"])
def test_the_box_loss_is_that_of_positives_and_zero_at_the_targets(regression: Any, box_loss: Any) -> None:
    model = _model(regression=regression, box_loss=box_loss, box_weight=2.0).eval()
    torch.manual_seed(3)
    features = torch.randn(6, model.network[1][0].in_features)
    windows = torch.tensor([[0.0, 0, 10, 20], [5, 5, 15, 15], [1, 2, 31, 22]]).repeat(2, 1)
    boxes = windows + torch.randn(6, 4)
    labels = torch.tensor([1, 0, 3, -1, 2, 2])
    with torch.no_grad():
        loss = model.box_losses(features, windows, boxes, labels)["box"]
        edges = model._edges(model.network[1](features))
    total = 0.0
    for i in (0, 2, 4, 5):
        sides = windows[i, 2:] - windows[i, :2]
        target = (boxes[i] - windows[i]) / torch.cat([sides, sides])
        error = edges[i, int(labels[i]) - 1 if regression == "per_class" else 0] - target
        small = error.abs() < 1
        each = error**2 if box_loss == "l2" else torch.where(small, error**2 / 2, error.abs() - 0.5)
        total += float(each.sum())
    assert float(loss) == pytest.approx(2 * total / 4, rel=1e-5)
    with torch.no_grad():
        _, decoded = model.classify(model.network[1](features)[None], windows)
        if regression == "per_class":
            decoded = decoded[0, torch.arange(6), (labels - 1).clamp(min=0)][None]
        at_target = model.box_losses(features, windows, decoded[0], labels)["box"]
    assert float(at_target) < 1e-9


@pytest.mark.parametrize("frozen", [True, False])
def test_freeze_features_decides_whether_the_box_loss_trains_the_features(frozen: bool) -> None:
    model = _model(freeze_features=frozen).train()
    images = torch.randn(2, 3, 40, 40)
    targets = [{"boxes": torch.tensor([[4.0, 4, 20, 22]]), "labels": torch.tensor([2])}] * 2
    model.losses(images, targets)["box"].backward()  # type: ignore[arg-type]
    assert model.box_head[-1].weight.grad.abs().sum() > 0
    touched = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.network[0].parameters()]
    assert all(touched) != frozen and any(touched) != frozen
    # Both heads share the matrix of the first layer; the rows of the class head get no gradient.
    rows = model.network[1][0].weight.grad.abs().sum(1) > 0
    assert not rows[:8].any() and rows[8:].any()


def test_merging_follows_its_definition() -> None:
    torch.manual_seed(0)
    corners = torch.rand(60, 2) * 30
    boxes = torch.cat([corners, corners + 10 + torch.rand(60, 2) * 10], 1)
    scores, labels = torch.rand(60).sort(descending=True).values, torch.randint(1, 3, (60,))
    kept = torch.tensor([0, 3, 4, 11, 30])
    merged = merge(Prediction(boxes=boxes, scores=scores, labels=labels), kept, 0.5)
    iou = box_iou(boxes, boxes)
    expected = []
    for one in kept.tolist():
        group = [i for i in range(60) if labels[i] == labels[one] and iou[one, i] >= 0.5]
        total = sum(float(scores[i]) for i in group)
        mean = sum((float(scores[i]) * boxes[i] for i in group), torch.zeros(4)) / total
        expected.append((total, mean, int(labels[one]), len(group)))
    assert max(count for *_, count in expected) > 2
    expected.sort(key=lambda each: -each[0])
    torch.testing.assert_close(merged["boxes"], torch.stack([mean for _, mean, _, _ in expected]))
    assert merged["labels"].tolist() == [label for _, _, label, _ in expected]
    assert merged["scores"].tolist() == pytest.approx([t / (1 + t) for t, *_ in expected])


def test_merging_counts_agreement_more_than_one_high_score() -> None:
    boxes = torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11]])
    candidates = Prediction(
        boxes=boxes, scores=torch.tensor([0.9, 0.5, 0.5, 0.5]), labels=torch.ones(4, dtype=torch.int64)
    )
    merged = merge(candidates, torch.tensor([0, 1]), 0.5)
    torch.testing.assert_close(
        merged["boxes"], torch.tensor([[1 / 3, 1 / 3, 31 / 3, 31 / 3], [50, 50, 60, 60]])
    )


def test_merging_nothing_and_boxes_without_area() -> None:
    none = Prediction(
        boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64)
    )
    assert len(merge(none, torch.zeros(0, dtype=torch.int64), 0.5)["scores"]) == 0
    flat = Prediction(
        boxes=torch.tensor([[3.0, 3, 3, 9]]), scores=torch.tensor([0.5]), labels=torch.tensor([1])
    )
    assert merge(flat, torch.tensor([0]), 0.5)["boxes"].tolist() == [[3, 3, 3, 9]]
