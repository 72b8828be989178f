"""Which split a stage reads, and what is said of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segdet.data import CityscapesDataModule, COCODataModule, VOCDataModule
from segdet.data.datamodule import DataModule
from segdet.proposals import UniformWindows


def modules(voc: Path, coco: Path, cityscapes: Path, test: bool) -> list[DataModule]:
    """A module of each format, with ``val`` given as its test split or with none."""
    name = "val" if test else None
    return [
        VOCDataModule(voc, test=[name] if name else None),
        COCODataModule(coco, train="train", val="val", test=name),
        CityscapesDataModule(cityscapes, test=name),
    ]


@pytest.mark.parametrize("test", [False, True])
def test_says_when_the_validation_split_is_tested(
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
        said = capsys.readouterr().err
        assert ("no --data.test is given" in said) is not test
        assert said.count("\n") == (not test)


def test_predicting_reads_no_annotation_and_leaves_nothing_to_a_test(voc_folder: Path) -> None:
    module: Any = VOCDataModule(voc_folder, test=["val"], task="detection")
    module.trainer = SimpleNamespace(state=SimpleNamespace(fn="predict"), is_global_zero=True)
    (sample,) = module.dataset("test")
    assert sample.original is None and "boxes" not in sample.target
    module.trainer.state.fn = "test"
    (sample,) = module.dataset("test")
    assert sample.original is not None and len(sample.target["boxes"]) == 1


def test_what_two_subsets_keep_on_disk_is_counted_once(voc_folder: Path) -> None:
    module = VOCDataModule(voc_folder, val=["train"], task="detection", proposals=UniformWindows())
    assert module.kept_files() == set()
    module.setup("fit")
    assert len(module.kept_files()) == 2 and all(file.is_file() for file in module.kept_files())
