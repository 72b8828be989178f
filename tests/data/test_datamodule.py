"""Which split a stage reads, and what is said of it."""

from pathlib import Path

import pytest

from segdet.data.datamodule import CityscapesDataModule, COCODataModule, DataModule, VOCDataModule


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
