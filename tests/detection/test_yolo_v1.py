"""Tests of YOLO version 1: the network of the paper, its loss compared with loops, and image sizes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segdet.data.sample import Target
from segdet.detection.yolo_v1 import YOLOv1
from segdet.nn.boxes import pairwise_iou
from segdet.util.errors import UserError

SIZE = (64, 96)


def _small(**kwargs: Any) -> YOLOv1:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "backbone": "small_vgg", "backbone_options": {"channels": [8, 16, 24]}, "stride": 8, "grid": 4, "width": 24,
        "hidden": 0, "batch_norm": True,
    }  # fmt: skip
    return YOLOv1(["red", "green"], **(options | kwargs))


def _targets() -> list[Target]:
    """Return the targets of three images. The first image has two objects in one cell and two near the lower right
    corner. The second image has no objects. The third image has one object.
    """
    return [
        Target(
            boxes=torch.tensor([[2.0, 2, 20, 13], [4, 3, 16, 12], [60, 40, 96, 64], [95, 63, 96, 64]]),
            labels=torch.tensor([2, 1, 1, 2]),
        ),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
        Target(boxes=torch.tensor([[30.0, 20, 50, 44]]), labels=torch.tensor([1])),
    ]


def test_the_network_matches_the_paper() -> None:
    """24 convolutions, two fully connected layers, 271.7 million weights, 7x7x30 numbers, 98 boxes."""
    with torch.device("meta"):
        model = YOLOv1([str(i) for i in range(20)])
    parts = [model.backbone, model.neck, model.head]
    convolutions = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Conv2d)]
    linear = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]
    assert len(convolutions) == 24
    assert [layer.out_features for layer in linear] == [4096, 1470]
    # Output channels and kernel size of each layer in figure 3.
    kernels = [(layer.out_channels, layer.kernel_size[0]) for layer in convolutions]
    assert kernels == [
        (64, 7), (192, 3), (128, 1), (256, 3), (256, 1), (512, 3),
        *[(256, 1), (512, 3)] * 4, (512, 1), (1024, 3),
        *[(512, 1), (1024, 3)] * 2, (1024, 3), (1024, 3), (1024, 3), (1024, 3),
    ]  # fmt: skip
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 271.7
    images = torch.zeros(1, 3, 448, 448, device="meta")
    assert model.backbone(images).shape[-2:] == (14, 14)
    assert model.neck(model.backbone(images)).shape[-2:] == (7, 7)
    boxes, confidence, classes = model(images)
    assert boxes.shape == (1, 49, 2, 4) and confidence.numel() == 98 and classes.shape == (1, 49, 20)
    assert boxes.numel() + confidence.numel() + classes.numel() == 7 * 7 * 30


def _loss_in_loops(model: YOLOv1, output: tuple[Tensor, ...], targets: list[Target]) -> dict[str, float]:
    """Compute equation 3 in loops over objects and boxes."""
    predicted, confidence, classes = output
    side, (height, width) = model.grid, SIZE
    sums = dict.fromkeys(("coord_xy", "coord_wh", "obj", "noobj", "class"), 0.0)
    for b, target in enumerate(targets):
        owner: dict[int, int] = {}
        for g, (x0, y0, x1, y1) in enumerate(target["boxes"].tolist()):
            column = min(int((x0 + x1) / 2 / width * side), side - 1)
            row = min(int((y0 + y1) / 2 / height * side), side - 1)
            owner.setdefault(row * side + column, g)
        for cell in range(side * side):
            responsible, overlap = -1, 0.0
            if cell in owner:
                x0, y0, x1, y1 = target["boxes"][owner[cell]].tolist()
                encoded = [
                    (x0 + x1) / 2 / width * side - cell % side,
                    (y0 + y1) / 2 / height * side - cell // side,
                    math.sqrt((x1 - x0) / width),
                    math.sqrt((y1 - y0) / height),
                ]
                ious, distances = [], []
                for x, y, w, h in predicted[b, cell].tolist():
                    cx, cy = (x + cell % side) / side * width, (y + cell // side) / side * height
                    w2, h2 = max(w, 0.0) ** 2 * width / 2, max(h, 0.0) ** 2 * height / 2
                    box = torch.tensor([[cx - w2, cy - h2, cx + w2, cy + h2]])
                    ious.append(float(pairwise_iou(box, torch.tensor([[x0, y0, x1, y1]]))))
                    distances.append(sum((p - q) ** 2 for p, q in zip((x, y, w, h), encoded, strict=True)))
                if max(ious) > 0:
                    responsible = max(range(len(ious)), key=ious.__getitem__)
                else:
                    responsible = min(range(len(ious)), key=distances.__getitem__)
                overlap = ious[responsible]
                box = predicted[b, cell, responsible].tolist()
                errors = [(p - q) ** 2 for p, q in zip(box, encoded, strict=True)]
                sums["coord_xy"] += 5 * (errors[0] + errors[1])
                sums["coord_wh"] += 5 * (errors[2] + errors[3])
                for k in range(2):
                    target_class = float(target["labels"][owner[cell]] == k + 1)
                    sums["class"] += (float(classes[b, cell, k]) - target_class) ** 2
            for box_index in range(model.boxes):
                score = float(confidence[b, cell, box_index])
                if box_index == responsible:
                    sums["obj"] += (score - overlap) ** 2
                else:
                    sums["noobj"] += 0.5 * score**2
    return {name: value / len(targets) for name, value in sums.items()}


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_equation_3(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _small(boxes=3)
    generator = torch.Generator().manual_seed(seed)
    output = (
        torch.rand(3, 16, 3, 4, generator=generator) * 1.4 - 0.3,
        torch.rand(3, 16, 3, generator=generator),
        torch.rand(3, 16, 2, generator=generator),
    )
    monkeypatch.setattr(model, "forward", lambda images, scale: output)
    losses = model.losses(torch.zeros(3, 3, *SIZE), _targets())
    expected = _loss_in_loops(model, output, _targets())
    assert list(losses) == list(expected)
    for name, value in expected.items():
        assert value > 0
        assert float(losses[name]) == pytest.approx(value, rel=1e-4), name


def test_without_overlap_the_nearest_box_is_responsible(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _small()
    predicted = torch.zeros(1, 16, 2, 4)
    predicted[..., 1, 2:] = -0.1  # both boxes are empty; the second is farther from the object
    confidence = torch.tensor([0.4, 0.8]).expand(1, 16, 2)
    monkeypatch.setattr(
        model, "forward", lambda images, scale: (predicted, confidence, torch.zeros(1, 16, 2))
    )
    losses = model.losses(torch.zeros(1, 3, *SIZE), _targets()[2:])
    assert float(losses["obj"]) == pytest.approx(0.4**2)


def test_predict_inverts_the_encoding_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the outputs equal the targets, the detections are the objects and all losses except noobj are 0."""
    model = _small().eval()
    targets = _targets()[2:]
    x, y, w, h = 40 / 96 * 4 - 1, 32 / 64 * 4 - 2, math.sqrt(20 / 96), math.sqrt(24 / 64)
    cell = 2 * 4 + 1
    predicted, confidence, classes = torch.zeros(1, 16, 2, 4), torch.zeros(1, 16, 2), torch.zeros(1, 16, 2)
    predicted[0, cell, 1] = torch.tensor([x, y, w, h])
    confidence[0, cell, 1] = 1.0
    classes[0, cell, 0] = 1.0
    # The product of these two negative numbers is positive, but is not a detection.
    confidence[0, 3], classes[0, 3] = -0.9, -0.9
    monkeypatch.setattr(model, "forward", lambda images, scale: (predicted, confidence, classes))
    losses = model.losses(torch.zeros(1, 3, *SIZE), targets)
    assert all(float(losses[name]) < 1e-9 for name in ("coord_xy", "coord_wh", "obj", "class"))
    (prediction,) = model.predict(torch.zeros(1, 3, *SIZE))
    assert prediction["labels"].tolist() == [1] and prediction["scores"].tolist() == [1.0]
    torch.testing.assert_close(prediction["boxes"], targets[0]["boxes"])


@pytest.mark.parametrize("hidden", [0, 32])
def test_any_image_size(hidden: int) -> None:
    model = _small(hidden=hidden, grid=3).eval()
    assert [part.shape[1] for part in model(torch.randn(1, 3, 72, 104))] == [9, 9, 9]


@pytest.mark.parametrize("factor", [(2.0, 1.5), (0.8, 0.9), (1.1, 0.75)])
@pytest.mark.parametrize("hidden", [0, 32])
def test_resized_images(hidden: int, factor: tuple[float, float]) -> None:
    """Without fully connected layers, cells have a fixed size in pixels. With them, the number of cells is fixed."""
    model = _small(hidden=hidden).eval()
    output = torch.tensor(
        [0.5, 0.25, 0.5, 0.5]
    )  # centre at 1/2 and 1/4 of the cell, sides of 0.5 ** 2 of the grid
    size = (round(SIZE[0] * factor[0]), round(SIZE[1] * factor[1]))
    scale = size[0] / SIZE[0], size[1] / SIZE[1]
    cells = model.cells(scale)
    pixels = torch.tensor([size[1], size[0]] * 2)
    rows, columns = cells.shape
    assert (rows, columns) == ((4, 4) if hidden else (math.ceil(size[0] / 16), math.ceil(size[1] / 24)))
    assert model(torch.zeros(1, 3, *size), scale)[1].shape == (1, rows * columns, 2)
    boxes = model._decode(output.expand(1, rows * columns, 1, 4), cells)
    torch.testing.assert_close(model._encode(boxes[:, :, 0], cells)[0, -1], output)
    left, top, right, bottom = (boxes[0, -1, 0] * pixels).tolist()
    cell = (size[0] / 4, size[1] / 4) if hidden else (16, 24)
    centre = ((columns - 1 + 0.5) * cell[1], (rows - 1 + 0.25) * cell[0])
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx(centre, abs=1e-4)
    assert (right - left, bottom - top) == pytest.approx((cell[1], cell[0]), abs=1e-4)
    target = Target(boxes=boxes[0, 1] * pixels, labels=torch.tensor([2]))
    assert set(model.losses(torch.zeros(1, 3, *size), [target], scale)) >= {"coord_xy", "class"}
    assert model._assign(boxes[:, 1], torch.tensor([[2]]), (1, 1), cells)[0].flatten().nonzero().tolist() == [
        [1]
    ]


class Positions(nn.Module):
    """Network of stride 16 that returns the pixel coordinates of each location of its map, ``[1, 2, h, w]``."""

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = (16 * (torch.arange(math.ceil(side / 16)) + 0.5) for side in images.shape[2:])
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


class Recorder(nn.Module):
    """Head that stores its input and returns zeros."""

    def forward(self, features: Tensor) -> Tensor:
        self.given = features
        return features.new_zeros(1, 7, *features.shape[-2:])


@pytest.mark.parametrize("size", [(48, 96), (48, 44), (64, 96)])
@pytest.mark.parametrize("factor", [(1.25, 1.5), (0.75, 0.75)])
def test_a_cell_averages_the_same_pixels_at_any_scale(
    size: tuple[int, int], factor: tuple[float, float]
) -> None:
    """A cell averages the same pixels in resized images, also if it is not aligned with the feature map."""
    model = _small(grid=3, boxes=1).eval()
    model.backbone, model.neck, model.head = Positions(), nn.Sequential(), Recorder()

    def seen(height: int, width: int, scale: tuple[float, float] = (1.0, 1.0)) -> Tensor:
        """Return the centre of the area that each cell averages, in pixels: ``[rows, columns, 2]``."""
        model(torch.zeros(1, 3, height, width), scale)
        given: Any = model.head.given
        assert given.shape == (1, 2, *model.cells(scale).shape)
        return given[0].permute(1, 2, 0)

    whole = seen(*size)
    enlarged = round(size[0] * factor[0]), round(size[1] * factor[1])
    scale = enlarged[0] / size[0], enlarged[1] / size[1]
    rows, columns = (math.floor(3 * min(1, each) + 1e-6) for each in scale)
    again = seen(*enlarged, scale)
    torch.testing.assert_close(again[:rows, :columns], whole[:rows, :columns])


def test_tta_scales_need_a_fully_convolutional_network() -> None:
    assert _small(tta_scales=[0.8, 1.0]).tta_scales == [0.8, 1.0]
    with pytest.raises(UserError, match=r"--model.tta_scales \[0.8, 1.0\]: YOLO's fully connected layers"):
        _small(tta_scales=[0.8, 1.0], hidden=32)


def test_stages_show_the_grid() -> None:
    model = _small().eval()
    with torch.inference_mode():
        stages = {stage.name: stage for stage in model.stages(torch.randn(1, 3, *SIZE))}
        (found,) = model.predict(torch.randn(1, 3, *SIZE))
    assert list(stages) == ["grid cells 4x4", "confidence", "class", "boxes", "detections"]
    cells = stages["grid cells 4x4"].boxes
    assert cells is not None and cells[5].tolist() == [24, 16, 48, 32]
    assert stages["boxes"].boxes is not None and len(stages["boxes"].boxes) == 32
    assert set(found) == {"boxes", "scores", "labels"}


def test_invalid_options_are_errors() -> None:
    with pytest.raises(UserError, match=r"--model\.grid 0: must be at least 1"):
        _small(grid=0)
    with pytest.raises(UserError, match=r"model\.backbone_options: the paper's backbone"):
        YOLOv1(["a"], backbone_options={"channels": [8]})
    with pytest.raises(UserError, match=r"model\.stride 16: the paper's backbone"):
        YOLOv1(["a"], stride=16)
    with pytest.raises(UserError, match=r"model\.weights: there are no published weights"):
        YOLOv1(["a"], weights="IMAGENET1K_V1")


def test_a_step_in_bfloat16(few_images: Any) -> None:
    images, targets = few_images(1)
    model = _small(hidden=16)
    with torch.autocast("cpu", torch.bfloat16):
        total = sum(model.losses(model.normalize(images), targets).values())
    assert isinstance(total, Tensor) and total.dtype == torch.float32 and total.isfinite()
    total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("hidden", [0, 128])
def test_overfits_a_few_images(hidden: int, overfit: Any) -> None:
    assert overfit(_small(hidden=hidden, dropout=0.0)) >= 0.95


def test_does_not_overfit_if_square_roots_are_decoded_as_sizes(
    overfit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is trained on the square roots of sizes. Decode its outputs as sizes."""
    model = _small()
    decode = model._decode
    monkeypatch.setattr(
        model,
        "_decode",
        lambda predicted, cells: decode(
            torch.cat([predicted[..., :2], predicted[..., 2:].clamp(0).sqrt()], -1), cells
        ),
    )
    assert overfit(model) < 0.95
