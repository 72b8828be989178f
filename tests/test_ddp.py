"""A run of two processes has one folder, one W&B run, and the scores of a single process."""

import csv
import json
import math
from pathlib import Path

import pytest
from evidence_scores import scores_of
from forked_process import forked_command

from experiments import processes
from segdet.runs.evidence import EVIDENCE_NAME, read_evidence
from segdet.runs.gallery import GALLERY_FOLDER

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


def segdet(arguments: str, folder: Path) -> tuple[int, str]:
    """Run a command in ``folder``; return its exit status and its output."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    command = forked_command(
        arguments.split(), log, {"WANDB_MODE": "offline", "HOME": str(folder)}, folder=folder
    )
    try:
        return command.wait(280), log.read_text()
    finally:
        command.kill_group()


FAMILIES_HERE = ["FCN", "BoxHead", "RetinaNet", "RCNN", "MaskRCNN"]
"""Families that differ in metrics, stages or inputs. ``python experiments/processes.py`` compares all families."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, processes.Scores]]:
    """The folder of runs that train on two processes, and their scores on 1, 2 and 3 processes."""
    folder = tmp_path_factory.mktemp("processes")
    return folder, {each.name: each for each in processes.run(FAMILIES_HERE, folder)}


@pytest.mark.slow
@pytest.mark.timeout(900)  # of the first test, which waits for all runs
@pytest.mark.parametrize("name", FAMILIES_HERE)
def test_two_and_three_processes_give_the_scores_of_one_process(
    name: str, runs: tuple[Path, dict[str, processes.Scores]]
) -> None:
    found = runs[1][name]
    for count in (2, 3):
        assert found.tested[count] == pytest.approx(found.tested[1], abs=1e-6)
    # The validation scores of the training on two processes equal those of one process.
    assert found.trained == pytest.approx(found.validated, abs=1e-6)
    assert found.difference <= 1e-6
    assert any(value for value in found.tested[1].values())  # some scores of each network are above zero


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAMILIES_HERE)
def test_the_evidence_and_the_gallery_are_the_same_for_any_number_of_processes(
    name: str, runs: tuple[Path, dict[str, processes.Scores]]
) -> None:
    folders = [runs[0] / name / f"test{count}" for count in (1, 2, 3)]
    one, *others = (read_evidence(folder / EVIDENCE_NAME) for folder in folders)
    scores = scores_of(one)
    assert len(one) == processes.TEST - (name == "BoxHead")  # one image has no dominant object
    for count, evidence in enumerate(others, 2):
        assert json.loads((folders[count - 1] / "result.json").read_text())["per_image"] == EVIDENCE_NAME
        assert evidence.file_names == one.file_names
        assert evidence.image_ids.tolist() == one.image_ids.tolist()
        # The last digits of a prediction depend on the other images of its batch.
        assert scores_of(evidence) == pytest.approx(scores, abs=1e-6, nan_ok=True)
        tested = runs[1][name].tested[count]
        recorded = {each: tested.get(f"test/{each}", float("nan")) for each in scores}
        assert scores == pytest.approx(recorded, abs=1e-6, nan_ok=True)
    galleries = [
        {path.name: path.read_bytes() for path in (folder / GALLERY_FOLDER).iterdir()} for folder in folders
    ]
    assert galleries[0].keys() == galleries[1].keys() == galleries[2].keys()
    assert {"0.jpg", f"{len(one) - 1}.jpg", "gallery.json"} <= galleries[0].keys()
    for gallery in galleries[1:]:
        for file, content in gallery.items():
            assert ".predicted." in file or content == galleries[0][file], file


@pytest.mark.slow
@pytest.mark.timeout(900)  # of the first test, which waits for all runs
@pytest.mark.parametrize("name", FAMILIES_HERE)
def test_two_processes_write_one_run(name: str, runs: tuple[Path, dict[str, processes.Scores]]) -> None:
    folder, scores = runs
    run = folder / name / "run"
    record = json.loads((run / "result.json").read_text())
    assert (record["status"], record["steps"], record["hardware"]["processes"]) == ("finished", 12, 2)
    assert scores[name].wandb_runs == 1
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    steps = [row["step"] for row in rows if row["train/loss"]]
    assert len(steps) == len(set(steps)) == 6  # one row for each epoch, from one process
    validations = [row for row in rows if any(value for key, value in row.items() if key.startswith("val/"))]
    assert len(validations) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_proposals_are_computed_once(runs: tuple[Path, dict[str, processes.Scores]]) -> None:
    assert runs[1]["RCNN"].proposed == (processes.TRAIN + processes.VAL, processes.TRAIN + processes.VAL)


@pytest.mark.slow
def test_two_processes_train_and_test_with_one_command(tmp_path: Path) -> None:
    """The scores equal those of a test with one process. Repeating the command does nothing."""
    model = "--model FCN --model.backbone test_resnet --model.width 8"
    two = "--trainer.devices 2 --trainer.strategy ddp --trainer.max_epochs 1"
    command = f"fit {model} {DATA} {two} --run_dir run --resume auto --test true"
    status, output = segdet(command, tmp_path)
    assert status == 0, output
    record = (tmp_path / "run/result.json").read_bytes()
    one = "test --ckpt_path run --trainer.accelerator cpu --trainer.devices 1 --run_dir one"
    status, output = segdet(one, tmp_path)
    assert status == 0, output
    together, alone = (
        {name: value for name, value in json.loads(text)["metrics"].items() if name.startswith("test/")}
        for text in (record, (tmp_path / "one/result.json").read_bytes())
    )
    assert alone and together == pytest.approx(alone, abs=1e-6)
    assert segdet(command, tmp_path) == (0, "segdet: run: the training is finished\n")
    assert (tmp_path / "run/result.json").read_bytes() == record
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} <= {
        "run",
        "one",
        "shapes",
        ".cache",
        ".config",
    }


def test_a_difference_of_scores_is_found() -> None:
    scores = {"test/miou": 0.5, "test/iou/a": None}

    def difference(other: dict[str, float | None]) -> float:
        tested: dict[int, dict[str, float | None]] = {1: scores, 2: scores, 3: other}  # type: ignore[dict-item]
        return processes.Scores("FCN", tested, {"val/miou": 0.1}, {"val/miou": 0.1}, 1, None).difference

    assert difference({"test/miou": 0.5, "test/iou/a": None}) == 0
    assert difference({"test/miou": 0.501, "test/iou/a": None}) == pytest.approx(0.001)
    assert difference({"test/miou": 0.5}) == math.inf
    assert difference({"test/miou": 0.5, "test/iou/a": 0.0}) == math.inf


@pytest.mark.slow
def test_an_error_in_both_processes_is_reported_in_one_line(tmp_path: Path) -> None:
    two = "--trainer.devices 2 --trainer.strategy ddp --trainer.max_epochs 1"
    assert segdet(f"fit {MODELS['segmentation']} {DATA} {two} --run_dir first", tmp_path)[0] == 0
    for image in (tmp_path / "shapes" / "JPEGImages").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    status, output = segdet(f"fit {MODELS['segmentation']} {DATA} {two} --run_dir second", tmp_path)
    assert status != 0
    errors = [line for line in output.splitlines() if line.startswith("segdet: error: ")]
    assert len(errors) == 1, output
    assert "Traceback" not in output


@pytest.mark.slow
def test_an_error_in_one_process_stops_both(tmp_path: Path) -> None:
    """The other process waits in an all-reduce that will never complete."""
    two = "--trainer.devices 2 --trainer.strategy ddp --trainer.max_epochs 1"
    assert segdet(f"fit {MODELS['segmentation']} {DATA} {two} --run_dir first", tmp_path)[0] == 0
    stem = (tmp_path / "shapes" / "ImageSets" / "Main" / "train.txt").read_text().split()[0]
    (image,) = (tmp_path / "shapes" / "JPEGImages").glob(f"{stem}.*")
    image.write_bytes(
        image.read_bytes()[: image.stat().st_size // 2]
    )  # the header, which is checked first, is intact
    status, output = segdet(f"fit {MODELS['segmentation']} {DATA} {two} --run_dir second", tmp_path)
    assert status == 2, output
    errors = [line for line in output.splitlines() if line.startswith("segdet: error: ")]
    assert len(errors) == 1, output
    assert image.name in errors[0]
    assert "Traceback" not in output
    assert json.loads((tmp_path / "second" / "result.json").read_text())["status"] == "failed"
