import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segdet.runs.folder import clear_run, folder_of_checkpoint, holds_run
from segdet.runs.loggers import MetricsFile
from segdet.runs.recorder import RunRecorder, RunSettings
from segdet.util.errors import UserError


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


class TestMetricsFile:
    def test_rows_and_new_columns(self, tmp_path: Path) -> None:
        file = MetricsFile(tmp_path / "run")
        file.log_metrics({"train/loss": torch.tensor(2.5), "epoch": 0}, step=49)
        file.log_metrics({"val/map": 0.25, "epoch": 0}, step=99)
        file.log_metrics({"train/loss": 1.5, "epoch": 1}, step=149)
        assert rows(tmp_path / "run") == [
            {"epoch": "0", "step": "49", "train/loss": "2.5", "val/map": ""},
            {"epoch": "0", "step": "99", "train/loss": "", "val/map": "0.25"},
            {"epoch": "1", "step": "149", "train/loss": "1.5", "val/map": ""},
        ]

    def test_an_earlier_part_stays(self, tmp_path: Path) -> None:
        MetricsFile(tmp_path).log_metrics({"train/loss": 2.0}, step=0)
        MetricsFile(tmp_path).log_metrics({"test/map": 0.5}, step=1)
        assert [row["step"] for row in rows(tmp_path)] == ["0", "1"]
        assert rows(tmp_path)[0]["train/loss"] == "2.0"
        assert rows(tmp_path)[1]["test/map"] == "0.5"


class TestHoldsRun:
    def test_nothing_and_other_files(self, tmp_path: Path) -> None:
        assert not holds_run(tmp_path / "missing")
        (tmp_path / "notes.txt").write_text("")
        assert not holds_run(tmp_path)

    def test_results(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        assert not holds_run(tmp_path)
        (tmp_path / "checkpoints" / "last.ckpt").write_text("")
        assert holds_run(tmp_path)

    def test_one_that_goes_on_and_one_that_failed_before_its_first_step(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("")
        assert holds_run(tmp_path)
        (tmp_path / "result.json").write_text("{}")
        assert not holds_run(tmp_path)


def test_clear_run_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.yaml", "checkpoints/last.ckpt", "mine.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("")
    clear_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_peak_memory_is_taken_where_the_model_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After training Lightning moves the model to the CPU, whose memory is another matter."""
    monkeypatch.setattr("segdet.runs.recorder.peak_memory_mb", lambda d: {"cuda": 5.0, "cpu": 9.0}[d])
    folder = RunRecorder(RunSettings(tmp_path, ""))
    state: Any = SimpleNamespace(current_epoch=1, global_step=2, world_size=1, precision="32-true")
    model: Any = SimpleNamespace(device="cuda", parameters=list, step_losses={})
    folder.on_train_end(state, model)
    model.device = "cpu"
    assert folder._record(state, model, "finished").cost.peak_memory_mb == 5.0


def test_processes_begin_with_the_same_checkpoint_or_not_at_all(tmp_path: Path) -> None:
    """Also the one that has the first one's is stopped, for it would wait for the others."""
    chosen = ["last.ckpt of step 4", "last.ckpt of step 4", ""]
    same = [one == chosen[0] for one in chosen]
    for mine in chosen:
        strategy = SimpleNamespace(
            broadcast=lambda _: chosen[0],
            reduce_boolean_decision=lambda decision: decision and all(same),
        )
        state: Any = SimpleNamespace(world_size=3, is_global_zero=False, strategy=strategy)
        with pytest.raises(UserError, match=f"starts from {mine or 'none'}, rank 0 from last.ckpt of step 4"):
            RunRecorder(RunSettings(tmp_path, "", checkpoint=mine)).setup(state, state, "fit")
    same = [True]
    RunRecorder(RunSettings(tmp_path, "", checkpoint=chosen[0])).setup(state, state, "fit")


def test_folder_of_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert folder_of_checkpoint(file) is None
    file.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("")
    assert folder_of_checkpoint(file) == tmp_path / "run"
    assert folder_of_checkpoint(tmp_path / "run" / "elsewhere" / "best.ckpt") is None
