"""``segdet fit``: the run's folder and its files."""

import csv
import json
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny_runs import MODELS, TINY, Line

from segdet.cli import train
from segdet.cli.main import main
from segdet.training.load_checkpoint import DESCRIPTION


def test_run_folder_holds_everything(fitted: Path) -> None:
    names = {path.relative_to(fitted).as_posix() for path in fitted.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "provenance.json", "metrics.csv", "result.json", "checkpoints/best.ckpt",
        "checkpoints/last.ckpt", "predictions/val_0001.png", "inputs.json.gz", ".owner/00000001.json",
    }  # fmt: skip


def test_record(fitted: Path, shapes: Path) -> None:
    record = json.loads((fitted / "result.json").read_text())
    assert (record["task"], record["model"], record["data"]) == ("detection", "SSD", "ShapesDataModule")
    assert (record["status"], record["epochs"], record["steps"], record["seed"]) == ("finished", 1, 2, 0)
    assert {"val/map", "val/map_50", "train/loss"} <= record["metrics"].keys()
    assert record["cost"]["parameters"] > 1000
    assert record["cost"]["train_seconds"] > 0
    assert record["command"].startswith("segdet fit --model=SSD")
    assert record["backbone"] == "test_resnet"


def test_provenance(fitted: Path) -> None:
    provenance = json.loads((fitted / "provenance.json").read_text())
    assert (
        provenance["packages"]["torch"] == torch.__version__.split("+")[0] or provenance["packages"]["torch"]
    )
    assert provenance["hardware"]["cores"] >= 1
    assert provenance["hardware"]["cpu"]
    assert provenance["fingerprint"]
    assert provenance["seed"] == 0
    assert provenance["command"].startswith("segdet fit")
    assert "git" in provenance


def test_metrics_file(fitted: Path) -> None:
    rows = list(csv.DictReader((fitted / "metrics.csv").read_text().splitlines()))
    trained = [row for row in rows if row["train/loss"]]
    scored = [row for row in rows if row["val/map"]]
    assert [row["step"] for row in trained] == ["1"]
    assert [row["step"] for row in scored] == ["1"]
    parts = float(trained[0]["train/loss_class"]) + float(trained[0]["train/loss_box"])
    assert float(trained[0]["train/loss"]) == pytest.approx(parts, rel=1e-5)
    assert float(trained[0]["lr"]) > 0


def test_config_starts_the_same_run(fitted: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((fitted / "config.yaml").read_text())
    assert config["run_dir"] is None
    again = tmp_path / "again"
    assert main(["fit", "--config", str(fitted / "config.yaml"), "--run_dir", str(again)]) == 0
    assert yaml.safe_load((again / "config.yaml").read_text()) == config
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (fitted, again))
    assert first["metrics"] == second["metrics"]


def test_checkpoints_contain_their_configuration(fitted: Path) -> None:
    for name in ("best", "last"):
        content = torch.load(fitted / "checkpoints" / f"{name}.ckpt", weights_only=True)
        description = content[DESCRIPTION]
        assert yaml.safe_load(description["config"])["model"]["class_path"].endswith("SSD")
        assert len(description["class_names"]) == len(description["category_ids"]) >= 5
        assert description["task"] == "detection"


def test_default_folder_is_named_after_model_and_data(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}"]) == 0
    assert main(["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}"]) == 0
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(name.startswith("fcn-shapes-20") for name in folders)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("task", ["segmentation", "localization"])
def test_data_follow_the_task_of_the_model(task: str, shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["fit", *MODELS[task], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]) == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]["task"] == task


def test_a_run_is_not_overwritten(run: Path, shapes: Path, line: Line) -> None:
    before = (run / "result.json").read_text()
    arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", f"--run_dir={run}"]
    message = line(arguments)
    assert message.startswith(f"{run}: holds a run; ")
    assert "--resume auto" in message
    assert (run / "result.json").read_text() == before
    (run / "mine.txt").write_text("kept")
    (run / "predictions" / "old.png").write_text("")
    assert main([*arguments, "--overwrite=true"]) == 0
    assert (run / "mine.txt").exists()
    assert not (run / "predictions" / "old.png").exists()


def test_a_command_of_several_lines_leaves_the_configuration_readable(shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given = ["--config", "trainer:\n  max_epochs: 3\n  fast_dev_run: true\n", f"--run_dir={folder}"]
    arguments = [word for word in TINY if "max_epochs" not in word]
    assert main(["fit", *MODELS["detection"], *arguments, f"--data.root={shapes}", *given]) == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"] == 3


@pytest.mark.parametrize(
    "end", [["--trainer.max_epochs=1"], ["--trainer.max_epochs=3", "--trainer.max_steps=1"]]
)
def test_a_training_that_ends_before_its_first_validation_has_a_score_and_a_best_checkpoint(
    end: list[str], shapes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [*MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]
    assert main(["fit", *arguments, "--trainer.check_val_every_n_epoch=5", *end]) == 0
    assert (folder / "predictions" / "val_0001.png").exists()
    assert "val/miou" in json.loads((folder / "result.json").read_text())["metrics"]
    assert (folder / "checkpoints" / "best.ckpt").exists()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"]["check_val_every_n_epoch"] == 5


def test_bad_sample_in_a_worker_is_reported_in_one_line(
    shapes: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(shapes, tmp_path / "shapes"))
    for image in (root / "JPEGImages").iterdir():
        content = image.read_bytes()
        image.write_bytes(content[: len(content) // 2])  # the header is complete
    folder = tmp_path / "run"
    arguments = [*MODELS["segmentation"], *TINY, f"--data.root={root}", "--data.num_workers=1"]
    assert main(["fit", *arguments, f"--run_dir={folder}"]) == 2
    errors = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert len(errors) == 1
    assert errors[0].startswith(f"segdet: error: {root}/JPEGImages/")
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seed_everything=-1", "--seed_everything -1: must be at least 0 and at most 4294967295"),
        ("--model.optim.lr=-1", "--model.optim.lr -1.0: must be at least 0"),
        (
            "--trainer.val_check_interval=9",
            "--trainer.val_check_interval 9: `val_check_interval` (9) must be less than or equal",
        ),
        (
            "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: none}}]",
            "--trainer.callbacks EarlyStopping: its monitor 'none' has no value; choose from ",
        ),
    ],
)
def test_an_option_that_the_training_refuses_is_reported_in_one_line(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    arguments = [*MODELS["detection"], *TINY, f"--data.root={shapes}", f"--run_dir={tmp_path / 'run'}"]
    assert main(["fit", *arguments, option]) == 2
    output = capsys.readouterr().err
    assert f"segdet: error: {message}" in output.splitlines()[-1]


def test_irrelevant_warnings_are_suppressed() -> None:
    from segdet.cli.train import without_irrelevant_messages

    with without_irrelevant_messages():  # warnings are errors here
        warnings.warn("\n  Dump of a value that does not round-trip: a tuple is", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning):
            warnings.warn("another", UserWarning, stacklevel=1)


def test_the_configuration_records_chosen_options(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = [
        *MODELS["detection"], "--data=ShapesDataModule", "--data.num_train=8", "--data.num_val=4", "--data.num_test=4",
        "--data.image_size=[64, 64]", f"--data.root={shapes}", "--trainer.accelerator=cpu",
        f"--run_dir={run}", "--trainer.max_time=00:00:00:01",
    ]  # fmt: skip
    assert main(["fit", *options]) == 0
    assert "segdet: chosen for these data and this" in capsys.readouterr().err
    config = yaml.safe_load((run / "config.yaml").read_text())
    data, optim = config["data"]["init_args"], config["model"]["init_args"]["optim"]
    assert data["recipe"]["class_path"] == "segdet.data.ScaleJitter" and data["recipe"]["init_args"]["size"]
    assert (optim["name"], optim["lr"], optim["momentum"], optim["weight_decay"]) == (
        "adamw",
        1e-3,
        0.9,
        0.01,
    )
    # The recorded configuration leaves nothing to choose.
    assert main(["fit", f"--config={run / 'config.yaml'}", f"--run_dir={tmp_path / 'again'}"]) == 0
    assert "chosen" not in capsys.readouterr().err
    again = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert again["data"] == config["data"] and again["model"] == config["model"]


def test_the_end_of_the_process_of_wandb_keeps_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def fail(**_: object) -> None:
        called.append(1)
        raise ConnectionResetError("Connection lost")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=1, finish=fail, teardown=fail))  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as leaving, train._finished_wandb_record():
        raise SystemExit(143)
    assert leaving.value.code == 143
    assert len(called) == 2  # otherwise teardown would be attempted at exit
