"""Lightning's own callbacks, given on the command line or in a configuration file."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import MODELS, TINY

from segdet.cli.main import main
from segdet.data.base import DataModule
from segdet.data.datamodules import ShapesDataModule

Captured = pytest.CaptureFixture[str]


def fit(shapes: Path, folder: Path, *options: str) -> int:
    arguments = [*MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]
    arguments += ["--model.optim.name=sgd", "--model.optim.lr=0.01", "--model.optim.weight_decay=5e-4"]
    return main(["fit", *arguments, *options])


def callback(name: str, **arguments: object) -> str:
    return "--trainer.callbacks=" + json.dumps([{"class_path": name, "init_args": arguments}])


def record(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "result.json").read_text())
    return content


def config(folder: Path) -> dict[str, dict[str, dict[str, object]]]:
    content: dict[str, dict[str, dict[str, object]]] = yaml.safe_load((folder / "config.yaml").read_text())
    return content


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_early_stopping_reports_the_epoch_and_the_reason(
    shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    patience = callback("EarlyStopping", monitor="val/miou", mode="max", patience=1, min_delta=1)
    assert fit(shapes, tmp_path / "a", patience, "--trainer.max_epochs=6") == 0
    assert "segdet: stopped early after epoch 2: val/miou did not improve 1 times" in capsys.readouterr().err
    assert (record(tmp_path / "a")["status"], record(tmp_path / "a")["epochs"]) == ("finished", 2)
    threshold = callback("EarlyStopping", monitor="val/miou", mode="max", stopping_threshold=0)
    assert fit(shapes, tmp_path / "b", threshold, "--trainer.max_epochs=6") == 0
    assert "after epoch 1: val/miou reached stopping_threshold 0" in capsys.readouterr().err
    assert fit(shapes, tmp_path / "c", patience, "--trainer.max_epochs=1") == 0
    assert "stopped early" not in capsys.readouterr().err


def test_the_learning_rate_that_was_found_is_used_and_recorded(
    shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "run"
    finder = callback("LearningRateFinder", num_training_steps=20)
    constant = [
        "--model.optim.schedule=constant",
        "--model.optim.warmup_steps=0",
        "--trainer.limit_val_batches=0",
    ]
    assert (
        fit(shapes, folder, finder, *constant, "--trainer.max_epochs=12", "--trainer.log_every_n_steps=1")
        == 0
    )
    rate = config(folder)["model"]["init_args"]["optim"]["lr"]  # type: ignore[index]
    assert rate != 0.01
    assert f"segdet: found --model.optim.lr {rate:g}" in capsys.readouterr().err
    assert {float(row["lr"]) for row in rows(folder) if row["lr"]} == {rate}
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["optim"]["lr"] == rate
    assert not list(folder.glob(".lr_find*"))
    assert not (folder / "checkpoints" / "best.ckpt").exists()  # only the search was validated
    # A resumed run keeps the rate and does not search again.
    assert main(["fit", f"--ckpt_path={folder}", "--trainer.max_epochs=13"]) == 0
    printed = capsys.readouterr().err
    assert "found" not in printed
    assert "LearningRateFinder searches at the start of a run only" in printed
    assert config(folder)["model"]["init_args"]["optim"]["lr"] == rate  # type: ignore[index]


def test_a_restarted_job_keeps_the_values_that_were_found(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    options = [callback("BatchSizeFinder", steps_per_trial=1), "--data.limit_train=6"]
    assert fit(shapes, folder, *options) == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert fit(shapes, folder, *options, "--trainer.max_epochs=2") == 0
    assert config(folder)["data"]["init_args"]["batch_size"] == 6
    assert record(folder)["steps"] == 2


def test_a_search_of_too_few_steps_keeps_the_learning_rate(
    shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert fit(shapes, tmp_path / "run", callback("LearningRateFinder", num_training_steps=20)) == 0
    assert "found no rate in so few steps; --model.optim.lr stays 0.01" in capsys.readouterr().err


def test_the_batch_size_that_was_found_is_used_and_recorded(
    shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "run"
    # Six images are no power of two, at which the search would end by itself.
    assert fit(shapes, folder, callback("BatchSizeFinder", steps_per_trial=1), "--data.limit_train=6") == 0
    assert "segdet: found --data.batch_size 6" in capsys.readouterr().err
    assert config(folder)["data"]["init_args"]["batch_size"] == 6
    assert record(folder)["steps"] == 1


def test_a_batch_is_no_larger_than_the_training_images(shapes: Path) -> None:
    data: DataModule = ShapesDataModule(
        shapes, num_train=8, num_val=4, num_test=4, image_size=(64, 64), batch_size=16
    )
    assert data.batch_size == 16
    data.prepare_data()
    data.dataset("train")
    data.batch_size = 64
    assert data.batch_size == 8


def test_backbone_finetuning_trains_the_backbone_from_its_epoch(shapes: Path, tmp_path: Path) -> None:
    finetuning = callback("BackboneFinetuning", unfreeze_backbone_at_epoch=1, backbone_initial_ratio_lr=0.1)
    assert (
        fit(shapes, tmp_path / "run", finetuning, "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1")
        == 0
    )
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = checkpoint["optimizer_states"]
    added = state["param_groups"][-1]
    assert added["weight_decay"] == 5e-4
    assert 0 < added["lr"] < state["param_groups"][0]["lr"]
    assert main(["fit", f"--ckpt_path={tmp_path / 'run'}", "--trainer.max_epochs=4"]) == 0


def test_a_schedule_of_accumulated_batches_ends_at_the_last_step(shapes: Path, tmp_path: Path) -> None:
    scheduling = "[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 1, 1: 2}}}]"
    options = [
        f"--trainer.callbacks={scheduling}",
        "--model.optim.warmup_steps=0",
        "--trainer.log_every_n_steps=1",
    ]
    assert fit(shapes, tmp_path / "run", *options, "--trainer.max_epochs=3") == 0
    assert record(tmp_path / "run")["steps"] == 4
    rates = [float(row["lr"]) for row in rows(tmp_path / "run") if row["lr"]]
    assert rates[-1] == pytest.approx(
        0.01 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 3 / 4)).item()), abs=2e-3
    )


def test_own_checkpoints_are_in_the_run_folder(shapes: Path, tmp_path: Path) -> None:
    own = callback("ModelCheckpoint", filename="own-{epoch}", monitor="val/miou", mode="max")
    assert fit(shapes, tmp_path / "run", own) == 0
    names = {path.name for path in (tmp_path / "run").rglob("*.ckpt")}
    assert names == {"own-epoch=0.ckpt", "best.ckpt", "last.ckpt"}
    assert main(["test", f"--ckpt_path={tmp_path / 'run'}", own]) == 0
    assert fit(shapes, tmp_path / "off", own, "--trainer.enable_checkpointing=false") == 0
    assert not list((tmp_path / "off").rglob("*.ckpt"))


@pytest.mark.parametrize(
    "callbacks",
    [
        callback("LearningRateMonitor", logging_interval="step"),
        callback("Timer", duration="00:00:05:00"),
        callback("ModelSummary", max_depth=2),
        callback("TQDMProgressBar", refresh_rate=5),
    ],
)
def test_other_callbacks_work(callbacks: str, shapes: Path, tmp_path: Path) -> None:
    assert fit(shapes, tmp_path / "run", callbacks) == 0
    assert record(tmp_path / "run")["status"] == "finished"


def test_own_loggers_get_the_metrics_too(shapes: Path, tmp_path: Path) -> None:
    own = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'own'}"]
    assert fit(shapes, tmp_path / "run", *own) == 0
    (written,) = (tmp_path / "own").rglob("metrics.csv")
    assert "val/miou" in written.read_text()
    assert rows(tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [callback("EarlyStopping", monitor="val/mio")],
            "EarlyStopping: its monitor 'val/mio' has no value; did you",
        ),
        (
            [callback("LearningRateFinder", attr_name="rate")],
            "LearningRateFinder: The attribute name for the learning",
        ),
        (
            [callback("StochasticWeightAveraging", swa_lrs=0.1)],
            "StochasticWeightAveraging: its average is not in all",
        ),
        ([callback("EMAWeightAveraging")], "EMAWeightAveraging: its average is not in all checkpoints"),
        (
            [callback("OnExceptionCheckpoint", dirpath="saved")],
            "OnExceptionCheckpoint: a new training would start from the checkpoint that it saved earlier",
        ),
        (
            [callback("ModelPruning", pruning_fn="l1_unstructured")],
            "ModelPruning: config.yaml cannot contain its pruning function",
        ),
        (
            [callback("ModelCheckpoint", monitor="val/mio")],
            "could not find the monitored key in the returned metrics",
        ),
        (
            [callback("LearningRateMonitor"), "--trainer.logger=false"],
            "Cannot use `LearningRateMonitor` callback",
        ),
    ],
)
def test_a_callback_that_cannot_work_is_reported_in_one_line(
    options: list[str], message: str, shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert fit(shapes, tmp_path / "run", *options) == 2
    *earlier, line = capsys.readouterr().err.splitlines()
    assert line.startswith("segdet: error: --trainer")
    assert message in line
    assert not any("site-packages" in each for each in earlier)  # no raw warning
