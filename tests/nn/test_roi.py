"""Tests of RoI pooling against published reference values, and of RoI sampling against its definition."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from segdet.data.sample import Target
from segdet.nn.roi import RoIPooling, TwoLayerHead, factorized, rois_of, sample_rois


def roi(*box: float) -> Tensor:
    return torch.tensor([[0.0, *box]])


@pytest.mark.parametrize(
    ("box", "expected"),
    [((0.0, 0, 4, 4), [9.0, 11, 25, 27]), ((0.0, 0, 5, 5), [18.0, 20, 34, 36])],
)
def test_max_pooling_rounds_as_the_released_code(box: tuple[float, ...], expected: list[float]) -> None:
    """An 8x8 ramp and 2x2 bins, for Caffe's boxes [0, 0, 3, 3] and [0, 0, 4, 4] with inclusive last pixels."""
    ramp = torch.arange(64.0).view(1, 1, 8, 8)
    assert RoIPooling(2, 1)(ramp, roi(*box)).flatten().tolist() == expected


def test_roi_align_has_the_reference_values() -> None:
    ramp = torch.arange(25.0).view(1, 1, 5, 5)
    pooled = RoIPooling(4, 1, "align")(ramp, roi(1, 1, 3, 3))[0, 0]
    torch.testing.assert_close(pooled[:, 0], torch.tensor([4.5, 7, 9.5, 12]))
    torch.testing.assert_close(pooled - pooled[:, :1], torch.arange(4.0).expand(4, 4) / 2)


@pytest.mark.parametrize("kind", ["max", "align"])
def test_a_region_of_the_second_image_is_pooled_from_its_map(kind: str) -> None:
    maps = torch.stack([torch.zeros(3, 8, 8), torch.rand(3, 8, 8)])
    rois = rois_of([torch.tensor([[16.0, 16, 64, 80]]), torch.tensor([[0.0, 0, 120, 120]])])
    pooled = RoIPooling(8, 16, kind)(maps, rois)  # type: ignore[arg-type]
    assert not pooled[0].any()
    if kind == "max":
        assert torch.equal(pooled[1], maps[1])
    else:
        assert pooled[1].any()


def random_targets(number: int = 60) -> list[Target]:
    """Return two images with proposals of all overlaps, and one without objects."""
    torch.manual_seed(1)
    targets = []
    for objects in (2, 1, 0):
        boxes = torch.tensor([[10.0, 10, 40, 40], [50, 50, 90, 80]])[:objects]
        around = boxes.repeat(number, 1) + torch.randn(number * objects, 4) * 6 if objects else boxes
        anywhere = torch.rand(number, 2) * 80
        proposals = torch.cat([around, torch.cat([anywhere, anywhere + 5 + torch.rand(number, 2) * 30], 1)])
        targets.append(Target(boxes=boxes, labels=torch.tensor([2, 3])[:objects], proposals=proposals))
    return targets


@pytest.mark.parametrize("kind", ["max", "align"])
def test_regions_stay_where_they_are_in_bfloat16(kind: Any) -> None:
    """In bfloat16, 600 and 602 are the same number; the values of the map are small integers and exact."""
    features = torch.arange(128.0).repeat(16, 1)[None, None]
    rois = torch.tensor([[0.0, 301, 9, 405, 59], [0, 602, 9, 806, 59]])
    expected = RoIPooling(4, 8, kind)(features, rois)
    pooled = RoIPooling(4, 8, kind)(features.bfloat16(), rois)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, expected.bfloat16())


@pytest.mark.parametrize(("pooled", "fill"), [(False, True), (True, False)])
def test_sampling_follows_its_definition(pooled: bool, fill: bool) -> None:
    targets = random_targets()
    sampled = sample_rois(targets, 32, 0.25, background=(0.1, 0.5), pooled=pooled, fill=fill)
    assert len(sampled.rois) == (32 if pooled else 3 * 32)
    for region, label, target_box in zip(sampled.rois, sampled.labels.tolist(), sampled.boxes, strict=True):
        if label < 0:
            continue
        target = targets[int(region[0])]
        iou = box_iou(region[None, 1:], target["boxes"])[0]
        if label > 0:
            assert iou.max() >= 0.5
            assert label == target["labels"][iou.argmax()]
            assert torch.equal(target_box, target["boxes"][iou.argmax()])
        else:
            assert 0.1 <= iou.max() < 0.5
    groups = sampled.labels.view(-1, 32)
    assert ((groups > 0).sum(1) <= 8).all()
    if pooled:
        assert (groups > 0).sum() == 8 and (groups == 0).sum() == 24
    else:
        assert (groups[:2] >= 0).all() and (groups[:2] > 0).sum(1).tolist() == [8, 8]
        assert (groups[2] == -1).all()  # an image without objects has no overlaps
    kept = sampled.rois[sampled.labels >= 0]
    assert len(kept.unique(dim=0)) == len(kept)


def test_background_fills_the_places_that_foreground_leaves_empty() -> None:
    (target,) = random_targets()[:1]
    few = Target(**{**target, "proposals": target["proposals"][-60:]})
    filled = sample_rois([few], 32, 0.25, background=(0.0, 0.5))
    assert int((filled.labels > 0).sum()) < 8 and int((filled.labels >= 0).sum()) == 32
    kept = sample_rois([few], 32, 0.25, background=(0.0, 0.5), fill=False)
    assert int((kept.labels == 0).sum()) == 24


def test_objects_themselves_are_among_the_regions() -> None:
    target = Target(**{**random_targets()[0], "proposals": torch.zeros(0, 4)})
    sampled = sample_rois([target], 32, 0.5)
    assert sorted(sampled.labels.tolist()) == [2, 3]
    assert torch.equal(sampled.rois[sampled.labels == 3][:, 1:], target["boxes"][1:])


def test_truncation_keeps_the_largest_singular_values() -> None:
    torch.manual_seed(0)
    layers = TwoLayerHead(40, 30, 0.0)
    features = torch.rand(5, 40)
    whole = layers(features)
    weight = layers.fc6.weight.detach()  # type: ignore[union-attr]
    layers.compress((30, 30))
    assert isinstance(layers.fc6, nn.Linear)
    torch.testing.assert_close(layers(features), whole)
    layers.compress((7, 29))
    product = layers.fc6[1].weight @ layers.fc6[0].weight  # type: ignore[index]
    lost = torch.linalg.svdvals(weight)[7:]
    torch.testing.assert_close(torch.linalg.matrix_norm(weight - product), lost.square().sum().sqrt())
    assert (layers(features) - whole).abs().max() < whole.abs().max()


def test_truncation_of_the_paper() -> None:
    """119.5 million weights of fc6 and fc7 become 32.0 million at ranks 1024 and 256."""

    def millions(*layers: nn.Module) -> float:
        return round(sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2) / 1e6, 1)

    with torch.device("meta"):
        assert millions(TwoLayerHead(25088, 4096, 0.5)) == 119.5
        assert millions(factorized(25088, 4096, 1024), factorized(4096, 4096, 256)) == 32.0
