"""Tests of SSD against torchvision's SSD with the same weights, and against the numbers of the paper."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD as TorchvisionSSD

from segdet.data.sample import Target
from segdet.detection.ssd import SSD
from segdet.nn.boxes import match_anchors, pad_targets

SIZE = (96, 128)


class _Maps(torch.nn.Module):
    """The maps of our model as a backbone for torchvision's SSD."""

    def __init__(self, ours: SSD) -> None:
        super().__init__()
        self.ours = [ours]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {str(i): features for i, features in enumerate(self.ours[0]._maps(images))}


def _twins() -> tuple[SSD, TorchvisionSSD]:
    torch.manual_seed(0)
    ours = SSD(["a", "b", "c"], backbone="resnet10t", width=32, score_threshold=0.2, detections_per_class=50)
    theirs = TorchvisionSSD(
        _Maps(ours), ours.default_boxes, SIZE, 4, head=ours.head, score_thresh=0.2, topk_candidates=50
    )
    return ours.eval(), theirs.eval()


def _targets() -> list[Target]:
    return [
        Target(
            boxes=torch.tensor([[5.0, 5, 40, 60], [30, 20, 120, 90], [60, 1, 64, 5]]),
            labels=torch.tensor([1, 3, 2]),
        ),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
        Target(boxes=torch.tensor([[10.0, 10, 50, 50]]), labels=torch.tensor([2])),
    ]


def _torchvision_loss(theirs: TorchvisionSSD, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
    maps = list(theirs.backbone(images).values())
    outputs = theirs.head(maps)
    anchors = theirs.anchor_generator(ImageList(images, [SIZE] * len(images)), maps)
    matched = [
        theirs.proposal_matcher(_iou(t["boxes"], a)) if len(t["boxes"]) else torch.full((len(a),), -1)
        for t, a in zip(targets, anchors, strict=True)
    ]
    return theirs.compute_loss(targets, outputs, anchors, matched)


def _iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    from torchvision.ops import box_iou

    return box_iou(boxes, anchors)


def test_loss_equals_torchvisions() -> None:
    ours, theirs = _twins()
    images = torch.randn(3, 3, *SIZE)
    expected = _torchvision_loss(theirs, images, _targets())
    losses = ours.losses(images, _targets())
    torch.testing.assert_close(losses["box"], expected["bbox_regression"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["class"], expected["classification"], rtol=1e-5, atol=1e-6)


def test_loss_without_objects_is_finite_and_has_no_box_loss() -> None:
    ours, _ = _twins()
    losses = ours.losses(torch.randn(3, 3, *SIZE), [_targets()[1]] * 3)
    assert losses["box"] == 0
    assert torch.isfinite(losses["class"])


def test_detections_equal_torchvisions() -> None:
    ours, theirs = _twins()
    images = torch.randn(2, 3, *SIZE)
    with torch.inference_mode():
        maps = list(theirs.backbone(images).values())
        outputs = theirs.head(maps)
        anchors = theirs.anchor_generator(ImageList(images, [SIZE] * 2), maps)
        expected = theirs.postprocess_detections(outputs, anchors, [SIZE] * 2)
        found = ours.predict(images)
    assert any(len(one["scores"]) for one in expected)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-5, atol=1e-6)
        assert mine["labels"].tolist() == other["labels"].tolist()
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)


def test_default_boxes_equal_the_papers() -> None:
    """An image of 300x300 has 8,732 boxes.

    The boxes of the first cell are centred at .01333. Their sizes are .1 x .1, .14142 x .14142, .14142 x .07071 and
    .07071 x .14142, as fractions of the image's sides.
    """
    generator = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
        clip=False,
    )
    maps = [torch.zeros(1, 1, side, side) for side in (38, 19, 10, 5, 3, 1)]
    boxes = generator(ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)]), maps)[0] / 300
    assert len(boxes) == 8732
    sides = boxes[:4, 2:] - boxes[:4, :2]
    centres = (boxes[:4, 2:] + boxes[:4, :2]) / 2
    torch.testing.assert_close(centres, torch.full((4, 2), 0.0133333), atol=1e-5, rtol=0)
    expected = torch.tensor([[0.1, 0.1], [0.141421, 0.141421], [0.141421, 0.0707107], [0.0707107, 0.141421]])
    torch.testing.assert_close(sides, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("foreground,background", [(0.5, 0.5), (0.7, 0.3)])
def test_matching_follows_its_definition(foreground: float, background: float) -> None:
    """The matching equals that of loops over anchors and objects."""
    torch.manual_seed(1)
    corners = torch.rand(40, 2) * 80
    anchors = torch.cat([corners, corners + 5 + torch.rand(40, 2) * 40], 1)
    boxes, labels = pad_targets(_targets(), torch.device("cpu"))
    matched, anchor_labels = match_anchors(anchors, boxes, labels, foreground, background)
    for image, target in enumerate(_targets()):
        iou = _iou(target["boxes"], anchors)
        forced: dict[int, int] = {int(iou[g].argmax()): g for g in range(len(iou))}
        for a in range(len(anchors)):
            best = int(iou[:, a].argmax()) if len(iou) else -1
            value = float(iou[best, a]) if len(iou) else 0.0
            if a in forced:
                assert anchor_labels[image, a] == target["labels"][forced[a]]
                assert matched[image, a] == forced[a]
            elif value >= foreground:
                assert anchor_labels[image, a] == target["labels"][best]
            else:
                assert anchor_labels[image, a] == (-1 if value >= background and len(iou) else 0)


def test_padding_targets_needs_no_operation_per_image() -> None:
    targets = _targets()
    boxes, labels = pad_targets(targets, torch.device("cpu"))
    assert labels.tolist() == [[1, 3, 2], [0, 0, 0], [2, 0, 0]]
    for padded, target in zip(boxes, targets, strict=True):
        count = len(target["boxes"])
        assert torch.equal(padded[:count], target["boxes"])
        assert not padded[count:].any()
    none, absent = pad_targets([targets[1]] * 2, torch.device("cpu"))
    assert none.shape == (2, 1, 4) and not absent.any()
    calls = []
    for repeats in (1, 5):
        with _Operations() as seen:
            pad_targets(targets * repeats, torch.device("cpu"))
        calls.append(seen.names)
    assert calls[0] == calls[1]


class _Operations(TorchDispatchMode):
    """Record the names of the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_stages_run_the_network_once() -> None:
    ours, _ = _twins()
    entered = []
    ours.backbone.register_forward_hook(lambda *_: entered.append(1))
    ours.head.register_forward_hook(lambda *_: entered.append(2))
    image = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        stages = list(ours.stages(image))
        assert entered == [1, 2]
        (found,) = ours.predict(image)
    assert stages[-1].boxes is not None
    torch.testing.assert_close(stages[-1].boxes, found["boxes"])
    assert len(stages) == len(ours.default_boxes.aspect_ratios) + 2


def _overfit(model: SSD, steps: int = 120) -> float:
    """Train on four images and return map_50 on them."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 90, (4, 3, 64, 96), generator=generator, dtype=torch.uint8)
    targets = []
    for image in images:
        boxes = []
        for channel, x in ((0, 4), (1, 52)):
            w, h = (int(v) for v in torch.randint(14, 38, (2,), generator=generator))
            y = int(torch.randint(0, 64 - h, (1,), generator=generator))
            image[channel, y : y + h, x : x + w] = 240
            boxes.append([x, y, x + w, y + h])
        targets.append(Target(boxes=torch.tensor(boxes).float(), labels=torch.tensor([1, 2])))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model.losses(model.normalize(images), targets).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    model.eval()
    scores = model.build_scores()
    with torch.inference_mode():
        found = model.predict_tensors(images)
    full = [
        Target(
            **t,
            iscrowd=torch.zeros(2, dtype=torch.bool),
            difficult=torch.zeros(2, dtype=torch.bool),
            area=torch.full((2,), 400.0),
        )
        for t in targets
    ]
    scores.update(found, full, list(range(4)))
    return float(scores.compute()["map_50"])


def _small(**kwargs: Any) -> SSD:
    torch.manual_seed(0)
    return SSD(
        ["red", "green"], backbone_options={"channels": [16, 32, 48, 64]}, width=32, extra_maps=0, **kwargs
    )


@pytest.mark.parametrize("top_down", [False, True])
def test_overfits_a_few_images(top_down: bool) -> None:
    assert _overfit(_small(top_down=top_down)) >= 0.95


def test_does_not_overfit_without_box_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _small()
    monkeypatch.setattr(model.coder, "decode", lambda offsets, anchors: anchors.expand_as(offsets))
    assert _overfit(model) < 0.95


def test_default_boxes_keep_their_size_in_pixels_in_resized_images() -> None:
    """The receptive field of a cell is fixed in pixels, so the boxes must not be scaled with the image."""
    ours = SSD(["a"], backbone="resnet10t", width=32).eval()
    seen: list[Tensor] = []
    heads = ours._heads

    def record(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        out = heads(*args)
        seen.append(out[2])
        return out

    ours._heads = record  # type: ignore[method-assign]
    images = torch.zeros(1, 3, 128, 192)
    ours.predict(images)
    ours.tta_scales = [1.0, 0.5, 2.0]
    ours.predict_views(images, [Target()])
    plain, same, half, twice = seen
    assert torch.equal(plain, same)
    shapes = {tuple(side) for side in (plain[:, 2:] - plain[:, :2]).round(decimals=2).tolist()}
    for boxes, size in ((half, (96, 64)), (twice, (384, 256))):
        assert {tuple(s) for s in (boxes[:, 2:] - boxes[:, :2]).round(decimals=2).tolist()} == shapes
        centres = (boxes[:, 2:] + boxes[:, :2]) / 2
        assert (centres > 0).all() and centres.amax() > 0.9 * size[0]
    ours.predict(images)
    assert torch.equal(seen[-1], plain)


def test_default_boxes_are_centred_on_their_cells_at_any_size() -> None:
    """On an image with a side of 72 pixels, the last cell of the map with stride 32 starts at pixel 64."""
    ours = SSD(["a"], backbone="resnet10t", width=32, extra_maps=1, top_down=True).eval()
    images = torch.zeros(1, 3, 72, 104)
    maps = ours._maps(images)
    anchors = ours._anchors(images, maps, (1.0, 1.0))
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    counts = ours.default_boxes.num_anchors_per_location()
    sizes = [each.shape[2] * each.shape[3] * count for each, count in zip(maps, counts, strict=True)]
    assert ours.strides == [8, 16, 32, 64]
    for stride, part, features in zip(ours.strides, centres.split(sizes), maps, strict=True):
        torch.testing.assert_close(
            part.remainder(stride), torch.full_like(part, stride / 2), atol=1e-3, rtol=0
        )
        last = torch.tensor([(side - 0.5) * stride for side in reversed(features.shape[2:])])
        torch.testing.assert_close(part.amax(0), last)
