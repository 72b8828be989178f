"""Tests of FCOS against torchvision's module with the same weights: losses, detections, the released network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import fcos as theirs_module
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS as TorchvisionModule
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import Bottleneck, ResNet

from segdet.data.sample import Target
from segdet.detection.fcos import FCOS, TorchvisionFCOS, match_cells
from segdet.detection.torchvision_network import COCO_NAMES
from segdet.nn.boxes import pad_targets
from segdet.util.errors import UserError

SIZE = (96, 128)
Overfit = Callable[..., float]


class _Maps(nn.Module):
    """The maps of our model as a backbone for torchvision's module."""

    out_channels = 32

    def __init__(self, ours: FCOS) -> None:
        super().__init__()
        self.ours = [ours]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {str(i): features for i, features in enumerate(self.ours[0].features(images))}


def _twins() -> tuple[FCOS, TorchvisionModule]:
    torch.manual_seed(0)
    ours = FCOS(
        ["a", "b", "c"], backbone="resnet10t", width=32, score_threshold=0.3, candidates_per_level=100,
        detections_per_image=50,
    )  # fmt: skip
    # The initial bias predicts background everywhere, and boxes with random weights are almost empty.
    nn.init.normal_(ours.head.classification_head.cls_logits.weight, std=0.1)
    nn.init.zeros_(ours.head.classification_head.cls_logits.bias)  # type: ignore[arg-type]
    nn.init.constant_(ours.head.regression_head.bbox_reg.bias, 2.0)  # type: ignore[arg-type]
    theirs = TorchvisionModule(
        _Maps(ours), 3, anchor_generator=AnchorGenerator(ours.anchors.sizes, ours.anchors.aspect_ratios),
        head=ours.head, score_thresh=0.3, topk_candidates=100, detections_per_img=50,
    )  # fmt: skip
    return ours.eval(), theirs.eval()


def _targets() -> list[Target]:
    return [
        Target(
            boxes=torch.tensor([[5.0, 5, 40, 60], [30, 20, 120, 90], [60, 1, 84, 25], [10, 20, 60, 60]]),
            labels=torch.tensor([1, 3, 2, 2]),
        ),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
        Target(boxes=torch.tensor([[10.0, 10, 50, 50]]), labels=torch.tensor([2])),
    ]


def test_losses_equal_torchvisions() -> None:
    ours, theirs = _twins()
    images = torch.randn(3, 3, *SIZE)
    maps = list(theirs.backbone(images).values())
    anchors = theirs.anchor_generator(ImageList(images, [SIZE] * 3), maps)
    their_targets = [{"boxes": t["boxes"], "labels": t["labels"] - 1} for t in _targets()]
    levels = [each.shape[2] * each.shape[3] for each in maps]
    expected = theirs.compute_loss(their_targets, theirs.head(maps), anchors, levels)
    losses = ours.losses(images, _targets())
    names = {"class": "classification", "box": "bbox_regression", "centre": "bbox_ctrness"}
    for mine, other in names.items():
        assert expected[other] > 0
        torch.testing.assert_close(losses[mine], expected[other], rtol=1e-5, atol=1e-6)


def test_cells_are_matched_with_the_smallest_object_in_the_range_of_their_map() -> None:
    """The matching equals its definition, computed in loops."""
    torch.manual_seed(2)
    strides, grids = [4, 8, 16], [(32, 32), (16, 16), (8, 8)]
    centres = [
        (x * s, y * s, s)
        for s, (h, w) in zip(strides, grids, strict=True)
        for y in range(h)
        for x in range(w)
    ]
    cells = torch.tensor([[x - s / 2, y - s / 2, x + s / 2, y + s / 2] for x, y, s in centres])
    low = torch.rand(6, 2) * 60
    sides = 4 + torch.rand(6, 2) * torch.tensor([20, 30, 40, 50, 60, 70])[:, None]
    target = Target(boxes=torch.cat([low, low + sides], 1), labels=torch.tensor([1, 2, 3, 1, 2, 3]))
    boxes, labels = pad_targets([_targets()[1], target], torch.device("cpu"))
    matched, cell_labels = match_cells(cells, [h * w for h, w in grids], boxes, labels, 1.5)
    assert not cell_labels[0].any()
    seen = set()
    ranges = {4: (0.0, 32.0), 8: (32.0, 64.0), 16: (64.0, float("inf"))}
    for cell, (x, y, stride) in enumerate(centres):
        fits = []
        for index, (x0, y0, x1, y1) in enumerate(target["boxes"].tolist()):
            reach = (x - x0, y - y0, x1 - x, y1 - y)
            near = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < 1.5 * stride
            if near and min(reach) > 0 and ranges[stride][0] < max(reach) < ranges[stride][1]:
                fits.append(((x1 - x0) * (y1 - y0), index))
        assert (cell_labels[1, cell] > 0) == bool(fits)
        if fits:
            assert matched[1, cell] == min(fits)[1]
            assert cell_labels[1, cell] == target["labels"][min(fits)[1]]
            seen.add((stride, len(fits) > 1))
    assert {stride for stride, _ in seen} >= {4, 8} and (4, True) in seen


@pytest.mark.parametrize("size", [SIZE, (90, 117)])
def test_detections_equal_torchvisions(size: tuple[int, int]) -> None:
    ours, theirs = _twins()
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        padded = nn.functional.pad(images, (0, -size[1] % 32, 0, -size[0] % 32))
        maps = list(theirs.backbone(padded).values())
        anchors = theirs.anchor_generator(ImageList(padded, [size] * 2), maps)
        levels = [each.shape[2] * each.shape[3] for each in maps]
        out = {key: list(value.split(levels, 1)) for key, value in theirs.head(maps).items()}
        expected = theirs.postprocess_detections(out, [list(a.split(levels)) for a in anchors], [size] * 2)
        found = ours.predict(images)
    for mine, other in zip(found, expected, strict=True):
        assert len(other["labels"]) > 20
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-5, atol=1e-6)
        assert mine["labels"].tolist() == (other["labels"] + 1).tolist()
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)


def test_loss_without_objects_is_finite_and_has_no_box_loss() -> None:
    ours, _ = _twins()
    losses = ours.losses(torch.randn(2, 3, *SIZE), [_targets()[1]] * 2)
    assert losses["box"] == 0 and losses["centre"] == 0
    torch.stack(list(losses.values())).sum().backward()
    assert torch.isfinite(losses["class"])
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())


def test_detections_with_torchvisions_weights_equal_torchvisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
        return ResNet(Bottleneck, [1, 1, 1, 1], **options)

    monkeypatch.setattr(theirs_module, "resnet50", short)
    torch.manual_seed(1)
    theirs = torchvision.models.get_model(
        "fcos_resnet50_fpn", weights=None, weights_backbone=None, num_classes=91, min_size=64, max_size=96
    ).eval()
    nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=0.02)
    nn.init.zeros_(theirs.head.classification_head.cls_logits.bias)
    theirs.head.classification_head.cls_logits.bias.data[0] = -1e4  # trained weights never predict background
    nn.init.constant_(theirs.head.regression_head.bbox_reg.bias, 2.0)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = TorchvisionFCOS(COCO_NAMES[1:], weights=str(tmp_path / "weights.pth")).eval()
    image = torch.rand(3, 64, 72)
    with torch.inference_mode():
        (expected,) = theirs([image])
        grid, _ = theirs.transform([image])
        (found,) = ours.predict(grid.tensors[:, :, :64, :72])
    assert len(expected["labels"]) == 100
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)


def test_mistakes_are_reported_in_one_line() -> None:
    with pytest.raises(UserError, match="width 21: cannot be normalized in 2 groups; give a multiple of 8"):
        FCOS(["a"], "resnet10t", width=21)
    with pytest.raises(UserError, match="torchvision has no fcos_resnet18; did you mean resnet50_fpn"):
        TorchvisionFCOS(["a"], "resnet18")


def test_stages_run_the_network_once() -> None:
    ours, _ = _twins()
    entered: list[int] = []
    ours.backbone.register_forward_hook(lambda *_: entered.append(1))
    image = torch.randn(1, 3, 90, 117)
    with torch.inference_mode():
        stages = list(ours.stages(image))
        assert entered == [1]
        (found,) = ours.predict(image)
    names = [f"centres, stride {stride}" for stride in (8, 16, 32, 64, 128)]
    assert [stage.name for stage in stages] == [*names, "boxes", "detections"]
    assert [None if s.map is None else tuple(s.map.shape) for s in stages[:5]] == [
        (12, 16), (6, 8), (3, 4), (2, 2), (1, 1),
    ]  # fmt: skip
    assert stages[-1].boxes is not None
    torch.testing.assert_close(stages[-1].boxes, found["boxes"])


def _small(**options: Any) -> FCOS:
    torch.manual_seed(0)
    return FCOS(
        ["red", "green"], "small_vgg", backbone_options={"channels": [16, 24, 32, 48]}, strides=[8, 16], extra_levels=0,
        width=32, norm=True, head_convolutions=1, **options,
    )  # fmt: skip


def test_overfits_a_few_images(overfit: Overfit) -> None:
    assert overfit(_small()) >= 0.95


def test_does_not_overfit_without_distances(overfit: Overfit, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _small()
    monkeypatch.setattr(model.head.box_coder, "decode", lambda distances, cells: cells.expand_as(distances))
    assert overfit(model, 60) < 0.95


def test_a_step_in_bfloat16(few_images: Callable[[int], tuple[Tensor, list[Target]]]) -> None:
    model = _small().train()
    images, targets = few_images(2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(model.normalize(images), targets)
    whole = model.losses(model.normalize(images), targets)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, whole[name], rtol=0.05, atol=0.02)
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
