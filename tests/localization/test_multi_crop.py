"""Test multi-crop prediction: boxes of crops, mirror images and resized images are mapped to the image and merged."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from segdet.localization.box_head import BoxHead
from segdet.localization.multi_crop import MultiCrop, merge_views
from segdet.runs.cost import measure_cost
from segdet.util.errors import UserError

SIZE = (48, 80)
BOX = torch.tensor([20.0, 15, 50, 40])


def _coordinates() -> Tensor:
    """Return an image of its own coordinates: x, y and zero."""
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    return torch.stack([columns, rows, rows * 0])[None]


def _locate(views: Tensor) -> tuple[Tensor, Tensor]:
    """A network that locates `BOX` in a view of the coordinates."""
    height, width = views.shape[-2:]
    middle, centre = height // 2, width // 2
    x0, x1 = views[:, 0, middle, centre - 1], views[:, 0, middle, centre]
    y0, y1 = views[:, 1, middle - 1, centre], views[:, 1, middle, centre]
    # x = x1 + (x1 - x0) * (column - centre - .5), solved for the column.
    columns = centre + 0.5 + (BOX[None, ::2] - x1[:, None]) / (x1 - x0)[:, None]
    rows = middle + 0.5 + (BOX[None, 1::2] - y1[:, None]) / (y1 - y0)[:, None]
    left, right = columns.amin(1), columns.amax(1)
    return torch.zeros(len(views), 3), torch.stack([left, rows[:, 0], right, rows[:, 1]], 1)


@pytest.mark.parametrize(("views", "count"), [("one", 1), ("two", 2), ("five", 5), ("ten", 10)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.7)])
@pytest.mark.parametrize("share", [0.875, 0.61, 1.0])
def test_boxes_of_all_views_are_mapped_to_the_image(
    views: Any, count: int, scales: tuple[float, ...], share: float
) -> None:
    crops = MultiCrop(views, share, scales)
    seen: list[Tensor] = []

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(images)
        return _locate(images)

    images = _coordinates().repeat(2, 1, 1, 1)
    logits, boxes = crops.predict(network, images)
    assert logits.shape == (count * len(scales), 2, 3) and boxes.shape == (count * len(scales), 2, 1, 4)
    torch.testing.assert_close(boxes, BOX.expand_as(boxes), rtol=0, atol=1e-3)
    assert crops.single == (views == "one" and scales == (1.0,))
    assert [len(each) for each in seen] == [2 * count] * len(scales)
    whole = views in ("one", "two")
    for each, scale in zip(seen, scales, strict=True):
        sides = [round(scale * side) for side in SIZE]
        assert each.shape[-2:] == tuple(side if whole else round(share * side) for side in sides)
        pixels = each.unflatten(0, (count, 2))[:, 0]
        if count in (2, 10):
            torch.testing.assert_close(pixels[count // 2 :], pixels[: count // 2].flip(-1))
        if not whole:
            left, right, top, bottom = (
                pixels[0, 0, 0, 0],
                pixels[1, 0, 0, -1],
                pixels[0, 1, 0, 0],
                pixels[2, 1, -1, 0],
            )
            assert left < 2 and top < 2 and right > SIZE[1] - 2 and bottom > SIZE[0] - 2
            middle = pixels[4].mean((1, 2))[:2]
            # The tolerance is half a pixel of the image at scale 0.5, which is one pixel of the original.
            assert (middle - torch.tensor([SIZE[1] / 2, SIZE[0] / 2])).abs().max() < 1.01


def test_boxes_of_each_class_are_mapped_to_the_image() -> None:
    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, box = _locate(images)
        return logits, torch.stack([box, box * 0.5, box + 1], 1)

    _, boxes = MultiCrop("two").predict(network, _coordinates())
    torch.testing.assert_close(boxes[:, 0, 0], BOX.expand(2, 4))
    torch.testing.assert_close(boxes[0, 0, 2], BOX + 1)
    mirrored = BOX + torch.tensor([-1.0, 1, -1, 1])  # the mirror image swaps left and right
    torch.testing.assert_close(boxes[1, 0, 2], mirrored)


@pytest.mark.parametrize("per_class", [False, True])
def test_merged_views_equal_the_definition(per_class: bool) -> None:
    torch.manual_seed(0)
    views, batch, classes = 7, 3, 4
    logits = torch.randn(views, batch, classes)
    corners = torch.rand(views, batch, classes if per_class else 1, 2) * 8
    boxes = torch.cat([corners, corners + 12 + torch.rand_like(corners) * 8], -1)
    logs, merged = merge_views(logits, boxes)
    probabilities = logits.softmax(-1)
    torch.testing.assert_close(logs.exp(), probabilities.mean(0))
    torch.testing.assert_close(logs.softmax(-1), probabilities.mean(0))
    voters = []
    for b in range(batch):
        for k in range(classes):
            of_views = boxes[:, b, k if per_class else 0]
            p = probabilities[:, b, k]
            best = int(p.argmax())
            agree = [v for v in range(views) if box_iou(of_views[v : v + 1], of_views[best][None]) >= 0.5]
            voters.append(len(agree))
            expected = sum(p[v] * of_views[v] for v in agree) / sum(p[v] for v in agree)
            torch.testing.assert_close(merged[b, k], expected)
    assert min(voters) < views and max(voters) > 1


def test_a_view_of_half_the_object_does_not_affect_its_box() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 4, 10]])[:, None, None]
    logits = torch.tensor([[3.0, 0], [2, 0], [2, 0]])[:, None]
    _, merged = merge_views(logits, boxes)
    p = logits.softmax(-1)[:, 0, 0]
    expected = (p[0] * boxes[0, 0, 0] + p[1] * boxes[1, 0, 0]) / (p[0] + p[1])
    torch.testing.assert_close(merged[0, 0], expected)


def test_an_empty_box_is_not_merged() -> None:
    boxes = torch.tensor([[3.0, 3, 3, 8], [20, 20, 30, 30]])[:, None, None]
    _, merged = merge_views(torch.tensor([[5.0, 0], [0, 0]])[:, None], boxes)
    torch.testing.assert_close(merged[0, 0], torch.tensor([3.0, 3, 3, 8]))


def _head(**options: Any) -> BoxHead:
    torch.manual_seed(0)
    return BoxHead(
        ["a", "b", "c"], backbone_options={"channels": [8, 8, 16, 16]}, width=16, dropout=0.0, **options
    ).eval()


@pytest.mark.parametrize("per_class", [False, True])
def test_the_box_head_predicts_from_all_views(per_class: bool) -> None:
    options = {"views": "ten", "test_scales": [1.0, 1.5], "per_class": per_class}
    model = _head(**options)
    images = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        predictions = model.predict_tensors(images)
        normal = model.normalize(images)
        logits, boxes = merge_views(*MultiCrop("ten", 0.875, [1.0, 1.5]).predict(model.predict_view, normal))
        best = logits.softmax(1).argmax(1)
    for i, prediction in enumerate(predictions):
        assert prediction["labels"][0] == best[i] + 1 and len(prediction["labels"]) == 3
        expected = boxes[i, best[i]].clamp(min=0).minimum(torch.tensor([96.0, 64, 96, 64]))
        torch.testing.assert_close(prediction["boxes"][0], expected)
    assert measure_cost(model, images[:1], repeats=1).passes_per_image == 20
    with torch.inference_mode():
        stages = {stage.name: stage for stage in model.stages(model.normalize(images[:1]))}
    assert stages["boxes of the views"].boxes.shape == (20, 4)  # type: ignore[union-attr]


def test_views_do_not_change_the_weights() -> None:
    one, ten = _head(), _head(views="ten")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), ten.parameters(), strict=True))
    assert list(one.state_dict()) == list(ten.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_share": 0.0}, "model.crop_share 0.0: must be above 0 and at most 1"),
        ({"test_scales": []}, "model.test_scales []: must be one or more numbers, each above 0"),
    ],
)
def test_mistakes_are_reported_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        _head(**options)
    assert message in str(refused.value) and "\n" not in str(refused.value)
