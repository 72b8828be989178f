"""Tests of the DataModules' own options."""

from pathlib import Path
from typing import Any

import pytest

from segdet.data import COCODataModule, VOCDataModule
from segdet.util.errors import UserError


def move_apart(coco: Path, target: Path) -> tuple[Path, Path]:
    """Move annotations and images of the COCO folder to two folders that are not named after a split."""
    (target / "json").mkdir(parents=True)
    for split in ("train", "val"):
        (coco / "annotations" / f"instances_{split}.json").rename(target / "json" / f"my {split}.json")
        (target / "pictures").mkdir(exist_ok=True)
        (coco / split).rename(target / "pictures" / split)
    return target / "json", target / "pictures"


def test_coco_reads_explicit_files_anywhere(coco_folder: Path, tmp_path: Path) -> None:
    expected = COCODataModule(coco_folder, train="train", val="val")
    boxes = {name: expected.reader(name).objects(0).boxes.tolist() for name in ("train", "val", "test")}
    json, pictures = move_apart(coco_folder, tmp_path / "elsewhere")
    module = COCODataModule(
        train_annotations=json / "my train.json",
        train_images=pictures / "train",
        val_annotations="my val.json",  # relative to the folder of train_annotations
        val_images=pictures / "val",
    )
    for name in ("train", "val", "test"):
        assert module.reader(name).image_path(0).is_file()
        assert module.reader(name).objects(0).boxes.tolist() == boxes[name]
    assert module.test_is_val


def test_coco_accepts_an_explicit_test_file_beside_split_names(coco_folder: Path) -> None:
    module = COCODataModule(
        coco_folder, train="train", val="val", test_annotations="annotations/instances_train.json"
    )
    assert not module.test_is_val
    assert len(module.reader("test")) == len(module.reader("train"))


def test_coco_without_a_root_names_the_options() -> None:
    with pytest.raises(UserError, match=r"--data.root: give .* --data.train_annotations FILE"):
        COCODataModule()


def test_the_options_for_the_splits_of_a_coco_folder_are_named(coco_folder: Path) -> None:
    for old, new in (("train", "train"), ("val", "valid")):
        (coco_folder / new).mkdir(exist_ok=True)
        file = coco_folder / f"annotations/instances_{old}.json"
        file.rename(coco_folder / new / "_annotations.coco.json")
    missing = r"instances_train2017\.json: no such annotation file; there are train, valid"
    with pytest.raises(UserError, match=missing + "; give --data.train train --data.val valid$"):
        COCODataModule(coco_folder).reader("train")
    with pytest.raises(UserError, match=r"there are train, valid; give --data.val valid$"):
        COCODataModule(coco_folder, train="train").reader("val")
    with pytest.raises(UserError, match=r"there are train, valid$"):
        COCODataModule(coco_folder, train="train", val="valid", test="x").reader("test")


def test_a_missing_explicit_file_is_named(coco_folder: Path) -> None:
    module = COCODataModule(coco_folder, val="val", train_annotations="absent.json")
    with pytest.raises(UserError, match=r"absent\.json: no such annotation file"):
        module.reader("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "Plain"}, "--data.recipe 'Plain': must be a recipe, such as Plain"),
        ({"batch_size": 2.5}, "--data.batch_size 2.5: must be a whole number"),
        ({"batch_size": True}, "--data.batch_size True: must be a whole number"),
        ({"batch_size": "8"}, "--data.batch_size '8': must be a number"),
        ({"num_workers": 0.5}, "--data.num_workers 0.5: must be a whole number"),
        ({"batch_size": 0}, "--data.batch_size 0: must be at least 1"),
    ],
)
def test_arguments_of_a_wrong_type_in_a_script_are_reported_in_one_line(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        VOCDataModule(tmp_path, **arguments)
    assert str(caught.value).startswith(message)
