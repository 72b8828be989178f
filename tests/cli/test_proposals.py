"""Tests of `segdet proposals`: its table, its plot, its file, and its errors."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from proposal_images import make_voc

from segdet.cli.main import main
from segdet.metrics.proposals import ProposalScores
from segdet.proposals import UniformWindows
from segdet.proposals.evaluate import scores_table
from segdet.proposals.file import load_proposals


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGDET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("shapes") / "voc")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_scores_draws_and_saves(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, file = tmp_path / "plots/curves.png", tmp_path / "boxes.npz"
    arguments = ["proposals", str(shapes), "--split", "val", "--counts", "10", "100"]
    both = [*arguments, "--proposer", "single", "windows", "--workers=1", "--plot", str(picture)]
    assert main(both) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [cells(line) for line in lines if line.startswith("| ")]
    assert rows[0] == ["proposer", "boxes", "recall@.5", "recall@.7", "MABO"]
    assert {row[0] for row in rows[1:]} == {"single", "windows"}
    values = np.array([[float(cell) for cell in row[2:]] for row in rows[1:]])
    assert ((values >= 0) & (values <= 1)).all() and values.max() > 0.3
    assert any("single" in line and "MB in" in line and "2 images computed" in line for line in lines)
    with Image.open(picture) as image:
        assert image.width > 1000 and len(np.unique(np.asarray(image.convert("L")))) > 20
    # The second run uses the cache, and the saved file gives the same scores.
    assert main([*arguments, "--proposer", "single", "--save", str(file)]) == 0
    text = capsys.readouterr().out
    assert "computed" not in text
    assert len(load_proposals(file)) == 2
    assert main([*arguments, "--proposer", str(file)]) == 0
    again = [cells(line)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert again == [cells(line)[1:] for line in text.splitlines() if line.startswith("| ")]
    assert again == [row[1:] for row in rows if row[0] != "windows"]


def test_the_last_row_of_the_table_is_of_all_boxes() -> None:
    scores = ProposalScores([1, 5, 100_000])
    box = np.array([[0, 0, 10, 10]])
    scores.update(np.concatenate([box + 100, box]), box, np.array([1]))
    lines = scores_table({"mine": scores}, [5, 1]).splitlines()
    assert [cells(line) for line in lines[2:]] == [
        ["mine", "1", "0.000", "0.000", "0.000"],
        ["mine", "all (2)", "1.000", "1.000", "1.000"],
    ]


def test_bad_images_are_listed(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "copy"
    shutil.copytree(shapes, root)
    name = (root / "ImageSets/Main/val.txt").read_text().split()[0]
    (path,) = (root / "JPEGImages").glob(f"{name}.*")
    path.write_bytes(b"")
    arguments = ["proposals", str(root), "--split", "val", "--proposer", "windows", "--workers=1"]
    assert main(arguments) == 0
    assert f"Left out: {path}: the file is empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--proposer", "slow"], "--proposer slow: unknown; choose single"),
        (["--proposer", "nowhere.npz"], "nowhere.npz: no such file"),
        (["--counts", "0"], "--counts 0: must be at least 1"),
        (["--limit", "0"], "--limit 0: must be at least 1"),
        (["--task", "segmentation"], "--task segmentation"),
        (["--save", "boxes.txt"], "--save boxes.txt: the file of proposals must end in .json or .npz"),
        (["--proposer", "fast", "single", "--save", "a.npz"], "holds the boxes of one proposer; give one"),
        (["--plot", "curves.txt"], "--plot curves.txt: must end in .png"),
        (["--min_width", "-1"], "min_width -1: must be at least 0"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    shapes: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fault: str
) -> None:
    assert main(["proposals", str(shapes), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and fault in error


@pytest.mark.parametrize(("option", "name"), [("--plot", "curves.png"), ("--save", "boxes.npz")])
def test_unwritable_outputs_are_reported_before_computing(
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    name: str,
) -> None:
    monkeypatch.setattr(UniformWindows, "open", lambda *_: pytest.fail("computes"))
    (tmp_path / "file").touch()
    target = tmp_path / "file" / name
    assert main(["proposals", str(shapes), "--proposer", "windows", option, str(target)]) == 2
    assert f"{option} {target}: cannot be written" in capsys.readouterr().err


def test_refuses_to_save_two_images_of_one_name(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for year in ("VOC2007", "VOC2008"):
        shutil.copytree(shapes, tmp_path / "voc" / year)
    arguments = ["proposals", str(tmp_path / "voc"), "--proposer", "windows", "--workers=1"]
    arguments += ["--save", str(tmp_path / "boxes.npz"), "--split"]
    assert main([*arguments, "2007/val", "2008/val"]) == 2
    assert "have the same name" in capsys.readouterr().err
    assert main([*arguments, "2007/val", "2007/val"]) == 0  # the same images twice
