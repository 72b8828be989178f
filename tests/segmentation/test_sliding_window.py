"""Test the sliding window: overfitting, agreement of both modes, and the positions of centres."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from segdet.cli.main import main
from segdet.data.sample import Target
from segdet.data.shapes.make import make_shapes
from segdet.nn import dense_windows
from segdet.runs.cost import measure_cost
from segdet.segmentation import sliding_window
from segdet.segmentation.sliding_window import SlidingWindow, sample_pixels
from segdet.util.errors import UserError

CLASSES = ["background", "bright", "striped"]


def _model(**kwargs: Any) -> SlidingWindow:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "window": 15,
        "channels": [12, 24],
        "kernels": [4, 3],
        "pools": [2, 2],
        "hidden": 24,
    }
    model = SlidingWindow(CLASSES, **(options | kwargs))
    model.configure_model()
    return model


def _scenes(count: int = 4, side: int = 48) -> tuple[torch.Tensor, list[Target]]:
    """Return images of noise with a bright and a striped rectangle, and their masks."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 120, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(count, side, side, dtype=torch.int64)
    for i in range(count):
        x, y = (int(v) for v in torch.randint(0, side // 2 - 4, (2,), generator=generator))
        images[i, :, y : y + 16, x : x + 13] = 230
        masks[i, y : y + 16, x : x + 13] = 1
        x, y = side - 4 - x // 2 - 12, side - 14
        images[i, :, y : y + 12 : 2, x : x + 12] = 255
        images[i, :, y + 1 : y + 12 : 2, x : x + 12] = 0
        masks[i, y : y + 12, x : x + 12] = 2
    return images, [Target(mask=mask) for mask in masks]


def _trained(model: SlidingWindow, steps: int = 100) -> SlidingWindow:
    images, targets = _scenes()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model.losses(model.normalize(images), targets).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
    return model.eval()


def _accuracy(model: SlidingWindow) -> float:
    images, targets = _scenes()
    with torch.inference_mode():
        found = torch.stack([p["mask"] for p in model.predict_tensors(images)])
    return float((found == torch.stack([t["mask"] for t in targets])).float().mean())


def test_overfits_four_images_but_not_with_a_broken_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _trained(_model(mode="dense", stride=1, windows_per_image=64))
    assert _accuracy(model) >= 0.98
    # Without dilation behind poolings, the dense pass evaluates other windows than in training.
    model.dense = dense_windows.DensePass(model.classifier, model.window, 1, "dilation")
    assert _accuracy(model) >= 0.98
    monkeypatch.setattr(dense_windows._StepPlan, "dilation_of", lambda plan, step: step.dilation)
    assert _accuracy(model) < 0.98


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8, 40])
@pytest.mark.parametrize("size", [(48, 48), (29, 42), (7, 11), (1, 1)])
def test_both_modes_agree(stride: int, size: tuple[int, int]) -> None:
    crops, dense = _model(stride=stride, crop_batch=50).eval(), _model(stride=stride, mode="dense").eval()
    for norm in (m for model in (crops, dense) for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        torch.manual_seed(norm.num_features)
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        found, expected = dense.predict(images), crops.predict(images)
    assert expected.shape == (2, 3, *size)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


class _Centre(nn.Module):
    """A classifier that returns the three channels of the window's centre."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.place = window // 2

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return windows[:, :, self.place, self.place]


def test_synchronized_normalization_is_in_the_dense_network_too() -> None:
    """--trainer.sync_batchnorm replaces layers after the network has been built."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(_model()).double().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)):
        nn.init.normal_(norm.running_mean)
    images = torch.randn(1, 3, 30, 40, dtype=torch.float64)
    with torch.inference_mode():
        model.mode = "crops"
        crops = model.predict(images)
        model.mode = "dense"
        torch.testing.assert_close(model.predict(images), crops, rtol=0, atol=1e-8)


@pytest.mark.parametrize("window", [8, 9])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(24, 28), (23, 31)])
def test_centres_are_at_their_positions(window: int, stride: int, size: tuple[int, int]) -> None:
    """The values of the image are its pixel coordinates. The prediction must equal them; the grid must not shift."""
    model = _model(window=window, channels=[4], kernels=[3], pools=[2], stride=stride).eval()
    model.classifier = _Centre(window)  # type: ignore[assignment]
    rows, columns = torch.meshgrid(
        torch.arange(1.0, size[0] + 1), torch.arange(1.0, size[1] + 1), indexing="ij"
    )
    picture = torch.stack([rows, columns, rows * 0 + 1])[None]
    found = model.predict(picture)
    assert found.shape == picture.shape
    # Compare the pixels between the first and the last centre. Beyond them the nearest value is repeated.
    inner = [slice(stride // 2, (n - 1 - stride // 2) // stride * stride + stride // 2 + 1) for n in size]
    torch.testing.assert_close(found[:, :, inner[0], inner[1]], picture[:, :, inner[0], inner[1]])
    assert (found - picture).abs().max() < stride
    centres = model.logits_at_centres(picture)
    assert torch.equal(centres, picture[:, :, stride // 2 :: stride, stride // 2 :: stride])


def test_training_windows_are_centred_at_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    for window in (8, 9):
        model = _model(window=window, channels=[4], kernels=[3], pools=[2])
        model.classifier = _Centre(window)  # type: ignore[assignment]
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        monkeypatch.setattr(model, "pixel_loss", lambda a, b, seen=seen: seen.append((a, b)) or a.sum())
        masks = torch.arange(2 * 6 * 7).view(2, 6, 7)
        model.losses(masks[:, None].expand(2, 3, 6, 7).float(), [Target(mask=mask) for mask in masks])
        logits, labels = seen[0]
        assert labels.shape == (1, 256, 1) and logits.shape == (1, 3, 256, 1)
        assert torch.equal(logits[:, 0].long(), labels)


def test_windows_are_padded_with_the_mean_colour() -> None:
    model = _model(window=9, channels=[4], kernels=[3], pools=[2], stride=1, crop_batch=1000)
    seen: list[torch.Tensor] = []
    model.classifier = nn.Sequential(nn.Flatten(), nn.Linear(243, 3))
    model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model.predict(torch.ones(1, 3, 5, 6))
    assert len(seen[0]) == 30
    assert (seen[0][0, :, :4] == 0).all() and (seen[0][0, :, 4:, 4:] == 1).all()  # the first pixel's window
    assert (seen[0][-1, :, 5:] == 0).all() and (seen[0][-1, :, :5, :5] == 1).all()  # the last one's


# Sampling.


def test_balanced_sampling_draws_every_class_equally_often() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(2, 40, 50, dtype=torch.int64)
    masks[0, :2, :5] = 1
    masks[1, 7, 7] = 4
    masks[1, 20:] = 255
    number = 30_000
    index, rows, columns = sample_pixels(masks, number, "balanced")
    labels = masks[index, rows, columns]
    fractions = torch.bincount(labels, minlength=256) / number
    assert fractions.nonzero().flatten().tolist() == [0, 1, 4]
    # The bound is five standard deviations of a fraction of one third.
    assert (fractions[[0, 1, 4]] - 1 / 3).abs().max() < 5 * (2 / 9 / number) ** 0.5
    # Within a class, each pixel is drawn equally often.
    ones = labels == 1
    counts = torch.bincount(rows[ones] * 5 + columns[ones], minlength=10).float()
    chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_squared < 27.9  # exceeded for one seed in a thousand, with 9 degrees of freedom


def test_uniform_sampling_draws_every_pixel_equally_often() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(2, 6, 8, dtype=torch.int64)
    masks[1, 3] = 2
    masks[0, 0] = 255
    number = 30_000
    index, rows, columns = sample_pixels(masks, number, "uniform")
    counts = torch.bincount(index * 48 + rows * 8 + columns, minlength=96).float()
    assert (counts[:8] == 0).all()
    chi_squared = ((counts[8:] - number / 88) ** 2 / (number / 88)).sum()
    assert chi_squared < 132.3  # exceeded for one seed in a thousand, with 87 degrees of freedom


@pytest.mark.parametrize("sampling", ["balanced", "uniform"])
def test_sampling_follows_torchs_seed_and_leaves_out_255(sampling: Any) -> None:
    masks = torch.full((1, 20, 20), 255)
    masks[0, 3, 4], masks[0, 19, 19] = 1, 0
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(torch.stack(sample_pixels(masks, 64, sampling)))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert set(zip(drawn[0][1].tolist(), drawn[0][2].tolist(), strict=True)) == {(3, 4), (19, 19)}


def test_a_batch_without_any_label_has_a_loss_of_zero() -> None:
    model = _model()
    targets = [Target(mask=torch.full((20, 20), 255))]
    assert model.losses(torch.randn(1, 3, 20, 20), targets)["segmentation"] == 0


# Cost, progress, stages and arguments.


def test_mode_crops_takes_a_pass_per_window_and_mode_dense_one_per_image() -> None:
    images = _scenes(1)[0]
    crops = measure_cost(_model(stride=8), images, repeats=1)
    dense = measure_cost(_model(stride=8, mode="dense"), images, repeats=1)
    assert (crops.passes_per_image, dense.passes_per_image) == (36, 1)
    assert crops.parameters == dense.parameters
    assert crops.flops is not None and dense.flops is not None and dense.flops < crops.flops


def test_crops_show_progress_after_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar(sliding_window.tqdm):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**(kwargs | {"file": io.StringIO()}))
            bars.append(self)

    monkeypatch.setattr(sliding_window, "tqdm", Bar)
    with torch.inference_mode():
        _model(stride=8, crop_batch=10).eval().predict(torch.zeros(2, 3, 48, 48))
        _model(stride=8, mode="dense").eval().predict(torch.zeros(2, 3, 48, 48))
    assert [(bar.delay, bar.total, bar.n) for bar in bars] == [(2, 72, 72)]


def test_a_checkpoint_holds_the_weights_once() -> None:
    assert all(
        key.startswith("classifier.") for key in _model(mode="dense").state_dict() if "scores" not in key
    )


def test_stages_are_windows_and_a_map_per_class() -> None:
    model = _model(stride=4).eval()
    with torch.inference_mode():
        stages = list(model.stages(torch.randn(1, 3, 48, 40)))
    assert [stage.name for stage in stages] == ["windows", "confidence", *CLASSES]
    boxes, scores = stages[0].boxes, stages[0].scores
    assert boxes is not None and scores is not None and 6 <= len(boxes) == len(scores) <= 20
    assert (boxes[:, 2:] - boxes[:, :2] == 15).all()
    centres = boxes[:, :2] + 7
    assert (centres % 4 == 2).all() and (centres >= 0).all() and (centres < torch.tensor([40, 48])).all()
    maps = torch.stack([stage.map for stage in stages[2:]])  # type: ignore[misc]
    assert maps.shape == (3, 12, 10)
    torch.testing.assert_close(maps.sum(0), torch.ones(12, 10))


@pytest.mark.parametrize("size", [(4, 400), (300, 9), (1, 1)])
def test_stages_of_narrow_images_have_windows(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        windows = next(iter(_model(stride=4).eval().stages(torch.randn(1, 3, *size))))
    assert windows.boxes is not None and 1 <= len(windows.boxes) <= 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 8}, "model.window 8: stage 2 receives 2 pixels, too few for a kernel of 3"),
        ({"pools": [2]}, "2, 2 and 1 numbers; give one number per stage"),
        ({"stride": 0}, "model.stride 0: must be at least 1"),
        ({"crop_batch": 0}, "model.crop_batch 0"),
        ({"windows_per_image": -1}, "model.windows_per_image -1"),
    ],
)
def test_mistakes_are_reported_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as refused:
        _model(**options)
    assert "\n" not in str(refused.value)


def test_one_checkpoint_is_tested_in_both_modes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_shapes(tmp_path / "shapes", train=8, val=2, test=3, size=(64, 64), workers=1, progress=False)
    run, options = tmp_path / "run", ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    model = ["--model=SlidingWindow", "--model.window=13", "--model.channels=[8,8]", "--model.kernels=[4,2]"]
    fit = [*model, "--model.pools=[2,2]", "--model.stride=4", "--data=VOCDataModule", f"--data.root={data}"]
    rest = ["--data.batch_size=4", "--data.num_workers=0", "--trainer.max_epochs=2", f"--run_dir={run}"]
    assert main(["fit", *fit, *rest, *options]) == 0
    scores = []
    for mode in ("crops", "dense"):
        out = tmp_path / mode
        assert main(["test", f"--ckpt_path={run}", f"--model.mode={mode}", f"--run_dir={out}", *options]) == 0
        scores.append(yaml.safe_load((out / "result.json").read_text()))
    crops, dense = scores
    assert crops["metrics"]["test/miou"] == pytest.approx(dense["metrics"]["test/miou"], abs=1e-4)
    assert (crops["cost"]["passes_per_image"], dense["cost"]["passes_per_image"]) == (256, 1)


def test_the_shipped_configs_differ_in_the_mode_only() -> None:
    configs = Path(__file__).parents[2] / "configs"
    crops = yaml.safe_load((configs / "shapes" / "sliding_window.yaml").read_text())
    dense = yaml.safe_load((configs / "shapes" / "dense_sliding_window.yaml").read_text())
    assert crops["model"]["init_args"]["mode"] == "crops"
    crops["model"]["init_args"]["mode"] = "dense"
    assert crops == dense
