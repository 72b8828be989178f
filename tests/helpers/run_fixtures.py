"""Fixtures of tests that run the command: a data set, a finished run, and the message of a mistake."""

import shutil
from pathlib import Path

import pytest
from tiny_runs import MODELS, TINY, Line

from segdet.cli.main import main


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a Shapes data set, which the first run writes."""
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture(scope="session")
def fitted(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished detection run."""
    folder = tmp_path_factory.mktemp("runs") / "fitted"
    assert main(["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, which a test may change."""
    return Path(shutil.copytree(fitted, tmp_path / "run"))


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    """A function that runs an invalid command and returns its one line of output."""
    monkeypatch.chdir(tmp_path)

    def message(argv: list[str]) -> str:
        capsys.readouterr()
        assert main(argv) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("segdet: error: ")
        assert not (tmp_path / "runs").exists()
        return lines[0].removeprefix("segdet: error: ")

    return message
