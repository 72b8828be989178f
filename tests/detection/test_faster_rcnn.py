"""Tests of Faster R-CNN against torchvision's module with the same weights, and against the paper."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import faster_rcnn as theirs_module
from torchvision.models.detection.faster_rcnn import FasterRCNN as TorchvisionModule
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import MultiScaleRoIAlign

from segdet.data.sample import Target
from segdet.detection.faster_rcnn import (
    FasterRCNN,
    RoIAlign,
    RoIPool,
    TorchvisionFasterRCNN,
    TwoStageDetector,
)
from segdet.detection.torchvision_network import COCO_NAMES
from segdet.nn.pyramid import pad_to_stride
from segdet.nn.roi import TwoLayerHead
from segdet.util.errors import UserError

SIZE = (96, 128)
Overfit = Callable[..., float]
Few = Callable[[int], tuple[Tensor, list[Target]]]


class _Maps(nn.Module):
    """The maps of our model as a backbone for torchvision's module."""

    def __init__(self, ours: FasterRCNN, width: int) -> None:
        super().__init__()
        self.ours = [ours]
        self.out_channels = width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.ours[0].features(images)


def _targets() -> list[Target]:
    return [
        Target(
            boxes=torch.tensor([[5.0, 5, 40, 60], [30, 20, 120, 90], [60, 1, 64, 5]]),
            labels=torch.tensor([1, 3, 2]),
        ),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
    ]


def _twins() -> tuple[FasterRCNN, TorchvisionModule]:
    """Return our model, and torchvision's with the same weights and a transform that keeps images unchanged."""
    torch.manual_seed(0)
    ours = FasterRCNN(
        ["a", "b", "c"], backbone="resnet10t", width=16, head_width=32, before_nms=(200, 100), proposals=(60, 40),
        rpn_samples=32, regions=48, score_threshold=0.2,
    )  # fmt: skip
    theirs = TorchvisionModule(
        _Maps(ours, 16), None, min_size=SIZE[0], max_size=SIZE[1], image_mean=[0.0] * 3, image_std=[1.0] * 3,
        rpn_anchor_generator=theirs_module.AnchorGenerator(
            tuple((8 * stride,) for stride in (4, 8, 16, 32, 64)), ((0.5, 1.0, 2.0),) * 5
        ),
        rpn_pre_nms_top_n_train=200, rpn_pre_nms_top_n_test=100, rpn_post_nms_top_n_train=60,
        rpn_post_nms_top_n_test=40, rpn_batch_size_per_image=32, box_batch_size_per_image=48, box_score_thresh=0.2,
        box_head=theirs_module.TwoMLPHead(16 * 49, 32), box_predictor=theirs_module.FastRCNNPredictor(32, 4),
    )  # fmt: skip
    nn.init.normal_(ours.rpn.head.cls_logits.weight, std=0.3)  # type: ignore[union-attr,arg-type]
    nn.init.normal_(ours.roi_heads.box_predictor.cls_score.weight, std=0.5)  # type: ignore[union-attr,arg-type]
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
    ours.rpn.train(), ours.roi_heads.train(), theirs.train()
    # Seed before anchors and regions are sampled. torchvision samples image sizes first.
    theirs.rpn.register_forward_pre_hook(_seed)
    expected = theirs(list(images), [dict(target) for target in _targets()])
    torch.manual_seed(3)
    losses = ours.losses(images, _targets())
    names = {
        "rpn_class": "loss_objectness", "rpn_box": "loss_rpn_box_reg",
        "class": "loss_classifier", "box": "loss_box_reg",
    }  # fmt: skip
    assert set(losses) == set(names)
    for mine, other in names.items():
        assert expected[other] > 0
        torch.testing.assert_close(losses[mine], expected[other], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [SIZE, (90, 120)])
def test_detections_and_proposals_equal_torchvisions(size: tuple[int, int]) -> None:
    ours, theirs = _twins()
    theirs.transform.min_size, theirs.transform.max_size = (size[0],), size[1]
    images = torch.randn(2, 3, *size)
    kept: list[Any] = []
    theirs.rpn.register_forward_hook(lambda _, __, output: kept.append(output[0]))
    with torch.inference_mode():
        expected = theirs.eval()(list(images))
        found = ours.eval().predict(images)
        proposed, scores = ours.propose(images)
    for mine, other in zip(found, expected, strict=True):
        assert len(other["labels"]) > 10
        assert torch.equal(mine["labels"], other["labels"])
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
    for boxes, of_image, other in zip(proposed, scores, kept[0], strict=True):
        assert 10 < len(boxes) <= 40
        torch.testing.assert_close(boxes, other, rtol=1e-4, atol=1e-3)
        assert (of_image.diff() <= 0).all()
        assert (boxes >= 0).all() and (boxes[:, 2] <= size[1]).all() and (boxes[:, 3] <= size[0]).all()


def test_selection_equals_that_of_torchvisions_second_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are exactly equal, also for equal scores, boxes outside the image, and images without regions."""
    model = _small()
    generator = torch.Generator().manual_seed(0)
    corners = 110 * torch.rand(2, 40, 2, generator=generator) - 10
    regions = [torch.cat([each, each + 30], 1) for each in corners]
    for counts in ((40, 40), (40, 0)):
        given = [each[:count] for each, count in zip(regions, counts, strict=True)]
        logits = torch.randn(sum(counts), 3, generator=generator).round()
        offsets = 4 * torch.randn(sum(counts), 12, generator=generator)
        monkeypatch.setattr(model, "_classify", lambda *_, output=(logits, offsets): output)
        expected = model.roi_heads.postprocess_detections(logits, offsets, given, [SIZE] * 2)
        found = model._detections(pad_to_stride(torch.zeros(2, 3, *SIZE), 16), {}, given)
        assert len(expected[0][0]) > 20
        for each, *other in zip(found, *expected, strict=True):
            for key, value in zip(("boxes", "scores", "labels"), other, strict=True):
                assert torch.equal(each[key], value)  # type: ignore[literal-required]


def test_images_without_objects_have_no_box_losses() -> None:
    ours, _ = _twins()
    losses = ours.train().losses(torch.randn(2, 3, *SIZE), [_targets()[1]] * 2)
    assert losses["rpn_box"] == 0 and losses["box"] == 0
    assert all(loss.isfinite() for loss in losses.values())


# torchvision's networks.


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build ResNet-50s with one block per stage and narrow heads in torchvision: the same parts, faster."""

    def build(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
        return ResNet(Bottleneck, [1, 1, 1, 1], **options)

    mlp = theirs_module.TwoMLPHead
    predictor = theirs_module.FastRCNNPredictor
    convolutions = theirs_module.FastRCNNConvFCHead
    monkeypatch.setattr(theirs_module, "resnet50", build)
    monkeypatch.setattr(theirs_module, "TwoMLPHead", lambda features, _: mlp(features, 64))
    monkeypatch.setattr(theirs_module, "FastRCNNPredictor", lambda _, classes: predictor(64, classes))
    monkeypatch.setattr(
        theirs_module,
        "FastRCNNConvFCHead",
        lambda size, widths, _, norm_layer: convolutions(size, widths[:1], [64], norm_layer=norm_layer),
    )


LOW = 1e-3
"""A score that each of 91 classes exceeds with random weights."""

NETWORKS = ("resnet50_fpn", "resnet50_fpn_v2", "mobilenet_v3_large_fpn", "mobilenet_v3_large_320_fpn")


def _theirs(network: str) -> TorchvisionModule:
    torch.manual_seed(1)
    model = torchvision.models.get_model(
        f"fasterrcnn_{network}", weights=None, weights_backbone=None, num_classes=91, min_size=64, max_size=96
    )
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.1)
    model.roi_heads.score_thresh = LOW
    for module in model.modules():  # statistics that differ from those of a new layer
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


def _check_equal(ours: TwoStageDetector, theirs: TorchvisionModule) -> None:
    image = torch.rand(3, 64, 72)
    with torch.inference_mode():
        (expected,) = theirs.eval()([image])
        grid, _ = theirs.transform([image])
        (found,) = ours.eval().predict(grid.tensors[:, :, :64, :72])
    assert grid.image_sizes == [(64, 72)]
    assert len(expected["labels"]) == 100
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("network", NETWORKS)
def test_detections_with_torchvisions_weights_equal_torchvisions(network: str, tmp_path: Path) -> None:
    theirs = _theirs(network)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    _check_equal(
        TorchvisionFasterRCNN(
            COCO_NAMES[1:], network, weights=str(tmp_path / "weights.pth"), score_threshold=LOW
        ),
        theirs,
    )


@pytest.mark.usefixtures("short")
def test_released_weights_are_loaded_with_frozen_batch_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    """Released weights have no counts of batches. Pyramid and proposal network have older names in them."""
    enum = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights
    state = {k: v for k, v in _theirs("resnet50_fpn").state_dict().items() if "num_batches" not in k}
    name = re.compile(r"(_blocks\.\d|rpn\.head\.conv)(\.0)+\.(weight|bias)$")
    old = {name.sub(r"\1.\3", key): value for key, value in state.items()}
    assert len(set(old) - set(state)) == 18
    monkeypatch.setattr(enum, "get_state_dict", lambda *_, **__: dict(old))
    theirs = torchvision.models.get_model(
        "fasterrcnn_resnet50_fpn", weights=enum.COCO_V1, min_size=64, max_size=96
    )
    theirs.roi_heads.score_thresh = LOW
    for weights in ("COCO_V1", True):
        _check_equal(TorchvisionFasterRCNN(COCO_NAMES[1:], weights=weights, score_threshold=LOW), theirs)


@pytest.mark.usefixtures("short")
def test_rows_of_classes_are_selected_by_name_or_new(tmp_path: Path) -> None:
    theirs = _theirs("resnet50_fpn")
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    path, before = str(tmp_path / "weights.pth"), theirs.roi_heads.box_predictor
    rows = [0, COCO_NAMES.index("dog"), COCO_NAMES.index("person")]
    after = TorchvisionFasterRCNN(["dog", "person"], weights=path).roi_heads.box_predictor
    assert torch.equal(after.cls_score.weight, before.cls_score.weight[rows])  # type: ignore[union-attr]
    assert torch.equal(
        after.bbox_pred.weight.unflatten(0, (3, 4)),  # type: ignore[union-attr,operator]
        before.bbox_pred.weight.unflatten(0, (91, 4))[rows],
    )
    new = TorchvisionFasterRCNN(["dog", "platypus"], weights=path)
    assert new.roi_heads.box_predictor.cls_score.weight.shape == (3, 64)  # type: ignore[union-attr]
    assert torch.equal(new.roi_heads.box_head.fc7.weight, theirs.roi_heads.box_head.fc7.weight)  # type: ignore[union-attr]


# The network of the paper.


def test_vgg16_matches_the_paper() -> None:
    """py-faster-rcnn has 137,078,239 parameters for 21 classes. It has two objectness outputs per anchor, not one."""
    with torch.device("meta"):
        features = torchvision.models.vgg16().features
        rpn = theirs_module.RPNHead(512, 9)
        head = theirs_module.TwoMLPHead(512 * 49, 4096)
        predictor = theirs_module.FastRCNNPredictor(4096, 21)
    count = sum(p.numel() for part in (features, rpn, head, predictor) for p in part.parameters())
    assert count + 9 * (512 + 1) == 137_078_239
    ours = _c4()
    assert ours.rpn.anchor_generator.num_anchors_per_location() == [9]
    for mine, other in (
        (ours.rpn.head, theirs_module.RPNHead(16, 9)),
        (ours.roi_heads.box_predictor, theirs_module.FastRCNNPredictor(16, 4)),
    ):
        assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in other.parameters())


def _c4(**options: Any) -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(
        ["a", "b", "c"], "small_vgg", backbone_options={"channels": [8, 8, 12, 16]}, strides=[16], pyramid=False,
        head_width=16, **options,
    )  # fmt: skip


def test_anchors_that_cross_the_border_are_ignored() -> None:
    model = _c4(ignore_crossing=True, anchor_sizes=[[16.0, 48.0]])
    images = torch.zeros(2, 3, *SIZE)
    maps = [torch.zeros(2, 16, 6, 8)]
    anchors = model.rpn.anchor_generator(pad_to_stride(images, 16), maps)
    module_targets = [dict(target) for target in _targets()]
    labels, boxes = model.anchor_targets(anchors, module_targets, SIZE)  # type: ignore[arg-type]
    every = anchors[0]
    outside = (every[:, 0] < 0) | (every[:, 1] < 0) | (every[:, 2] > SIZE[1]) | (every[:, 3] > SIZE[0])
    assert 0 < outside.sum() < len(every)
    for each in labels:
        assert (each[outside] == -1).all()
    assert (labels[1][~outside] == 0).all()
    positive = labels[0] == 1
    assert positive.any()
    # Each object is matched with its best anchor among those within the image.
    iou = torchvision.ops.box_iou(_targets()[0]["boxes"], every[~outside])
    assert (labels[0][~outside][iou.argmax(1)] == 1).all()
    assert all(box.tolist() in _targets()[0]["boxes"].tolist() for box in boxes[0][positive])
    with pytest.raises(UserError, match="no anchor lies within images of 128x96; give smaller"):
        _c4(ignore_crossing=True).losses(images, _targets())


def test_pooling() -> None:
    """RoI Align on a pyramid equals torchvision's with derived strides; RoI max pooling has the maxima."""
    torch.manual_seed(0)
    maps = {str(i): torch.randn(2, 3, 256 // s, 256 // s) for i, s in enumerate((4, 8, 16, 32))}
    low = torch.rand(30, 2) * 120
    boxes = [torch.cat([low, low + 8 + torch.rand(30, 2) * 120], 1) for _ in range(2)]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=56)
    sizes = [(256, 256)] * 2
    found = RoIAlign(7, [4, 8, 16, 32], 56)(maps, boxes, sizes)
    torch.testing.assert_close(found, theirs(maps, boxes, sizes))
    values = torch.arange(64.0).view(1, 1, 8, 8)
    pooled = RoIPool(2, 16)({"0": values}, [torch.tensor([[0.0, 0, 49, 49], [0, 0, 65, 65]])], [(128, 128)])
    assert pooled.flatten(1).tolist() == [[9, 11, 25, 27], [18, 20, 34, 36]]
    assert RoIPool(2, 16)({"0": values.bfloat16()}, [torch.zeros(1, 4)], sizes).dtype == torch.bfloat16


def test_the_head_loads_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        TwoLayerHead, "start_from", lambda self, *args: calls.append((len(self.fc6.weight), *args))
    )
    FasterRCNN(["a"], "torchvision:resnet18", strides=[16], pyramid=False, head_width=24)
    assert calls == [(24, "torchvision:resnet18", None)]


def test_mistakes_are_reported_in_one_line() -> None:
    small = partial(FasterRCNN, ["a"], "resnet10t", width=8, head_width=8)
    with pytest.raises(UserError, match=r"strides \[4, 8, 16, 32\]: without a pyramid there is one map"):
        small(pyramid=False)
    with pytest.raises(UserError, match="pooling pool: RoI max pooling needs a single map"):
        small(pooling="pool")
    with pytest.raises(UserError, match=r"anchor_sizes: 1 lists for maps of strides \[4, 8, 16, 32, 64\]"):
        small(anchor_sizes=[[8.0]])
    with pytest.raises(UserError, match="all maps share one head"):
        small(anchor_sizes=[[8.0], [8.0], [8.0], [8.0], [8.0, 16.0]])
    with pytest.raises(UserError, match="torchvision has no fasterrcnn_resnet50; did you mean resnet50_fpn"):
        TorchvisionFasterRCNN(["a"], "resnet50")


def test_stages_run_the_network_once() -> None:
    ours, _ = _twins()
    ours.eval()
    entered: list[int] = []
    ours.backbone.register_forward_hook(lambda *_: entered.append(1))
    image = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        stages = list(ours.stages(image))
        assert entered == [1]
        (found,) = ours.predict(image)
        (proposed,), _ = ours.propose(image)
    assert [stage.name for stage in stages] == ["anchors", "proposals", "detections"]
    assert stages[1].boxes is not None and stages[2].boxes is not None
    torch.testing.assert_close(stages[1].boxes, proposed)
    torch.testing.assert_close(stages[2].boxes, found["boxes"])


def _small(**options: Any) -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(
        ["red", "green"], "small_vgg", backbone_options={"channels": [16, 24, 32, 48]},
        **{
            "strides": [8, 16], "width": 32, "norm": True, "anchor_sizes": [[16.0], [32.0], [64.0]], "head_width": 64,
            "rpn_samples": 64, "regions": 32, "before_nms": (100, 100), "proposals": (50, 50), "pool_size": 5,
        } | options,
    )  # fmt: skip


SINGLE = {"strides": [8], "pyramid": False, "anchor_sizes": [[16.0, 24.0, 36.0]], "pooling": "pool"}


@pytest.mark.parametrize("options", [{}, SINGLE], ids=["pyramid", "single map"])
def test_overfits_a_few_images(options: dict[str, Any], overfit: Overfit) -> None:
    assert overfit(_small(**options), 70) >= 0.95


def test_does_not_overfit_without_the_second_stage_boxes(
    overfit: Overfit, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _small()
    coder = model.roi_heads.box_coder
    monkeypatch.setattr(
        coder, "decode", lambda codes, boxes: torch.cat(boxes)[:, None].expand(-1, 3, -1) * 0.8
    )
    assert overfit(model, 50) < 0.95


def test_a_step_in_bfloat16(few_images: Few) -> None:
    model = _small(proposals=(20, 20)).train()
    images, targets = few_images(2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(model.normalize(images), targets)
        model.eval()
        found = model.predict(model.normalize(images))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {prediction["boxes"].dtype for prediction in found} == {torch.float32}
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
