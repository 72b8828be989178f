"""Tests of `segdet data show`."""

import cv2
import numpy as np
import pytest

from segdet.cli.data.show import main
from segdet.data.formats.detect import find_dataset
from segdet.data.inspect.show import draw_sample


@pytest.mark.parametrize("task", ["detection", "localization", "segmentation"])
def test_show_writes_a_sheet(voc_folder, tmp_path, capsys, task):
    output = tmp_path / "out/sheet.png"
    assert main([str(voc_folder), "--task", task, "--cell", "128", "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    page = cv2.imread(str(output))
    assert page.shape[1] == 14 + 3 * 142
    assert (page != 255).any(axis=2).mean() > 0.3


def test_show_draws_the_requested_samples(coco_folder, tmp_path, capsys):
    def show(name: str, *arguments: str) -> np.ndarray:
        output = tmp_path / name
        assert main([str(coco_folder), "--cell", "64", *arguments, "--output", str(output)]) == 0
        return cv2.imread(str(output))

    one = show("one.png", "--split", "val", "--index", "1")
    assert one.shape[1] == 14 + 78
    assert (show("a.png", "--count", "2") == show("b.png", "--count", "2")).all()
    pages = [show(f"{seed}.png", "--count", "1", "--seed", str(seed)) for seed in range(6)]
    assert any(page.shape != pages[0].shape or (page != pages[0]).any() for page in pages[1:])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--index", "9", "--split", "train"], "--index 9: the split train has the samples 0 to 1"),
        (["--count", "0"], "--count 0: must be at least 1"),
        (["--output", "sheet.pdf"], "--output sheet.pdf: must end in .png or .jpg or .jpeg"),
    ],
)
def test_mistakes_are_reported_in_one_line(voc_folder, capsys, arguments, line):
    assert main([str(voc_folder), *arguments]) == 2
    assert capsys.readouterr().err == f"segdet data show: {line}\n"


def test_an_earlier_sheet_is_kept_unless_it_is_named(voc_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [str(voc_folder), "--cell", "64", "--count", "1"]
    contents = []
    for seed, name in enumerate(("sheet.png", "sheet-2.png", "sheet-3.png")):
        assert main([*arguments, "--seed", str(seed)]) == 0
        assert capsys.readouterr().out == f"{name}\n"
        contents.append((tmp_path / name).read_bytes())
    assert [(tmp_path / name).read_bytes() for name in ("sheet.png", "sheet-2.png")] == contents[:2]
    assert main([*arguments, "--output", "sheet.png", "--count", "2"]) == 0
    assert capsys.readouterr().out == "sheet.png (replaced)\n"
    assert (tmp_path / "sheet.png").read_bytes() != contents[0]
    assert main([*arguments, "--output", "sheet.jpg"]) == 0
    assert cv2.imread("sheet.jpg").shape[1] == 14 + 78


def test_bad_samples_are_replaced_and_reported(voc_folder, tmp_path, capsys):
    (voc_folder / "JPEGImages/a.jpg").unlink()
    arguments = [str(voc_folder), "--cell", "128", "--output", str(tmp_path / "sheet.png")]
    for count in ("2", "3"):
        assert main([*arguments, "--count", count]) == 0
        assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] == 14 + 2 * 142
    printed = capsys.readouterr().err
    assert "segdet: left out: " in printed and "a.jpg: no such file" in printed


def test_the_first_bad_samples_are_reported(voc_folder, tmp_path, capsys):
    names = [f"missing{number}" for number in range(9)]
    split = voc_folder / "ImageSets/Main/train.txt"
    split.write_text(split.read_text() + "\n".join(names) + "\n")
    assert main([str(voc_folder), "--task", "detection", "--output", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and lines[-1].startswith("segdet: and 4 more; ")


def test_a_requested_bad_sample_is_reported_in_one_line(voc_folder, tmp_path, capsys):
    (voc_folder / "JPEGImages/a.jpg").unlink()
    arguments = [str(voc_folder), "--split", "train", "--output", str(tmp_path / "sheet.png")]
    assert main([*arguments, "--index", "1", "0"]) == 2
    error = capsys.readouterr().err
    assert "a.jpg: no such file" in error and error.count("\n") == 1
    (voc_folder / "JPEGImages/b.jpg").unlink()
    assert main(arguments) == 2
    assert ".jpg: no such file" in capsys.readouterr().err


def test_classes_without_a_drawn_box_are_not_in_the_legend(voc_folder):
    annotation = voc_folder / "Annotations/a.xml"
    text = annotation.read_text().replace("<xmin>1<", "<xmin>100<").replace("<xmax>20<", "<xmax>120<")
    annotation.write_text(text)  # the cat is outside the image now
    _, labels = draw_sample(find_dataset(voc_folder).open("train"), "detection", 0)
    assert labels.tolist() == [2]
