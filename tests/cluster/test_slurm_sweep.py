"""Sweeps on a real SLURM: workers in a job array, of which one is killed."""

import sys
from pathlib import Path

import pytest
import sweep_worker
from slurm_cluster import SlurmCluster

from segdet.launch.sweep_file import read_sweep
from segdet.launch.sweep_trials import SweepTrials

from .conftest import Script

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SWEEP = """\
name: demo
method: grid
metric: {name: val/miou, goal: maximize}
parameters:
  x: {values: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}
command: [segdet, fit, "${args}"]
"""


def test_a_sweep_with_three_workers_of_which_one_is_killed(
    slurm: SlurmCluster, script: Script, tmp_path: Path
) -> None:
    (tmp_path / "demo.yaml").write_text(SWEEP)
    (tmp_path / "segdet").mkdir()
    (tmp_path / "segdet/__init__.py").touch()
    (tmp_path / "segdet/__main__.py").write_text(sweep_worker.FAKE_RUN)
    url = f"sqlite:///{tmp_path}/trials.db"
    path = script("sweep.sbatch", "--array=1-3 --cpus-per-task=1", ["demo.yaml", url, "runs"])
    worker = f"{sys.executable} {sweep_worker.__file__}"
    path.write_text(path.read_text().replace("segdet sweep", worker))
    job = slurm.submit(path, folder=tmp_path)
    slurm.wait_for(lambda: len(list(tmp_path.glob("runs/*/metrics.csv"))) >= 3, 120, "three trials")
    slurm.output("scancel", "--signal=KILL", "--full", f"{job}_2")
    slurm.wait(f"{job}_2", ("CANCELLED", "FAILED"))
    for task in (1, 3):
        slurm.wait(f"{job}_{task}")
    trials = SweepTrials(read_sweep(tmp_path / "demo.yaml"), url).all()
    assert sorted((trial.point["x"], trial.score) for trial in trials) == [
        (x, 1 - (x - 7) ** 2 / 100) for x in range(12)
    ]
    folders = [tmp_path / "runs" / trial.name for trial in trials]
    assert all((folder / "result.json").exists() for folder in folders)
    assert not any((folder / "repeated.txt").exists() for folder in folders)
