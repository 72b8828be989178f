"""Masks that training would use differently from their annotation are reported before the first step."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.cli.data.check import main as check
from segdet.data import CityscapesDataModule, VOCDataModule
from segdet.data.base import DataModule
from segdet.data.formats.detect import find_dataset
from segdet.data.inspect.check import check_dataset
from segdet.data.sample import TaskName
from segdet.util.errors import BadSample, UserError

Capture = pytest.CaptureFixture[str]


def voc(folder: Path, **options: object) -> VOCDataModule:
    return VOCDataModule(folder, task="segmentation", **options)  # type: ignore[arg-type]


def reported(module: DataModule, capsys: Capture) -> list[str]:
    """Return the lines that the set-up of a training prints."""
    capsys.readouterr()
    module.setup("fit")
    return capsys.readouterr().err.splitlines()


def checked(folder: Path, capsys: Capture, *options: str) -> list[str]:
    """Return the lines of `segdet data check` without the summary."""
    check([str(folder), "--task", "segmentation", *options])
    return [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[:-1]]


def change(folder: Path, function: np.ufunc, names: str = "abc") -> None:
    """Replace the values of masks by ``function`` of them."""
    for name in names:
        path = folder / f"SegmentationClass/{name}.png"
        Image.fromarray(function(np.array(Image.open(path))).astype(np.uint8)).save(path)


def binary(values: np.ndarray) -> np.ndarray:
    return np.where((values > 0) & (values < 255), 255, 0)


def test_binary_masks_are_reported_with_options_that_work(voc_folder: Path, capsys: Capture) -> None:
    (voc_folder / "labels.txt").write_text("background\ncat\n")
    change(voc_folder, binary)
    (line,) = reported(voc(voc_folder), capsys)
    folder = voc_folder / "SegmentationClass"
    assert line.startswith(f"segdet: train: {folder}: no mask contains cat (value 1), and ")
    assert line.endswith(
        "% of the pixels are ignored; if 255 is a class, give --data.mask_values [0,255] "
        "(segdet data: --mask_values [0,255])"
    )
    assert checked(voc_folder, capsys) == [line.removeprefix("segdet: train: ")]
    assert reported(voc(voc_folder, mask_values=[0, 255]), capsys) == []
    assert checked(voc_folder, capsys, "--mask_values", "[0,255]") == []


def test_binary_masks_without_names_are_reported_with_options_that_work(
    voc_folder: Path, capsys: Capture
) -> None:
    (voc_folder / "labels.txt").unlink()
    change(voc_folder, binary)
    assumed, unused = reported(voc(voc_folder), capsys)
    assert "those of VOC are assumed" in assumed
    assert (
        "no mask contains aeroplane (value 1), bicycle (value 2), bird (value 3), boat (value 4) ... (20)"
        in unused
    )
    assert "give --data.mask_values [0,255] --data.class_names [background,object]" in unused
    assert len(checked(voc_folder, capsys)) == 2
    module = voc(voc_folder, mask_values=[0, 255], class_names=["background", "object"])
    assert reported(module, capsys) == []
    options = ["--mask_values", "[0,255]", "--class_names", "background,object"]
    assert checked(voc_folder, capsys, *options) == []


def test_a_class_without_pixels_is_reported(voc_folder: Path, capsys: Capture) -> None:
    (voc_folder / "labels.txt").write_text("background\ncat\ndog\ncow\n")
    change(voc_folder, lambda values: np.where(values == 255, 0, values))
    (line,) = reported(voc(voc_folder), capsys)
    assert line.endswith("no mask contains cow (value 3); check that this is intended")
    assert checked(voc_folder, capsys) == [line.removeprefix("segdet: train: ")]


def test_many_ignored_pixels_are_reported(voc_folder: Path, capsys: Capture) -> None:
    change(voc_folder, lambda values: np.where(np.arange(64) > 30, 255, values))
    (line,) = reported(voc(voc_folder), capsys)
    assert "% of the pixels are ignored; check that this is intended" in line


def test_a_training_without_a_pixel_that_counts_does_not_start(voc_folder: Path, capsys: Capture) -> None:
    change(voc_folder, lambda values: np.full_like(values, 255))
    fault = f"{voc_folder / 'SegmentationClass'}: training has no pixel to learn from: all 6,144 are ignored"
    with pytest.raises(UserError, match="training has no pixel to learn from") as caught:
        voc(voc_folder).setup("fit")
    assert str(caught.value) == f"{fault}; train on annotated masks"
    assert checked(voc_folder, capsys)[0] == str(caught.value)


def test_a_validation_without_a_pixel_that_counts_is_reported_in_one_line(
    voc_folder: Path, capsys: Capture
) -> None:
    change(voc_folder, lambda values: np.full_like(values, 255), "c")
    (line,) = reported(voc(voc_folder), capsys)
    mask = voc_folder / "SegmentationClass/c.png"
    assert line == (
        f"segdet: val: {mask}: no pixel counts in scores: all 3,072 are ignored; "
        "there will be no score, and no best checkpoint"
    )
    assert checked(voc_folder, capsys) == [line.removeprefix("segdet: val: ")]


def test_only_a_validation_split_determines_the_best_checkpoint(
    voc_folder: Path, coco_folder: Path, capsys: Capture
) -> None:
    lists = voc_folder / "ImageSets/Segmentation"
    (lists / "val.txt").rename(lists / "test.txt")
    change(voc_folder, lambda values: np.full_like(values, 255), "c")
    assert checked(voc_folder, capsys)[0].endswith("are ignored; there will be no score")
    file = coco_folder / "annotations/instances_val.json"
    document = json.loads(file.read_text())
    file.with_name("instances_test.json").write_text(json.dumps(document | {"annotations": []}))
    (coco_folder / "val").rename(coco_folder / "test")
    found = check_dataset(find_dataset(coco_folder, splits=["train", "test"]))
    assert "there will be no score" in [fault.remedy for fault in found.faults]


@pytest.mark.parametrize("stage", ["test", "validate"])
def test_nothing_to_score_is_an_error_of_a_test(cityscapes_folder: Path, stage: str) -> None:
    (path,) = (cityscapes_folder / "gtFine/val/ulm").glob("*_labelIds.png")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(path)
    with pytest.raises(
        UserError, match="no pixel counts in scores: all 3,072 are ignored; give an annotated split"
    ):
        CityscapesDataModule(cityscapes_folder, task="segmentation").setup(stage)


def test_every_fault_of_a_mask_stops_the_training_with_the_line_of_the_check(
    voc_folder: Path, capsys: Capture
) -> None:
    Image.fromarray(np.zeros((40, 64), np.uint8)).save(voc_folder / "SegmentationClass/b.png")
    (voc_folder / "JPEGImages/a.jpg").unlink()
    fatal = checked(voc_folder, capsys)
    assert len(fatal) == 2
    with pytest.raises(BadSample, match="1 more: see `segdet data check`") as caught:
        voc(voc_folder).setup("fit")
    assert str(caught.value).startswith(fatal[0].rpartition(";")[0])
    module = voc(voc_folder, on_bad_sample="skip")
    assert reported(module, capsys) == [f"segdet: train: {line}" for line in fatal]
    assert len(module.notes) == 2


def test_masks_without_faults_are_counted_once(
    voc_folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segdet.data import survey

    (voc_folder / "labels.txt").write_text("background\ncat\ndog\ncow\n")
    first = reported(voc(voc_folder), capsys)
    assert len(first) == 1
    monkeypatch.setattr(survey, "for_each_sample", None)
    assert reported(voc(voc_folder), capsys) == first
    monkeypatch.undo()
    change(voc_folder, lambda values: np.where(values == 2, 3, values), "a")
    assert reported(voc(voc_folder), capsys) == []


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_an_exif_rotation_that_is_not_applied_is_reported(
    voc_folder: Path, capsys: Capture, task: TaskName
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = voc_folder / "JPEGImages/a.jpg"
    Image.open(image).save(image, exif=exif)
    (line,) = reported(VOCDataModule(voc_folder, task=task), capsys)
    assert line == (
        f"segdet: train: {image}: has the EXIF orientation 3; its pixels are used as they are stored; check that the "
        "annotation refers to these"
    )
