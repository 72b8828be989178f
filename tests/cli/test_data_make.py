"""Tests of `segdet data make`."""

from pathlib import Path

import pytest
from PIL import Image

from segdet.cli.main import main


def test_makes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "shapes"
    arguments = ["--train=2", "--val=1", "--test=1", "--size=96x64", "--seed=3"]
    assert main(["data", "make", str(root), *arguments]) == 0
    assert capsys.readouterr().out == f"{root}\n"
    images = sorted((root / "JPEGImages").iterdir())
    assert len(images) == 4
    with Image.open(images[0]) as image:
        assert image.size == (96, 64)


def test_a_wrong_size_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make", str(tmp_path / "shapes"), "--size=big"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "shapes").exists()
