"""Lightning's loggers in ``--trainer.logger`` write into the run's folder."""

import csv
import importlib.util
from pathlib import Path

import pytest
from tiny_runs import MODELS, TINY, Line

from segdet.cli.main import main

HAS_TENSORBOARD = any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX"))


def fit(shapes: Path, folder: Path, *options: str) -> int:
    fixed = [f"--data.root={shapes}", f"--run_dir={folder}", "--wandb=false", "--panels.images=0"]
    return main(["fit", *MODELS["localization"], *TINY, *fixed, *options])


def logged(file: Path) -> list[dict[str, str]]:
    """Return the logged values of each row, without the time."""
    rows = csv.DictReader(file.read_text().splitlines())
    return [{name: value for name, value in row.items() if value and name != "time"} for row in rows]


def test_a_csv_logger_is_named_and_repeated_from_the_config(shapes: Path, tmp_path: Path) -> None:
    assert fit(shapes, tmp_path / "a", "--trainer.logger=CSVLogger") == 0
    (file,) = (tmp_path / "a/lightning_logs").rglob("metrics.csv")
    assert logged(file) == logged(tmp_path / "a/metrics.csv")
    assert fit(shapes, tmp_path / "b", f"--config={tmp_path / 'a/config.yaml'}") == 0
    assert len(list((tmp_path / "a/lightning_logs").iterdir())) == 1
    assert (tmp_path / "b/lightning_logs").is_dir()


def test_the_folder_of_a_logger_can_be_given(shapes: Path, tmp_path: Path) -> None:
    options = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'logs'}"]
    assert fit(shapes, tmp_path / "run", *options) == 0
    assert list((tmp_path / "logs").rglob("metrics.csv")) and not (tmp_path / "run/lightning_logs").exists()


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="tensorboard is not installed")
def test_a_tensorboard_logger_is_named(shapes: Path, tmp_path: Path) -> None:
    assert fit(shapes, tmp_path / "run", "--trainer.logger=TensorBoardLogger") == 0
    assert list((tmp_path / "run/lightning_logs").rglob("events.out.tfevents.*"))


@pytest.mark.skipif(HAS_TENSORBOARD, reason="tensorboard is installed")
def test_a_missing_tensorboard_is_reported_in_one_line(shapes: Path, line: Line) -> None:
    options = [*MODELS["localization"], *TINY, f"--data.root={shapes}", "--trainer.logger=TensorBoardLogger"]
    message = line(["fit", *options])
    assert message.startswith("--trainer.logger TensorBoardLogger: a package is missing (")
    assert "tensorboardX" in message and len(message) < 200


def test_the_help_of_a_logger_names_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--trainer.logger.help=CSVLogger"]) == 0
    assert "--trainer.logger.save_dir" in capsys.readouterr().out
