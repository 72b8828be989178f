"""Experiments on a real SLURM: job arrays of which one task is killed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm_cluster import SlurmCluster

from segdet.cli.main import main
from segdet.launch.slurm import read_queue

from .conftest import wait_for_rows

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

CLUSTER = (
    "{partition: normal, time: '10', gpus: 0, cpus: 1, setup: [export OMP_NUM_THREADS=1 WANDB_MODE=disabled]}"
)

EXPERIMENT = """
prepare: [segdet data make shapes --train 32 --val 4 --test 4 --size 64x64]
data: data.yaml
at_once: 2
budget: {trainer.accelerator: cpu, trainer.enable_progress_bar: false, panels.images: 0, trainer.max_epochs: 4}
runs:
  fcn: {configs: fcn.yaml}
  slow: {configs: fcn.yaml, overrides: {model.optim.lr: 0.0001}}
  tuned: {configs: fcn.yaml, after: fcn, overrides: {model.weights: "{after}/checkpoints/best.ckpt"}}
"""


def write_experiment(folder: Path) -> None:
    """Write an experiment with two runs that can start together, and one that uses the first."""
    (folder / "demo.yaml").write_text(EXPERIMENT)
    model = {"class_path": "FCN", "init_args": {"backbone": "test_resnet", "width": 8}}
    (folder / "fcn.yaml").write_text(yaml.safe_dump({"model": model}))
    images = {"num_train": 32, "num_val": 4, "num_test": 4, "image_size": [64, 64]}
    arguments = {"root": "shapes", "batch_size": 4, "num_workers": 0, **images}
    data = {"class_path": "ShapesDataModule", "init_args": arguments}
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    (folder / "cluster.yaml").write_text(CLUSTER)


def metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the metrics of all runs of an experiment."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]
    return {record["name"]: record["metrics"] for record in records}


def test_a_bench_on_slurm_with_a_killed_task_has_the_metrics_of_a_local_bench(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path)
    on_slurm = ["bench", "demo.yaml", "--runs_dir=slurm", "--launcher=slurm", "--slurm=cluster.yaml"]
    assert main(on_slurm) == 0
    folder = tmp_path / "slurm" / "demo"
    first = read_queue(folder)
    assert set(first) == {"_prepare", "fcn", "slow", "tuned"}
    wait_for_rows(slurm, first["slow"].job, folder / "slow", 2)
    slurm.output("scancel", "--signal=KILL", "--full", first["slow"].job)
    slurm.wait(first["slow"].job, ("CANCELLED", "FAILED"))
    assert main(on_slurm) == 0  # submits the killed run only
    second = read_queue(folder)
    assert second["tuned"] == first["tuned"] or second["tuned"].job == first["tuned"].job
    assert second["slow"].job != first["slow"].job
    slurm.wait(first["tuned"].job)
    slurm.wait(second["slow"].job)
    capsys.readouterr()
    assert main(on_slurm) == 0
    table = capsys.readouterr().out
    assert main(["bench", "demo.yaml", "--runs_dir=local"]) == 0
    assert metrics(folder) == metrics(tmp_path / "local" / "demo")
    assert all(name in table for name in ("fcn", "slow", "tuned"))
