"""``segdet fit --resume auto`` and ``--test true``: the command that scripts, benches and requeued jobs repeat."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_runs import MODELS, TINY, Line

from segdet.cli.main import main


def fit(shapes: Path, folder: Path, *words: str) -> list[str]:
    return ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}", *words]


def scores(folder: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads((folder / "result.json").read_text())["metrics"]
    return metrics


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_is_trained_and_tested_by_one_command(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores equal those of two commands, and repeating the command does nothing."""
    once = fit(shapes, tmp_path / "once", "--resume=auto", "--test=true")
    assert main(once) == 0
    assert main(["test", f"--ckpt_path={run}", "--trainer.accelerator=cpu"]) == 0
    assert scores(tmp_path / "once") == scores(run)
    record = json.loads((tmp_path / "once/result.json").read_text())
    assert record["cost"]["ms_per_image"] > 0 and record["status"] == "finished"
    config = yaml.safe_load((tmp_path / "once/config.yaml").read_text())
    assert (config["test"], config["resume"]) == (False, None)
    before = (tmp_path / "once/result.json").read_bytes()
    capsys.readouterr()
    assert main(once) == 0
    assert capsys.readouterr().err.splitlines() == [f"segdet: {tmp_path}/once: the training is finished"]
    assert (tmp_path / "once/result.json").read_bytes() == before
    assert entries(tmp_path) == {"once", "run"}


def test_a_finished_run_is_only_tested(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "checkpoints/last.ckpt").read_bytes()
    assert main(fit(shapes, run, "--resume=auto", "--test=true", "--trainer.max_epochs=2")) == 0
    assert "and --trainer.max_epochs 1 -> 2 is not applied" in capsys.readouterr().err
    assert "test/map" in scores(run) and entries(tmp_path) == {"run"}
    assert (run / "checkpoints/last.ckpt").read_bytes() == before


@pytest.mark.parametrize("damage", ["no checkpoint", "only a configuration", "corrupt"])
def test_a_run_that_was_killed_early_is_started(
    damage: str, run: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = scores(run)
    (run / "result.json").unlink()
    if damage == "corrupt":
        for path in (run / "checkpoints").iterdir():
            path.write_bytes(b"PK")
    else:
        shutil.rmtree(run / "checkpoints")
    if damage == "only a configuration":
        (run / "metrics.csv").unlink()
    assert main(fit(shapes, run, "--resume=auto")) == 0
    assert scores(run) == finished
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
    assert ("corrupt" in capsys.readouterr().err) is (damage == "corrupt")


def test_a_run_is_resumed_from_the_newest_valid_checkpoint(
    run: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "result.json").unlink()
    (run / "checkpoints/last.ckpt").write_bytes(b"PK")
    assert main(fit(shapes, run, "--resume=auto", "--trainer.max_epochs=2")) == 0
    record = json.loads((run / "result.json").read_text())
    assert (record["status"], record["epochs"], record["steps"]) == ("finished", 2, 4)
    err = capsys.readouterr().err
    assert "last.ckpt: " in err and "resuming from best.ckpt of step 2" in err


def test_a_stopped_run_needs_no_other_options(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished = scores(run)
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints")
    assert main(["fit", "--run_dir=run", "--resume=auto"]) == 0
    assert scores(run) == finished


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume=auto"], "--resume auto: the run's folder is missing; give --run_dir"),
        (
            ["--resume=auto", "--run_dir=x", "--ckpt_path=last"],
            "--resume auto and --ckpt_path: give one of them",
        ),
        (
            ["--resume=auto", "--run_dir=x", "--overwrite=true"],
            "--resume auto and --overwrite true: give one",
        ),
        (["--test=true", "--trainer.fast_dev_run=true"], "--trainer.fast_dev_run true does not save"),
        (["--test=true", "--trainer.enable_checkpointing=false"], "enable_checkpointing false does not save"),
    ],
)
def test_options_that_contradict_each_other(words: list[str], message: str, shapes: Path, line: Line) -> None:
    assert message in line(["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", *words])


def test_only_fit_tests_and_resumes(run: Path, line: Line) -> None:
    message = "--test: is an option of segdet fit; leave it out"
    assert line(["test", f"--ckpt_path={run}", "--test=true"]) == message
