"""`segdet data check`: a valid folder has no faults, and each fault has its own line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.cli.data.check import main
from segdet.cli.data.stats import main as stats_main
from segdet.data.cleaning import clean_objects, clip_boxes, describe_box, usable
from segdet.data.faults import Fault
from segdet.data.formats.detect import find_dataset, guess_format
from segdet.data.formats.splits import list_splits
from segdet.data.formats.voc import VOCReader
from segdet.data.inspect.check import check_dataset
from segdet.data.sample import Objects
from segdet.util.errors import UserError

# pycocotools' compiled part is older than NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def run(capsys, *arguments: object) -> tuple[int, list[str]]:
    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out.splitlines()


def only_line(capsys, *arguments: object) -> tuple[int, str]:
    """Return the status and the only line besides the summary."""
    status, lines = run(capsys, *arguments)
    assert len(lines) == 2, lines
    return status, lines[0]


def objects(*boxes: tuple[float, float, float, float]) -> Objects:
    count = len(boxes)
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.ones(count, np.int64),
        np.zeros(count, bool),
        np.zeros(count, bool),
        np.arange(1, count + 1, dtype=np.float32),
    )


# The rules for boxes, which training shares


def test_boxes_are_clipped_and_their_areas_kept():
    kept, dropped = clean_objects(objects((-5, 3, 10, 60), (1, 1, 2, 2)), (48, 64))
    assert kept.boxes.tolist() == [[0, 3, 10, 48], [1, 1, 2, 2]]
    assert kept.area.tolist() == [1, 2]
    assert dropped == []


def test_each_dropped_box_is_described():
    nan = float("nan")
    given = objects((5, 5, 5, 9), (7, 9, 8, 4), (70, 0, 80, 9), (nan, 0, 1, 1), (0, 0, 64, 48))
    kept, dropped = clean_objects(given, (48, 64), lambda row: describe_box(given.boxes[row], 1, ["RBC"]))
    assert kept.boxes.tolist() == [[0, 0, 64, 48]]
    assert kept.area.tolist() == [5]
    assert [box.description for box in dropped] == [
        "box 5,5,5,9 of class RBC is degenerate",
        "box 7,9,8,4 of class RBC is degenerate",
        "box 70,0,80,9 of class RBC lies outside the image of 64x48",
        "box nan,0,1,1 of class RBC is not finite",
    ]
    assert usable(given, (48, 64)).tolist() == [False, False, False, False, True]
    assert clean_objects(given, (48, 64))[1][0].description == "box 5,5,5,9 of class 1 is degenerate"


def test_no_objects_stay_no_objects():
    kept, dropped = clean_objects(objects(), (48, 64))
    assert kept.boxes.shape == (0, 4)
    assert dropped == []
    assert clip_boxes(kept.boxes, (1, 1)).shape == (0, 4)


# Valid folders


@pytest.mark.parametrize("task", ["detection", "localization", "segmentation"])
@pytest.mark.parametrize("folder", ["voc_folder", "coco_folder", "cityscapes_folder"])
def test_a_valid_folder_has_no_faults(folder, task, request, capsys):
    status, lines = run(capsys, request.getfixturevalue(folder), "--task", task)
    assert status == 0
    assert len(lines) == 1
    assert lines[0].endswith("0 fatal, 0 warnings")


def test_the_summary_counts(coco_folder, capsys):
    _, lines = run(capsys, coco_folder)
    assert lines[-1] == (
        f"{coco_folder} (coco, detection): 4 images (2 in train, 2 in val), 2 without objects: "
        "0 fatal, 0 warnings"
    )


# Images


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_missing_image(voc_folder, capsys, task):
    (voc_folder / "JPEGImages/a.jpg").unlink()
    status, line = only_line(capsys, voc_folder, "--task", task)
    assert status == 1
    assert line.startswith(
        f"fatal    {voc_folder / 'JPEGImages/a.jpg'}: no such file; add it or remove it from the split"
    )


@pytest.mark.parametrize(
    ("corrupt", "fault"),
    [
        (lambda data: b"", "the file is empty (0 bytes)"),
        (lambda data: data[: len(data) // 2], "truncated JPEG: the end of the image is missing"),
        (lambda data: b"<html>not here</html>", "not an image"),
    ],
)
def test_a_corrupt_image(voc_folder, capsys, corrupt, fault):
    path = voc_folder / "JPEGImages/b.jpg"
    path.write_bytes(corrupt(path.read_bytes()))
    status, line = only_line(capsys, voc_folder)
    assert status == 1
    assert line.startswith(f"fatal    {path}: {fault}")


def test_a_truncated_png(voc_folder, capsys, picture):
    path = voc_folder / "JPEGImages/b.png"
    (voc_folder / "JPEGImages/b.jpg").unlink()
    Image.fromarray(picture(1)).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    status, line = only_line(capsys, voc_folder)
    assert status == 1
    assert line.startswith(f"fatal    {path}: truncated PNG")


@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        ("L", "is grayscale; its one channel is used as red, green and blue"),
        ("CMYK", "is CMYK; it is converted to RGB"),
    ],
)
def test_an_unusual_image_is_a_warning(voc_folder, capsys, mode, fault, picture):
    path = voc_folder / "JPEGImages/a.jpg"
    Image.fromarray(picture(0)).convert(mode).save(path)
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line == f"warning  {path}: {fault}"


def test_16_bits_are_a_warning(voc_folder, capsys, picture):
    (voc_folder / "JPEGImages/a.jpg").unlink()
    path = voc_folder / "JPEGImages/a.png"
    Image.fromarray(picture(0)[..., 0].astype(np.uint16) * 257).save(path)
    status, lines = run(capsys, voc_folder)
    assert status == 0
    assert lines[0] == f"warning  {path}: has 16 bits per channel; the upper 8 are used"
    assert lines[1].startswith(f"warning  {path}: is grayscale; ")


def test_12_bits_in_a_file_of_16_are_reported(voc_folder, capsys, picture):
    (voc_folder / "JPEGImages/a.jpg").unlink()
    path = voc_folder / "JPEGImages/a.png"
    Image.fromarray(picture(0)[..., 0].astype(np.uint16) * 16).save(path)
    status, lines = run(capsys, voc_folder)
    assert status == 0
    assert lines[2].startswith(
        f"warning  {path}: is nearly black in 8 bits: its highest value becomes 15 of 255; "
    )


def test_an_animation_is_a_warning(voc_folder, capsys, picture):
    (voc_folder / "JPEGImages/a.jpg").unlink()
    path = voc_folder / "JPEGImages/a.png"
    frames = [Image.fromarray(picture(seed)) for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line == f"warning  {path}: has 3 frames or pages; only the first is read"


def test_an_exif_rotation_is_a_warning(voc_folder, capsys, picture):
    path = voc_folder / "JPEGImages/a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0)).save(path, exif=exif)
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert "EXIF orientation 6; its pixels are used as they are stored" in line

    Image.fromarray(picture(0, (64, 48))).save(path, exif=exif)
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line.endswith(
        "EXIF orientation 6; it is turned upright, because the annotation states the rotated size"
    )


def test_image_and_annotation_of_different_sizes(voc_folder, capsys, picture):
    path = voc_folder / "JPEGImages/a.jpg"
    Image.fromarray(picture(0, (60, 80))).save(path)
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line.startswith(f"warning  {path}: is 80x60 but its annotation states 64x48; ")


def test_the_limit_of_pixels_is_an_option(voc_folder, capsys):
    status, lines = run(capsys, voc_folder, "--max_pixels", 3071)
    assert status == 1 and len(lines) == 4
    assert lines[0].startswith(
        f"fatal    {voc_folder / 'JPEGImages/a.jpg'}: is 64x48, which is more than 3,071 pixels; scale it down"
    )
    assert run(capsys, voc_folder, "--max_pixels", 3072)[0] == 0


# Annotations


def test_a_missing_annotation(voc_folder, capsys):
    (voc_folder / "Annotations/a.xml").unlink()
    status, line = only_line(capsys, voc_folder)
    assert status == 1
    assert line.startswith(f"fatal    {voc_folder / 'Annotations/a.xml'}: no such annotation; ")


def test_bad_xml(voc_folder, capsys):
    path = voc_folder / "Annotations/a.xml"
    path.write_text(path.read_text()[:100])
    status, line = only_line(capsys, voc_folder)
    assert status == 1
    assert line.startswith(f"fatal    {path}: not valid XML (")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"images": []}'])
def test_bad_json(coco_folder, capsys, content):
    path = coco_folder / "annotations/instances_val.json"
    path.write_text(content)
    status, line = only_line(capsys, coco_folder)
    assert status == 1
    assert line.startswith(f"fatal    {path}: ")


@pytest.fixture
def write_box(voc_folder, voc_xml):
    """Return a function that adds a second box to image a of the VOC folder."""

    def write(*corners: object) -> Path:
        path = voc_folder / "Annotations/a.xml"
        path.write_text(voc_xml("a", [("cat", 1, 1, 20, 20), ("dog", *corners)]))
        return path

    return write


@pytest.mark.parametrize("corners", [(9, 9, 9, 30), (20, 9, 9, 30)])
def test_a_degenerate_box_is_dropped(voc_folder, capsys, corners, write_box):
    path = write_box(*corners)
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line.startswith(f"warning  {path}: box xmin={corners[0]} ymin=9 xmax=9 ymax=30 of class dog is ")
    assert line.endswith(" degenerate; it is dropped")


def test_a_box_partly_outside_is_clipped(voc_folder, capsys, write_box):
    path = write_box(50, 9, 80, 30)
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line == (
        f"warning  {path}: box xmin=50 ymin=9 xmax=80 ymax=30 of class dog reaches beyond the image of "
        "64x48; it is clipped"
    )


def test_a_box_wholly_outside_is_dropped(voc_folder, capsys, write_box):
    path = write_box(70, 9, 80, 30)
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert (
        line == f"warning  {path}: box xmin=70 ymin=9 xmax=80 ymax=30 of class dog lies outside the image of "
        "64x48; it is dropped"
    )


@pytest.mark.parametrize("value", ["nan", "inf", "x"])
def test_a_coordinate_that_is_not_a_number(voc_folder, capsys, value, write_box):
    path = write_box(9, 9, value, 30)
    status, line = only_line(capsys, voc_folder)
    assert status == 1
    assert line.startswith(f"fatal    {path}: <xmax> of an object of class 'dog' is {value!r}, not a number")


def test_an_unknown_class(voc_folder, capsys, voc_xml):
    path = voc_folder / "Annotations/b.xml"
    path.write_text(voc_xml("b", [("dgo", 1, 1, 20, 20)]))
    status, line = only_line(capsys, voc_folder)
    assert status == 1
    assert line.startswith(f"fatal    {path}: unknown class 'dgo' (did you mean dog?)")


def test_coco_faults_name_the_image(coco_folder, capsys, edit_json):
    path = coco_folder / "annotations/instances_val.json"
    edit_json(path, lambda document: document["annotations"][0].update(bbox=[50, 4, 40, 10]))
    status, line = only_line(capsys, coco_folder)
    assert status == 0
    assert line.startswith(f"warning  {path}: annotation 2 of 0011.jpg: box x=50 y=4 width=40 ")

    edit_json(path, lambda document: document["annotations"][0].update(bbox=[float("nan"), 4, 40, 10]))
    status, line = only_line(capsys, coco_folder)
    assert status == 1
    assert "annotation 2 of 0011.jpg: bbox is not four finite numbers" in line

    edit_json(path, lambda document: document["annotations"][0].update(bbox=[1, 4, 0, 10]))
    status, (line, other, _) = run(capsys, coco_folder)
    assert status == 0
    assert f"{path}: no object counts in scores: of 1 annotation, 1 without width or height; " in other
    assert "annotation 2 of 0011.jpg: box x=1 y=4 width=0 height=10 of class dog is degenerate" in line

    edit_json(path, lambda document: document["annotations"][0].update(bbox=[1, 4, 9, 10], category_id=8))
    status, line = only_line(capsys, coco_folder)
    assert status == 1
    assert "annotation 2 of 0011.jpg: category_id 8 is not among the categories" in line


# Masks


def test_a_mask_of_another_size(voc_folder, capsys):
    path = voc_folder / "SegmentationClass/a.png"
    Image.fromarray(np.zeros((40, 64), np.uint8)).save(path)
    status, line = only_line(capsys, voc_folder, "--task", "segmentation")
    assert status == 1
    assert line.startswith(f"fatal    {path}: the mask is 64x40 but its image a.jpg is 64x48; ")


def test_an_unknown_mask_value(voc_folder, capsys):
    path = voc_folder / "SegmentationClass/a.png"
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(path)
    status, line = only_line(capsys, voc_folder, "--task", "segmentation")
    assert status == 1
    assert line.startswith(f"fatal    {path}: value 9 is not one of the 3 classes; ")
    status, _ = run(capsys, voc_folder, "--task", "segmentation", "--ignore_index", "9")
    assert status == 0


def test_a_missing_and_a_truncated_mask(voc_folder, capsys):
    (voc_folder / "SegmentationClass/a.png").unlink()
    truncated = voc_folder / "SegmentationClass/b.png"
    truncated.write_bytes(truncated.read_bytes()[:-20])
    status, lines = run(capsys, voc_folder, "--task", "segmentation")
    assert status == 1
    assert lines[0].startswith(f"fatal    {voc_folder / 'SegmentationClass/a.png'}: no such mask; ")
    assert lines[1].startswith(f"fatal    {truncated}: truncated PNG")


def test_cityscapes_annotations(cityscapes_folder, capsys):
    stem = cityscapes_folder / "gtFine/val/ulm/ulm_000000_000019_gtFine"
    labels, instances = Path(f"{stem}_labelIds.png"), Path(f"{stem}_instanceIds.png")

    Image.fromarray(np.full((40, 64), 7, np.uint8)).save(labels)
    status, line = only_line(capsys, cityscapes_folder)
    assert status == 1
    assert line.startswith(f"fatal    {labels}: the mask is 64x40 but its image ulm_")

    unknown = np.full((48, 64), 99, np.uint8)
    unknown[0] = 7
    Image.fromarray(unknown).save(labels)
    status, line = only_line(capsys, cityscapes_folder)
    assert status == 0
    assert line.startswith(f"warning  {labels}: value 99 is not a label of Cityscapes and is ignored; ")

    Image.fromarray(np.full((40, 64), 26001, np.uint16)).save(instances)
    status, line = only_line(capsys, cityscapes_folder, "--task", "detection")
    assert status == 0
    assert line.startswith(f"warning  {instances}: is 64x40 but its image ulm_")

    labels.unlink()
    instances.unlink()
    for task, path in (("segmentation", labels), ("detection", instances)):
        status, line = only_line(capsys, cityscapes_folder, "--task", task)
        assert status == 1
        assert line.startswith(f"fatal    {path}: no such annotation; ")


# Splits


def test_images_in_no_split_are_noted(voc_folder, capsys, picture):
    Image.fromarray(picture(9)).save(voc_folder / "JPEGImages/extra.jpg")
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line == f"note     {voc_folder / 'JPEGImages'}: 1 image is in no split (extra.jpg); not read"
    _, lines = run(capsys, voc_folder, "--split", "train")
    assert len(lines) == 1


def test_an_image_in_two_splits(voc_folder, capsys):
    (voc_folder / "ImageSets/Main/val.txt").write_text("c\na\n")
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line.startswith(f"warning  {voc_folder / 'JPEGImages/a.jpg'}: is in the splits train and val; ")


def test_the_same_file_under_two_names(voc_folder, capsys):
    data = (voc_folder / "JPEGImages/a.jpg").read_bytes()
    (voc_folder / "JPEGImages/c.jpg").write_bytes(data)
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line.startswith(
        f"warning  {voc_folder / 'JPEGImages/c.jpg'}: is in the splits train and val, there as a.jpg; "
    )


def test_copies_in_one_split_are_reported_in_one_line(voc_folder, capsys):
    data = (voc_folder / "JPEGImages/a.jpg").read_bytes()
    (voc_folder / "JPEGImages/b.jpg").write_bytes(data)
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line == (
        f"warning  {voc_folder / 'JPEGImages/b.jpg'}: is a copy of a.jpg, also in train; remove it, or check that both "
        "annotations agree"
    )


def test_an_image_listed_twice(voc_folder, capsys):
    (voc_folder / "ImageSets/Main/train.txt").write_text("a\nb\na\n")
    status, line = only_line(capsys, voc_folder)
    assert status == 0
    assert line.startswith(f"warning  {voc_folder / 'JPEGImages/a.jpg'}: is listed twice in the split")


def test_images_of_the_same_name_are_noted_once(coco_folder, capsys, edit_json):
    (coco_folder / "val/0011.jpg").rename(coco_folder / "val/0001.jpg")
    path = coco_folder / "annotations/instances_val.json"
    edit_json(path, lambda document: document["images"][0].update(file_name="0001.jpg"))
    status, line = only_line(capsys, coco_folder)
    assert status == 0
    assert line.startswith(
        f"note     {coco_folder / 'val'}: 1 image has the name of another in train (0001.jpg)"
    )


# The command


def test_every_fault_is_listed_at_once_and_as_json(voc_folder, tmp_path, capsys, write_box):
    (voc_folder / "JPEGImages/a.jpg").unlink()
    (voc_folder / "JPEGImages/b.jpg").write_bytes(b"")
    (voc_folder / "Annotations/b.xml").write_text("<")
    write_box(50, 9, 80, 30)
    status, lines = run(capsys, voc_folder, "--json", tmp_path / "out/faults.json", "--workers", "3")
    assert status == 1
    assert [line.split()[0] for line in lines[:-1]] == ["fatal", "warning", "fatal", "fatal"]
    assert lines[-1].endswith("3 fatal, 1 warning")
    record = json.loads((tmp_path / "out/faults.json").read_text())
    assert record["fatal"] == 3
    assert record["images"] == {"train": 2, "val": 1}
    assert record["faults"][0]["path"] == str(voc_folder / "JPEGImages/a.jpg")
    assert record["faults"][1]["severity"] == "warning"
    assert [fault["kind"] for fault in record["faults"]] == [
        "unreadable",
        "clipped",
        "unreadable",
        "unreadable",
    ]


def test_check_returns_the_faults_of_one_split(voc_folder):
    (voc_folder / "JPEGImages/a.jpg").unlink()
    assert check_dataset(find_dataset(voc_folder, splits=["val"])).faults == []
    (fault,) = check_dataset(find_dataset(voc_folder, splits=["train"])).faults
    assert isinstance(fault, Fault)
    assert (fault.path, fault.fatal) == (voc_folder / "JPEGImages/a.jpg", True)


def test_an_unexpected_error_is_reported_in_one_line(voc_folder, monkeypatch):
    monkeypatch.setattr(VOCReader, "objects", lambda *_: 1 / 0)
    first, second = check_dataset(find_dataset(voc_folder, splits=["train"])).faults
    assert first.fatal
    assert str(second).startswith(
        f"fatal    {voc_folder / 'Annotations/b.xml'}: cannot be read (ZeroDivisionError: "
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], ".: contains neither annotations/instances_"),
        (["voc", "--split", "tset"], "tset.txt: no such split list for detection"),
        (["voc", "--workers", "0"], "--workers 0: must be at least 1"),
        (["voc", "--class_names", "names.txt"], "names.txt: no such file of class names"),
        (["coco", "--ignore_index", "3"], "--ignore_index: for voc folders only, but "),
        (["voc", "--ignore_index", "300"], "--ignore_index 300: must be at least 0 and at most 255"),
        (["voc", "--max_pixels", "0"], "--max_pixels 0: must be at least 1"),
    ],
)
def test_mistakes_are_reported_in_one_line(voc_folder, coco_folder, monkeypatch, capsys, arguments, line):
    monkeypatch.chdir(voc_folder.parent)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1


def test_a_wrong_option_is_reported_in_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["root", "--tsak", "detection"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "segdet data check: unrecognized arguments: --tsak detection; did you mean --task? see segdet data check --help"
    ]
    with pytest.raises(SystemExit):
        main(["root", "--class", "cat"])
    assert "did you mean --class_names?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["root", "-x"])
    assert "did you mean" not in capsys.readouterr().err


def test_a_nearby_dataset_is_suggested(voc_folder, monkeypatch, capsys):
    for given in (voc_folder.parent, voc_folder / "JPEGImages"):
        assert main([str(given)]) == 2
        assert f"did you mean {voc_folder}?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, stats_main])
def test_outputs_are_checked_first(voc_folder, tmp_path, capsys, command):
    (tmp_path / "file").write_text("")
    assert command([str(voc_folder), "--json", str(tmp_path / "file" / "a.json")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a.json: cannot be written (" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert command([str(voc_folder), "--json", str(tmp_path / "new" / "a.json")]) == 0
    assert (tmp_path / "new" / "a.json").exists()


def test_a_class_named_like_an_ignored_one_is_noted(voc_folder, capsys):
    arguments = [voc_folder, "--task", "segmentation", "--class_names", "background,cat,dog,Void"]
    mask = np.array(Image.open(voc_folder / "SegmentationClass/a.png"))
    mask[0] = 3
    Image.fromarray(mask).save(voc_folder / "SegmentationClass/a.png")
    status, note = only_line(capsys, *arguments)
    assert status == 0
    assert note == (
        f"note     {voc_folder}: the mask value 3 is named 'Void' but is a class like any other; "
        "to ignore it, give --ignore_index 3 here and --data.ignore_index 3 to fit"
    )
    assert len(run(capsys, *arguments, "--ignore_index", 3)[1]) == 1


# Detection of the dataset


def test_formats_and_splits_are_guessed(voc_folder, coco_folder, tmp_path):
    assert guess_format(voc_folder) == "voc"
    assert guess_format(coco_folder) == "coco"
    (tmp_path / "city/leftImg8bit/val").mkdir(parents=True)
    assert guess_format(tmp_path / "city") == "cityscapes"
    assert find_dataset(tmp_path / "city").task == "segmentation"
    assert list_splits(tmp_path / "city", "cityscapes", "segmentation") == ["val"]
    (voc_folder / "ImageSets/Main/test.txt").write_text("c\n")
    (voc_folder / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\n")
    (voc_folder / "ImageSets/Main/cat_train.txt").write_text("a  1\nb -1\n")
    assert find_dataset(voc_folder).splits == ("train", "val", "test")
    assert find_dataset(coco_folder).splits == ("train", "val")


@pytest.mark.parametrize("folder", ["voc_folder", "coco_folder", "cityscapes_folder"])
def test_hidden_files_of_macos_are_skipped(folder, request, capsys):
    root = request.getfixturevalue(folder)
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    before = find_dataset(root).splits
    assert main([str(root)]) == 0
    assert not [split for split in before if "._" in split]
    assert "._" not in capsys.readouterr().out


def test_years_and_the_devkit_are_found(voc_folder, tmp_path):
    kit = tmp_path / "kit/VOCdevkit"
    kit.mkdir(parents=True)
    voc_folder.rename(kit / "VOC2007")
    (kit / "VOC2007/ImageSets/Main/train.txt").rename(kit / "VOC2007/ImageSets/Main/trainval.txt")
    dataset = find_dataset(tmp_path / "kit")
    assert dataset.root == kit
    assert dataset.splits == ("2007/val", "2007/trainval")
    assert len(dataset.open("2007/trainval")) == 2


def test_a_folder_with_only_masks_is_for_segmentation(voc_folder):
    assert find_dataset(voc_folder).task == "detection"
    (voc_folder / "Annotations").rename(voc_folder / "Elsewhere")
    assert find_dataset(voc_folder).task == "segmentation"


def test_a_folder_without_splits_is_refused(voc_folder):
    for path in (voc_folder / "ImageSets/Main").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"Main: has no split for detection; there are some for --task segm"):
        find_dataset(voc_folder)
    for path in (voc_folder / "ImageSets/Segmentation").iterdir():
        path.unlink()
    with pytest.raises(
        UserError, match=r"ImageSets.Main: has no split list; to make them: segdet data import .* --split"
    ):
        find_dataset(voc_folder)


# COCO files outside a folder of the format


def test_an_annotation_file_and_its_images_are_checked(coco_folder, tmp_path, capsys):
    file, images = tmp_path / "labels" / "mine.json", tmp_path / "pictures"
    file.parent.mkdir()
    (coco_folder / "annotations/instances_val.json").rename(file)
    (coco_folder / "val").rename(images)
    status, (line,) = run(capsys, file, "--images", images)
    assert (status, line.split(": ")[1]) == (0, "2 images (2 in mine), 1 without objects")
    next(images.iterdir()).write_bytes(b"not an image")
    assert only_line(capsys, file, "--images", images)[0] == 1


def test_an_annotation_file_of_a_folder_names_its_split(coco_folder, capsys):
    status, (line,) = run(capsys, coco_folder / "annotations/instances_val.json")
    assert (status, line.split(": ")[1]) == (0, "2 images (2 in val), 1 without objects")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["annotations/instances_val.json", "--split", "val"], "is the file of one split; leave it out"),
        (["annotations/instances_val.json", "--format", "voc"], "is a file of the format coco; leave it out"),
        (["annotations/other.json"], "no such annotation file"),
        (["", "--images", "val"], "is a folder; give a COCO annotation file with --images"),
    ],
)
def test_options_that_do_not_fit_an_annotation_file(coco_folder, capsys, arguments, fault):
    assert main([str(coco_folder / arguments[0]), *arguments[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert fault in line


# Real data


def test_bccd_has_two_degenerate_boxes(real_data, capsys):
    status, lines = run(capsys, real_data / "bccd")
    assert status == 0
    assert sorted(Path(line.split(": ")[0].split()[1]).stem for line in lines[:-1]) == [
        "BloodImage_00338",
        "BloodImage_00343",
    ]
    assert all("degenerate" in line and line.endswith("it is dropped") for line in lines[:-1])
    assert lines[-1].endswith("0 fatal, 2 warnings")


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_tiny_coco_has_no_faults(real_data, capsys, task):
    status, lines = run(capsys, real_data / "tiny_coco", "--task", task)
    assert status == 0
    assert len(lines) == 1
