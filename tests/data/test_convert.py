"""Conversions between VOC, COCO and Cityscapes keep boxes and masks exactly where the formats allow it."""

import json
from pathlib import Path

import numpy as np
import pytest
from annotation_tools import boxes_of, coco, masks_of, save_picture, voc_xml, write
from PIL import Image

from segdet.cli.main import main
from segdet.data.convert import Conversion, convert_dataset
from segdet.data.formats.detect import find_dataset
from segdet.data.images import read_image
from segdet.data.sample import TaskName
from segdet.data.shapes.make import ShapesFormat, make_shapes
from segdet.data.writers.record import class_objects


def convert(root: Path, target: Path, to: ShapesFormat, task: TaskName) -> Conversion:
    return convert_dataset(find_dataset(root, task=task), target, to)


def shapes(root: Path, format: ShapesFormat) -> Path:
    return make_shapes(root, format, train=9, val=4, test=2, size=(64, 80), seed=5, progress=False)


@pytest.mark.parametrize(("first", "second"), [("voc", "coco"), ("coco", "voc")])
def test_boxes_are_equal_after_two_conversions(
    tmp_path: Path, first: ShapesFormat, second: ShapesFormat
) -> None:
    source = shapes(tmp_path / "source", first)
    convert(source, tmp_path / "there", second, "detection")
    convert(tmp_path / "there", tmp_path / "back", first, "detection")
    expected = boxes_of(source)
    assert any(expected.values()) and expected == boxes_of(tmp_path / "there") == boxes_of(tmp_path / "back")
    splits = [find_dataset(root).splits for root in (source, tmp_path / "back")]
    assert splits[0] == splits[1]


def test_boxes_with_fractions_are_equal_after_two_conversions(tmp_path: Path) -> None:
    source = tmp_path / "source"
    rng = np.random.default_rng(0)
    for number in range(20):
        save_picture(source / f"JPEGImages/{number}.jpg")
        corners = (rng.random(4) * 10 + [1, 1, 20, 20]).tolist()
        write(source / f"Annotations/{number}.xml", voc_xml(f"{number}.jpg", [("cat", corners)]))  # type: ignore[list-item]
    write(source / "ImageSets/Main/train.txt", "".join(f"{number}\n" for number in range(20)))
    convert(source, tmp_path / "there", "coco", "detection")
    convert(tmp_path / "there", tmp_path / "back", "voc", "detection")
    assert boxes_of(source) == boxes_of(tmp_path / "there") == boxes_of(tmp_path / "back")


def test_masks_are_equal_after_voc_to_coco_to_voc(tmp_path: Path) -> None:
    """Ignored pixels are kept as well, as a crowd region, and this is counted."""
    source = shapes(tmp_path / "source", "voc")
    done = convert(source, tmp_path / "there", "coco", "segmentation")
    assert done.losses["image with ignored pixels, written as a crowd region of the first class"] > 0
    convert(tmp_path / "there", tmp_path / "back", "voc", "segmentation")
    names, masks = masks_of(source)
    for root in (tmp_path / "there", tmp_path / "back"):
        found_names, found = masks_of(root)
        assert found_names == names and found.keys() == masks.keys()
        assert all((found[name] == masks[name]).all() for name in masks)


def test_random_masks_are_exact_in_coco(tmp_path: Path) -> None:
    """Single pixels, diagonal neighbours and holes, which polygons are most likely to change."""
    source = tmp_path / "source"
    rng = np.random.default_rng(0)
    for number in range(10):
        save_picture(source / f"JPEGImages/{number}.png", size=(24, 30))
        (source / "SegmentationClass").mkdir(exist_ok=True)
        values = rng.choice(4, (24, 30), p=[0.6, 0.2, 0.1, 0.1]).astype(np.uint8)
        Image.fromarray(np.where(values == 3, 255, values)).save(source / f"SegmentationClass/{number}.png")
    write(source / "ImageSets/Segmentation/train.txt", "".join(f"{number}\n" for number in range(10)))
    write(source / "labels.txt", "background\ncat\ndog\n")
    convert(source, tmp_path / "there", "coco", "segmentation")
    masks, found = masks_of(source)[1], masks_of(tmp_path / "there")[1]
    assert all((found[name] == masks[name]).all() for name in masks)


def test_a_first_class_that_is_no_background_stays_a_class(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_picture(source / "JPEGImages/a.png", size=(4, 6))
    (source / "SegmentationClass").mkdir()
    Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8).repeat(2, 0).repeat(3, 1)).save(
        source / "SegmentationClass/a.png"
    )
    write(source / "ImageSets/Segmentation/train.txt", "a\n")
    write(source / "labels.txt", "sky\nroad\n")
    convert(source, tmp_path / "there", "coco", "segmentation")
    names, masks = masks_of(tmp_path / "there")
    assert names == ["background", "sky", "road"]
    assert (masks["a"] == masks_of(source)[1]["a"] + 1).all()


def test_cityscapes_objects_are_equal_after_two_conversions(tmp_path: Path) -> None:
    source = shapes(tmp_path / "source", "cityscapes")
    convert(source, tmp_path / "there", "coco", "detection")
    convert(tmp_path / "there", tmp_path / "back", "cityscapes", "detection")
    expected = {name.removesuffix("_leftImg8bit"): boxes for name, boxes in boxes_of(source).items()}
    back = {name.removesuffix("_leftImg8bit"): boxes for name, boxes in boxes_of(tmp_path / "back").items()}
    assert any(expected.values()) and expected == boxes_of(tmp_path / "there") == back
    dataset = find_dataset(tmp_path / "there")
    assert (
        dataset.open("train").category_ids
        == find_dataset(source, task="detection").open("train").category_ids
    )


@pytest.mark.parametrize("to", ["voc", "coco"])
def test_cityscapes_masks_are_equal_in_other_formats_and_back(tmp_path: Path, to: ShapesFormat) -> None:
    source = shapes(tmp_path / "source", "cityscapes")
    convert(source, tmp_path / "there", to, "segmentation")
    convert(tmp_path / "there", tmp_path / "back", "cityscapes", "segmentation")
    names, masks = masks_of(source)
    there_names, there = masks_of(tmp_path / "there")
    assert there_names == (["background", *names] if to == "coco" else names)
    back = masks_of(tmp_path / "back")[1]
    for name, mask in masks.items():
        moved = np.where(mask == 255, 0, mask + 1) if to == "coco" else mask
        assert (there[name.removesuffix("_leftImg8bit")] == moved).all()
        assert (back[name] == mask).all()


def test_masks_of_background_and_ignored_pixels_have_no_object() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[:2] = 255
    assert class_objects(mask, ["background"]) == []
    (crowd,) = class_objects(mask, ["background", "cat"])
    assert (crowd.name, crowd.crowd, crowd.box) == ("cat", True, (0, 0, 6, 2))


def test_content_that_a_format_cannot_contain_is_counted(tmp_path: Path) -> None:
    size = (40, 60)
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    entries = [
        {"image_id": 1, "category_id": 3, "segmentation": square, "bbox": [10, 10, 20, 20], "area": 400},
        {"image_id": 1, "category_id": 3, "segmentation": [[12, 12, 20, 12, 20, 20, 12, 20]],
         "bbox": [12, 12, 8, 8], "area": 64},
        {"image_id": 1, "category_id": 3, "segmentation": {"size": [40, 60], "counts": [0, 80, 2320]},
         "bbox": [0, 0, 2, 40], "area": 80, "iscrowd": 1},
        {"image_id": 1, "category_id": 6, "segmentation": [[40, 10, 50, 10, 50, 20]], "bbox": [40, 10, 1, 10],
         "area": 50},
        {"image_id": 1, "category_id": 3, "segmentation": [], "bbox": [1, 1, 5, 5], "area": 25},
        {"image_id": 1, "category_id": 3, "segmentation": square, "bbox": [1, 1, 0, 5], "area": 0},
    ]  # fmt: skip
    source = tmp_path / "source"
    save_picture(source / "train/a.jpg", size=size)
    write(source / "annotations/instances_train.json", coco(["a.jpg"], entries, ["car", "zebra"], size))
    done = convert(source, tmp_path / "voc", "voc", "detection")
    assert done.losses == {
        "outline, which VOC does not have": 3,
        "crowd region, written as a difficult object": 1,
        "box of at most one pixel, left out": 1,
        "box without area, left out": 1,
    }
    assert (tmp_path / "voc" / "convert.txt").read_text().startswith(done.summary())
    assert "3 x outline, which VOC does not have" in done.summary()
    done = convert(source, tmp_path / "city", "cityscapes", "detection")
    assert done.losses == {
        "region of class 'zebra', which Cityscapes does not have, written as unlabeled": 1,
        "object without an outline, left out": 1,
        "box without area, left out": 1,
        "object that is partly covered, written with its visible pixels": 1,
    }
    reader = find_dataset(tmp_path / "city", task="detection").open("train")
    objects = reader.objects(0)
    assert sorted(zip(objects.boxes.tolist(), objects.iscrowd.tolist(), strict=True)) == [
        ([0, 0, 2, 40], True),
        ([10, 10, 30, 30], False),
        ([12, 12, 20, 20], False),
    ]
    document = json.loads(next((tmp_path / "city").rglob("*_polygons.json")).read_text())
    labels = sorted(item["label"] for item in document["objects"])
    # The hole of the large car, in which the small one lies, is one of the two polygons of the ground.
    assert labels == ["car", "car", "cargroup", "unlabeled", "unlabeled"]
    back = convert(tmp_path / "voc", tmp_path / "coco", "coco", "detection")
    assert back.losses == {"mark 'difficult', which COCO does not have": 1}


def test_rotated_and_unreadable_images(tmp_path: Path) -> None:
    """An annotation of the rotated image gets rotated pixels. An unreadable image is left out."""
    source = tmp_path / "source"
    for name, orientation in (("a", 6), ("b", 1)):
        save_picture(source / f"JPEGImages/{name}.jpg", orientation=orientation)
        write(source / f"Annotations/{name}.xml", voc_xml(f"{name}.jpg", [("cat", [1, 1, 9, 9])], (60, 40)))
    write(source / "JPEGImages/b.jpg", "no image")
    write(source / "ImageSets/Main/train.txt", "a\nb\n")
    done = convert(source, tmp_path / "out", "coco", "detection")
    assert read_image(tmp_path / "out/train/a.png").shape == (60, 40, 3)
    assert [error.path.name for error in done.left_out] == ["b.jpg"]
    assert "left out: 1 image," in done.summary() and "b.jpg" in (tmp_path / "out/convert.txt").read_text()


def test_the_command_and_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = shapes(tmp_path / "source", "voc"), tmp_path / "out"

    def fails(*arguments: str) -> str:
        assert main(["data", "convert", *arguments]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and not out.exists()
        return printed

    assert "is in the format voc already" in fails(str(source), str(out), "--to", "voc")
    assert "lies in" in fails(str(source), str(source / "out"), "--to", "coco")
    assert "give --task segmentation" in fails(
        str(source), str(out), "--to", "cityscapes", "--task", "detection"
    )
    none = "none of its classes is a label of Cityscapes (road, sidewalk,"
    assert none in fails(str(source), str(out), "--to", "cityscapes", "--task", "segmentation")
    assert main(["data", "convert", str(source), str(out), "--to", "coco", "--split", "val", "--copy"]) == 0
    assert "4 images (4 in val)" in capsys.readouterr().out
    assert find_dataset(out).splits == ("val",)
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_an_annotation_file_is_converted_with_its_images(tmp_path: Path) -> None:
    source = shapes(tmp_path / "source", "coco")
    expected = boxes_of(source)
    (source / "annotations/instances_val2017.json").rename(tmp_path / "mine.json")
    (source / "val2017").rename(tmp_path / "pictures")
    dataset = find_dataset(tmp_path / "mine.json", image_folder=tmp_path / "pictures")
    convert_dataset(dataset, tmp_path / "there", "voc")
    converted = boxes_of(tmp_path / "there")
    assert converted and converted.items() <= expected.items()


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_masks_of_objects_are_counted_as_lost(tmp_path: Path, task: TaskName) -> None:
    source = shapes(tmp_path / "source", "voc")
    next((source / "SegmentationObject").iterdir()).unlink()
    done = convert(source, tmp_path / "there", "coco", task)
    assert done.losses["mask in SegmentationObject, which is not converted"] == 14  # of 15 images
