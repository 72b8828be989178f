"""Tests of SSD300, SSD512 and SSDLite against torchvision's networks with the same weights, and the papers."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.models.vgg import cfgs, make_layers

from segdet.detection.ssd import SSD, DefaultBoxDetector
from segdet.detection.ssd_lite import SSDLite
from segdet.detection.ssd_vgg16 import SSD300, SSD512, VGG16SSD
from segdet.util.errors import UserError

COCO = torchvision.models.detection.SSD300_VGG16_Weights.COCO_V1.meta["categories"]


def _with_random_weights(model: nn.Module) -> nn.Module:
    """Set weights that keep the scale of the features. With the initial weights the features vanish."""
    generator = torch.Generator().manual_seed(3)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
    return model.eval()


def _boxes(model: VGG16SSD) -> tuple[list[int], Tensor]:
    """Return the sides of the maps and all default boxes; this moves the backbone to the meta device."""
    model.backbone.to("meta")
    maps = model._maps(torch.zeros(1, 3, model.size, model.size, device="meta"))
    shapes = [torch.empty(features.shape) for features in maps]
    size = (model.size, model.size)
    boxes = model.default_boxes(ImageList(torch.empty(1, 3, *size), [size]), shapes)[0]
    return [features.shape[-1] for features in maps], boxes / model.size


@pytest.fixture(scope="module")
def ssd300(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchvisionSSD, Path]:
    """Return torchvision's SSD300 for COCO with random weights, and a file of these weights."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None)
    path = tmp_path_factory.mktemp("ssd") / "ssd300.pth"
    torch.save(theirs.eval().state_dict(), path)
    return theirs, path


@pytest.fixture(scope="module")
def ssdlite(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchvisionSSD, Path]:
    """Return torchvision's SSDLite for COCO with random weights, and a file of these weights."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    path = tmp_path_factory.mktemp("ssdlite") / "ssdlite.pth"
    torch.save(_with_random_weights(theirs).state_dict(), path)
    return theirs, path


def _by_score_and_label(found: Any) -> Tensor:
    order = found["labels"].argsort(stable=True)
    return order[found["scores"][order].argsort(descending=True, stable=True)]


def _check_equal(ours: DefaultBoxDetector, theirs: TorchvisionSSD, size: int) -> None:
    """Check that both models have the same detections in the same normalized image."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (1, 3, size, size), generator=generator, dtype=torch.uint8)
    with torch.inference_mode():
        (expected,) = theirs([image[0] / 255])
        normalized = theirs.transform([image[0] / 255])[0].tensors
        (found,) = ours.eval().predict(normalized)
    assert len(expected["labels"]) > 50
    assert torch.equal(found["scores"], expected["scores"])
    # The order of equal scores is not defined.
    ours_first, theirs_first = _by_score_and_label(found), _by_score_and_label(expected)
    assert torch.equal(found["labels"][ours_first], expected["labels"][theirs_first])
    torch.testing.assert_close(
        found["boxes"][ours_first], expected["boxes"][theirs_first], rtol=1e-5, atol=1e-3
    )
    torch.testing.assert_close(ours.normalize(image), normalized, rtol=1e-4, atol=1e-3)


def test_ssd300_detections_equal_torchvisions(ssd300: tuple[TorchvisionSSD, Path]) -> None:
    theirs, path = ssd300
    _check_equal(SSD300(COCO[1:], weights=str(path), sizes="coco"), theirs, 300)


def test_ssdlite_detections_equal_torchvisions(ssdlite: tuple[TorchvisionSSD, Path]) -> None:
    theirs, path = ssdlite
    _check_equal(SSDLite(COCO[1:], weights=str(path)), theirs, 320)


def test_logits_equal_torchvisions_exactly(ssdlite: tuple[TorchvisionSSD, Path]) -> None:
    theirs, path = ssdlite
    ours = SSDLite(COCO[1:], weights=str(path)).eval()
    images = torch.randn(1, 3, 320, 320)
    with torch.inference_mode():
        maps = list(theirs.backbone(images).values())
        expected = theirs.head(maps)
        boxes = theirs.anchor_generator(ImageList(images, [(320, 320)]), maps)[0]
        logits, offsets, anchors = ours(images)
    assert torch.equal(logits, expected["cls_logits"])
    assert torch.equal(offsets, expected["bbox_regression"])
    assert torch.equal(anchors, boxes)


def test_rows_of_classes_are_selected_by_name(ssdlite: tuple[TorchvisionSSD, Path]) -> None:
    _, path = ssdlite
    some = SSDLite(["dog", "person"], weights=str(path)).eval()
    every = SSDLite(COCO[1:], weights=str(path)).eval()
    images = torch.randn(1, 3, 320, 320)
    with torch.inference_mode():
        logits, offsets, _ = some(images)
        all_logits, all_offsets, _ = every(images)
    rows = [0, COCO.index("dog"), COCO.index("person")]
    torch.testing.assert_close(logits, all_logits[..., rows], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(offsets, all_offsets, rtol=1e-4, atol=1e-4)


def test_other_classes_resize_the_classifier_and_keep_other_weights(
    ssdlite: tuple[TorchvisionSSD, Path],
) -> None:
    theirs, path = ssdlite
    ours = SSDLite(["dog", "platypus"], weights=str(path))
    state = ours.state_dict()
    for key, value in theirs.state_dict().items():
        if re.fullmatch(r"head\.classification_head\.module_list\.\d\.1\.(weight|bias)", key):
            assert state[key].shape[0] == 3 * 6
        else:
            assert torch.equal(state[key], value), key


def test_ssd300_matches_the_paper() -> None:
    """8,732 boxes, and torchvision's number of parameters for 21 classes."""
    model = SSD300([str(i) for i in range(20)])
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_285_486
    sides, boxes = _boxes(model)
    assert sides == [38, 19, 10, 5, 3, 1]
    assert len(boxes) == 8732
    torch.testing.assert_close((boxes[:4, 2:] + boxes[:4, :2]) / 2, torch.full((4, 2), 4 / 300))
    shapes = boxes[:4, 2:] - boxes[:4, :2]
    expected = [[0.1, 0.1], [0.141421, 0.141421], [0.141421, 0.0707107], [0.0707107, 0.141421]]
    torch.testing.assert_close(shapes, torch.tensor(expected), atol=1e-5, rtol=0)
    # Square boxes of 30, 60, 111 ... pixels, by map.
    starts = torch.tensor([4, 6, 6, 6, 4]) * torch.tensor([38, 19, 10, 5, 3]) ** 2
    first = torch.cat([torch.zeros(1, dtype=torch.int64), starts.cumsum(0)])
    squares = (boxes[first, 2] - boxes[first, 0]) * 300
    torch.testing.assert_close(squares, torch.tensor([30.0, 60, 111, 162, 213, 264]), atol=1e-3, rtol=0)
    larger = (boxes[first + 1, 2] - boxes[first + 1, 0]) * 300
    ends = torch.tensor([60.0, 111, 162, 213, 264, 315])
    torch.testing.assert_close(larger, (squares * ends).sqrt(), atol=1e-3, rtol=0)


def test_conv4_3_has_norm_20_everywhere() -> None:
    model = SSD300(["a"]).eval()
    with torch.inference_mode():
        finest = model._maps(torch.randn(1, 3, 300, 300))[0]
    torch.testing.assert_close(finest.norm(dim=1), torch.full((1, 38, 38), 20.0))


def test_ssd512_matches_the_paper() -> None:
    sides, boxes = _boxes(SSD512([str(i) for i in range(20)]))
    assert sides == [64, 32, 16, 8, 4, 2, 1]
    per_map = [64 * 64 * 4, 32 * 32 * 6, 16 * 16 * 6, 8 * 8 * 6, 4 * 4 * 6, 2 * 2 * 4, 4]
    assert per_map == [16384, 6144, 1536, 384, 96, 16, 4]
    assert len(boxes) == sum(per_map) == 24564
    first = torch.tensor([0, *torch.tensor(per_map[:-1]).cumsum(0)])
    shares = boxes[first, 2] - boxes[first, 0]
    expected = torch.tensor([0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9])  # section 3.1
    torch.testing.assert_close(shares, expected, atol=1e-5, rtol=0)


def test_ssd300_loads_vgg16(tmp_path: Path) -> None:
    """The features of the backbone equal those of the layers of VGG16."""
    theirs = nn.ModuleDict({"features": make_layers(cfgs["D"])}).eval()
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    ours = SSD300(["a"], weights=str(tmp_path / "vgg16.pth")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        mine = ours.backbone.features(images)  # type: ignore[operator]
        torch.testing.assert_close(mine, theirs["features"][:23](images))  # type: ignore[index]
        middle = ours.backbone.extra[0][:7](mine)  # type: ignore[index]
        torch.testing.assert_close(middle, theirs["features"][23:30](mine))  # type: ignore[index]
    before = ours.backbone.extra[0][7][1].weight.clone()  # type: ignore[index]
    # The values of the classifier's weights are their row or column numbers.
    for columns in (False, True):
        rows, width = torch.arange(4096.0), torch.arange(25088.0)
        state = theirs.state_dict() | {
            "classifier.0.weight": width.expand(4096, -1) if columns else rows[:, None].expand(-1, 25088),
            "classifier.0.bias": rows,
            "classifier.3.weight": rows.expand(4096, -1) if columns else rows[:, None].expand(-1, 4096),
            "classifier.3.bias": rows,
        }
        thinned = ours._convert_vgg16(state)
        fc6, fc7 = thinned["extra.0.7.1.weight"], thinned["extra.0.7.3.weight"]
        assert fc6.shape == before.shape
        assert fc6[5, 7, 2, 1] == (7 * 49 + 6 * 7 + 3 if columns else 20)
        assert fc7[6, 9, 0, 0] == (36 if columns else 24)
        assert torch.equal(thinned["extra.0.7.1.bias"], rows[::4])
        assert torch.equal(thinned["extra.0.7.3.bias"], rows[::4])
    unpublished = ours._convert_vgg16(
        state | {"classifier.0.weight": torch.tensor(torch.nan).expand(4096, 25088)}
    )
    assert not any(key.startswith("extra.0.7") for key in unpublished)


def test_ssdlite_loads_mobilenet(tmp_path: Path) -> None:
    theirs = torchvision.models.mobilenet_v3_large().eval()
    torch.save(theirs.state_dict(), tmp_path / "mobilenet.pth")
    ours = SSDLite(["a"], weights=str(tmp_path / "mobilenet.pth"), reduced_tail=False).eval()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.001  # as in torchvision's detector
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        mine = ours.backbone.features(images)  # type: ignore[operator]
        torch.testing.assert_close(mine, theirs.features(images))


def test_mistakes_are_reported_in_one_line(tmp_path: Path, ssdlite: tuple[TorchvisionSSD, Path]) -> None:
    with pytest.raises(
        UserError, match=r"SSD300 needs images of 300x300, and these are 128x96; give --data.recipe SSDAug"
    ):
        SSD300(["a"]).predict(torch.zeros(1, 3, 96, 128))
    with pytest.raises(UserError, match="no weights 'COCO_V1' of SSD512; it has IMAGENET1K_V1"):
        SSD512(["a"], weights="COCO_V1")
    with pytest.raises(UserError, match="no weights 'V2' of SSDLite; it has COCO_V1"):
        SSDLite(["a"], weights="V2")
    with pytest.raises(UserError, match="not the weights of SSD300"):
        SSD300(["a"], weights=str(ssdlite[1]))
    torch.save(torchvision.models.mobilenet_v3_large().state_dict(), tmp_path / "imagenet.pth")
    with pytest.raises(UserError, match=r"add --model\.reduced_tail false"):
        SSDLite(["a"], weights=str(tmp_path / "imagenet.pth"))
    torch.save(nn.ModuleDict({"features": make_layers(cfgs["E"])}).state_dict(), tmp_path / "19.pth")
    with pytest.raises(UserError, match="not the weights of SSD300's VGG16"):
        SSD300(["a"], weights=str(tmp_path / "19.pth"))


@pytest.mark.parametrize("family", [SSD300, SSD512])
@pytest.mark.parametrize("option", ["multi_scale", "tta_scales"])
def test_networks_of_one_size_refuse_options_for_other_sizes(family: type[SSD300], option: str) -> None:
    side = family.size
    message = (
        rf"--model\.{option} \[0\.8, 1\.0\]: {family.__name__} supports only images of {side}x{side}; leave"
    )
    with pytest.raises(UserError, match=message):
        family(["a"], **{option: [0.8, 1.0]})
    family(["a"], **{option: [1.0]})


def test_coco_weights_need_cocos_default_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    member = torchvision.models.detection.SSD300_VGG16_Weights.COCO_V1
    monkeypatch.setattr(type(member), "get_state_dict", lambda *_, **__: {})
    with pytest.raises(UserError, match=r"COCO's default boxes; add --model\.sizes coco"):
        SSD300(["a"], weights="COCO_V1")


@pytest.mark.parametrize("build", [partial(SSD, backbone="resnet10t", width=16, extra_maps=0), SSDLite])
def test_a_step_in_bfloat16(build: Any, few_images: Any) -> None:
    images, targets = few_images(2)
    model = build(["red", "green"])
    with torch.autocast("cpu", torch.bfloat16):
        total = sum(model.losses(model.normalize(images), targets).values())
    assert isinstance(total, Tensor) and total.dtype == torch.float32 and total.isfinite()
    total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
