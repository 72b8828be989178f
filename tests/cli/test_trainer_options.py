"""Every option of ``lightning.Trainer`` is used, or refused in one line that names it."""

import csv
import inspect
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from tiny_runs import MODELS, TINY

from segdet.cli.main import main

Captured = pytest.CaptureFixture[str]

# Values that a run of two batches per epoch accepts, and values that it refuses. YAML's null is the default of all.
VALUES: dict[str, tuple[list[str], list[str]]] = {
    "accelerator": (["auto", "cpu"], ["abacus", ""]),
    "strategy": (["auto"], ["abacus"]),
    "devices": (["1", "auto"], ["0", "-1", "abacus", "[]"]),
    "num_nodes": (["1"], ["0", "-1", "1.5"]),
    "precision": (["32-true", "bf16-mixed", "16-mixed"], ["8-true", "64-true", "33"]),
    "logger": (["true", "false"], ["abacus", "3"]),
    "callbacks": (["[]", "LearningRateMonitor"], ["abacus", "[abacus]", "3"]),
    "fast_dev_run": (["true", "2", "0"], ["-1", "1.5"]),
    "max_epochs": (["0", "1"], ["-2", "1.5", "abacus"]),
    "min_epochs": (["0", "1"], ["-1", "2"]),
    "max_steps": (["0", "1", "-1"], ["-2", "0.5"]),
    "min_steps": (["0", "1"], ["-1", "1.5"]),
    "max_time": (
        ["00:00:01:00", "{minutes: 1}"],
        ["abacus", "00:00:00:00", "{hours: -1}", "{weights: 1}", ""],
    ),
    "limit_train_batches": (["0", "0.0", "0.5", "1", "9"], ["0.01", "1.5", "-1", "abacus", "nan"]),
    "limit_val_batches": (["0", "1.0", "3"], ["0.01", "-1", "1.5"]),
    "limit_test_batches": (["0", "0.01", "5"], ["-1", "1.5"]),
    "limit_predict_batches": (["0", "0.01", "5"], ["-1", "1.5"]),
    "overfit_batches": (["0", "1", "1.0"], ["0.01", "-1", "1.5"]),
    "val_check_interval": (["1", "2", "0.5", "00:00:00:01"], ["3", "0", "0.0", "-1", "1.5", "abacus", "nan"]),
    "check_val_every_n_epoch": (["1", "4"], ["0", "-1", "0.5"]),
    "num_sanity_val_steps": (["0", "2", "-1"], ["-2", "0.5"]),
    "log_every_n_steps": (["0", "1", "1000"], ["-1", "0.5"]),
    "enable_checkpointing": (["true", "false"], ["3"]),
    "enable_progress_bar": (["true", "false"], ["3"]),
    "enable_model_summary": (["true", "false"], ["3"]),
    "accumulate_grad_batches": (["1", "2", "9"], ["0", "-1", "1.5"]),
    "gradient_clip_val": (["0", "0.5", "1"], ["-1", "nan", "abacus"]),
    "gradient_clip_algorithm": ([], ["abacus", "norm"]),  # refused without gradient_clip_val
    "deterministic": (["true", "false", "warn"], ["3"]),
    "benchmark": (["true", "false"], ["3"]),
    "inference_mode": (["true", "false"], ["3"]),
    "use_distributed_sampler": (["true", "false"], ["3"]),
    "profiler": (["simple"], ["abacus", "xla", "3"]),
    "detect_anomaly": (["true", "false"], ["3"]),
    "barebones": (["false"], ["true"]),
    "plugins": (["[]"], ["abacus", "3"]),
    "sync_batchnorm": (["true", "false"], ["3"]),
    "reload_dataloaders_every_n_epochs": (["0", "1"], ["-1", "0.5"]),
    "default_root_dir": ([], ["elsewhere"]),
    "enable_autolog_hparams": (["true", "false"], ["3"]),
    "model_registry": ([], ["abacus"]),
}


def fit(shapes: Path, folder: Path, *options: str) -> int:
    arguments = [*MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]
    return main(["fit", *arguments, *options])


def error_lines(output: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", output) if "error" in line.lower()]


def test_the_table_lists_every_option_of_the_trainer() -> None:
    assert VALUES.keys() == inspect.signature(pl.Trainer.__init__).parameters.keys() - {"self"}


@pytest.fixture(autouse=True)
def _nondeterministic() -> Iterator[None]:
    """Undo ``--trainer.deterministic``, which sets a state of the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (accepted, _) in VALUES.items() for value in accepted]
)
def test_accepted(name: str, value: str, shapes: Path, tmp_path: Path, capsys: Captured) -> None:
    assert fit(shapes, tmp_path / "run", f"--trainer.{name}={value}") == 0
    assert error_lines(capsys.readouterr().err) == []
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["status"] == "finished"


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, refused) in VALUES.items() for value in refused]
)
def test_refused(name: str, value: str, shapes: Path, tmp_path: Path, capsys: Captured) -> None:
    assert fit(shapes, tmp_path / "run", f"--trainer.{name}={value}") == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert line.startswith(f"segdet: error: --trainer.{name}")


def test_a_profiler_writes_its_report_into_the_run_folder(shapes: Path, tmp_path: Path) -> None:
    for name in ("simple", "advanced"):
        assert fit(shapes, tmp_path / name, f"--trainer.profiler={name}") == 0
        report = (tmp_path / name / "profile" / "fit-profile.txt").read_text()
        assert "optimizer_step" in report
    own = ["--trainer.profiler=SimpleProfiler", f"--trainer.profiler.dirpath={tmp_path}/own"]
    assert fit(shapes, tmp_path / "object", *own) == 0
    assert (tmp_path / "own" / "fit-profile.txt").exists()
    assert not (tmp_path / "object" / "profile").exists()


def test_a_model_summary_is_printed_on_request(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(caplog.handler)
    try:
        for wanted in ("false", "true"):
            caplog.clear()
            assert fit(shapes, tmp_path / wanted, f"--trainer.enable_model_summary={wanted}") == 0
            assert ("Trainable params" in caplog.text) is (wanted == "true")
    finally:
        logger.removeHandler(caplog.handler)


def logged_steps(folder: Path) -> list[str]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [row["step"] for row in rows if row["train/loss"]]


def test_the_log_interval_0_logs_only_the_last_step_of_an_epoch(shapes: Path, tmp_path: Path) -> None:
    for every, steps in ((0, ["1", "3"]), (1, ["0", "1", "2", "3"])):
        folder = tmp_path / str(every)
        assert fit(shapes, folder, "--trainer.max_epochs=2", f"--trainer.log_every_n_steps={every}") == 0
        assert logged_steps(folder) == steps


def test_a_run_without_training_batches_is_finished_without_steps(shapes: Path, tmp_path: Path) -> None:
    assert fit(shapes, tmp_path / "run", "--trainer.limit_train_batches=0") == 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (record["status"], record["steps"], record["epochs"]) == ("finished", 0, 0)


def test_unlimited_epochs_end_by_time(shapes: Path, tmp_path: Path) -> None:
    end = ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:01", "--model.optim.schedule=constant"]
    assert fit(shapes, tmp_path / "run", *end) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


def test_clipping_by_value_changes_the_weights(shapes: Path, tmp_path: Path) -> None:
    weights = []
    for name, algorithm in (("norm", "norm"), ("value", "value")):
        clip = ["--trainer.gradient_clip_val=0.001", f"--trainer.gradient_clip_algorithm={algorithm}"]
        assert fit(shapes, tmp_path / name, *clip) == 0
        state = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        weights.append(
            torch.cat([weight.flatten() for weight in state.values() if weight.is_floating_point()])
        )
    assert not torch.equal(*weights)


def test_float16_on_a_cpu_becomes_bfloat16_or_float32_and_the_configuration_keeps_it(
    shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert fit(shapes, tmp_path / "run", "--trainer.precision=16-mixed") == 0
    assert "segdet: torch does not compute float16 on a CPU" in capsys.readouterr().err
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["trainer"]["precision"] == "16-mixed"


ODD = ["0", "-1", "1.5", "", "None", "null", "100000000000000000000", "nan", "inf", "[]", "[0, 1]", "{a: 1}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", VALUES)
def test_odd_values_never_end_in_a_traceback(
    name: str, shapes: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, value in enumerate(ODD):
        limits = [] if name in ("max_steps", "fast_dev_run") else ["--trainer.max_steps=1"]
        status = fit(shapes, tmp_path / str(number), *limits, f"--trainer.{name}={value}")
        errors = error_lines(capsys.readouterr().err)
        if status != 0:
            assert status == 2, value
            assert len(errors) == 1, (value, errors)
            assert name in errors[0] or "--trainer" in errors[0], errors[0]
        else:
            assert errors == [], value
