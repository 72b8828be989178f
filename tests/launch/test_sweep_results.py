"""Results of a sweep: scores of runs, the best trial, the table, the plots and ``best.yaml``."""

from pathlib import Path

import pytest
import yaml

from segdet.launch.sweep_file import Metric, read_sweep
from segdet.launch.sweep_results import (
    best_trial,
    importances_of,
    read_score,
    read_values,
    write_results,
)
from segdet.launch.sweep_trials import SweepTrials
from segdet.runs.record import Cost, Record

FILE = """\
method: random
metric: {name: val/miou, goal: maximize}
run_cap: 9
early_terminate: {type: hyperband, min_iter: 1, eta: 2}
parameters:
  model.optim.lr: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-1}
  model.width: {values: [8, 16]}
  model.norm: {values: [true, null]}
  trainer.max_epochs: {value: 1}
command: [segdet, fit, "${args}"]
"""


@pytest.fixture
def trials(tmp_path: Path) -> SweepTrials:
    """Nine trials: eight with a score that follows from the learning rate, the last one failed."""
    path = tmp_path / "demo.yaml"
    path.write_text(FILE)
    trials = SweepTrials(read_sweep(path), f"sqlite:///{tmp_path}/trials.db")
    for number in range(8):
        trial = trials.claim("a")
        assert trial is not None
        score = -abs(trial.point["model.optim.lr"] - 0.01) + 0.5
        trials.report("a", number, [score / 2, score])
        trials.end("a", number, "stopped" if number == 2 else "finished", score)
    assert trials.claim("a") is not None
    trials.end("a", 8, "failed", reason="diverged")
    return trials


def test_values_are_read_once_per_step_and_without_nan(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train/loss,val/miou\n0,9,0.5,\n0,9,,0.1\n1,19,,0.3\n1,19,,0.25\n2,29,,nan\n3,39,,0.2\n4,4"
    )
    assert read_values(tmp_path, "val/miou") == [0.1, 0.25, 0.2]
    assert read_values(tmp_path, "val/map") == [] and read_values(tmp_path / "none", "val/miou") == []
    assert read_score(tmp_path, Metric(name="val/miou", goal="maximize")) == 0.25
    assert read_score(tmp_path, Metric(name="val/miou", goal="minimize")) == 0.1


def test_the_score_of_a_test_is_read_from_the_record(tmp_path: Path) -> None:
    metric = Metric(name="test/miou", goal="maximize")
    assert read_score(tmp_path, metric) is None
    metrics: dict[str, float | None] = {"test/miou": 0.4, "test/iou/car": None}
    Record("r", "segmentation", "FCN", "Shapes", 0, "finished", metrics, Cost()).write(
        tmp_path / "result.json"
    )
    assert read_score(tmp_path, metric) == 0.4
    assert read_score(tmp_path, Metric(name="test/iou/car", goal="maximize")) is None


def test_the_best_trial_is_a_finished_one(trials: SweepTrials) -> None:
    best = best_trial(trials.sweep, trials.all())
    scores = {trial.number: trial.score for trial in trials.all() if trial.state == "finished"}
    assert best is not None and best.number == max(scores, key=lambda number: scores[number] or 0)


def test_the_folder_contains_a_table_plots_and_the_best_configuration(
    trials: SweepTrials, tmp_path: Path
) -> None:
    best = best_trial(trials.sweep, trials.all())
    assert best is not None
    (tmp_path / best.name).mkdir()
    (tmp_path / best.name / "config.yaml").write_text("model: {class_path: FCN}\n")
    text = write_results(trials, tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("| trial-")]
    assert len(lines) == 9 and lines[0].startswith(f"| {best.name}") and "failed: diverged" in lines[-1]
    assert "trainer.max_epochs" not in text and f"best: {best.name}; segdet fit --config " in text
    assert text in (tmp_path / "table.md").read_text() or lines[0] in (tmp_path / "table.md").read_text()
    config = (tmp_path / "best.yaml").read_text()
    assert config.startswith(f"# The best of 9 trials of {tmp_path / 'demo.yaml'}: {best.name}, val/miou ")
    assert yaml.safe_load(config) == {"model": {"class_path": "FCN"}}
    for name in ("history.png", "parallel.png", "importances.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_parameter_that_determines_the_score_is_the_most_important(trials: SweepTrials) -> None:
    importances = importances_of(trials.study)
    assert next(iter(importances)) == "model.optim.lr" and sum(importances.values()) == pytest.approx(1)


def test_a_sweep_without_results_has_a_table_only(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(FILE)
    trials = SweepTrials(read_sweep(tmp_path / "demo.yaml"), f"sqlite:///{tmp_path}/trials.db")
    assert "best:" not in write_results(trials, tmp_path)
    trials.claim("a")
    assert "| trial-000 | running" in write_results(trials, tmp_path)
    assert not list(tmp_path.glob("*.png")) and not (tmp_path / "best.yaml").exists()
