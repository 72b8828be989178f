"""Faults of annotations are reported before the first step, and stop a training that could learn nothing."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from segdet.cli.data.check import main as check
from segdet.data import CityscapesDataModule, COCODataModule, Plain, VOCDataModule
from segdet.data.base import DataModule
from segdet.util.errors import BadSample, UserError

# pycocotools' compiled part is older than NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Edit = Callable[[Path, Callable[[dict], None]], None]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def annotations(coco_folder: Path) -> Path:
    return coco_folder / "annotations/instances_train.json"


def coco(folder: Path, **options: object) -> COCODataModule:
    return COCODataModule(folder, train="train", val="val", **options)  # type: ignore[arg-type]


def reported(module: DataModule, capsys: Capture) -> list[str]:
    """Return the lines that the set-up of a training prints."""
    capsys.readouterr()
    module.setup("fit")
    return capsys.readouterr().err.splitlines()


def fatal_lines(folder: Path, capsys: Capture) -> list[str]:
    """Return the fatal faults that `segdet data check` prints, without their severity."""
    assert check([str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("fatal").strip() for line in lines if line.startswith("fatal")]


def add(edit_json: Edit, path: Path, **fields: object) -> None:
    """Add a copy of the first annotation with other ``fields``."""
    edit_json(path, lambda d: d["annotations"].append(d["annotations"][0] | {"id": 9} | fields))


@pytest.mark.parametrize("folder", ["voc_folder", "coco_folder", "cityscapes_folder"])
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_nothing_is_reported_about_a_valid_folder(
    folder: str, task: str, request: pytest.FixtureRequest, capsys: Capture
) -> None:
    root = request.getfixturevalue(folder)
    modules = {"voc_folder": VOCDataModule, "coco_folder": coco, "cityscapes_folder": CityscapesDataModule}
    assert reported(modules[folder](root, task=task), capsys) == []


def test_one_fault_is_reported_in_one_line_and_its_object_left_out(
    coco_folder: Path, annotations: Path, edit_json: Edit, capsys: Capture
) -> None:
    add(edit_json, annotations, bbox=[70, 4, 10, 10])
    module = coco(coco_folder)
    fault = "annotation 9 of 0001.jpg: box x=70 y=4 width=10 height=10 of class dog lies outside the image of 64x48"
    assert reported(module, capsys) == [f"segdet: train: {annotations}: {fault}; it is dropped"]
    assert list(module.notes) == [f"instances_train.json: {fault}"]
    # The reader reports it again when it reads the sample, in the same words.
    assert module.dataset("train")[0].source.notes == tuple(module.notes)
    assert check([str(coco_folder)]) == 0
    assert capsys.readouterr().out.startswith(f"warning  {annotations}: {fault}; it is dropped\n")
    assert reported(module, capsys) == []


def test_training_and_data_check_describe_a_box_of_voc_in_the_same_words(
    voc_folder: Path, voc_xml: Callable[..., str], capsys: Capture
) -> None:
    path = voc_folder / "Annotations/a.xml"
    path.write_text(voc_xml("a", [("cat", 1, 1, 20, 20), ("dog", 70, 9, 80, 30)]))
    module = VOCDataModule(voc_folder)
    (line,) = reported(module, capsys)
    (note,) = module.notes
    assert note == "a.xml: box xmin=70 ymin=9 xmax=80 ymax=30 of class dog lies outside the image of 64x48"
    assert module.dataset("train")[0].source.notes == (note,) and note in line
    assert check([str(voc_folder)]) == 0
    assert note.partition(": ")[2] in capsys.readouterr().out


def test_many_faults_of_a_kind_are_reported_in_one_line_with_their_number(
    coco_folder: Path, annotations: Path, edit_json: Edit, capsys: Capture
) -> None:
    for number in range(5):
        add(edit_json, annotations, id=10 + number, bbox=[1 + number, 4, 0, 10])
    lines = reported(coco(coco_folder), capsys)
    assert len(lines) == 2
    assert lines[0].startswith(
        "segdet: train: 5 boxes have no width or height and are left out, the first: "
        f"{annotations}: annotation 10 of 0001.jpg: "
    )
    assert lines[1] == f"segdet: train: `segdet data check {coco_folder}` lists every fault"


def test_boxes_that_resizing_makes_smaller_than_a_pixel_are_reported(
    coco_folder: Path, annotations: Path, edit_json: Edit, capsys: Capture
) -> None:
    add(edit_json, annotations, bbox=[4, 4, 3, 3])
    assert reported(coco(coco_folder), capsys) == []
    (line,) = reported(coco(coco_folder, recipe=Plain((12, 16))), capsys)
    assert line.endswith(
        "annotation 9 of 0001.jpg: box x=4 y=4 width=3 height=3 of class dog is smaller than a pixel after resizing "
        "64x48 to 16x12; training does not use it"
    )
    module = coco(coco_folder, recipe=Plain((12, 16)))
    assert len(module.dataset("train")[0].target["boxes"]) == 1


def test_the_command_that_lists_all_small_boxes_has_the_size_of_training(
    coco_folder: Path, annotations: Path, edit_json: Edit, capsys: Capture
) -> None:
    for number in (9, 10):
        add(edit_json, annotations, id=number, bbox=[number, 4, 3, 3])
    for size, words in (((12, 16), ["--size", "12", "16"]), (12, ["--size", "12"])):
        *_, line = reported(coco(coco_folder, recipe=Plain(size)), capsys)
        command = ["segdet", "data", "check", str(coco_folder), *words]
        assert line == f"segdet: train: `{shlex.join(command)}` lists every fault"
        assert check(command[3:]) == 0
        assert capsys.readouterr().out.count("is smaller than a pixel after resizing 64x48 to 16x12") == 2
    assert check([str(coco_folder)]) == 0
    assert "smaller" not in capsys.readouterr().out
    assert check([str(coco_folder), "--size", "1", "2", "3"]) == 2
    assert "--size 1 2 3: give height and width, or the shorter side" in capsys.readouterr().err


def test_crowds_are_counted_in_one_line(
    coco_folder: Path, annotations: Path, edit_json: Edit, capsys: Capture
) -> None:
    add(edit_json, annotations, iscrowd=1)
    assert reported(coco(coco_folder), capsys) == ["segdet: train: 1 of 2 objects is not trained on: crowds"]
    assert check([str(coco_folder)]) == 0
    assert "2 without objects, 1 crowd: 0 fatal, 0 warnings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iscrowd": 1}, "of 1 annotation, 1 crowd"),
        ({"bbox": [0.1, 0.1, 0.5, 0.5]}, "of 1 annotation, 1 smaller than a pixel"),
        ({"bbox": [90, 90, 5, 5]}, "of 1 annotation, 1 outside their image"),
        (None, "there is no annotation of any class"),
    ],
)
def test_training_does_not_start_without_an_object_to_learn_from(
    coco_folder: Path, annotations: Path, edit_json: Edit, capsys: Capture, change: dict | None, reason: str
) -> None:
    def edit(document: dict) -> None:
        if change is None:
            document["annotations"].clear()
        else:
            document["annotations"][0].update(change)

    edit_json(annotations, edit)
    with pytest.raises(UserError) as caught:
        coco(coco_folder).setup("fit")
    assert str(caught.value).startswith(f"{annotations}: training has no object to learn from: {reason}; ")
    assert fatal_lines(coco_folder, capsys) == [str(caught.value)]


def test_a_validation_split_without_objects_is_reported_in_one_line(
    coco_folder: Path, edit_json: Edit, capsys: Capture
) -> None:
    path = coco_folder / "annotations/instances_val.json"
    edit_json(path, lambda document: document["annotations"].clear())
    line = (
        f"{path}: no object counts in scores: there is no annotation of any class; there will be no score, and no "
        "best checkpoint"
    )
    assert reported(coco(coco_folder), capsys) == [f"segdet: val: {line}"]
    assert check([str(coco_folder)]) == 0
    assert capsys.readouterr().out.startswith(f"warning  {line}\n")


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [1, 2, 3]},
        {"category_id": 8},
        {"iscrowd": "maybe"},
    ],
)
def test_a_fatal_fault_stops_before_the_first_step_or_is_skipped(
    coco_folder: Path, annotations: Path, edit_json: Edit, capsys: Capture, change: dict
) -> None:
    edit_json(
        annotations,
        lambda d: d["annotations"].append(d["annotations"][0] | {"id": 9, "bbox": [1, 1, 9, 9]} | change),
    )
    edit_json(annotations, lambda d: d["annotations"].append(d["annotations"][0] | {"id": 10, "image_id": 2}))
    with pytest.raises(BadSample) as caught:
        coco(coco_folder).setup("fit")
    assert "annotation 9" not in capsys.readouterr().err  # the error is printed once
    (line,) = fatal_lines(coco_folder, capsys)
    assert str(caught.value) == f"{line}, or run without such samples: --data.on_bad_sample skip"
    module = coco(coco_folder, on_bad_sample="skip")
    assert reported(module, capsys) == [f"segdet: train: {line}"]
    assert list(module.notes) == [line]
    assert module.dataset("train")[0].source.path.name == "0002.jpg"


def test_a_fatal_fault_of_the_file_stops_training_with_the_message_of_data_check(
    coco_folder: Path, annotations: Path, edit_json: Edit, capsys: Capture
) -> None:
    edit_json(annotations, lambda document: document["images"][1].update(id=1))
    with pytest.raises(BadSample) as caught:
        coco(coco_folder).setup("fit")
    assert fatal_lines(coco_folder, capsys) == [str(caught.value)]
    edit_json(annotations, lambda document: document["images"][1].update(id=2**65))
    edit_json(annotations, lambda document: document["images"][0].update(id=2**66))
    with pytest.raises(BadSample, match=r"images\[0\] has id \d+, which is not a 64-bit integer"):
        coco(coco_folder).setup("fit")
    assert [line.partition(": ")[2][:14] for line in fatal_lines(coco_folder, capsys)] == [
        "images[0] has ",
        "images[1] has ",
    ]


def test_an_image_of_another_size_than_stated_is_reported(
    coco_folder: Path, capsys: Capture, picture: Callable
) -> None:
    path = coco_folder / "train/0001.jpg"
    Image.fromarray(picture(0, (24, 32))).save(path)
    assert reported(coco(coco_folder), capsys) == [
        f"segdet: train: {path}: is 32x24 but its annotation states 64x48; the annotation is assumed to be in pixels "
        "of the file; check that it is"
    ]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_an_image_that_is_turned_upright_is_not_reported(
    task: str, coco_folder: Path, capsys: Capture, picture: Callable
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0, (64, 48))).save(coco_folder / "train/0001.jpg", exif=exif)
    assert reported(coco(coco_folder, task=task), capsys) == []


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_square_image_is_used_as_it_is_stored(
    task: str, coco_folder: Path, annotations: Path, edit_json: Edit, capsys: Capture, picture: Callable
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = coco_folder / "train/0001.jpg"
    Image.fromarray(picture(0, (48, 48))).save(path, exif=exif)
    edit_json(annotations, lambda d: d["images"][0].update(width=48))
    (line,) = reported(coco(coco_folder, task=task), capsys)
    assert line.startswith(
        f"segdet: train: {path}: has the EXIF orientation 6; its pixels are used as they are"
    )


def test_images_without_dominant_object_are_counted(coco_folder: Path, capsys: Capture) -> None:
    assert reported(coco(coco_folder, task="localization"), capsys) == [
        "segdet: train: 1 image is left out: no dominant object"
    ]


def test_an_image_that_is_too_large_stops_before_the_first_step(coco_folder: Path) -> None:
    with pytest.raises(BadSample, match=r"0001\.jpg: is 64x48, which is more than 3,071 pixels"):
        coco(coco_folder, max_pixels=3071).setup("fit")


def test_masks_are_checked_again_under_a_smaller_limit_of_pixels(coco_folder: Path) -> None:
    coco(coco_folder, task="segmentation").setup("fit")  # caches the pixels of the masks
    with pytest.raises(BadSample, match=r"0001\.jpg: is 64x48, which is more than 3,071 pixels"):
        coco(coco_folder, task="segmentation", max_pixels=3071).setup("fit")


def test_training_images_in_the_validation_split_are_counted(voc_folder: Path, capsys: Capture) -> None:
    (voc_folder / "ImageSets/Main/val.txt").write_text("c\na\n")
    assert reported(VOCDataModule(voc_folder), capsys) == [
        "segdet: val: 1 of 2 images is used for training as well; scores on training images are meaningless"
    ]


@pytest.mark.parametrize("folder", ["voc_folder", "coco_folder", "cityscapes_folder"])
def test_the_data_module_of_the_format_is_suggested(folder: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(folder)
    modules = {
        "voc_folder": VOCDataModule,
        "coco_folder": COCODataModule,
        "cityscapes_folder": CityscapesDataModule,
    }
    right = modules.pop(folder).__name__
    for module in modules.values():
        with pytest.raises(UserError) as caught:
            module(root).setup("fit")
        assert str(caught.value) == f"{root}: is a folder of {right}; give --data {right}"


# Categories


def rename(document: dict, **names: str) -> None:
    for category in document["categories"]:
        category["name"] = names.get(category["name"], category["name"])


def test_splits_that_number_their_categories_differently_are_matched_by_name(
    coco_folder: Path, edit_json: Edit, annotations: Path, capsys: Capture
) -> None:
    path = coco_folder / "annotations/instances_val.json"
    edit_json(path, lambda document: rename(document, cat="dog", dog="cat"))
    module = coco(coco_folder)
    fault = f"{path}: numbers its categories differently from {annotations}; they are matched by name"
    assert reported(module, capsys) == [f"segdet: val: {fault}"]
    assert module.dataset("train")[0].target["labels"].tolist() == [2]
    assert module.dataset("val")[0].target["labels"].tolist() == [1]
    assert check([str(coco_folder)]) == 0
    assert capsys.readouterr().out.startswith(f"note     {fault}\n")


@pytest.mark.parametrize("class_names", [None, ["cat", "dog"]])
def test_a_category_may_be_missing_in_the_validation_split(
    coco_folder: Path, edit_json: Edit, annotations: Path, capsys: Capture, class_names: list[str] | None
) -> None:
    path = coco_folder / "annotations/instances_val.json"
    edit_json(path, lambda document: document["categories"].pop(0))
    module = coco(coco_folder, class_names=class_names)
    fault = f"{path}: lacks the category 'cat' of {annotations}; no object has it"
    assert reported(module, capsys) == [f"segdet: val: {fault}"]
    assert module.class_names == ["cat", "dog"]
    assert module.dataset("val")[0].target["labels"].tolist() == [2]


def test_another_category_of_the_validation_split_is_reported_until_classes_are_chosen(
    coco_folder: Path, edit_json: Edit, annotations: Path, capsys: Capture
) -> None:
    path = coco_folder / "annotations/instances_val.json"
    edit_json(path, lambda d: d["categories"].append({"id": 8, "name": "Cat"}))
    add(edit_json, path, category_id=8)
    fault = f"{path}: 1 object is left out: {annotations} lacks the category 'Cat'"
    assert reported(coco(coco_folder), capsys)[0].startswith(f"segdet: val: {fault}; ")
    assert check([str(coco_folder)]) == 0
    assert f"warning  {fault}; " in capsys.readouterr().out
    assert reported(coco(coco_folder, class_names=["cat", "dog"]), capsys) == []


def test_splits_without_a_common_category_are_refused(coco_folder: Path, edit_json: Edit) -> None:
    path = coco_folder / "annotations/instances_val.json"
    edit_json(path, lambda document: rename(document, cat="tree", dog="bush"))
    with pytest.raises(UserError, match="train and val do not have the same classes"):
        coco(coco_folder).setup("fit")
