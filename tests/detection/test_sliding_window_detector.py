"""Tests of the sliding-window detector and OverFeat: training, and equality of crops and dense evaluation."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from segdet.cli.main import main
from segdet.data.sample import Target
from segdet.data.shapes.make import make_shapes
from segdet.detection import sliding_window_detector as sliding_window
from segdet.detection.base import Detector
from segdet.detection.overfeat import OverFeat
from segdet.detection.sliding_window_detector import SlidingWindowDetector
from segdet.nn import dense_windows
from segdet.nn.boxes import match_anchors, pad_targets
from segdet.nn.window_pyramid import (
    WindowLayout,
    build_levels,
    crop_packed,
    layout_windows,
    level_sizes,
    pack_levels,
)
from segdet.runs.cost import measure_cost
from segdet.util.errors import UserError

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "window": 14,
    "stride": 4,
    "channels": [10, 16],
    "kernels": [3, 3],
    "pools": [2, 2],
    "hidden": [24],
    "scales": [0.25, 0.4],
    "windows_per_image": 32,
}
FAMILIES: list[tuple[type[SlidingWindowDetector], dict[str, Any]]] = [
    (SlidingWindowDetector, {"aspects": [0.7, 1.4]}),
    (OverFeat, {"box_hidden": [16]}),
    (OverFeat, {"box_hidden": [16, 12], "hidden": [24, 20], "regression": "per_class", "merging": "nms"}),
]


def _model(family: type[SlidingWindowDetector] = SlidingWindowDetector, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    model = family(["red", "green"], **(SMALL | kwargs))
    model.configure_model()
    return model


def _with_random_weights(model: SlidingWindowDetector) -> SlidingWindowDetector:
    """Set random statistics and weights, so that outputs differ from window to window."""
    torch.manual_seed(1)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 2)  # type: ignore[arg-type]
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=2 / math.sqrt(part.in_features))
    return model.eval()


def _scenes(count: int = 8, side: int = 64) -> tuple[Tensor, list[Target]]:
    """Return images of noise with a red rectangle on the left and a green one on the right."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 90, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    targets = []
    for image in images:
        boxes = []
        for channel, x in ((0, 2), (1, side // 2 + 2)):
            w, h = (int(v) for v in torch.randint(14, 28, (2,), generator=generator))
            y = int(torch.randint(0, side - h, (1,), generator=generator))
            image[channel, y : y + h, x : x + w] = 240
            boxes.append([x, y, x + w, y + h])
        targets.append(Target(boxes=torch.tensor(boxes).float(), labels=torch.tensor([1, 2])))
    return images, targets


def _train(model: Detector, steps: int) -> None:
    images, targets = _scenes()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model.losses(model.normalize(images), targets).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
    model.eval()


def _map_50(model: Detector) -> float:
    images, targets = _scenes()
    scores = model.build_scores()
    with torch.inference_mode():
        found = model.predict_tensors(images)
    scores.update(found, targets, list(range(len(targets))))  # type: ignore[operator]
    return float(scores.compute()["map_50"])  # type: ignore[operator]


def test_the_sliding_window_overfits_a_few_images_but_not_with_a_broken_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"scales": [0.25, 0.33, 0.42], "aspects": [0.6, 1.0, 1.6], "stride": 2}
    model = _model(mode="dense", foreground=0.6, background=0.4, nms_threshold=0.15, **options)
    _train(model, 80)
    assert _map_50(model) >= 0.95
    # Swap the windows of two levels.
    monkeypatch.setattr(model, "layout", lambda *args: _shuffled(SlidingWindowDetector.layout(model, *args)))
    assert _map_50(model) < 0.95
    monkeypatch.undo()
    # Without dilation behind poolings, the dense pass evaluates other windows than in training.
    monkeypatch.setattr(dense_windows._StepPlan, "dilation_of", lambda plan, step: step.dilation)
    assert _map_50(model) < 0.95


def _shuffled(layout: WindowLayout) -> WindowLayout:
    boxes = layout.boxes.roll(layout.counts[0], 0)
    return WindowLayout(layout.sizes, layout.counts, boxes, layout.starts, layout.pitches)


@pytest.mark.parametrize("options", [{}, {"regression": "per_class", "merging": "nms"}])
def test_overfeat_overfits_a_few_images_but_not_without_its_regressor(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(OverFeat, scales=[0.25, 0.33, 0.42], box_hidden=[32], **options)
    _train(model, 80)
    assert _map_50(model) >= 0.95
    monkeypatch.setattr(model, "_edges", lambda hidden: OverFeat._edges(model, hidden) * 0)
    assert _map_50(model) < 0.95


@pytest.mark.parametrize(("family", "options"), FAMILIES)
@pytest.mark.parametrize(
    ("stride", "size"), [(1, (24, 32)), (2, (37, 51)), (3, (48, 64)), (4, (9, 200)), (8, (64, 48))]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_crops_and_dense_evaluation_are_equal(
    family: Any,
    options: dict[str, Any],
    stride: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = _with_random_weights(_model(family, **(options | {"stride": stride, "crop_batch": 50}))).to(dtype)
    images = torch.randn(2, 3, *size, dtype=dtype)
    outputs, found = [], []
    for mode in ("crops", "dense"):
        model.mode = mode
        with torch.inference_mode():
            outputs.append(model.score_windows(images))
            found.append(model.predict(images))
    (scores, boxes), (same_scores, same_boxes) = outputs
    assert scores.dtype == dtype and scores.shape[:2] == boxes.shape[:2] and scores.std() > 1e-2
    torch.testing.assert_close(same_scores, scores, rtol=0, atol=tolerance)
    torch.testing.assert_close(same_boxes, boxes, rtol=0, atol=100 * tolerance)
    if dtype == torch.float64:  # without rounding that could swap equal scores
        for one, other in zip(*found, strict=True):
            assert len(one["scores"]) > 0
            assert one["labels"].tolist() == other["labels"].tolist()
            torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=tolerance)
            torch.testing.assert_close(one["boxes"], other["boxes"], rtol=0, atol=100 * tolerance)


# Windows.


def test_levels_have_windows_of_the_requested_sizes_that_end_at_the_border() -> None:
    scales, aspects = [0.2, 0.45, 0.8], [0.5, 1.0, 2.0]
    for size in ((128, 128), (375, 500), (90, 333)):
        sizes = level_sizes(size, 24, 4, scales, aspects)
        layout = layout_windows(size, sizes, 24, 4, CPU)
        assert sum(layout.counts) == len(layout.boxes)
        firsts = torch.tensor([0, *layout.counts[:-1]]).cumsum(0)
        sides = (layout.boxes[:, 2:] - layout.boxes[:, :2])[firsts]
        for level, boxes in enumerate(layout.boxes.split(layout.counts)):
            torch.testing.assert_close(boxes[:, :2].amin(0), torch.zeros(2))
            torch.testing.assert_close(boxes[:, 2:].amax(0), torch.tensor(size[::-1]).float())
            torch.testing.assert_close(boxes[:, 2:] - boxes[:, :2], sides[level].expand(len(boxes), -1))
        for scale in scales:
            for aspect in aspects:
                side = scale * math.sqrt(size[0] * size[1])
                requested = torch.tensor([side * math.sqrt(aspect), side / math.sqrt(aspect)])
                requested = torch.minimum(requested, torch.tensor(size[::-1]).float())
                # The error of a side is at most half a step.
                assert ((sides / requested).log().abs().amax(1).amin()) < math.log(1 + 2.5 / 24)
    assert level_sizes((64, 64), 24, 4, [1.0, 1.5], [1.0]) == [(24, 24)]


@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_crops_have_the_positions_of_the_layout(family: Any, options: dict[str, Any]) -> None:
    images = torch.randn(3, 3, 45, 60)
    layout = _model(family, **options).layout(images)
    levels = build_levels(images, layout)
    windows = []
    for image in range(3):
        for level in levels:
            height, width = level.shape[-2:]
            for top in range(0, height - 13, 4):
                for left in range(0, width - 13, 4):
                    windows.append(level[image, :, top : top + 14, left : left + 14])
    count = len(layout.boxes)
    index = torch.arange(3 * count)
    found = crop_packed(pack_levels(levels), layout, index // count, index % count, 14)
    assert torch.equal(found, torch.stack(windows))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_window_has_the_content_of_its_box() -> None:
    """In an image of coordinates, the mean of a window is the centre of its box."""
    rows, columns = torch.meshgrid(torch.arange(70) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    picture = torch.stack([columns, rows, rows * 0])[None]
    layout = layout_windows((70, 100), level_sizes((70, 100), 16, 4, [0.2, 0.3], [0.5, 1.0, 2.0]), 16, 4, CPU)
    index = torch.arange(len(layout.boxes))
    windows = crop_packed(pack_levels(build_levels(picture, layout)), layout, index * 0, index, 16)
    inner = ((layout.boxes[:, :2] > 0) & (layout.boxes[:, 2:] < torch.tensor([100.0, 70.0]))).all(1)
    assert inner.sum() > 50
    middles = (layout.boxes[:, :2] + layout.boxes[:, 2:]) / 2
    torch.testing.assert_close(windows.mean((2, 3))[inner, :2], middles[inner], rtol=0, atol=0.05)


def test_layouts_are_computed_once_per_size() -> None:
    model = _model()
    first = model.layout(torch.zeros(2, 3, 40, 50))
    assert model.layout(torch.ones(1, 3, 40, 50)) is first
    for side in range(20, 60):
        model.layout(torch.zeros(1, 3, side, 30))
    assert len(model._layouts) <= 16


def test_windows_keep_their_size_in_pixels_in_resized_images() -> None:
    """In an enlarged view, windows are smaller shares of the image."""
    model = _model()
    one = model.layout(torch.zeros(1, 3, 80, 120))
    other = model.layout(torch.zeros(1, 3, 120, 180), (1.5, 1.5))
    assert len(other.boxes) > 1.5 * len(one.boxes)
    widest = [float((each.boxes[:, 2] - each.boxes[:, 0]).max()) for each in (one, other)]
    assert widest[1] == pytest.approx(widest[0], rel=0.15)


# Training windows.


def _target_labels(images: int, windows: int) -> Tensor:
    torch.manual_seed(2)
    return torch.randint(-1, 3, (images, windows)) * (torch.rand(images, windows) < 0.4)


def test_training_windows_are_positives_hard_negatives_and_random_negatives() -> None:
    model = _model(windows_per_image=40, positives=0.25, hard_negatives=0.5)
    target_labels = _target_labels(5, 200)
    hardness = torch.rand(5, 200)
    chosen = model.sample_windows(target_labels, hardness)
    assert chosen.shape == (5, 40)
    for row, labels, hard in zip(chosen, target_labels, hardness, strict=True):
        assert (labels[row[:10]] > 0).all() and len(row[:10].unique()) == 10
        background = [(float(hard[i]), i) for i in range(200) if labels[i] == 0]
        assert row[10:25].tolist() == [i for _, i in sorted(background, reverse=True)[:15]]
        assert (labels[row[25:]] == 0).all() and len(row[10:].unique()) == 30
    again = model.sample_windows(target_labels, hardness)
    assert torch.equal(again[:, 10:25], chosen[:, 10:25])
    assert not torch.equal(again[:, :10], chosen[:, :10]) and not torch.equal(again[:, 25:], chosen[:, 25:])


def test_negatives_fill_the_places_of_missing_positives() -> None:
    model = _model(windows_per_image=12, positives=0.5, hard_negatives=0.0)
    target_labels = torch.zeros(2, 50, dtype=torch.int64)
    target_labels[0, 7], target_labels[1, 3:] = 2, -1
    chosen = model.sample_windows(target_labels, None)
    labels = target_labels.gather(1, chosen)
    assert labels[0].tolist() == [2] + [0] * 11
    # Three windows are background; ignored windows fill the remaining places, and the loss ignores them.
    assert set(chosen[1, :3].tolist()) == {0, 1, 2} and (labels[1, 3:6] == -1).all()


@pytest.mark.parametrize("mined", [False, True])
@pytest.mark.parametrize("windows", [5, 12, 13, 60])
def test_no_window_is_sampled_twice(windows: int, mined: bool) -> None:
    """This includes negatives that replace positives, and images with hardly more windows than samples."""
    model = _model(windows_per_image=12, positives=0.5, hard_negatives=0.25)
    target_labels = torch.zeros(4, windows, dtype=torch.int64)
    target_labels[1, 0], target_labels[2, 1:], target_labels[3] = 1, -1, 1
    for _ in range(5):
        chosen = model.sample_windows(target_labels, torch.rand(target_labels.shape) if mined else None)
        assert chosen.shape == (4, min(12, windows))
        assert all(len(row.unique()) == len(row) for row in chosen)
        assert 0 in chosen[1, :6] and 0 in chosen[2]


@pytest.mark.parametrize("mode", ["crops", "dense"])
def test_hardness_uses_the_current_weights_and_changes_no_state(mode: Any) -> None:
    model = _with_random_weights(_model(mode=mode, dropout=0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 40, 56)
    layout = model.layout(images)
    levels = build_levels(images, layout)
    hardness = model.hardness(levels, pack_levels(levels), layout)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())
    model.eval()
    with torch.no_grad():
        scores, _ = model.score_windows(images)
    torch.testing.assert_close(hardness, scores.sum(-1), rtol=0, atol=1e-5)


def test_mining_in_mixed_precision_keeps_all_gradients() -> None:
    images, targets = _scenes(2)
    for family, options in FAMILIES:
        model = _model(family, **options).train()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(model.normalize(images), targets)
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_loss_is_the_cross_entropy_of_the_sampled_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _with_random_weights(_model())
    images, targets = _scenes(3)
    normal = model.normalize(images)
    chosen = torch.randint(0, len(model.layout(normal).boxes), (3, 32))
    monkeypatch.setattr(model, "sample_windows", lambda target_labels, hardness: chosen)
    with torch.no_grad():
        loss = model.losses(normal, targets)["class"]
        layout, (scores, _) = model.layout(normal), model.score_windows(normal)
    boxes, labels = pad_targets(targets, CPU)
    _, target_labels = match_anchors(layout.boxes, boxes, labels, 0.5, 0.3)
    own = target_labels.gather(1, chosen)
    assert (own > 0).any() and (own == -1).any()
    probabilities = torch.cat([1 - scores.sum(-1, keepdim=True), scores], -1)
    each = [
        -math.log(probabilities[b, chosen[b, n], own[b, n]])
        for b in range(3)
        for n in range(32)
        if own[b, n] >= 0
    ]
    assert loss == pytest.approx(sum(each) / len(each), rel=1e-3)


@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_images_without_objects_are_trained_on(family: Any, options: dict[str, Any]) -> None:
    model = _model(family, **options).train()
    images = model.normalize(_scenes(2)[0])
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    losses = model.losses(images, [empty, empty])
    assert losses["class"] > 0 and all(torch.isfinite(loss) for loss in losses.values())
    assert losses.get("box", 0) == 0
    sum(losses.values()).backward()


# Backbones.


def test_any_backbone_classifies_crops() -> None:
    options = {"backbone": "test_resnet", "window": 32, "stride": 16, "scales": [0.5]}
    model = _model(**options).train()
    images, targets = _scenes(2)
    loss = model.losses(model.normalize(images), targets)["class"]
    loss.backward()
    assert model.network[0][0].body.body.conv1[0].weight.grad.abs().sum() > 0
    with torch.inference_mode():
        model.eval().predict_tensors(images)
    with pytest.raises(UserError, match=r"model\.mode dense: backbone test_resnet pads each window"):
        _model(**options, mode="dense")


# Cost, stages and errors.


def test_mode_crops_takes_a_pass_per_window_and_mode_dense_one_per_level() -> None:
    images = _scenes(1)[0]
    for family, options in FAMILIES:
        crops = measure_cost(_model(family, mode="crops", **options), images, repeats=1)
        dense = measure_cost(_model(family, mode="dense", **options), images, repeats=1)
        layout = _model(family, **options).layout(images)
        assert crops.passes_per_image == len(layout.boxes) > 50
        assert dense.passes_per_image == len(layout.sizes) == 2 * len(options.get("aspects", [1]))
        assert crops.flops is not None and dense.flops is not None and dense.flops < crops.flops


@pytest.mark.parametrize("mode", ["crops", "dense"])
def test_the_stages_of_a_prediction_are_marked(mode: Any) -> None:
    model = _with_random_weights(_model(mode=mode))
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        model.predict_tensors(_scenes(1)[0])
    marked = {event.name for event in profiled.events() if event.name.startswith("segdet::")}  # type: ignore[union-attr]
    assert marked == {"segdet::warps", "segdet::network", "segdet::head", "segdet::nms"}


def test_crops_show_a_progress_bar_after_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar(sliding_window.tqdm):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**(kwargs | {"file": io.StringIO()}))
            bars.append(self)

    monkeypatch.setattr(sliding_window, "tqdm", Bar)
    with torch.inference_mode():
        model = _model(crop_batch=10).eval()
        model.predict(torch.zeros(2, 3, 48, 48))
        _model(mode="dense").eval().predict(torch.zeros(2, 3, 48, 48))
    total = 2 * len(model.layout(torch.zeros(1, 3, 48, 48)).boxes)
    assert [(bar.delay, bar.total, bar.n) for bar in bars] == [(2, total, total)]


@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_synchronized_batch_normalization_is_used_in_the_dense_pass(
    family: Any, options: dict[str, Any]
) -> None:
    """--trainer.sync_batchnorm replaces layers of the network after it is built."""
    model = _with_random_weights(_model(family, **options))
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model).double()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.SyncBatchNorm)):
        norm.running_mean.add_(torch.randn_like(norm.running_mean))  # type: ignore[union-attr,arg-type]
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    model.eval()
    with torch.inference_mode():
        model.mode = "crops"
        crops = model.score_windows(images)[0]
        model.mode = "dense"
        torch.testing.assert_close(model.score_windows(images)[0], crops, rtol=0, atol=1e-8)


def test_a_checkpoint_holds_the_weights_once() -> None:
    names = {key.split(".")[0] for key in _model(OverFeat).state_dict()} - {"scores"}
    assert names == {"network", "class_head", "box_head"}


@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_stages_are_levels_best_windows_and_detections(family: Any, options: dict[str, Any]) -> None:
    model = _with_random_weights(_model(family, **options))
    image = torch.randn(1, 3, 48, 64)
    layout = model.layout(image)
    with torch.inference_mode():
        stages = list(model.stages(image))
        (found,) = model.predict(image)
    regressed = ["regressed boxes"] if family is OverFeat else []
    names = [f"level {width}x{height}" for height, width in layout.sizes]
    assert [stage.name for stage in stages] == [*names, "best windows", *regressed, "detections"]
    for stage, count, boxes in zip(stages, layout.counts, layout.boxes.split(layout.counts), strict=False):
        assert stage.boxes is not None and len(stage.boxes) == min(20, count)
        assert f"among {count:,} windows" in stage.caption
        assert (stage.boxes[:, None] == boxes).all(-1).any(1).all()
    assert stages[-1].boxes is not None
    torch.testing.assert_close(stages[-1].boxes, found["boxes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 6}, "--model.window 6: stage 2 receives 2 pixels, too few for a kernel of 3"),
        ({"pools": [2]}, "2, 2 and 1 numbers; give one number per stage"),
        ({"conv_strides": [2]}, "--model.conv_strides: 1 numbers for 2 stages"),
        ({"stride": 0}, "--model.stride 0: must be at least 1"),
        ({"scales": []}, "--model.scales []: must be one or more numbers, each above 0"),
        ({"aspects": [1.0, 0.0]}, "--model.aspects [1.0, 0.0]: must be one or more"),
        ({"positives": 1.5}, "--model.positives 1.5: must be at least 0 and at most 1"),
        ({"background": 0.6}, "--model.background: 0.6 exceeds --model.foreground, 0.5"),
    ],
)
def test_mistakes_are_reported_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        _model(**options)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "size", "windows"),
    [("shapes/sliding_window_detector", (128, 128), 3872), ("voc/sliding_window_detector", (384, 512), 4343)],
)
def test_the_shipped_configs_build(
    name: str, size: tuple[int, int], windows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    assert main(["fit", "--config", str(file), "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)  # complete, with all defaults
    assert tuple(config["data"]["init_args"]["recipe"]["init_args"]["size"]) == size
    arguments = config["model"]["init_args"]
    for linked in ("optim", "class_names", "category_ids"):
        arguments.pop(linked, None)
    model = SlidingWindowDetector(["a", "b"], **arguments)
    images = torch.zeros(1, 3, *size)
    assert len(model.layout(images).boxes) == windows
    model.mode = "dense"
    with torch.inference_mode():
        assert model.eval().score_windows(images)[0].shape == (1, windows, 2)


def test_a_checkpoint_can_be_tested_in_either_mode(tmp_path: Path) -> None:
    data = make_shapes(tmp_path / "shapes", train=8, val=2, test=3, size=(64, 64), workers=1, progress=False)
    run, options = tmp_path / "run", ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    model = ["--model=OverFeat", *(f"--model.{name}={value}" for name, value in SMALL.items())]
    rest = ["--data.batch_size=4", "--data.num_workers=0", "--trainer.max_epochs=2", f"--run_dir={run}"]
    assert main(["fit", *model, "--data=VOCDataModule", f"--data.root={data}", *rest, *options]) == 0
    records = []
    for mode in ("crops", "dense"):
        out = tmp_path / mode
        arguments = [f"--ckpt_path={run}", f"--model.mode={mode}", "--model.score_threshold=0.0"]
        assert main(["test", *arguments, f"--run_dir={out}", *options]) == 0
        records.append(json.loads((out / "result.json").read_text()))
    crops, dense = records
    assert crops["metrics"]["test/map_50"] == pytest.approx(dense["metrics"]["test/map_50"], abs=1e-4)
    assert crops["cost"]["passes_per_image"] > 50 and dense["cost"]["passes_per_image"] == 2
