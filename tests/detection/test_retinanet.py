"""Tests of RetinaNet against torchvision's module with the same weights: losses, detections, released networks."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import retinanet as theirs_module
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionModule
from torchvision.models.resnet import Bottleneck, ResNet

from segdet.data.sample import Target
from segdet.detection.retinanet import RetinaNet, TorchvisionRetinaNet
from segdet.detection.torchvision_network import COCO_NAMES
from segdet.nn.boxes import match_all_best, pad_targets
from segdet.util.errors import UserError

SIZE = (96, 128)
Overfit = Callable[..., float]


class _Maps(nn.Module):
    """The maps of our model as a backbone for torchvision's module."""

    out_channels = 32

    def __init__(self, ours: RetinaNet) -> None:
        super().__init__()
        self.ours = [ours]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {str(i): features for i, features in enumerate(self.ours[0].features(images))}


def _twins(**options: Any) -> tuple[RetinaNet, TorchvisionModule]:
    torch.manual_seed(0)
    ours = RetinaNet(
        ["a", "b", "c"], backbone="resnet10t", width=32, score_threshold=0.3, candidates_per_level=200,
        detections_per_image=50, **options,
    )  # fmt: skip
    # The initial bias predicts background everywhere; here some anchors must exceed the threshold.
    nn.init.normal_(ours.head.classification_head.cls_logits.weight, std=0.2)  # type: ignore[union-attr,arg-type]
    nn.init.zeros_(ours.head.classification_head.cls_logits.bias)  # type: ignore[union-attr,arg-type]
    theirs = TorchvisionModule(
        _Maps(ours), 3, anchor_generator=AnchorGenerator(ours.anchors.sizes, ours.anchors.aspect_ratios),
        head=ours.head, score_thresh=0.3, topk_candidates=200, detections_per_img=50,
    )  # fmt: skip
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


@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_losses_equal_torchvisions(box_loss: str) -> None:
    ours, theirs = _twins(box_loss=box_loss)
    theirs.head.regression_head._loss_type = box_loss
    images = torch.randn(3, 3, *SIZE)
    maps = list(theirs.backbone(images).values())
    anchors = theirs.anchor_generator(ImageList(images, [SIZE] * 3), maps)
    their_targets = [{"boxes": t["boxes"], "labels": t["labels"] - 1} for t in _targets()]
    expected = theirs.compute_loss(their_targets, theirs.head(maps), anchors)
    losses = ours.losses(images, _targets())
    torch.testing.assert_close(losses["class"], expected["classification"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["box"], expected["bbox_regression"], rtol=1e-5, atol=1e-6)


def test_matching_equals_torchvisions_for_random_boxes() -> None:
    torch.manual_seed(1)
    _, theirs = _twins()
    corners = torch.rand(300, 2) * 100
    anchors = torch.cat([corners, corners + 4 + torch.rand(300, 2) * 40], 1)
    anchors = torch.cat([anchors, anchors[:50]])  # ties
    for _ in range(20):
        low = torch.rand(7, 2) * 90
        target = Target(
            boxes=torch.cat([low, low + 3 + torch.rand(7, 2) * 50], 1), labels=torch.randint(1, 4, (7,))
        )
        boxes, labels = pad_targets([target], torch.device("cpu"))
        matched, anchor_labels = match_all_best(anchors, boxes, labels, 0.5, 0.4)
        expected = theirs.proposal_matcher(torchvision.ops.box_iou(target["boxes"], anchors))
        positive = expected >= 0
        assert torch.equal(anchor_labels[0] > 0, positive)
        assert torch.equal(anchor_labels[0] == -1, expected == theirs.proposal_matcher.BETWEEN_THRESHOLDS)
        assert torch.equal(matched[0][positive], expected[positive])
        assert torch.equal(anchor_labels[0][positive], target["labels"][expected[positive]])


def test_an_object_that_overlaps_no_anchor_is_not_matched() -> None:
    boxes, labels = pad_targets(
        [Target(boxes=torch.tensor([[50.0, 50, 60, 60]]), labels=torch.tensor([1]))], torch.device("cpu")
    )
    _, anchor_labels = match_all_best(torch.tensor([[0.0, 0, 9, 9], [9, 9, 20, 20]]), boxes, labels, 0.5, 0.4)
    assert not anchor_labels.any()


@pytest.mark.parametrize("size", [SIZE, (90, 117)])
def test_detections_equal_torchvisions(size: tuple[int, int]) -> None:
    ours, theirs = _twins()
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        padded = nn.functional.pad(images, (0, -size[1] % 32, 0, -size[0] % 32))
        maps = list(theirs.backbone(padded).values())
        anchors = theirs.anchor_generator(ImageList(padded, [size] * 2), maps)
        levels = [each.shape[2] * each.shape[3] * 9 for each in maps]
        out = {key: list(value.split(levels, 1)) for key, value in theirs.head(maps).items()}
        expected = theirs.postprocess_detections(out, [list(a.split(levels)) for a in anchors], [size] * 2)
        found = ours.predict(images)
    for mine, other in zip(found, expected, strict=True):
        assert len(other["labels"]) == 50
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-5, atol=1e-6)
        assert mine["labels"].tolist() == (other["labels"] + 1).tolist()
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)


def test_loss_without_objects_is_finite_and_has_no_box_loss() -> None:
    ours, _ = _twins()
    losses = ours.losses(torch.randn(2, 3, *SIZE), [_targets()[1]] * 2)
    assert losses["box"] == 0
    assert torch.isfinite(losses["class"]) and losses["class"] > 0


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build ResNet-50s with one block per stage in torchvision: the same parts in a tenth of the time."""

    def build(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
        return ResNet(Bottleneck, [1, 1, 1, 1], **options)

    monkeypatch.setattr(theirs_module, "resnet50", build)


def _theirs(network: str, classes: int = 91) -> TorchvisionModule:
    torch.manual_seed(1)
    model = torchvision.models.get_model(
        f"retinanet_{network}",
        weights=None,
        weights_backbone=None,
        num_classes=classes,
        min_size=64,
        max_size=96,
    )
    head = model.head.classification_head.cls_logits
    nn.init.normal_(head.weight, std=0.02)
    nn.init.constant_(head.bias, -2)
    head.bias.data.unflatten(0, (9, classes))[:, 0] = -1e4  # trained weights never predict background
    for module in model.modules():  # statistics that differ from those of a new layer
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("network", ["resnet50_fpn", "resnet50_fpn_v2"])
def test_detections_with_torchvisions_weights_equal_torchvisions(network: str, tmp_path: Path) -> None:
    theirs = _theirs(network)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = TorchvisionRetinaNet(COCO_NAMES[1:], network, weights=str(tmp_path / "weights.pth")).eval()
    image = torch.rand(3, 64, 72)
    with torch.inference_mode():
        (expected,) = theirs([image])
        grid, _ = theirs.transform([image])
        (found,) = ours.predict(grid.tensors[:, :, : grid.image_sizes[0][0], : grid.image_sizes[0][1]])
    assert grid.image_sizes == [(64, 72)]
    assert len(expected["labels"]) > 100
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("short")
def test_rows_of_classes_are_selected_by_name_or_new(tmp_path: Path) -> None:
    theirs = _theirs("resnet50_fpn")
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    path = str(tmp_path / "weights.pth")
    before = theirs.state_dict()
    weight = before["head.classification_head.cls_logits.weight"].unflatten(0, (9, 91))
    some = TorchvisionRetinaNet(["dog", "person"], weights=path)
    rows = [0, COCO_NAMES.index("dog"), COCO_NAMES.index("person")]
    ours = some.head.classification_head.cls_logits.weight  # type: ignore[union-attr]
    assert torch.equal(ours.unflatten(0, (9, 3)), weight[:, rows])  # type: ignore[operator]
    new = TorchvisionRetinaNet(["dog", "platypus"], weights=path)
    after = nn.ModuleDict({"backbone": new.backbone, "head": new.head}).state_dict()
    for key, value in before.items():
        if re.fullmatch(r"head\.classification_head\.cls_logits\.(weight|bias)", key):
            assert after[key].shape[0] == 3 * 9
        else:
            assert torch.equal(after[key], value), key


@pytest.mark.usefixtures("short")
def test_released_weights_are_loaded_with_frozen_batch_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    """Released weights have no counts of batches. The layers of the head have older names in them."""
    enum = torchvision.models.detection.RetinaNet_ResNet50_FPN_Weights
    state = {k: v for k, v in _theirs("resnet50_fpn").state_dict().items() if "num_batches" not in k}
    old = {
        re.sub(r"(head\.\w+\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", k): v
        for k, v in state.items()
    }
    assert len(set(old) - set(state)) == 16
    monkeypatch.setattr(enum, "get_state_dict", lambda *_, **__: dict(old))
    theirs = torchvision.models.get_model("retinanet_resnet50_fpn", weights=enum.COCO_V1).eval()
    ours = TorchvisionRetinaNet(COCO_NAMES[1:], weights="COCO_V1").eval()
    frozen = [m for m in ours.modules() if isinstance(m, torchvision.ops.FrozenBatchNorm2d)]
    assert {module.eps for module in frozen} == {0.0}
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        maps = list(theirs.backbone(images).values())
        for mine, other in zip(ours.features(images), maps, strict=True):
            assert torch.equal(mine, other)
        expected = theirs.head(maps)
        logits, offsets, *_ = ours(images)
    assert torch.equal(logits, expected["cls_logits"][..., 1:])
    assert torch.equal(offsets, expected["bbox_regression"])


@pytest.mark.usefixtures("short")
def test_weights_of_the_backbone_alone(tmp_path: Path) -> None:
    backbone = ResNet(Bottleneck, [1, 1, 1, 1])
    torch.save(backbone.state_dict(), tmp_path / "resnet.pth")
    ours = TorchvisionRetinaNet(["a"], weights_backbone=str(tmp_path / "resnet.pth"))
    body = ours.backbone.body.state_dict()  # type: ignore[union-attr]
    assert torch.equal(body["layer3.0.conv2.weight"], backbone.layer3[0].conv2.weight)  # type: ignore[union-attr]
    assert any(isinstance(m, torchvision.ops.FrozenBatchNorm2d) for m in ours.modules())


@pytest.mark.usefixtures("short")
def test_mistakes_are_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="torchvision has no retinanet_resnet51_fpn; did you mean resnet50_fpn"
    ):
        TorchvisionRetinaNet(["a"], "resnet51_fpn")
    with pytest.raises(UserError, match="no weights 'COCO' of retinanet_resnet50_fpn; it has COCO_V1"):
        TorchvisionRetinaNet(["a"], weights="COCO")
    with pytest.raises(UserError, match="no weights 'X' of resnet50; it has IMAGENET1K_V1"):
        TorchvisionRetinaNet(["a"], weights_backbone="X")
    torch.save({"backbone.body.conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"not the weights of retinanet_resnet50_fpn: \d+ of \d+ are missing"):
        TorchvisionRetinaNet(["a"], weights=str(tmp_path / "other.pth"))
    state = {
        "backbone.body.conv1.weight": torch.zeros(64),
        "head.classification_head.cls_logits.bias": torch.zeros(9),
    }
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=r"not the weights of retinanet_resnet50_fpn \(size mismatch"):
        TorchvisionRetinaNet(["a"], weights=str(tmp_path / "wrong.pth"))
    with pytest.raises(UserError, match=r"anchor_sizes: 1 lists for maps of strides \[8, 16, 32, 64, 128\]"):
        RetinaNet(["a"], "resnet10t", width=8, anchor_sizes=[[8.0]])
    with pytest.raises(UserError, match="head has 0 to 4"):
        RetinaNet(["a"], "resnet10t", width=8, head_convolutions=5)
    with pytest.raises(UserError, match="width 21: cannot be normalized in 2 groups"):
        RetinaNet(["a"], "resnet10t", width=21, norm=True)


def test_stages_run_the_network_once() -> None:
    ours, _ = _twins()
    entered: list[int] = []
    ours.backbone.register_forward_hook(lambda *_: entered.append(1))
    image = torch.randn(1, 3, 90, 117)
    with torch.inference_mode():
        stages = list(ours.stages(image))
        assert entered == [1]
        (found,) = ours.predict(image)
    assert [stage.name for stage in stages] == [
        *(f"anchors {i}" for i in range(1, 6)),
        "regressed boxes",
        "detections",
    ]
    assert stages[-1].boxes is not None
    torch.testing.assert_close(stages[-1].boxes, found["boxes"])


def _small(**options: Any) -> RetinaNet:
    torch.manual_seed(0)
    return RetinaNet(
        ["red", "green"], "small_vgg", backbone_options={"channels": [16, 24, 32, 48]}, strides=[8, 16], extra_levels=0,
        width=32, norm=True, head_convolutions=1, **options,
    )  # fmt: skip


def test_overfits_a_few_images(overfit: Overfit) -> None:
    assert overfit(_small()) >= 0.95


def test_does_not_overfit_without_offsets(overfit: Overfit, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _small()
    monkeypatch.setattr(model.coder, "decode", lambda offsets, anchors: anchors.expand_as(offsets))
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
