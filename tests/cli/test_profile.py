"""``segdet profile``: configurations and runs, their files and tables, and errors in one line."""

from pathlib import Path

import pytest
import yaml
from tiny_runs import Line

from segdet.cli.main import main
from segdet.profiling.result import read_profile
from segdet.runs.ownership import Ownership

FAST = ["--images=3", "--time_limit=0.5", "--batch_size=2", "--trainer.accelerator=cpu"]


def write_config(path: Path, shapes: Path, model: str, **arguments: object) -> Path:
    data: dict[str, object] = {"root": str(shapes), "batch_size": 2, "num_workers": 0}
    config = {
        "model": {"class_path": model, "init_args": {"backbone": "test_resnet", **arguments}},
        "data": {"class_path": "VOCDataModule", "init_args": data},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_profile_of_a_run_is_in_its_folder(
    run: Path, capsys: pytest.CaptureFixture[str], line: Line
) -> None:
    assert main(["profile", str(run), *FAST]) == 0
    assert "random weights" not in capsys.readouterr().err
    profile = read_profile(run / "profile.json")
    assert (profile.name, profile.source) == ("run", str(run))
    assert profile.weights == str(run / "checkpoints" / "best.ckpt")
    assert profile.command.startswith(f"segdet profile {run}")
    other = Ownership(run)
    try:
        with pytest.MonkeyPatch.context() as patch:  # as another process
            patch.setattr("segdet.runs.ownership.Claim.is_of", lambda *_: False)
            assert "is writing to this run" in line(["profile", str(run), *FAST])
    finally:
        other.release()


@pytest.mark.usefixtures("fitted")
def test_several_configurations_share_a_table(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_config(tmp_path / "one.yaml", shapes, "SSD", width=8)
    two = write_config(tmp_path / "two.yaml", shapes, "BoxHead")
    assert main(["profile", str(one), str(two), *FAST]) == 0
    captured = capsys.readouterr()
    rows = [line for line in captured.out.splitlines() if line.startswith(("| one ", "| two "))]
    assert len(rows) == 6  # costs, stages, and stages in processor time
    assert "network" in captured.out and "`torchvision::nms`" in captured.out
    assert "one, two: random weights; the time of NMS depends on the weights" in captured.err


@pytest.mark.usefixtures("fitted")
def test_a_profile_is_written_to_a_file(shapes: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "ssd.yaml", shapes, "SSD", width=8)
    assert main(["profile", str(config), *FAST, "--output", str(tmp_path / "ssd.json")]) == 0
    profile = read_profile(tmp_path / "ssd.json")
    assert (profile.name, profile.model, profile.weights) == ("ssd", "SSD", "random")
    assert len(profile.images) == len(profile.sizes) == 3 >= len(profile.flops.values) > 0
    assert all(name.startswith("JPEGImages/") for name in profile.images)
    assert set(profile.stages.ms) == {"read", "resize", "network", "head", "nms", "other"}
    assert profile.memory.training_mb is not None
    assert profile.memory.training_mb > profile.memory.inference_mb > 0
    assert profile.load_before and profile.hardware["cores"] > 0


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["missing.yaml"], "missing.yaml: no such file or folder"),
        (["."], "no run in it"),
        (["a.yaml", "--images", "0"], "--images 0: must be at least 1"),
        (["a.yaml", "b.yaml", "--output", "x.json"], "--output x.json: the file holds one profile"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    arguments: list[str], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *arguments]) == 2
    error = capsys.readouterr().err
    assert fault in error and error.count("\n") == 1
