"""The Python API: a script with a plain Trainer has the results of the command."""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import segdet
from segdet.cli.main import main
from segdet.data import Plain, ScaleJitter, ShapesDataModule, VOCDataModule
from segdet.data.images import read_image
from segdet.data.shapes.make import make_shapes
from segdet.data.survey import Survey, survey
from segdet.detection import SSD, FastRCNN
from segdet.proposals import UniformWindows
from segdet.segmentation import FCN, SMP
from segdet.task import Task
from segdet.training.ema import EMA
from segdet.training.optim import Optimization
from segdet.util.distributed import rank
from segdet.util.errors import UserError

README = Path(__file__).resolve().parents[1] / "README.md"

# Ignore the warnings of Lightning and torch to users of a plain Trainer. The command suppresses them too.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOC folder of 8 training images."""
    root = tmp_path_factory.mktemp("data") / "voc"
    make_shapes(root, "voc", train=8, val=2, test=2, size=(64, 96), seed=0)
    return root


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo of another size with an EXIF orientation."""
    path = tmp_path / "photos" / "photo.jpg"
    path.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(cv2.GaussianBlur(pixels, (9, 9), 4)).save(path, exif=exif)
    return path


def script(heading: str = "## From Python") -> str:
    """Return the first block of code under a heading of README."""
    section = README.read_text(encoding="utf-8").split(f"{heading}\n")[1]
    found = re.search(r"```python\n(.*?)```", section, re.S)
    assert found is not None
    return found[1]


def plain_trainer(folder: Path, **options: Any) -> L.Trainer:
    options = {"logger": False, "enable_checkpointing": False, "max_epochs": 1} | options
    return L.Trainer(accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, **options)


def test_the_script_of_readme_has_the_scores_of_the_command(
    voc: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "voc").symlink_to(voc)
    (tmp_path / "photo.jpg").symlink_to(photo)
    code = script()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    assert code.count("max_epochs=12") == 1
    names: dict[str, Any] = {}
    exec(compile(code.replace("max_epochs=12", "max_epochs=2"), str(README), "exec"), names)
    assert set(names["prediction"]) == {"boxes", "scores", "labels"}

    options = [
        "--model=SSD", "--model.width=128",  # otherwise the command chooses a smaller network on a CPU
        "--data=VOCDataModule", "--data.root=data/voc", "--data.test=[test]",
        "--data.recipe=SSDAugmentation", "--data.recipe.size=[300, 300]", "--trainer.max_epochs=2",
        "--run_dir=run", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    assert main(["fit", *options]) == 0
    assert main(["test", "--ckpt_path=run", "--trainer.accelerator=cpu"]) == 0
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    (scores,) = names["scores"]
    assert scores["test/map"] == scores["test/map"]
    for name, value in scores.items():
        assert value == pytest.approx(recorded[name], abs=1e-12), name
    weights = [
        torch.load(path, weights_only=True)["state_dict"]
        for path in (names["best"].best_model_path, "run/checkpoints/best.ckpt")
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.fixture(scope="module")
def detector(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of ``segdet fit``."""
    run = tmp_path_factory.mktemp("detector") / "run"
    options = [
        "--model=SSD", "--model.backbone=test_resnet", "--model.width=8", "--model.optim.lr=0.02",
        "--data=VOCDataModule", f"--data.root={voc}", "--data.recipe=ScaleJitter", "--data.recipe.size=[64, 96]",
        "--trainer.max_epochs=2", f"--run_dir={run}", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    assert main(["fit", *options]) == 0
    return run


def test_load_predicts_what_the_command_writes(detector: Path, photo: Path, tmp_path: Path) -> None:
    model = segdet.load(detector)
    assert isinstance(model, SSD) and not model.training
    assert model.class_names == VOCDataModule(model_root(detector)).class_names
    assert model.image_size == (64, 96)
    folder = tmp_path / "predicted"
    arguments = [
        f"--ckpt_path={detector}", "--images", str(photo.parent), f"--run_dir={folder}",
        "--trainer.accelerator=cpu",
    ]  # fmt: skip
    assert main(["predict", *arguments]) == 0
    written = json.loads((folder / "predictions" / "predictions.json").read_text())
    found = model.predict_image(photo)
    assert len(written) == len(found["boxes"]) > 0
    boxes = torch.tensor([entry["bbox"] for entry in written])
    boxes[:, 2:] += boxes[:, :2]
    torch.testing.assert_close(found["boxes"], boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found["scores"], torch.tensor([entry["score"] for entry in written]))
    names = [model.class_names[label - 1] for label in found["labels"].tolist()]
    assert names == [entry["category"] for entry in written]
    assert float(found["boxes"][:, 2].max()) <= 90 and float(found["boxes"][:, 3].max()) <= 120  # upright


@pytest.mark.parametrize("kind", ["photo.jpg", "gray.png", "gray16.png", "palette.png", "alpha.png"])
def test_a_picture_and_its_pixels_give_what_the_command_writes(
    kind: str, detector: Path, photo: Path, tmp_path: Path
) -> None:
    file = tmp_path / kind
    with Image.open(photo) as picture:
        if kind == "photo.jpg":
            shutil.copy(photo, file)  # with an EXIF orientation
        elif kind == "gray16.png":
            Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(file)
        else:
            modes = {"gray.png": "L", "palette.png": "P", "alpha.png": "RGBA"}
            picture.convert(modes[kind]).save(file)
    out = [f"--run_dir={tmp_path / 'out'}", "--trainer.accelerator=cpu"]
    assert main(["predict", f"--ckpt_path={detector}", "--images", str(file), *out]) == 0
    written = json.loads((tmp_path / "out" / "predictions" / "predictions.json").read_text())
    model = segdet.load(detector)
    pixels = read_image(file, upright=True)
    with Image.open(file) as opened:
        for image in (file, opened, pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
            found = model.predict_image(image)
            boxes = found["boxes"].tolist()
            expected = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in written)]
            # JPEG decoders differ by a gray level.
            tolerance = 0.5 if isinstance(image, Image.Image) and kind.endswith("jpg") else 1e-3
            assert np.allclose(boxes, expected, rtol=0, atol=tolerance)
            assert np.allclose(found["scores"], [entry["score"] for entry in written], atol=tolerance / 10)
            assert boxes


def model_root(run: Path) -> str:
    found = re.search(r"root: (\S+)", (run / "config.yaml").read_text())
    assert found is not None
    return found[1]


def test_an_image_is_a_path_a_picture_an_array_or_a_tensor(detector: Path, photo: Path) -> None:
    model = segdet.load(detector / "checkpoints" / "last.ckpt")
    upright = np.asarray(Image.open(photo).transpose(Image.Transpose.ROTATE_270))
    expected = model.predict_image(photo)["boxes"]
    for image in (
        str(photo), Image.fromarray(upright), upright, torch.from_numpy(upright.copy()).permute(2, 0, 1)
    ):  # fmt: skip
        torch.testing.assert_close(model.predict_image(image)["boxes"], expected, rtol=0, atol=0.5)
    for image, message in (
        (upright.astype(np.float32), r"image: an array float32 \[120, 90, 3\]; give uint8 \[height, width, 3\]"),
        (torch.zeros(1, 3, 8, 8), r"image: a tensor torch.float32 .*; give uint8 \[3, height, width\]"),
        (3, "image: an object of type int; give a path"),
        (upright[:0], "image: 90x0 pixels; give an image that is not empty"),
        (photo.parent / "none.jpg", "none.jpg"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            model.predict_image(image)  # type: ignore[arg-type]


def test_a_plain_trainers_checkpoint_is_loaded_without_arguments(voc: Path, tmp_path: Path) -> None:
    data = VOCDataModule(voc, task="segmentation", recipe=Plain((64, 96)), batch_size=4, num_workers=0)
    optim = Optimization("adamw", lr=1e-3, milestones=[0.5])
    model = FCN(
        data.class_names, backbone="test_resnet", width=8, optim=optim, class_weights="median_frequency"
    )
    trainer = plain_trainer(tmp_path, max_epochs=2)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert content["segdet"]["class_path"] == "segdet.segmentation.fcn.FCN"
    assert content["segdet"]["mask_values"] == data.classes.mask_values

    picture = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    expected = model.predict_image(picture)["mask"]
    assert model.training and expected.shape == (50, 70)
    for loaded in (FCN.load_from_checkpoint(tmp_path / "model.ckpt"), segdet.load(tmp_path / "model.ckpt")):
        assert isinstance(loaded, FCN) and not loaded.training
        assert loaded.optim == optim and loaded.class_names == data.class_names
        assert loaded.image_size == (64, 96)
        assert torch.equal(loaded.predict_image(picture)["mask"], expected)
        assert torch.equal(loaded.known_weights(), model.known_weights())  # type: ignore[arg-type]
    assert FCN.load_from_checkpoint(tmp_path / "model.ckpt", tta_flip=True).tta_flip
    assert FCN.load_from_checkpoint(tmp_path / "model.ckpt", map_location="meta").device.type == "meta"
    name, *_ = content["state_dict"]
    torch.save(
        content
        | {"state_dict": {k: v for k, v in content["state_dict"].items() if k != name}, "other": Path("a")},
        tmp_path / "part.ckpt",
    )
    with pytest.raises(UserError, match="is corrupt or is not a checkpoint"):  # because of the path in it
        FCN.load_from_checkpoint(tmp_path / "part.ckpt", strict=False)
    with pytest.raises(UserError, match=rf"Missing key.*\"{name}\""):
        FCN.load_from_checkpoint(tmp_path / "part.ckpt", weights_only=False)
    part = FCN.load_from_checkpoint(tmp_path / "part.ckpt", strict=False, weights_only=False)
    assert not torch.equal(part.state_dict()[name], content["state_dict"][name])
    with pytest.raises(UserError, match=r"model\.ckpt: does not fit the model with these arguments"):
        FCN.load_from_checkpoint(tmp_path / "model.ckpt", width=4)
    # The command can test it too.
    options = [
        f"--data.root={voc}",
        "--data.recipe=Plain",
        "--data.recipe.size=[64, 96]",
        "--data.num_workers=0",
    ]
    checkpoint, run = tmp_path / "model.ckpt", tmp_path / "run"
    assert (
        main(["test", f"--ckpt_path={checkpoint}", "--data=VOCDataModule", *options, f"--run_dir={run}"]) == 0
    )
    recorded = json.loads((run / "result.json").read_text())["metrics"]
    (scores,) = trainer.test(model, data, verbose=False)
    assert recorded["test/miou"] == pytest.approx(scores["test/miou"])
    with pytest.raises(
        UserError, match=r"model\.ckpt: segdet\.segmentation\.fcn\.FCN: is not a subclass of SMP"
    ):
        SMP.load_from_checkpoint(tmp_path / "model.ckpt")


def test_region_detectors_are_loaded_with_their_proposer(voc: Path, tmp_path: Path) -> None:
    data = VOCDataModule(
        voc, recipe=Plain((64, 96)), batch_size=2, num_workers=0, proposals=UniformWindows(), max_proposals=30
    )
    model = FastRCNN(
        data.class_names, category_ids=data.category_ids, backbone="test_resnet", width=8, score_threshold=0.0
    )
    trainer = plain_trainer(tmp_path)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = segdet.load(tmp_path / "model.ckpt")
    assert isinstance(loaded, FastRCNN)
    assert (loaded.proposer, loaded.max_proposals) == (UniformWindows(), 30)
    sample = data.dataset("val")[0]
    (expected,) = model.eval().predict_batch(batch_of(sample))
    found = loaded.predict_image(sample.source.path)
    torch.testing.assert_close(found["boxes"], expected["boxes"])
    torch.testing.assert_close(found["scores"], expected["scores"])


def batch_of(sample: Any) -> Any:
    from segdet.data.sample import collate

    return collate([sample])


def test_losses_are_visible_to_lightning(voc: Path, tmp_path: Path) -> None:
    data = VOCDataModule(voc, recipe=ScaleJitter((64, 96)), batch_size=2, num_workers=0)
    model = SSD(data.class_names, category_ids=data.category_ids, backbone="test_resnet", width=8)
    stopping = EarlyStopping("train/loss", check_on_train_epoch_end=True)
    trainer = plain_trainer(
        tmp_path, logger=CSVLogger(tmp_path), callbacks=[stopping, EMA(0.9)], log_every_n_steps=2
    )
    trainer.fit(model, data)
    logged = trainer.callback_metrics
    assert math.isfinite(float(logged["train/loss"])) and "val/map" in logged
    assert float(logged["train/loss"]) == pytest.approx(
        float(logged["train/loss_box"] + logged["train/loss_class"])
    )
    assert "train/loss" not in trainer.progress_bar_metrics  # the bar would wait for the device in every step
    (file,) = tmp_path.rglob("metrics.csv")
    assert {"train/loss", "train/loss_box", "train/loss_class", "val/map"} <= set(
        file.read_text().split("\n")[0].split(",")
    )


class Draws(L.Callback):
    """Write the names of the images on which each process trains and validates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._write(trainer, "train", batch)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._write(trainer, "val", batch)

    def _write(self, trainer: L.Trainer, subset: str, batch: Any) -> None:
        with (self.folder / f"{subset}{trainer.global_rank}").open("a") as stream:
            stream.writelines(f"{source.path.name}\n" for source in batch.sources)


def test_two_processes_of_a_plain_trainer_share_the_data_once(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded_survey(*arguments: Any) -> Survey:
        with (tmp_path / "surveys").open("a") as stream:
            stream.write(f"{rank()}\n")
        return survey(*arguments)

    monkeypatch.setattr("segdet.data.base.survey", recorded_survey)
    data = VOCDataModule(voc, recipe=Plain((64, 96)), batch_size=2, num_workers=0)
    model = SSD(data.class_names, category_ids=data.category_ids, backbone="test_resnet", width=8)
    trainer = plain_trainer(
        tmp_path, devices=2, strategy="ddp_fork", num_sanity_val_steps=0, callbacks=[Draws(tmp_path)]
    )
    assert trainer._accelerator_connector.use_distributed_sampler
    trainer.fit(model, data)
    for subset, count in (("train", 8), ("val", 2)):
        drawn = [(tmp_path / f"{subset}{rank}").read_text().split() for rank in (0, 1)]
        assert len(drawn[0]) == len(drawn[1]) == count / 2
        assert len({*drawn[0], *drawn[1]}) == count
    assert (tmp_path / "surveys").read_text().split() == ["0", "0"]  # of two subsets


def test_mistakes_name_the_argument(voc: Path, tmp_path: Path) -> None:
    for build, message in (
        (lambda: SSD(["a"], tta_scales=[]), r"model\.tta_scales \[\]: "),
        (lambda: SSD(["a"], tta_scale=[1.0]), r"^SSD: no argument 'tta_scale'; did you mean tta_scales\?$"),
        (lambda: VOCDataModule(voc, batch_size=0), r"data\.batch_size 0: must be at least 1"),
        (lambda: VOCDataModule(tmp_path / "none").class_names, f"{tmp_path}/none"),
        (lambda: segdet.load(tmp_path), "no checkpoints/best.ckpt in it"),
        (lambda: segdet.load(tmp_path / "none.ckpt"), "none.ckpt: no such checkpoint"),
        (lambda: SSD("cat"), "class_names 'cat': must be a list of one or more names"),
        (lambda: SSD([]), r"class_names \[\]: must be a list of one or more names"),
        (lambda: SSD(["a", "b"], category_ids=[1]), "category_ids: 1 ids for 2 class_names"),
        (lambda: SSD(["a"], std=(0, 0, 0)), r"model\.std \[0, 0, 0\]: must be"),
        (lambda: SSD(["a"], mean=(0.5,)), r"model\.mean \[0.5\]: must be three numbers"),  # type: ignore[arg-type]
        (lambda: Task.load_from_checkpoint(README), "README.md: the file is corrupt or is not a checkpoint"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as error:
            build()
        assert "\n" not in str(error.value)


def test_importing_segdet_imports_no_torch() -> None:
    import subprocess

    code = "import sys, segdet; assert callable(segdet.load); assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_public_names_exist() -> None:
    from segdet import data, detection, localization, segmentation

    for package in (data, detection, localization, segmentation):
        for name in package.__all__:
            assert isinstance(getattr(package, name), type), name
    assert ShapesDataModule is data.ShapesDataModule


def test_a_test_from_a_checkpoint_does_not_change_the_epoch_of_the_sampler(voc: Path, tmp_path: Path) -> None:
    data = VOCDataModule(voc, recipe=Plain(size=(32, 32)), batch_size=2, task="segmentation", num_workers=0)
    model = FCN(data.class_names, backbone="small_vgg", strides=[2, 4])
    plain_trainer(tmp_path, max_epochs=2).fit(model, data)
    model.trainer.save_checkpoint(tmp_path / "two.ckpt")
    plain_trainer(tmp_path).test(model, data, ckpt_path=tmp_path / "two.ckpt", verbose=False)
    sampler = data.train_dataloader().sampler
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)  # type: ignore[union-attr]
        orders.append([draw.epoch for draw in sampler])
    assert orders == [[0] * 8, [1] * 8]


class OwnFCN(FCN):
    """A family of a script, with an argument that a checkpoint cannot contain."""

    def __init__(self, class_names: list[str], hook: Any = None, **kwargs: Any) -> None:
        super().__init__(class_names, backbone="small_vgg", strides=[2, 4], **kwargs)
        self.hook = hook


def test_arguments_are_saved_exactly_or_reported(voc: Path, tmp_path: Path) -> None:
    data = VOCDataModule(voc, recipe=Plain(size=(32, 32)), batch_size=2, task="segmentation", num_workers=0)
    mean: Any = tuple(np.float32([0.5, 0.25, 0.75]))
    model = OwnFCN(data.class_names, mean=mean, hook=print)
    trainer = plain_trainer(tmp_path, max_steps=1)
    trainer.fit(model, data)
    path = tmp_path / "own.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(UserError, match="hook could not be saved in the checkpoint; pass them"):
        OwnFCN.load_from_checkpoint(path)
    loaded = OwnFCN.load_from_checkpoint(path, hook=None)
    torch.testing.assert_close(loaded._shift, model._shift.cpu())  # ImageNet's mean would be far off

    content = torch.load(path, weights_only=True)
    content["segdet"]["class_path"] = "__main__.OwnFCN"  # as a script saves its own classes
    torch.save(content, path)
    assert type(OwnFCN.load_from_checkpoint(path, hook=None)) is OwnFCN


def test_a_loaded_fast_rcnn_is_compressed(tmp_path: Path) -> None:
    model = FastRCNN(["a"], backbone="small_vgg", stride=8, width=16, svd_ranks=(4, 2)).eval()
    model.proposer = UniformWindows()
    model.predict_image(np.zeros((48, 48, 3), np.uint8))
    assert not isinstance(model.layers.fc6, torch.nn.Linear)
