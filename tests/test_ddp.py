"""A run of two processes has one folder, one W&B run, and the scores of a single process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from segdet.cli.main import main

MODELS = {
    "segmentation": "--model FCN --model.backbone test_resnet --model.width 8",
    "localization": "--model BoxHead --model.backbone test_resnet",
    "detection": "--model SSD --model.backbone test_resnet --model.width 16 --model.score_threshold 0.001",
}
# 5 and 7 images on 2 processes: one process has one image fewer than the other
DATA = (
    "--data ShapesDataModule --data.root shapes --data.num_train 8 --data.num_val 5 --data.num_test 7 "
    "--data.image_size [64,64] --data.batch_size 2 --data.num_workers 0 --panels.images 1 "
    "--trainer.accelerator cpu"
)


def segdet(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    kept |= {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "segdet", *arguments.split()],
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=280,
    )


def scores(folder: Path, prefix: str) -> dict[str, float]:
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    return {name: value for name, value in metrics.items() if name.startswith(prefix)}


@pytest.mark.slow
@pytest.mark.parametrize("task", list(MODELS))
def test_two_processes_write_one_run_with_the_scores_of_one_process(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = "--trainer.devices 2 --trainer.strategy ddp"
    fitted = segdet(f"fit {MODELS[task]} {DATA} {two} --trainer.max_epochs 1", tmp_path)
    assert fitted.returncode == 0, fitted.stderr
    (run,) = (tmp_path / "runs").iterdir()
    record = json.loads((run / "result.json").read_text())
    assert (record["status"], record["steps"], record["hardware"]["processes"]) == ("finished", 2, 2)
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    assert len((run / "metrics.csv").read_text().splitlines()) == 3

    best = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--trainer.accelerator=cpu"]
    tested = segdet(" ".join(["test", *best, two, "--run_dir two"]), tmp_path)
    assert tested.returncode == 0, tested.stderr
    monkeypatch.chdir(tmp_path)
    assert main(["test", *best, "--trainer.devices=1", "--run_dir=one"]) == 0
    alone = scores(tmp_path / "one", "test/")
    assert alone
    assert scores(tmp_path / "two", "test/") == pytest.approx(alone, abs=1e-6)

    # The validation scores of the training on two processes equal those of one process.
    assert main(["validate", *best, "--trainer.devices=1", "--run_dir=val"]) == 0
    assert scores(run, "val/") == pytest.approx(scores(tmp_path / "val", "val/"), abs=1e-6)


@pytest.mark.slow
def test_an_error_in_both_processes_is_reported_in_one_line(tmp_path: Path) -> None:
    two = "--trainer.devices 2 --trainer.strategy ddp --trainer.max_epochs 1"
    assert segdet(f"fit {MODELS['segmentation']} {DATA} {two} --run_dir first", tmp_path).returncode == 0
    for image in (tmp_path / "shapes" / "JPEGImages").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    done = segdet(f"fit {MODELS['segmentation']} {DATA} {two} --run_dir second", tmp_path)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("segdet: error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_error_in_one_process_stops_both(tmp_path: Path) -> None:
    """The other process waits in an all-reduce that will never complete."""
    two = "--trainer.devices 2 --trainer.strategy ddp --trainer.max_epochs 1"
    assert segdet(f"fit {MODELS['segmentation']} {DATA} {two} --run_dir first", tmp_path).returncode == 0
    stem = (tmp_path / "shapes" / "ImageSets" / "Main" / "train.txt").read_text().split()[0]
    (image,) = (tmp_path / "shapes" / "JPEGImages").glob(f"{stem}.*")
    image.write_bytes(
        image.read_bytes()[: image.stat().st_size // 2]
    )  # the header, which is checked first, is intact
    done = segdet(f"fit {MODELS['segmentation']} {DATA} {two} --run_dir second", tmp_path)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("segdet: error: ")]
    assert len(errors) == 1, done.stderr
    assert image.name in errors[0]
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "second" / "result.json").read_text())["status"] == "failed"
