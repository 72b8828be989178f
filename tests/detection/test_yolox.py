"""Tests of YOLOX: label assignment and losses compared with loops, the cells, and overfitting."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.data.sample import Target
from segdet.detection.yolox import YOLOX, Cells, simota
from segdet.nn.boxes import pad_targets, pairwise_iou
from segdet.util.errors import UserError

SIZE = (64, 96)


def _small(**kwargs: Any) -> YOLOX:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "backbone": "small_vgg", "backbone_options": {"channels": [8, 16, 24, 24]}, "strides": [8, 16], "width": 24,
        "head_convolutions": 1,
    }  # fmt: skip
    return YOLOX(["red", "green"], **(options | kwargs))


def _targets() -> list[Target]:
    """Return an image with nested, neighbouring and tiny objects, one without objects, and one with a single object."""
    return [
        Target(
            boxes=torch.tensor([[2.0, 2, 60, 50], [10, 8, 40, 40], [38, 10, 70, 42], [90, 60, 92, 62]]),
            labels=torch.tensor([2, 1, 1, 2]),
        ),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
        Target(boxes=torch.tensor([[30.0, 20, 50, 44]]), labels=torch.tensor([1])),
    ]


def _predictions(model: YOLOX, seed: int) -> tuple[Tensor, Tensor, Tensor, Cells]:
    """Return random logits, objectness and boxes near the cells, and the cells."""
    generator = torch.Generator().manual_seed(seed)
    cells = model._cells([torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6)])
    count = len(cells.strides)
    centre = cells.centres + torch.randn(3, count, 2, generator=generator) * cells.strides[:, None] / 2
    half = cells.strides[:, None] * (0.5 + torch.rand(3, count, 2, generator=generator) * 2)
    logits = torch.randn(3, count, 2, generator=generator) * 2
    return (
        logits,
        torch.randn(3, count, generator=generator),
        torch.cat([centre - half, centre + half], -1),
        cells,
    )


def _simota_in_loops(
    logits: Tensor,
    objectness: Tensor,
    predicted: Tensor,
    cells: Cells,
    target: Target,
    radius: float,
    most: int,
) -> dict[int, int]:
    """Return the object of each matched cell of one image, computed with loops over objects and cells."""
    cost: dict[int, dict[int, float]] = {}
    chosen: dict[int, list[int]] = {}
    for g, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
        x0, y0, x1, y1 = box.tolist()
        cost[g], ious = {}, {}
        for a in range(len(cells.strides)):
            x, y = cells.centres[a].tolist()
            reach = radius * float(cells.strides[a])
            inside = x0 < x < x1 and y0 < y < y1
            near = abs(x - (x0 + x1) / 2) < reach and abs(y - (y0 + y1) / 2) < reach
            if not (inside or near):
                continue
            ious[a] = float(pairwise_iou(predicted[a][None], box[None]))
            probability = (logits[a].sigmoid() * objectness[a].sigmoid()).sqrt()
            class_cost = F.binary_cross_entropy(
                probability, F.one_hot(label - 1, logits.shape[-1]).float(), reduction="sum"
            )
            cost[g][a] = float(class_cost) - 3 * math.log(ious[a] + 1e-8) + (0 if inside and near else 1e5)
        count = max(1, int(sum(sorted(ious.values(), reverse=True)[:most])))
        chosen[g] = sorted(cost[g], key=cost[g].__getitem__)[:count]
    owners: dict[int, int] = {}
    for g, cells_of_g in chosen.items():
        for a in cells_of_g:
            if a not in owners or cost[g][a] < cost[owners[a]][a]:
                owners[a] = g
    return owners


@pytest.mark.parametrize("seed", range(4))
def test_assignment_follows_its_definition(seed: int) -> None:
    model = _small()
    logits, objectness, predicted, cells = _predictions(model, seed)
    boxes, labels = pad_targets(_targets(), torch.device("cpu"))
    radius, most = (2.5, 10) if seed % 2 else (1.0, 3)
    matched, positive, iou = simota(logits, objectness, predicted, cells, boxes, labels, radius, most)
    assigned = 0
    for b, target in enumerate(_targets()):
        owners = _simota_in_loops(logits[b], objectness[b], predicted[b], cells, target, radius, most)
        assert positive[b].nonzero().flatten().tolist() == sorted(owners)
        for a, g in owners.items():
            assert matched[b, a] == g
            assert iou[b, a] == pytest.approx(
                float(pairwise_iou(predicted[b, a][None], target["boxes"][g][None]))
            )
        assert set(owners.values()) <= set(range(len(target["labels"])))
        assigned += len(owners)
    assert assigned > 4


def test_a_cell_matched_by_two_objects_is_assigned_to_the_one_with_lower_cost() -> None:
    cells = Cells(torch.tensor([[8.0, 8]]), torch.tensor([8.0]), [(1, 1)])
    boxes = torch.tensor([[[0.0, 0, 16, 20], [0, 0, 16, 16]]])
    predicted = torch.tensor([[[0.0, 0, 16, 16]]])
    matched, positive, iou = simota(
        torch.zeros(1, 1, 2), torch.zeros(1, 1), predicted, cells, boxes, torch.tensor([[1, 1]])
    )
    assert matched.item() == 1 and positive.item() and iou.item() == pytest.approx(1)


def test_losses_follow_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _small()
    logits, objectness, predicted, cells = _predictions(model, 0)
    monkeypatch.setattr(model, "forward", lambda images: (logits, objectness, predicted, cells))
    losses = model.losses(torch.zeros(3, 3, *SIZE), _targets())
    count, sums = 0, dict.fromkeys(("box", "objectness", "class"), 0.0)
    for b, target in enumerate(_targets()):
        owners = _simota_in_loops(logits[b], objectness[b], predicted[b], cells, target, 2.5, 10)
        count += len(owners)
        for a in range(len(cells.strides)):
            positive = torch.tensor(float(a in owners))
            sums["objectness"] += float(F.binary_cross_entropy_with_logits(objectness[b, a], positive))
        for a, g in owners.items():
            iou = float(pairwise_iou(predicted[b, a][None], target["boxes"][g][None]))
            sums["box"] += 5 * (1 - iou**2)
            target_classes = torch.zeros(2)
            target_classes[target["labels"][g] - 1] = iou
            sums["class"] += float(
                F.binary_cross_entropy_with_logits(logits[b, a], target_classes, reduction="sum")
            )
    for name, value in sums.items():
        assert float(losses[name]) == pytest.approx(value / count, rel=1e-4), name


def test_boxes_are_relative_to_the_cells_corner_in_strides() -> None:
    """Zero offsets give a box with sides of one stride, centred on the cell's upper left corner."""
    model = _small().eval()
    for head in model.heads:
        torch.nn.init.zeros_(head.box.weight)  # type: ignore[union-attr,arg-type]
        torch.nn.init.zeros_(head.box.bias)  # type: ignore[union-attr,arg-type]
    with torch.inference_mode():
        logits, objectness, boxes, cells = model(torch.randn(1, 3, *SIZE))
    assert logits.shape == (1, 96 + 24, 2) and objectness.shape == (1, 120)
    assert cells.grids == [(8, 12), (4, 6)]
    assert cells.centres[13].tolist() == [12, 12] and cells.centres[96 + 7].tolist() == [24, 24]
    assert boxes[0, 13].tolist() == [4, 4, 12, 12]
    assert boxes[0, 96 + 7].tolist() == [8, 8, 24, 24]


def test_initial_probabilities_are_low() -> None:
    """Objectness and classes start at 0.01."""
    _, objectness, _, _ = _small()(torch.zeros(1, 3, *SIZE))
    assert float(objectness.sigmoid().mean().detach()) == pytest.approx(0.01, rel=0.5)


def test_without_objects_only_objectness_has_a_loss() -> None:
    losses = _small().losses(torch.randn(2, 3, *SIZE), [_targets()[1]] * 2)
    assert losses["box"] == 0 and losses["class"] == 0 and losses["objectness"] > 0


def test_the_neck_with_and_without_its_bottom_up_path() -> None:
    assert len(_small().neck.down) == 1
    assert len(_small(bottom_up=False).neck.down) == 0


def test_stages_show_each_map() -> None:
    model = _small(score_threshold=1e-6).eval()
    image = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        stages = list(model.stages(image))
        (found,) = model.predict(image)
    assert [stage.name for stage in stages] == [
        "objectness, stride 8", "objectness, stride 16", "boxes", "detections",
    ]  # fmt: skip
    assert stages[0].map is not None and stages[0].map.shape == (8, 12)
    assert stages[-1].boxes is not None and len(stages[-1].boxes)
    torch.testing.assert_close(stages[-1].boxes, found["boxes"])


def test_a_mistake_is_reported_in_one_line() -> None:
    with pytest.raises(UserError, match=r"model\.most_cells 0"):
        _small(most_cells=0)


def test_a_step_in_bfloat16(few_images: Any) -> None:
    images, targets = few_images(2)
    model = _small()
    with torch.autocast("cpu", torch.bfloat16):
        total = sum(model.losses(model.normalize(images), targets).values())
    assert isinstance(total, Tensor) and total.dtype == torch.float32 and total.isfinite()
    total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("bottom_up", [True, False])
def test_overfits_a_few_images(bottom_up: bool, overfit: Any) -> None:
    assert overfit(_small(bottom_up=bottom_up)) >= 0.95


def test_does_not_overfit_with_random_assignment(overfit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_random(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        matched = torch.randint(0, 2, logits.shape[:2])
        return matched, torch.rand(logits.shape[:2]) < 0.05, torch.ones(logits.shape[:2])

    monkeypatch.setattr("segdet.detection.yolox.simota", at_random)
    assert overfit(_small()) < 0.95
