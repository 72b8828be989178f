"""Tests of the base DataModule: subsets of each stage, arguments, and the default seed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segdet.data import CityscapesDataModule, COCODataModule, ScaleJitter, VOCDataModule
from segdet.data.base import DataModule
from segdet.proposals import UniformWindows
from segdet.util.errors import UserError


def modules(voc: Path, coco: Path, cityscapes: Path, test: bool) -> list[DataModule]:
    """Return a DataModule of each format. The test split is ``val`` if ``test``, else it is not given."""
    name = "val" if test else None
    return [
        VOCDataModule(voc, test=[name] if name else None),
        COCODataModule(coco, train="train", val="val", test=name),
        CityscapesDataModule(cityscapes, test=name),
    ]


@pytest.mark.parametrize("test", [False, True])
def test_testing_on_the_validation_split_prints_a_warning(
    voc_folder: Path,
    coco_folder: Path,
    cityscapes_folder: Path,
    test: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in modules(voc_folder, coco_folder, cityscapes_folder, test):
        for stage in ("fit", "validate"):
            module.setup(stage)
        assert capsys.readouterr().err == ""
        module.setup("test")
        printed = capsys.readouterr().err
        assert ("no --data.test is given" in printed) is not test
        assert printed.count("\n") == (not test)


def test_prediction_reads_no_annotations_but_a_later_test_does(voc_folder: Path) -> None:
    module: Any = VOCDataModule(voc_folder, test=["val"], task="detection")
    module.trainer = SimpleNamespace(state=SimpleNamespace(fn="predict"), is_global_zero=True)
    (sample,) = module.dataset("test")
    assert sample.original is None and "boxes" not in sample.target
    module.trainer.state.fn = "test"
    (sample,) = module.dataset("test")
    assert sample.original is not None and len(sample.target["boxes"]) == 1


def test_cached_files_of_two_subsets_are_counted_once(voc_folder: Path) -> None:
    module = VOCDataModule(voc_folder, val=["train"], task="detection", proposals=UniformWindows())
    assert module.cached_files() == set()
    module.setup("fit")
    assert len(module.cached_files()) == 2 and all(file.is_file() for file in module.cached_files())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"task": "detect"}, "--data.task detect: must be one of segmentation, localization, detection"),
        ({"on_bad_sample": "ignore"}, "--data.on_bad_sample ignore: must be one of raise, skip"),
        ({"batch_size": 0}, "--data.batch_size 0: must be at least 1"),
        ({"limit_train": 0}, "--data.limit_train 0: must be at least 1"),
    ],
)
def test_wrong_arguments_in_a_script_are_reported_in_one_line(
    voc_folder: Path, options: Any, error: str
) -> None:
    with pytest.raises(UserError) as caught:
        VOCDataModule(voc_folder, **options)
    assert str(caught.value).startswith(error) and "\n" not in str(caught.value)


def test_names_of_splits_may_be_strings_in_a_script(voc_folder: Path) -> None:
    module: Any = VOCDataModule(voc_folder, train="train", val="val")  # type: ignore[arg-type]
    assert module.class_names == ["cat", "dog"] and len(module.dataset("train")) == 2


def test_the_default_seed_is_that_of_lightning(voc_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert VOCDataModule(voc_folder).seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")  # as lightning.seed_everything does
    assert VOCDataModule(voc_folder).seed == 7
    assert VOCDataModule(voc_folder, seed=3).seed == 3


def test_training_images_without_augmentation(voc_folder: Path) -> None:
    dataset = VOCDataModule(voc_folder, limit_train=1, recipe=ScaleJitter((32, 32))).dataset("train")
    same = dataset.without_augmentation()
    assert len(same) == len(dataset) == 1 and dataset.training and not same.training
    assert dataset[0].image.shape == (3, 32, 32) and dataset[0].original is None
    assert same[0].original is not None and torch.equal(same[0].image, same[0].image)
