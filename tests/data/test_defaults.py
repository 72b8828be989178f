"""Default image size, augmentation and batch size."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from segdet.data import Plain, ScaleJitter, SSDAugmentation, VOCDataModule
from segdet.data.defaults import MIN_EPOCHS, MIN_STEPS, choose_size, default_epochs
from segdet.detection import FCOS, SSD300
from segdet.runs.defaults import choose_defaults, describe


@pytest.mark.parametrize(
    ("sizes", "pixels", "size", "crop"),
    [
        pytest.param([(480, 640)] * 3, 90_000, (240, 320), (240, 320), id="BCCD"),
        pytest.param([(360, 480)] * 3, 90_000, (240, 320), (240, 320), id="CamVid"),
        pytest.param([(128, 128)] * 3, 90_000, (128, 128), (128, 128), id="small images keep their size"),
        pytest.param([(1024, 2048)], 90_000, (208, 416), (208, 416), id="Cityscapes"),
        pytest.param([(100, 2000), (101, 2000)], 90_000, (64, 1280), (64, 1280), id="strips"),
        pytest.param([(375, 500), (500, 375)] * 4, 90_000, 256, (288, 288), id="VOC, portrait and landscape"),
        pytest.param([(40, 50), (50, 40)] * 4, 90_000, 32, (32, 32), id="small, of two shapes"),
        pytest.param(
            [(480, 640)] * 9 + [(640, 480)], 90_000, (240, 320), (240, 320), id="a few of another shape"
        ),
        pytest.param([(5, 7)], 90_000, (5, 7), (5, 7), id="tiny"),
    ],
)
def test_size(sizes: list[tuple[int, int]], pixels: int, size: Any, crop: tuple[int, int]) -> None:
    assert choose_size(sizes, pixels) == (size, crop)


@pytest.mark.parametrize("steps", [0, 1, 7, 51, 250, 251, 10_000])
def test_small_datasets_are_repeated_more_often(steps: int) -> None:
    epochs = default_epochs(steps)
    assert epochs >= MIN_EPOCHS and epochs * max(1, steps) >= MIN_STEPS
    assert epochs == MIN_EPOCHS or (epochs - 1) * max(1, steps) < MIN_STEPS


def test_the_size_that_a_network_needs_is_chosen(voc_folder: Path) -> None:
    data = VOCDataModule(voc_folder)
    recipe = data.choose_recipe(SSD300(["a"]).input_size)
    assert isinstance(recipe, SSDAugmentation) and recipe.size == (300, 300)


def test_a_given_recipe_stays(voc_folder: Path) -> None:
    recipe = Plain()
    data = VOCDataModule(voc_folder, recipe=recipe)
    assert data.choose_recipe((300, 300)) is recipe is data.recipe


def tiny_model(data: VOCDataModule) -> FCOS:
    return FCOS(data.class_names, backbone="test_resnet", width=8, extra_levels=0, strides=[8])


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # raised by Lightning
def test_a_script_trains_and_tests_with_the_same_size(voc_folder: Path, tmp_path: Path) -> None:
    data = VOCDataModule(voc_folder, val=["train"], num_workers=0, batch_size=1)
    assert data.recipe.size is None  # no size is chosen before a training starts
    assert "boxes" in data.dataset("train")[0].target
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=1, default_root_dir=tmp_path, accelerator="cpu", **options)
    model = tiny_model(data)
    trainer.fit(model, data)
    assert isinstance(data.recipe, ScaleJitter)
    size = data.recipe.size
    assert (
        size is not None and data.dataset("train").pipeline is not data.dataset("train").evaluation_pipeline
    )
    other = VOCDataModule(voc_folder, val=["train"], num_workers=0)
    trainer.test(model, other)
    assert other.recipe.size == size == model.trained_image_size


def test_missing_options_are_chosen_and_given_options_are_kept(voc_folder: Path) -> None:
    data = VOCDataModule(voc_folder, batch_size=1)
    config: dict[str, Any] = {
        "data.init_args.batch_size": 1, "trainer.max_epochs": None, "trainer.max_time": None,
        "trainer.max_steps": -1, "trainer.devices": "auto", "trainer.num_nodes": 1,
    }  # fmt: skip
    chosen = choose_defaults(config, tiny_model(data), data)
    assert {name for name in chosen if "recipe" not in name} == {
        "model.init_args.optim.lr", "model.init_args.optim.momentum", "model.init_args.optim.weight_decay",
        "trainer.max_epochs",
    }  # fmt: skip
    assert chosen["data.init_args.recipe.class_path"] == "segdet.data.ScaleJitter"
    assert chosen["data.init_args.recipe.init_args.scale"] == [0.8, 1.3]
    assert chosen["trainer.max_epochs"] == 1500  # two steps per epoch
    sentence = describe(chosen)
    for part in ("data.recipe ScaleJitter, data.recipe.size", "max_epochs 1500", "lr 0.001"):
        assert part in sentence
    again = choose_defaults(config | {"trainer.max_steps": 10}, tiny_model(data), data)
    assert "trainer.max_epochs" not in again and "data.init_args.recipe.class_path" not in again


def test_a_batch_is_no_larger_than_the_dataset(voc_folder: Path) -> None:
    data = VOCDataModule(voc_folder)
    config: dict[str, Any] = {
        "data.init_args.batch_size": None, "trainer.max_epochs": 1, "trainer.max_time": None,
        "trainer.max_steps": -1, "trainer.devices": 1, "trainer.num_nodes": 1,
    }  # fmt: skip
    chosen = choose_defaults(config, tiny_model(data), data)
    assert chosen["data.init_args.batch_size"] == data.batch_size == len(data.reader("train")) == 2
