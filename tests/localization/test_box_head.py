"""Test the box head and the base class of localization."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from segdet.data.sample import Batch, Source, Target
from segdet.localization.box_head import BoxHead, VotingHeads

CLASSES = ["red", "green", "blue"]


def _model(**kwargs: Any) -> BoxHead:
    torch.manual_seed(0)
    options = {"channels": [16, 32, 48, 64]}
    return BoxHead(CLASSES, backbone_options=options, width=64, dropout=0.0, **kwargs)


def _scenes(count: int = 6) -> tuple[torch.Tensor, list[Target]]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 90, (count, 3, 64, 96), generator=generator, dtype=torch.uint8)
    targets = []
    for i in range(count):
        x, y, w, h = (int(v) for v in torch.randint(16, 40, (4,), generator=generator))
        images[i, i % 3, y : y + h, x : x + w] = 240
        targets.append(
            Target(
                boxes=torch.tensor([[x, y, x + w, min(64, y + h)]]).float(), labels=torch.tensor([i % 3 + 1])
            )
        )
    return images, targets


def _overfit(model: BoxHead) -> float:
    """Train on a few images and return the fraction with the correct class and a box of IoU >= .5."""
    images, targets = _scenes()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        sum(model.losses(model.normalize(images), targets).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        predictions = model.predict_tensors(images)
    correct = [
        bool(p["labels"][0] == t["labels"][0] and box_iou(p["boxes"][:1], t["boxes"]) >= 0.5)
        for p, t in zip(predictions, targets, strict=True)
    ]
    return sum(correct) / len(correct)


@pytest.mark.parametrize(("box_loss", "per_class"), [("l2", False), ("smooth_l1", True), ("giou", False)])
@pytest.mark.parametrize("heads", ["flat", "voting"])
def test_overfits_a_few_images(heads: str, box_loss: str, per_class: bool) -> None:
    strides = [8, 16] if heads == "voting" else [32]
    assert _overfit(_model(heads=heads, box_loss=box_loss, per_class=per_class, strides=strides)) == 1.0


@pytest.mark.parametrize("heads", ["flat", "voting"])
def test_without_a_box_loss_it_does_not_overfit(heads: str) -> None:
    assert _overfit(_model(heads=heads, box_weight=0.0)) < 1.0


def test_votes_are_weighted() -> None:
    """If one cell has all the weight, the prediction is that of this cell, with a box around the cell."""
    heads = VotingHeads([4], classes=2, boxes=1, width=8, dropout=0.0).eval()
    maps = [torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))]
    with torch.inference_mode():
        heads.weight_head.weight.mul_(1e6)
        logits, boxes = heads(maps)
        features = heads.features(maps)
        votes = heads.weights(features)[0]
        row, column = divmod(int(votes.argmax()), 5)
        assert votes[row, column] == 1
        torch.testing.assert_close(logits[0], heads.class_head(features)[0, :, row, column])
        left, top, right, bottom = (F.softplus(heads.box_head(features))[0, :, row, column] / 4).tolist()
    x, y = (column + 0.5) / 5, (row + 0.5) / 3
    expected = [x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom]
    torch.testing.assert_close(boxes[0, 0], torch.tensor(expected))


def test_boxes_are_scaled_to_the_original_image_and_stay_inside() -> None:
    model = _model().eval()
    images, targets = _scenes(2)
    sources = [Source(Path("a.png"), 1, (64, 96)), Source(Path("b.png"), 2, (128, 288))]
    with torch.inference_mode():
        same, scaled = model.predict_batch(
            Batch(images[:1].repeat(2, 1, 1, 1), [(64, 96)] * 2, targets, sources)
        )
    torch.testing.assert_close(scaled["boxes"], same["boxes"] * torch.tensor([3.0, 2, 3, 2]))
    assert (same["boxes"] >= 0).all() and (same["boxes"] <= torch.tensor([96.0, 64, 96, 64])).all()
    assert same["labels"].tolist() == scaled["labels"].tolist()
    assert same["scores"].tolist() == sorted(same["scores"].tolist(), reverse=True)


def test_the_box_layer_of_alexnets_features_has_16388_parameters() -> None:
    """A layer from 4096 to 4 units has 16,388 parameters. One box per class takes a thousand times as many."""
    single = BoxHead([str(i) for i in range(1000)], backbone_options={"channels": [8, 8, 8, 8]}, width=4096)
    assert sum(p.numel() for p in single.heads.box_head[-1].parameters()) == 16_388
    classes = BoxHead(
        [str(i) for i in range(1000)], backbone_options={"channels": [8, 8, 8, 8]}, width=4096, per_class=True
    )
    assert sum(p.numel() for p in classes.heads.box_head[-1].parameters()) == 16_388_000


def test_stages_end_with_the_box() -> None:
    model = _model().eval()
    with torch.inference_mode():
        stages = list(model.stages(torch.zeros(1, 3, 64, 96)))
    assert [stage.name for stage in stages] == ["features", "box"]
    assert stages[1].boxes is not None and stages[1].boxes.shape == (1, 4)
    voting = _model(heads="voting", strides=[8, 16]).eval()
    with torch.inference_mode():
        stages = list(voting.stages(torch.zeros(1, 3, 64, 96)))
    assert [stage.name for stage in stages] == ["features", "votes", "box"]
    assert stages[1].map is not None and stages[1].map.shape == (8, 12)
    torch.testing.assert_close(stages[1].map.sum(), torch.tensor(1.0))
