"""The subsets that each stage reads."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segdet.data import CityscapesDataModule, COCODataModule, VOCDataModule
from segdet.data.datamodule import DataModule
from segdet.proposals import UniformWindows


def modules(voc: Path, coco: Path, cityscapes: Path, test: bool) -> list[DataModule]:
    """Return a DataModule of each format, with ``val`` or none as the test split."""
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


def test_prediction_reads_no_annotations_and_a_later_test_does(voc_folder: Path) -> None:
    module: Any = VOCDataModule(voc_folder, test=["val"], task="detection")
    module.trainer = SimpleNamespace(state=SimpleNamespace(fn="predict"), is_global_zero=True)
    (sample,) = module.dataset("test")
    assert sample.original is None and "boxes" not in sample.target
    module.trainer.state.fn = "test"
    (sample,) = module.dataset("test")
    assert sample.original is not None and len(sample.target["boxes"]) == 1


def test_cached_files_of_two_subsets_are_counted_once(voc_folder: Path) -> None:
    module = VOCDataModule(voc_folder, val=["train"], task="detection", proposals=UniformWindows())
    assert module.kept_files() == set()
    module.setup("fit")
    assert len(module.kept_files()) == 2 and all(file.is_file() for file in module.kept_files())
