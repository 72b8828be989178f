import csv
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from segdet.runs.loggers import MetricsFile, choose_mode, wandb_logger
from segdet.runs.wandb_mode import has_account, wandb_mode
from segdet.util.errors import UserError


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


class TestMetricsFile:
    def test_rows_and_new_columns(self, tmp_path: Path) -> None:
        start = time.time()
        file = MetricsFile(tmp_path / "run")
        file.log_metrics({"train/loss": torch.tensor(2.5), "epoch": 0}, step=49)
        file.log_metrics({"val/map": 0.25, "epoch": 0}, step=99)
        file.log_metrics({"train/loss": 1.5, "epoch": 1}, step=149)
        written = rows(tmp_path / "run")
        assert list(written[0]) == ["epoch", "step", "time", "train/loss", "val/map"]
        times = [float(row.pop("time")) for row in written]
        assert start - 0.01 <= times[0] <= times[1] <= times[2] <= time.time() + 0.01
        assert written == [
            {"epoch": "0", "step": "49", "train/loss": "2.5", "val/map": ""},
            {"epoch": "0", "step": "99", "train/loss": "", "val/map": "0.25"},
            {"epoch": "1", "step": "149", "train/loss": "1.5", "val/map": ""},
        ]

    def test_earlier_rows_are_kept(self, tmp_path: Path) -> None:
        MetricsFile(tmp_path).log_metrics({"train/loss": 2.0}, step=0)
        MetricsFile(tmp_path).log_metrics({"test/map": 0.5}, step=1)
        assert [row["step"] for row in rows(tmp_path)] == ["0", "1"]
        assert rows(tmp_path)[0]["train/loss"] == "2.0"
        assert rows(tmp_path)[1]["test/map"] == "0.5"

    def test_only_the_first_rows_are_kept(self, tmp_path: Path) -> None:
        file = MetricsFile(tmp_path)
        for step in range(4):
            file.log_metrics({"train/loss": 2.0}, step=step)
        assert file.rows == 4
        with (tmp_path / "metrics.csv").open("a") as stream:
            stream.write("4,2")  # the process was killed while it wrote this row
        again = MetricsFile(tmp_path)
        again.keep(2)
        again.log_metrics({"train/loss": 1.0, "val/map": 0.5}, step=2)
        assert again.rows == 3
        assert [(row["step"], row["train/loss"]) for row in rows(tmp_path)] == [
            ("0", "2.0"), ("1", "2.0"), ("2", "1.0")
        ]  # fmt: skip


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED", "WANDB_BASE_URL", "NETRC", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


class TestMode:
    def test_the_variable_sets_the_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        for mode in ("disabled", "offline", "online"):
            monkeypatch.setenv("WANDB_MODE", mode)
            assert wandb_mode() == mode

    def test_another_name_for_a_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "DryRun")
        assert wandb_mode() == "offline"

    def test_a_mistyped_mode_is_reported_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "onlin")
        with pytest.raises(
            UserError, match="WANDB_MODE onlin: no such mode; choose from online, offline, disabled"
        ):
            wandb_logger(tmp_path, "p")

    def test_offline_without_an_account(self) -> None:
        assert not has_account()
        assert wandb_mode() == "offline"

    def test_an_account_in_netrc(self, tmp_path: Path) -> None:
        file = tmp_path / ".netrc"
        file.write_text("machine api.wandb.ai login user password " + "x" * 40 + "\n")
        file.chmod(0o600)
        assert has_account()

    def test_online_if_the_server_responds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
            assert wandb_mode() == "online"

    def test_offline_if_the_server_does_not_respond(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        assert wandb_mode() == "offline"
        assert "records offline" in capsys.readouterr().err


class TestLogger:
    def test_no_logger_if_disabled(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("WANDB_MODE", "disabled")
        assert wandb_logger(tmp_path, "p") == []
        assert not (tmp_path / "wandb").exists()

    def test_the_end_of_the_process_of_wandb_does_not_end_the_run(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        def fail(*_: object) -> None:
            raise ConnectionResetError("Connection lost")

        monkeypatch.setattr(WandbLogger, "log_metrics", fail)
        (logger,) = wandb_logger(tmp_path, "p")
        for step in range(2):
            logger.log_metrics({"train/loss": 1.0}, step)
        assert capsys.readouterr().err.count("the process of W&B has ended") == 1

    def test_offline_parts_of_a_run_share_a_group(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Online, W&B continues the record with the same id."""
        file = tmp_path / "run" / "wandb" / "run_id.txt"

        def record() -> tuple[str, str, str]:
            logger: Any = wandb_logger(tmp_path / "run", "p")[0]
            return logger._wandb_init["group"], logger._wandb_init["name"], logger._wandb_init["id"]

        first, second = record(), record()
        assert [first[:2], second[:2]] == [("run", "run"), ("run", "run (part 2)")]
        assert file.read_text().split() == [first[2], second[2]]
        monkeypatch.setenv("LOCAL_RANK", "1")
        record()
        assert len(file.read_text().split()) == 2

    def test_a_logger_of_the_configuration_needs_no_account(self, tmp_path: Path) -> None:
        logger = WandbLogger(save_dir=tmp_path, mode=None)  # as the parser passes the arguments of wandb.init
        choose_mode(logger)
        assert logger._wandb_init["mode"] == "offline"
        logger = WandbLogger(save_dir=tmp_path, mode="disabled")
        choose_mode(logger)
        assert logger._wandb_init["mode"] == "disabled"

    def test_an_offline_test_has_no_record(self, tmp_path: Path) -> None:
        assert wandb_logger(tmp_path, "p", adds_to_run=True) == []


@pytest.mark.slow
def test_a_real_offline_run(tmp_path: Path) -> None:
    """A command in another process writes one record with scores, configuration and images to the run folder."""
    arguments = (
        "fit --model SSD --model.backbone test_resnet --model.width 16 --data ShapesDataModule "
        "--data.root shapes --data.num_train 8 --data.num_val 4 --data.num_test 4 --data.image_size [64,64] "
        "--data.batch_size 4 --data.num_workers 0 --panels.images 2 --trainer.accelerator cpu "
        "--trainer.max_epochs 1 --run_dir run"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    kept |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=kept,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    done = run([sys.executable, "-m", "segdet", *arguments.split()])
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    folder = tmp_path / "run" / "wandb"
    (record,) = folder.glob("offline-run-*")
    assert record.name.endswith((folder / "run_id.txt").read_text().strip())
    (file,) = record.glob("*.wandb")
    wandb = Path(sys.executable).with_name("wandb")
    read = run([str(wandb), "leet", "inspect", "--summary", "--json", str(file)])
    about = json.loads(read.stdout)
    assert about["config"]["model"]["init_args"]["backbone"] == "test_resnet"
    labels = {name: about["config"][name] for name in ("task", "rung", "family", "seed")}
    assert labels == {"task": "detection", "rung": "SSD", "family": "SSD", "seed": 0}
    assert "val/map_50" in read.stdout
    assert "train/loss_box" in read.stdout
    assert len(list((record / "files" / "media" / "images" / "val").glob("*.png"))) == 2
    # no file outside of the folders of the run and the data
    assert not [path for path in (tmp_path / "home").rglob("*") if "wandb" in path.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run", "shapes", "tmp"]
