"""Tests of test-time augmentation of detectors, and of class-agnostic suppression."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector
from segdet.detection.detr import DETR, DETROutput
from segdet.detection.faster_rcnn import FasterRCNN
from segdet.detection.fcos import FCOS
from segdet.detection.mask_rcnn import MaskRCNN
from segdet.detection.overfeat import OverFeat
from segdet.detection.region_detector import RegionDetector
from segdet.detection.retinanet import RetinaNet
from segdet.detection.ssd import SSD
from segdet.detection.yolo_v1 import YOLOv1
from segdet.detection.yolox import YOLOX
from segdet.nn.boxes import Selection, select_detections, select_from_levels
from segdet.util.errors import UserError

SMALL_DETR = {"width": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 8}


class Bright(Detector):
    """Detect the bounding box of red pixels as class 1 and of green pixels as class 2, with masks.

    The detections are equivariant to mirroring and resizing, up to whole pixels.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(["red", "green"], mean=(0, 0, 0), std=(1, 1, 1), **kwargs)
        self.backbone = nn.Identity()
        self.sizes: list[tuple[int, ...]] = []

    def losses(self, images: Tensor, targets: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def predict(self, images: Tensor) -> list[Prediction]:
        self.sizes.append(tuple(images.shape[2:]))
        found = []
        for image in self.backbone(images):
            boxes, labels, masks = [], [], []
            for channel in (0, 1):
                there = image[channel] > 0.5
                if there.any():
                    y, x = there.nonzero().unbind(1)
                    boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                    labels.append(channel + 1)
                    masks.append(image[2, y.min(), x.min()].expand(2, 2) * torch.tensor([[1.0, 0], [1, 0]]))
            scores = torch.tensor([0.9, 0.8])[: len(boxes)]
            whole = torch.tensor(boxes).float().view(-1, 4)
            masks = torch.stack(masks) if masks else torch.zeros(0, 2, 2)  # type: ignore[assignment]
            found.append(Prediction(boxes=whole, scores=scores, labels=torch.tensor(labels), masks=masks))  # type: ignore[typeddict-item]
        return found


def scene() -> Tensor:
    images = torch.zeros(2, 3, 40, 60, dtype=torch.uint8)
    images[0, 0, 8:20, 4:24] = 255
    images[0, 1, 24:36, 32:52] = 255
    images[1, 0, 0:12, 40:60] = 255
    return images


@pytest.mark.parametrize("options", [{"tta_flip": True}, {"tta_flip": True, "tta_scales": [1.0, 2.0, 0.5]}])
def test_views_do_not_change_the_detections_of_an_equivariant_model(options: dict[str, Any]) -> None:
    model = Bright(**options)
    plain = Bright().predict_tensors(scene())
    for found, expected in zip(model.predict_tensors(scene()), plain, strict=True):
        for key in ("boxes", "scores", "labels"):
            assert torch.equal(found[key], expected[key])  # type: ignore[literal-required]
    scales = options.get("tta_scales", [1.0])
    assert model.sizes == [(int(40 * s), int(60 * s)) for s in scales for _ in range(2)]


class Twice(Bright):
    """Repeat every detection, shifted to the right by a fifth of its width: an IoU of 2/3."""

    def predict(self, images: Tensor) -> list[Prediction]:
        found = super().predict(images)
        for each in found:
            shift = 0.2 * (each["boxes"][:, 2] - each["boxes"][:, 0])
            moved = each["boxes"] + shift[:, None] * torch.tensor([1.0, 0, 1, 0])
            each["boxes"] = torch.cat([each["boxes"], moved])
            for key in ("scores", "labels", "masks"):
                each[key] = torch.cat([each[key], each[key]])  # type: ignore[literal-required]
        return found


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_single_view_is_not_suppressed_again(scale: float) -> None:
    first, second = Twice(tta_scales=[scale]).predict_tensors(scene())
    assert len(first["boxes"]) == 4 and len(second["boxes"]) == 2


@pytest.mark.parametrize(
    ("own", "given", "left"), [(0.5, None, 2), (0.3, None, 2), (0.7, None, 4), (0.5, 0.7, 4), (0.7, 0.5, 2)]
)
def test_views_are_merged_with_the_threshold_of_the_family(
    own: float, given: float | None, left: int
) -> None:
    model = Twice(tta_scales=[1.0, 2.0], tta_nms_threshold=given)
    model.nms_threshold = own
    assert len(model.predict_tensors(scene())[0]["boxes"]) == left


@pytest.mark.parametrize(
    ("tta", "refused"), [({}, True), ({"tta_scales": [1.25]}, True), ({"tta_flip": True}, False)]
)
def test_detr_has_class_agnostic_suppression_only_between_views(tta: dict[str, Any], refused: bool) -> None:
    with (
        pytest.raises(UserError, match="has no suppression, except between several views")
        if refused
        else nullcontext()
    ):
        DETR(["a"], "test_resnet", class_agnostic_nms=True, **SMALL_DETR, **tta)


class RedProposals(RegionDetector):
    """Score each proposal by its mean red and green."""

    def losses(self, images: Tensor, targets: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def classify(self, images: Tensor, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        scores = []
        for image, boxes in zip(images, proposals, strict=True):
            corners = boxes.round().long().tolist()
            scores += [
                [image[0, y0:y1, x0:x1].mean(), image[1, y0:y1, x0:x1].mean()] for x0, y0, x1, y1 in corners
            ]
        return torch.tensor(scores), torch.cat(proposals)[:, None]


def test_proposals_are_transformed_for_every_view() -> None:
    proposals = [torch.tensor([[4.0, 8, 24, 20], [30.0, 22, 52, 36]]), torch.tensor([[40.0, 0, 60, 12]])]

    def found(**options: Any) -> list[Prediction]:
        model = RedProposals(["red", "green"], mean=(0, 0, 0), std=(1, 1, 1), **options)
        return model.predict_tensors(scene(), targets=[Target(proposals=each) for each in proposals])

    plain = found()
    assert [len(each["boxes"]) for each in plain] == [2, 1]
    for options in ({"tta_flip": True}, {"tta_flip": True, "tta_scales": [1.0, 2.0]}):
        for one, other in zip(found(**options), plain, strict=True):
            assert torch.equal(one["labels"], other["labels"])
            torch.testing.assert_close(one["boxes"], other["boxes"])
            torch.testing.assert_close(one["scores"], other["scores"], atol=0.1, rtol=0)


def test_views_add_their_own_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector of the left half of an image detects the right half in the mirror image."""
    model = Bright(tta_flip=True)
    predict = model.predict

    def left(images: Tensor) -> list[Prediction]:
        half = images.clone()
        half[..., images.shape[3] // 2 :] = 0
        return predict(half)

    monkeypatch.setattr(model, "predict", left)
    first, second = model.predict_tensors(scene())
    assert first["labels"].tolist() == [1, 2] and second["labels"].tolist() == [1]
    assert first["boxes"][0].tolist() == [4, 8, 24, 20]
    assert second["boxes"].tolist() == [[40, 0, 60, 12]]
    model.detections_per_image = 1
    assert len(model.predict_tensors(scene())[0]["boxes"]) == 1


def test_masks_are_mirrored_with_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    images = scene()
    images[:, 2] = 255
    model = Bright(tta_flip=True)
    model.postprocess = lambda output, *_: output  # type: ignore[method-assign,assignment]
    monkeypatch.setattr(model, "_merged", lambda views: views[1])
    assert model.predict_tensors(images)[0]["masks"][0].tolist() == [[0, 1], [0, 1]]


def test_a_class_may_give_its_own_normalization() -> None:
    model = Bright()
    assert model.normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).unique().tolist() == [1.0]
    assert "mean" not in model.hparams and "std" not in model.hparams  # the class is built without them


def test_scales_must_be_above_zero() -> None:
    with pytest.raises(UserError, match=r"--model.tta_scales \[\]: must be one or more"):
        Bright(tta_scales=[])
    with pytest.raises(UserError, match="numbers, each above 0"):
        Bright(tta_scales=[1.0, 0.0])


def test_class_agnostic_suppression() -> None:
    """The first box suppresses the second, of another class. The suppressed box does not suppress the third."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    scores = torch.tensor([[0.9, 0.0], [0.0, 0.8], [0.0, 0.7]])
    assert float(box_iou(boxes[:1], boxes[1:2])) > 0.4
    per_class = select_detections(boxes, scores, (20, 20), Selection(0.1, 0.4, 9, 9))
    assert per_class["scores"].tolist() == pytest.approx([0.9, 0.8])
    selection = Selection(0.1, 0.4, 9, 9, class_agnostic=True)
    across = select_detections(boxes, scores, (20, 20), selection)
    assert across["scores"].tolist() == pytest.approx([0.9, 0.7])
    assert across["labels"].tolist() == [1, 2]
    (levels,) = select_from_levels(boxes[None], scores[None], [2, 1], (20, 20), selection, 9)
    assert levels["scores"].tolist() == pytest.approx([0.9, 0.7])


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (SSD, {"width": 8}),
        (YOLOv1, {"width": 8, "hidden": 8}),
        (YOLOX, {"width": 8}),
        (FCOS, {"width": 8}),
        (RetinaNet, {"width": 8}),
        (FasterRCNN, {"width": 8, "head_width": 8}),
        (MaskRCNN, {"width": 8, "head_width": 8, "mask_width": 8}),
        (OverFeat, {"merging": "nms", "backbone": None}),
        (
            DETR,
            SMALL_DETR | {"tta_flip": True, "tta_nms_threshold": 0.3},
        ),
    ],
)
def test_every_family_has_class_agnostic_suppression(family: type[Detector], options: dict[str, Any]) -> None:
    found = []
    images = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    if family is not DETR:  # DETR suppresses only between views
        options = {"nms_threshold": 0.3, "detections_per_image": 5000} | options
    for across in (False, True):
        torch.manual_seed(0)
        given = {"backbone": "test_resnet", "score_threshold": 0.0, "class_agnostic_nms": across} | options
        model = family(["a", "b", "c"], **given).eval()
        if isinstance(model, DETR):
            # The boxes of untrained queries are almost equal.
            output = DETROutput(torch.randn(1, 1, 50, 4), torch.rand(1, 1, 50, 4), None)
            model.forward = lambda *_, output=output: output  # type: ignore[method-assign,misc]
        with torch.inference_mode():
            found.append(model.predict_tensors(images)[0])
    plain, across_classes = found
    remaining = across_classes["boxes"], across_classes["scores"]
    assert 0 < len(nms(*remaining, 0.3)) == len(remaining[0])
    assert len(nms(plain["boxes"], plain["scores"], 0.3)) < len(plain["boxes"])
