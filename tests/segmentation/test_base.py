"""Test the base class of segmentation: losses, class weights, test-time augmentation, tiles and scores."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.data import VOCDataModule
from segdet.data.formats.class_names import ClassList
from segdet.data.formats.mask_classes import MaskClasses
from segdet.data.frequency import class_frequency
from segdet.data.sample import Batch, Source, Target
from segdet.data.shapes.make import make_shapes
from segdet.metrics.boundary import BoundaryScores
from segdet.metrics.confusion import classes_of
from segdet.runs.cost import measure_cost
from segdet.segmentation import losses
from segdet.segmentation.base import Segmenter
from segdet.segmentation.fcn import FCN
from segdet.segmentation.segnet import SegNetBasic
from segdet.segmentation.sliding_window import SlidingWindow
from segdet.segmentation.smp import SMP
from segdet.segmentation.torchvision_models import LRASPP, DeepLabV3
from segdet.segmentation.unet import UNet
from segdet.util.errors import UserError

CLASSES = ["a", "b", "c"]


class Small(Segmenter):
    """A network with logits at half the resolution and a receptive field of up to four pixels on each side."""

    def __init__(self, class_names: list[str] = CLASSES, **kwargs: Any) -> None:
        super().__init__(class_names, **kwargs)
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(8, len(class_names), 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.backbone(images).relu())

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        masks = torch.stack([target["mask"] for target in targets])
        logits = self(images)
        return {
            "segmentation": self.pixel_loss(logits, masks),
            "auxiliary": self.auxiliary_loss([logits, 2 * logits], masks),
        }

    def predict(self, images: Tensor) -> Tensor:
        return self(images)


def random_images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def batch_of(images: Tensor, originals: list[tuple[int, int]]) -> Batch:
    sizes = [(images.shape[2], images.shape[3])] * len(images)
    sources = [Source(Path(f"{i}.png"), i, size) for i, size in enumerate(originals)]
    return Batch(images, sizes, [Target()] * len(images), sources)


# Losses.


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "dice", "cross_entropy_dice"])
def test_the_selected_loss_is_used(loss: Any) -> None:
    model = Small(loss=loss, class_weights=[0.5, 1.0, 2.0], focal_gamma=1.0)
    logits, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    expected = losses.pixel_loss(logits, masks, loss, torch.tensor([0.5, 1.0, 2.0]), 1.0)
    torch.testing.assert_close(model.pixel_loss(logits, masks), expected)
    coarse = torch.randn(2, 3, 4, 2)
    resized = F.interpolate(coarse, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.pixel_loss(coarse, masks), model.pixel_loss(resized, masks))


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "dice", "cross_entropy_dice"])
def test_class_weights_work_with_a_network_in_bfloat16(loss: Any) -> None:
    model = Small(loss=loss, class_weights=[0.5, 1.0, 2.0]).bfloat16()
    logits = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    assert model.pixel_loss(logits, torch.randint(0, 3, (2, 8, 8))).dtype == torch.float32


def test_auxiliary_losses_are_weighted_and_logged() -> None:
    model = Small(auxiliary_weight=0.3)
    images, masks = random_images(2, 16, 16), torch.randint(0, 3, (2, 16, 16))
    batch = batch_of(images, [(16, 16)] * 2)
    batch.targets = [Target(mask=mask) for mask in masks]
    total = model.training_step(batch, 0)
    logits = model(model.normalize(images))
    first, second = model.pixel_loss(logits, masks), model.pixel_loss(2 * logits, masks)
    torch.testing.assert_close(model.step_losses["loss_auxiliary"], (0.3 * (first + second)).detach())
    torch.testing.assert_close(total, first + 0.3 * (first + second))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, r"class_weights: 2 numbers for 3 classes \(a, b, c\)"),
        ({"class_weights": [1.0, -2.0, 1.0]}, "class_weights .*: .* at least 0"),
        ({"class_weights": [0.0, 0.0, 0.0]}, "class_weights .*: .* at least 0"),
        ({"class_weights": [1.0, float("nan"), 1.0]}, "class_weights .*: .* at least 0"),
        ({"focal_gamma": -1.0}, "--model.focal_gamma -1.0: must be at least 0"),
        ({"auxiliary_weight": -0.1}, "--model.auxiliary_weight -0.1"),
        ({"tta_scales": []}, "--model.tta_scales"),
        ({"tta_scales": [1.0, 0.0]}, "--model.tta_scales"),
        ({"tile": 0}, "--model.tile 0: must be at least 1"),
        ({"tile": (64, 32), "tile_overlap": 32}, "--model.tile_overlap 32: must be at least 0 and below 32"),
        ({"tile": 64, "tile_overlap": -1}, "--model.tile_overlap -1"),
        ({"tile_overlap": 8}, "--model.tile_overlap 8: .* give --model.tile too"),
    ],
)
def test_options_out_of_range_are_reported_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Small(**options)
    assert "\n" not in str(error.value)


# Class weights counted from the training set.


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(root, "voc", train=4, val=1, test=1, size=(64, 64), workers=1, progress=False)


def data_of(root: Path, **options: Any) -> VOCDataModule:
    return VOCDataModule(root, task="segmentation", batch_size=2, num_workers=0, **options)


def trainer_of(folder: Path, steps: int) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", max_steps=steps, limit_val_batches=0, logger=False, default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip


QUIET = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # one process suffices for four images
    "ignore:.*isinstance.treespec, LeafSpec.",  # Lightning 2.6 with torch 2.13 or later
    "ignore:.*number of training batches",
)


@QUIET
@pytest.mark.parametrize("weighting", ["median_frequency", "inverse_sqrt_frequency"])
def test_weights_are_counted_before_training_and_kept_in_the_checkpoint(
    weighting: Any,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = data_of(shapes)
    model = Small(data.class_names, class_weights=weighting)
    trainer = trainer_of(tmp_path, 2)
    trainer.fit(model, datamodule=data)
    expected = losses.class_weights(class_frequency(data.dataset("train")), weighting)
    assert expected.std() > 0.1
    assert torch.equal(model.class_weights, expected)  # type: ignore[arg-type]
    assert (
        f"segdet: class weights by {weighting}: {expected[expected > 0].min():.3g} ("
        in capsys.readouterr().err
    )
    trainer.save_checkpoint(tmp_path / "run.ckpt")

    def count_again(self: Segmenter) -> list[float]:
        raise AssertionError

    monkeypatch.setattr(Segmenter, "_count_weights", count_again)
    resumed = Small(data.class_names, class_weights=weighting)
    trainer_of(tmp_path, 4).fit(resumed, datamodule=data_of(shapes), ckpt_path=tmp_path / "run.ckpt")
    assert torch.equal(resumed.class_weights, expected)  # type: ignore[arg-type]
    # Other class weights are not taken from the checkpoint.
    other = Small(data.class_names, class_weights=[1.0] * len(data.class_names))
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    other.on_load_checkpoint(content)
    other.load_state_dict(content["state_dict"])
    assert (other.class_weights == 1).all()  # type: ignore[union-attr]


@QUIET
def test_a_mask_with_an_unknown_value_is_reported_before_training(shapes: Path, tmp_path: Path) -> None:
    class WithUnknownValue(VOCDataModule):
        def open_reader(self, subset: Any) -> Any:
            reader = super().open_reader(subset)
            reader._masks = MaskClasses(ClassList(["background"]))
            return reader

    data = WithUnknownValue(shapes, task="segmentation", batch_size=2, num_workers=0)
    with pytest.raises(UserError, match=r"\.png: value .* is not one of"):
        trainer_of(tmp_path, 1).fit(
            Small(data.class_names, class_weights="median_frequency"), datamodule=data
        )


def test_a_failure_to_count_reaches_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes wait in `segdet.util.distributed.run_on_all_ranks`, which raises the error in each of them."""
    waited: list[bool] = []

    def run_on_all_ranks(work: Callable[[], None]) -> None:
        waited.append(True)
        work()

    def fail(self: Segmenter) -> list[float]:
        raise UserError("x.png: corrupt")

    monkeypatch.setattr("segdet.segmentation.base.run_on_all_ranks", run_on_all_ranks)
    monkeypatch.setattr(Segmenter, "_count_weights", fail)
    model = Small(class_weights="median_frequency")
    model._trainer = SimpleNamespace(is_global_zero=True, strategy=None)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"x\.png: corrupt"):
        model.on_fit_start()
    assert waited


def test_class_weights_that_are_not_counted_yet_are_an_error() -> None:
    with pytest.raises(UserError, match="class_weights median_frequency: not counted yet"):
        Small(class_weights="median_frequency").pixel_loss(
            torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).long()
        )


# From images to masks.


def test_augmented_probabilities_are_the_mean_of_all_views() -> None:
    model = Small(tta_flip=True, tta_scales=[1.0, 0.5, 1.5]).eval()
    plain = Small().eval()
    images = plain.normalize(random_images(2, 20, 30))
    total = torch.zeros(2, 3, 20, 30)
    with torch.inference_mode():
        for size in ((20, 30), (10, 15), (30, 45)):
            scaled = (
                F.interpolate(images, size, mode="bilinear", antialias=size[0] < 20)
                if size != (20, 30)
                else images
            )
            for flip in (False, True):
                view = scaled.flip(3) if flip else scaled
                logits = plain(view).flip(3) if flip else plain(view)
                total += F.interpolate(logits, (20, 30), mode="bilinear").softmax(1)
        found = model.predict_views(images, [])
        torch.testing.assert_close(found, total / 6)
        expected = classes_of(total)
        assert torch.equal(
            torch.stack([p["mask"] for p in model.predict_tensors(random_images(2, 20, 30))]), expected
        )


def test_with_flips_the_mirror_image_has_the_mirrored_prediction() -> None:
    images = random_images(1, 16, 24)
    for flip in (True, False):
        model = Small(tta_flip=flip).eval()
        with torch.inference_mode():
            one, mirrored = (model.predict_views(model.normalize(x), []) for x in (images, images.flip(3)))
        difference = (one - mirrored.flip(3)).abs().max()
        assert (difference < 1e-6) == flip


def test_a_single_view_is_the_plain_prediction() -> None:
    images = random_images(1, 16, 24)
    with torch.inference_mode():
        model = Small().eval()
        assert torch.equal(
            model.predict_views(model.normalize(images), []), model.predict(model.normalize(images))
        )


@pytest.mark.parametrize("augmented", [False, True])
def test_tiles_equal_the_whole_image(augmented: bool) -> None:
    options: dict[str, Any] = {"tta_flip": True} if augmented else {}
    images = random_images(2, 96, 160)
    whole = Small(**options).eval()
    tiled = Small(tile=(64, 96), tile_overlap=24, **options).eval()
    # Without augmentation, coarse logits are resized to the original size in one step, those of tiles in two.
    for originals in ([(96, 160)] * 2, [(50, 200), (96, 160)])[: 1 + augmented]:
        batch = batch_of(images, originals)
        with torch.inference_mode():
            for one, other in zip(whole.predict_batch(batch), tiled.predict_batch(batch), strict=True):
                assert one["mask"].shape == other["mask"].shape and other["mask"].dtype == torch.int64
                # Rounding may change a pixel with nearly equal logits.
                assert (one["mask"] == other["mask"]).float().mean() > 0.9998
    with torch.inference_mode():
        masks = [prediction["mask"] for prediction in tiled.predict_tensors(images)]
    assert len(torch.stack(masks).unique()) > 1


def test_passes_are_counted_for_every_view_and_tile() -> None:
    image = random_images(1, 96, 160)

    def passes(**options: Any) -> float | None:
        return measure_cost(Small(**options), image, repeats=1, seconds=0.0).passes_per_image

    assert passes() == 1
    assert passes(tta_flip=True, tta_scales=[0.5, 1.0]) == 4
    assert passes(tile=64, tile_overlap=16) == 2 * 4
    assert passes(tile=(96, 160)) == 1
    assert passes(tile=64, tile_overlap=16, tta_flip=True) == 2 * 2 * 4


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (FCN, {"backbone": "test_resnet", "width": 8}),
        (UNet, {"backbone": "test_resnet", "strides": [4, 8, 16], "widths": [8, 8]}),
        (LRASPP, {}),
        (SegNetBasic, {"variant": "bilinear_interpolation"}),
        (SlidingWindow, {"mode": "dense"}),
        (SMP, {"architecture": "FPN", "encoder": "resnet18"}),
    ],
)
def test_logits_are_interpolated_in_float32(family: type[Segmenter], options: dict[str, Any]) -> None:
    """In bfloat16, the logits of two classes are often equal near their boundary."""
    if family is SMP:
        pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = family(CLASSES, **options).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model.predict(torch.randn(1, 3, 64, 96))
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16()).float().mean() > 0.5


# Scores.


def test_boundary_scores_are_computed_in_the_selected_stages() -> None:
    def scored(**options: Any) -> list[str]:
        scores = Small(**options).scores
        assert all("miou" in scores[stage].compute() for stage in ("val_", "test_"))  # type: ignore[operator]
        with_boundaries = [s for s in ("val_", "test_") if isinstance(scores[s], BoundaryScores)]
        assert all({"bf", "boundary_iou"} <= set(scores[stage].compute()) for stage in with_boundaries)  # type: ignore[operator]
        return with_boundaries

    assert scored() == scored(boundary_scores="test") == ["test_"]
    assert scored(boundary_scores="validation") == ["val_", "test_"]
    assert scored(boundary_scores="never") == []
    with pytest.raises(
        UserError, match=r"--model\.boundary_scores True: must be one of never, test, validation"
    ):
        Small(boundary_scores=True)


# Errors in training.


@pytest.mark.parametrize("family", ["FCN", "DeepLabV3", "SMP"])
def test_a_single_value_per_channel_is_reported_in_one_line(family: str) -> None:
    """The map of an image has one pixel, or the network averages the image."""
    side = 64
    if family == "FCN":
        model: Segmenter = FCN(CLASSES, backbone="test_resnet", width=8, strides=[32])
        side = 32
    elif family == "DeepLabV3":
        model = DeepLabV3(CLASSES, "mobilenet_v3_large")
    else:
        pytest.importorskip("segmentation_models_pytorch")
        model = SMP(CLASSES, architecture="DeepLabV3Plus", encoder="resnet18")
    batch = batch_of(random_images(1, side, side), [(side, side)])
    batch.targets = [Target(mask=torch.zeros(side, side, dtype=torch.int64))]
    with pytest.raises(
        UserError, match=rf"--data\.batch_size 1: .* images of {side}x{side} .* give"
    ) as error:
        model.train().training_step(batch, 0)
    assert "\n" not in str(error.value)


def test_other_errors_of_the_network_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        raise ValueError("something else")

    model = Small()
    monkeypatch.setattr(model, "losses", broken)
    with pytest.raises(ValueError, match="something else"):
        model.training_step(batch_of(random_images(1, 8, 8), [(8, 8)]), 0)
