"""Tests of all imports: file names, sizes, splits, the report, and that a folder is either complete or missing."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_tools import (
    SIZE,
    boxes_of,
    coco,
    labelme,
    labelme_shape,
    masks_of,
    save_picture,
    voc_xml,
    write,
)
from PIL import Image, ImageOps

from segdet.cli.data.import_ import _ORIGINS
from segdet.cli.main import main
from segdet.data.formats.detect import find_dataset
from segdet.data.images import read_image
from segdet.data.importing import run
from segdet.data.importing.plan import unique_names
from segdet.data.importing.run import FORMATS, import_dataset
from segdet.util.errors import BadSample, UserError

CAT = ("cat", [4.0, 5.0, 24.0, 15.0])
WRITTEN = [("cat", [5, 6, 24, 15])]


def write_voc(root: Path, names: list[str]) -> Path:
    """Write an image and an XML file for each name. A name may contain folders."""
    for seed, name in enumerate(names):
        path = save_picture(root / name, seed)
        write(path.with_suffix(".xml"), voc_xml(path.name, WRITTEN))
    return root


def numbered(root: Path, count: int = 3) -> Path:
    return write_voc(root, [f"{number}.jpg" for number in range(count)])


def test_the_command_offers_every_format() -> None:
    assert tuple(FORMATS) == _ORIGINS


def test_names_with_spaces_accents_capitals_and_equal_stems(tmp_path: Path) -> None:
    names = ["my cat 1.JPG", "Übung/größe.jpg", "left/0001.jpg", "right/0001.jpg", "日本.PNG", "x.jpg.jpg"]
    source = write_voc(tmp_path / "my photos", names)
    xml = source / "my cat 1.xml"
    xml.rename(xml.with_suffix(".XML"))
    report = import_dataset(source, tmp_path / "out")
    assert not report.plan.left_out
    expected = ["my cat 1", "größe", "left_0001", "right_0001", "日本", "x_jpg"]
    assert boxes_of(tmp_path / "out") == {name: [CAT] for name in expected}
    for path, name in zip(names, expected, strict=True):
        (linked,) = (tmp_path / "out" / "JPEGImages").glob(f"{name}.*")
        assert (read_image(linked) == read_image(source / path)).all()


def test_accents_in_another_unicode_form_match(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(3):
        save_picture(source / f"u\u0308{number}.jpg")
        write(source / f"\u00fc{number}.json", labelme(f"\u00fc{number}.jpg", [
            labelme_shape("cat", "rectangle", [[4, 5], [24, 15]])
        ]))  # fmt: skip
    assert not import_dataset(source, tmp_path / "out").plan.left_out


def test_colliding_names_get_numbers() -> None:
    assert unique_names(["a/b/1.jpg", "a_b/1.jpg", "c/2.jpg"]) == ["a_b_1", "a_b_1_2", "2"]


@pytest.mark.parametrize("orientation", [3, 6])
def test_images_with_an_exif_rotation(tmp_path: Path, orientation: int) -> None:
    """LabelMe shows the rotated image. The new folder contains an image without rotation."""
    source = tmp_path / "source"
    size = SIZE if orientation == 3 else SIZE[::-1]
    for number in range(3):
        save_picture(source / f"{number}.jpg", number, orientation=orientation)
        shapes = [labelme_shape("cat", "polygon", [[4, 5], [24, 5], [24, 15], [4, 15]])]
        write(source / f"{number}.json", labelme(f"{number}.jpg", shapes, size))
    report = import_dataset(source, tmp_path / "boxes", task="detection")
    assert "3 images with an EXIF rotation are written rotated, as PNG" in report.plan.notes
    assert boxes_of(tmp_path / "boxes") == {str(number): [CAT] for number in range(3)}
    import_dataset(source, tmp_path / "masks")
    for number in range(3):
        with Image.open(source / f"{number}.jpg") as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        for folder in ("boxes", "masks"):
            written = read_image(tmp_path / folder / "JPEGImages" / f"{number}.png")
            assert written.shape == (*size, 3) and np.abs(written.astype(int) - expected).max() <= 2
    assert {mask.shape for mask in masks_of(tmp_path / "masks")[1].values()} == {size}


def test_a_size_stated_before_the_rotation_keeps_the_stored_image(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(3):
        save_picture(source / f"{number}.jpg", number, orientation=6)
        write(source / f"{number}.xml", voc_xml(f"{number}.jpg", WRITTEN, SIZE))
    import_dataset(source, tmp_path / "out")
    dataset = find_dataset(tmp_path / "out")
    assert dataset.open("train").declared_size(0) == SIZE
    assert (tmp_path / "out/JPEGImages/0.jpg").is_symlink()


def test_everything_that_is_left_out_is_counted_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = numbered(tmp_path / "source", 4)
    save_picture(source / "alone.jpg")
    write(source / "orphan.xml", voc_xml("orphan.jpg", WRITTEN))
    write(source / "1.xml", "<annotation><object>")
    write(source / "2.xml", voc_xml("2.jpg", [*WRITTEN, ("cat", [7, 7, 7, 9])]))
    write_voc(source, ["other.jpg"])
    write(source / "other.xml", voc_xml("other.jpg", WRITTEN, (80, 120)))
    write(source / "3.jpg", "not an image")
    assert main(["data", "import", str(source), str(tmp_path / "out"), "--split", "0.5", "0.5", "0"]) == 0
    printed = capsys.readouterr().out
    assert "left out: 6" in printed
    listed = (tmp_path / "out" / "import.txt").read_text()
    for line in (
        f"annotation without an image: {source / 'orphan.xml'}",
        f"box without area: {source / '2.jpg'}: cat at 6, 6, 6, 9",
        f"image without annotation: {source / 'alone.jpg'}",
        f"unusable file: {source / '1.xml'}: not valid XML",
        f"unusable file: {source / '3.jpg'}: not an image",
        f"unusable file: {source / 'other.xml'}: is for an image of 120x80 pixels but other.jpg has 60x40",
    ):
        assert line in listed
    assert boxes_of(tmp_path / "out") == {"0": [CAT], "2": [CAT]}


def test_images_are_linked_or_copied(tmp_path: Path) -> None:
    source = numbered(tmp_path / "source")
    import_dataset(source, tmp_path / "linked")
    import_dataset(source, tmp_path / "copied", copy=True)
    link, copied = (tmp_path / kind / "JPEGImages" / "0.jpg" for kind in ("linked", "copied"))
    assert link.is_symlink() and link.resolve() == (source / "0.jpg").resolve()
    assert not copied.is_symlink() and copied.read_bytes() == (source / "0.jpg").read_bytes()


def test_an_annotation_file_with_images_elsewhere(tmp_path: Path) -> None:
    for number in range(3):
        save_picture(tmp_path / "pictures" / f"{number}.jpg")
    annotations = [
        {"image_id": number, "category_id": 3, "bbox": [4, 5, 20, 10], "area": 200, "segmentation": []}
        for number in (1, 2, 3)
    ]
    file = write(
        tmp_path / "json/a.json", coco([f"{number}.jpg" for number in range(3)], annotations, ["cat"])
    )
    import_dataset(file, tmp_path / "out", image_root=tmp_path / "pictures")
    assert boxes_of(tmp_path / "out") == {str(number): [CAT] for number in range(3)}


def test_split_lists_are_kept(tmp_path: Path) -> None:
    source = write_voc(tmp_path / "source", [f"{number}.jpg" for number in range(5)])
    for split, lines in (("trainval", "0\n1\n2\n"), ("val", "2\n"), ("test", "3\n")):
        write(source / f"ImageSets/Main/{split}.txt", lines)
    report = import_dataset(source, tmp_path / "out")
    found = {split: [name for name, _ in images] for split, images in report.plan.images.items()}
    assert found == {"train": ["0", "1"], "val": ["2"], "test": ["3"]}
    assert [(each.reason, each.path.name) for each in report.plan.left_out] == [
        ("image in no split", "4.jpg")
    ]
    with pytest.raises(
        UserError, match=r"has a split already \(images: train 2, val 1, test 1\); leave out --split"
    ):
        import_dataset(source, tmp_path / "other", fractions=(0.5, 0.5, 0))


def test_split_lists_with_folders_distinguish_images_of_the_same_name(tmp_path: Path) -> None:
    source = write_voc(tmp_path / "source", ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"])
    write(source / "train.txt", "a/0.jpg\na/1.jpg\n")
    write(source / "val.txt", "b/0.jpg\nb/1.jpg\n")
    report = import_dataset(source, tmp_path / "out")
    found = {split: [name for name, _ in images] for split, images in report.plan.images.items()}
    assert found == {"train": ["a_0", "a_1"], "val": ["b_0", "b_1"]}


def test_an_image_in_the_lists_of_two_splits_is_noted(tmp_path: Path) -> None:
    source = numbered(tmp_path / "source")
    for split, lines in (("train", "0\n1\n"), ("val", "1\n2\n"), ("trainval", "0\n1\n2\n")):
        write(source / f"{split}.txt", lines)
    report = import_dataset(source, tmp_path / "out")
    (note,) = report.plan.notes
    assert note == (
        f"1 image is in the lists of several splits and used in one, the first: {source / '1.jpg'}"
    )
    assert [len(images) for images in report.plan.images.values()] == [2, 1]


def test_an_image_is_imported_once(tmp_path: Path) -> None:
    source = numbered(tmp_path / "source")
    write(source / "others/0.xml", voc_xml("0.jpg", [("dog", [5, 6, 24, 15])]))
    report = import_dataset(source, tmp_path / "out")
    assert boxes_of(tmp_path / "out") == {str(number): [CAT] for number in range(3)}
    (left_out,) = report.plan.left_out
    assert (left_out.reason, left_out.path.name, left_out.detail) == (
        "second annotation of an image",
        "0.jpg",
        "dog",
    )


def test_images_without_objects_are_counted(tmp_path: Path) -> None:
    source = numbered(tmp_path / "source")
    write(source / "1.xml", voc_xml("1.jpg", []))
    assert import_dataset(source, tmp_path / "one").plan.notes == ["1 image has no object"]
    write(source / "2.xml", voc_xml("2.jpg", []))
    assert import_dataset(source, tmp_path / "two").plan.notes == ["2 images have no object"]


def test_the_next_command_quotes_the_folder(tmp_path: Path) -> None:
    report = import_dataset(numbered(tmp_path / "source"), tmp_path / "my data")
    assert f"--data.root '{tmp_path}/my data' " in report.next_command()
    assert report.next_command().endswith("--run_dir 'runs/my data'")


def test_one_folder_named_train_is_no_split(tmp_path: Path) -> None:
    source = write_voc(tmp_path / "source", [f"train/{number}.jpg" for number in range(4)])
    assert list(import_dataset(source, tmp_path / "out").plan.images) == ["train", "val", "test"]


def test_classes_are_selected_and_ordered(tmp_path: Path) -> None:
    source = numbered(tmp_path / "source")
    write(source / "1.xml", voc_xml("1.jpg", [*WRITTEN, ("dog", [1, 1, 9, 9]), ("cow", [1, 1, 9, 9])]))
    report = import_dataset(source, tmp_path / "out", class_names=["dog", "cat"])
    assert find_dataset(tmp_path / "out").open("train").class_names == ["dog", "cat"]
    assert [each.reason for each in report.plan.left_out] == ["class that is not selected"]
    with pytest.raises(UserError, match=r"no class 'dgo'; did you mean dog\?"):
        import_dataset(source, tmp_path / "other", class_names=["dgo"])


def test_yolo_names_of_classes_can_be_given(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(3):
        save_picture(source / f"{number}.jpg")
        write(source / f"{number}.txt", "0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(UserError, match=r"the class names are unknown.*give --class_names A,B,C"):
        import_dataset(source, tmp_path / "out")
    import_dataset(source, tmp_path / "out", class_names=["cat"])
    assert boxes_of(tmp_path / "out")["0"] == [("cat", [15.0, 10.0, 45.0, 30.0])]
    write(source / "classes.txt", "0: cat\n1: dog\n")
    import_dataset(source, tmp_path / "numbered")
    assert boxes_of(tmp_path / "numbered") == boxes_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("2 0.5 0.5 0.5 0.5", "line 1: class 2 is not one of 2 classes"),
        ("0 30 20 10 10", "line 1: a coordinate is not between 0 and 1"),
        ("0 0.5 0.5 0.5 0.5 0.9", "line 1: 5 numbers after the class are neither a box nor a polygon"),
    ],
)
def test_yolo_files_with_a_fault_are_listed(tmp_path: Path, line: str, fault: str) -> None:
    source = tmp_path / "source"
    for number in range(4):
        save_picture(source / f"{number}.jpg")
        write(source / f"{number}.txt", line if number == 0 else "0 0.5 0.5 0.5 0.5\n")
    write(source / "classes.txt", "cat\ndog\n")
    report = import_dataset(source, tmp_path / "out")
    assert [(each.path.name, each.detail) for each in report.plan.left_out] == [("0.txt", fault)]


def fails(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, which must fail, and return its one line of error."""
    assert main(["data", "import", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and not printed.out
    return printed.err


def test_mistakes_are_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = numbered(tmp_path / "source")
    out = tmp_path / "out"
    assert "no such folder" in fails([tmp_path / "absent", out], capsys)
    assert "lies in the source" in fails([source, source / "out"], capsys)
    assert "--split 0.5 0.1 0.1: give the fractions" in fails([source, out, "--split", 0.5, 0.1, 0.1], capsys)
    assert "no object has an outline" in fails([source, out, "--task", "segmentation"], capsys)
    assert "no annotation in the format YOLO" in fails([source, out, "--from", "yolo"], capsys)
    write(source / "labels.json", coco(["0.jpg"], [], ["cat"]))
    assert "several formats: coco (1 file), voc (3 files); choose one with --from" in fails(
        [source, out], capsys
    )
    save_picture(tmp_path / "plain" / "a.jpg")
    assert "1 image, but no annotations are recognized" in fails([tmp_path / "plain", out], capsys)
    write(tmp_path / "full" / "file", "")
    assert "exists already" in fails([source, tmp_path / "full", "--from", "voc"], capsys)
    write(tmp_path / "a.zip", "")
    assert "is an archive; unpack it" in fails([tmp_path / "a.zip", out], capsys)
    assert not out.exists()


def test_cvat_videos_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_picture(source / "a.jpg")
    write(
        source / "annotations.xml",
        "<annotations><version>1.1</version><track id='0' label='cat'/></annotations>",
    )
    with pytest.raises(BadSample, match=r"tracks of a video; export it as 'CVAT for images 1\.1'"):
        import_dataset(source, tmp_path / "out")


def test_an_interrupted_import_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = numbered(tmp_path / "source")
    before = run.PlannedImages.__getitem__
    calls = itertools.count()

    def interrupted(self: Any, position: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return before(self, position)

    monkeypatch.setattr(run.PlannedImages, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_split_does_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    source = numbered(tmp_path / "source", 20)
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in sorted(source.iterdir(), reverse=True):
        shutil.copy(path, copied / path.name)
    plans = [import_dataset(root, tmp_path / f"out_{root.name}").plan for root in (source, copied)]
    splits = [{s: [name for name, _ in images] for s, images in plan.images.items()} for plan in plans]
    assert splits[0] == splits[1]
    other = import_dataset(source, tmp_path / "other", seed=1).plan
    assert {s: [name for name, _ in images] for s, images in other.images.items()} != splits[0]


@pytest.mark.parametrize(
    "shape",
    [
        "text",
        {},
        labelme_shape("cat", "polygon", [[1, 2], [3, 4]]),
        labelme_shape("cat", "polygon", [["a", "b"], [1, 2], [3, 4]]),  # type: ignore[list-item]
        labelme_shape("cat", "circle", [[5, 5]]),
        labelme_shape("cat", "rectangle", [[1, 1], [1, 9]]),
        labelme_shape("cat", "rectangle", [[1, 1], [float("nan"), 9]]),
        labelme_shape("cat", "mask", [[1, 1], [9, 9]], mask="bm8gaW1hZ2U="),
        labelme_shape("cat", "mask", [[1, 1], [9, 9]], mask=None),
        labelme_shape("cat", "cuboid", [[1, 1], [9, 9]]),
        labelme_shape("", "polygon", [[1, 1], [9, 1], [9, 9]]),
    ],
)
def test_a_shape_that_cannot_be_used_is_listed(tmp_path: Path, shape: Any) -> None:
    source = tmp_path / "source"
    for number in range(3):
        save_picture(source / f"{number}.jpg")
        good = labelme_shape("cat", "rectangle", [[4, 5], [24, 15]])
        write(source / f"{number}.json", labelme(f"{number}.jpg", [good, shape] if number == 1 else [good]))
    report = import_dataset(source, tmp_path / "out")
    assert [(each.reason, each.path.name) for each in report.plan.left_out] == [
        ("shape that cannot be used", "1.json")
    ]
    assert report.plan.left_out[0].detail.startswith("shape 2: ")
    assert boxes_of(tmp_path / "out") == {str(number): [CAT] for number in range(3)}


@pytest.mark.parametrize(
    ("names", "fault"), [("{a: cat}", "the key 'a' under 'names'"), ("{}", "no class under 'names'")]
)
def test_invalid_names_in_data_yaml_are_reported(tmp_path: Path, names: str, fault: str) -> None:
    save_picture(tmp_path / "source/a.jpg")
    write(tmp_path / "source/a.txt", "0 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "source/data.yaml", f"names: {names}\n")
    with pytest.raises(UserError, match=f"{fault}; number the classes from 0"):
        import_dataset(tmp_path / "source", tmp_path / "out")
