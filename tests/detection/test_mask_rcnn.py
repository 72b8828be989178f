"""Tests of Mask R-CNN against torchvision's module with the same weights, and of overfitting masks of discs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import faster_rcnn
from torchvision.models.detection import mask_rcnn as theirs_module
from torchvision.models.detection.faster_rcnn import AnchorGenerator, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN as TorchvisionModule
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import Bottleneck, ResNet

from segdet.data.sample import Target
from segdet.detection.mask_rcnn import MaskRCNN, TorchvisionMaskRCNN
from segdet.detection.torchvision_network import COCO_NAMES
from segdet.util.errors import UserError

SIZE = (64, 96)


class _Maps(nn.Module):
    """The maps of our model as a backbone for torchvision's module."""

    out_channels = 16

    def __init__(self, ours: MaskRCNN) -> None:
        super().__init__()
        self.ours = [ours]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.ours[0].features(images)


def _targets() -> list[Target]:
    masks = torch.zeros(2, *SIZE, dtype=torch.uint8)
    masks[0, 5:50, 5:40] = 1
    masks[0, 5:20, 5:15] = 0
    masks[1, 20:60, 50:90] = 1
    boxes = torch.tensor([[5.0, 5, 40, 50], [50, 20, 90, 60]])
    return [
        Target(boxes=boxes, labels=torch.tensor([1, 3]), masks=masks),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), masks=masks[:0]),
    ]


def _twins() -> tuple[MaskRCNN, TorchvisionModule]:
    torch.manual_seed(0)
    sizes = {"before_nms": (100, 50), "proposals": (40, 20), "rpn_samples": 32, "regions": 48}
    ours = MaskRCNN(
        ["a", "b", "c"], mask_width=12, mask_convolutions=2, backbone="resnet10t", width=16, head_width=32,
        score_threshold=0.1, **sizes,
    )  # fmt: skip
    theirs = TorchvisionModule(
        _Maps(ours), None, min_size=SIZE[0], max_size=SIZE[1], image_mean=[0.0] * 3, image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(
            tuple((8 * stride,) for stride in (4, 8, 16, 32, 64)), ((0.5, 1.0, 2.0),) * 5
        ),
        rpn_pre_nms_top_n_train=100, rpn_pre_nms_top_n_test=50, rpn_post_nms_top_n_train=40,
        rpn_post_nms_top_n_test=20, rpn_batch_size_per_image=32, box_batch_size_per_image=48, box_score_thresh=0.1,
        box_head=TwoMLPHead(16 * 49, 32), box_predictor=FastRCNNPredictor(32, 4),
        mask_head=MaskRCNNHeads(16, (12, 12), 1), mask_predictor=MaskRCNNPredictor(12, 12, 4),
    )  # fmt: skip
    theirs.rpn.load_state_dict(ours.rpn.state_dict())
    theirs.roi_heads.load_state_dict(ours.roi_heads.state_dict())
    for module in (ours.backbone, ours.neck):
        assert module is not None
        module.eval()  # the same statistics in both
    return ours, theirs


def _seed(*_: object) -> None:
    torch.manual_seed(3)


def test_losses_equal_torchvisions() -> None:
    ours, theirs = _twins()
    images = torch.randn(2, 3, *SIZE)
    for module in (ours.rpn, ours.roi_heads, theirs):
        module.train()
    # Seed before anchors and regions are sampled. torchvision samples image sizes first.
    theirs.rpn.register_forward_pre_hook(_seed)
    expected = theirs(list(images), [dict(target) for target in _targets()])
    torch.manual_seed(3)
    losses = ours.losses(images, _targets())
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box", "mask"}
    assert expected["loss_mask"] > 0
    torch.testing.assert_close(losses["mask"], expected["loss_mask"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["box"], expected["loss_box_reg"], rtol=1e-5, atol=1e-6)
    nothing = ours.losses(images, [_targets()[1]] * 2)
    assert nothing["mask"] == 0


def test_masks_equal_torchvisions() -> None:
    ours, theirs = _twins()
    images = torch.randn(2, 3, *SIZE)
    with torch.inference_mode():
        expected = theirs.eval()(list(images))
        found = ours.eval().postprocess(ours.predict(images), [SIZE] * 2, SIZE)
    for mine, other in zip(found, expected, strict=True):
        assert len(other["labels"]) > 5
        assert torch.equal(mine["labels"], other["labels"])
        assert mine["masks"].dtype == torch.uint8 and mine["masks"].shape[1:] == SIZE
        assert 0 < mine["masks"].float().mean() < 1
        assert torch.equal(mine["masks"], (other["masks"][:, 0] > 0.5).to(torch.uint8))


def test_masks_have_the_size_of_the_original_image() -> None:
    ours, _ = _twins()
    with torch.inference_mode():
        output = ours.eval().predict(torch.randn(1, 3, *SIZE))
        (found,) = ours.postprocess(output, [(100, 80)], SIZE)
    assert found["masks"].shape == (len(found["labels"]), 100, 80)
    for mask, (x0, y0, x1, y1) in zip(found["masks"], found["boxes"].tolist(), strict=True):
        y, x = mask.nonzero(as_tuple=True)
        if len(x):
            assert x.min() >= x0 - 2 and y.min() >= y0 - 2 and x.max() <= x1 + 2 and y.max() <= y1 + 2


def test_detections_with_torchvisions_weights_equal_torchvisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResNet-50 with one block per stage and a narrow second stage have the same parts and are faster."""
    monkeypatch.setattr(
        theirs_module,
        "resnet50",
        lambda *, weights, progress, **options: ResNet(Bottleneck, [1, 1, 1, 1], **options),
    )
    monkeypatch.setattr(faster_rcnn, "TwoMLPHead", lambda features, _: TwoMLPHead(features, 64))
    monkeypatch.setattr(faster_rcnn, "FastRCNNPredictor", lambda _, classes: FastRCNNPredictor(64, classes))
    torch.manual_seed(1)
    theirs = torchvision.models.get_model(
        "maskrcnn_resnet50_fpn", weights=None, weights_backbone=None, num_classes=91, min_size=64, max_size=96,
        box_score_thresh=1e-3, box_detections_per_img=30,
    ).eval()  # fmt: skip
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    path = str(tmp_path / "weights.pth")
    ours = TorchvisionMaskRCNN(
        COCO_NAMES[1:], weights=path, score_threshold=1e-3, detections_per_image=30
    ).eval()
    image = torch.rand(3, 64, 72)
    with torch.inference_mode():
        (expected,) = theirs([image])
        grid, _ = theirs.transform([image])
        (found,) = ours.postprocess(ours.predict(grid.tensors[:, :, :64, :72]), [(64, 72)], (64, 72))
    assert len(expected["labels"]) == 30
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)
    assert torch.equal(found["masks"], (expected["masks"][:, 0] > 0.5).to(torch.uint8))


def _discs(count: int) -> tuple[Tensor, list[Target]]:
    """Return images with a red and a green disc each; more than a quarter of their boxes is background."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 90, (count, 3, *SIZE), generator=generator, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    targets = []
    for image in images:
        masks, boxes = [], []
        for channel, left in ((0, 0), (1, 48)):
            radius = int(torch.randint(10, 20, (1,), generator=generator))
            cx = left + 24
            cy = int(torch.randint(radius, SIZE[0] - radius, (1,), generator=generator))
            disc = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
            image[channel, disc] = 240
            masks.append(disc)
            boxes.append([cx - radius + 1, cy - radius + 1, cx + radius, cy + radius])
        targets.append(
            Target(
                boxes=torch.tensor(boxes).float(),
                labels=torch.tensor([1, 2]),
                masks=torch.stack(masks).byte(),
            )
        )
    return images, targets


def _overfit(steps: int, change: Callable[[MaskRCNN], None] = lambda model: None) -> dict[str, float]:
    torch.manual_seed(0)
    model = MaskRCNN(
        ["red", "green"], mask_width=16, mask_convolutions=2, backbone="small_vgg",
        backbone_options={"channels": [16, 24, 32, 48]}, strides=[8, 16], width=32, norm=True,
        anchor_sizes=[[16.0], [32.0], [64.0]], head_width=64, rpn_samples=64, regions=32, before_nms=(100, 100),
        proposals=(50, 50), pool_size=5,
    )  # fmt: skip
    change(model)
    images, targets = _discs(8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model.losses(model.normalize(images), targets).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        found = model.predict_tensors(images)
    scores = model.build_scores()
    scores.update(found, targets, list(range(len(images))))  # type: ignore[operator]
    return {name: float(value) for name, value in scores.compute().items()}


def test_overfits_boxes_and_masks() -> None:
    scores = _overfit(70)
    assert scores["map_50"] >= 0.95
    assert scores["mask_map_75"] >= 0.95  # the IoU of a disc with its box is at most .79


def test_without_its_mask_branch_only_boxes_are_detected() -> None:
    def zero_masks(model: MaskRCNN) -> None:
        for parameter in model.roi_heads.mask_predictor.parameters():  # type: ignore[union-attr]
            nn.init.zeros_(parameter).requires_grad_(False)

    scores = _overfit(40, zero_masks)
    assert scores["mask_map_50"] < 0.5 < scores["map_50"]


def test_mistakes_are_reported_in_one_line() -> None:
    model = MaskRCNN(["a"], backbone="resnet10t", width=8, head_width=8, mask_width=8)
    target = Target(boxes=torch.tensor([[1.0, 1, 9, 9]]), labels=torch.tensor([1]))
    with pytest.raises(UserError, match=r"MaskRCNN needs masks of objects; give --data\.masks true"):
        model.losses(torch.zeros(1, 3, 64, 64), [target])
    with pytest.raises(UserError, match="mask_convolutions 0: must be at least 1"):
        MaskRCNN(["a"], backbone="resnet10t", width=8, head_width=8, mask_convolutions=0)
