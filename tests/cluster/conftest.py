"""Fixtures of tests on a real SLURM: the cluster, a data set, and job scripts."""

import re
import shlex
from pathlib import Path
from typing import Protocol

import pytest
from slurm_cluster import SlurmCluster, _cluster, slurm  # noqa: F401  fixtures
from tiny_runs import MODELS

SCRIPTS = Path(__file__).resolve().parents[2] / "experiments" / "cluster"

OPTIONS = [
    *MODELS["segmentation"],
    "--data=ShapesDataModule", "--data.num_train=32", "--data.num_val=4", "--data.num_test=4",
    "--data.image_size=[64, 64]", "--data.batch_size=4", "--data.num_workers=1", "--panels.images=0",
    "--trainer.accelerator=cpu", "--trainer.max_epochs=10", "--trainer.enable_progress_bar=false",
]  # fmt: skip
"""The options of a training of 80 steps with one process."""


class Script(Protocol):
    """A fixture's type: a function that edits the three lines of a script in ``experiments/cluster``."""

    def __call__(self, name: str, resources: str, words: list[str], place: str = ...) -> Path: ...


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a Shapes data set, which the first run writes."""
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A function that writes a copy of a script with other values in its three lines."""

    def write(name: str, resources: str, words: list[str], place: str = "--partition=normal") -> Path:
        text = (SCRIPTS / name).read_text(encoding="utf-8")
        for number, line in (("1", f"#SBATCH {place}"), ("2", f"#SBATCH {resources}")):
            text, count = re.subn(rf"(?m)^(# {number}\..*\n)#SBATCH .*$", rf"\g<1>{line}", text)
            assert count == 1
        run = shlex.join(words).replace("\\", "\\\\")
        text, count = re.subn(r"(?m)^(# 3\..*\n\w+=)\(.*\)$", rf"\g<1>({run})", text)
        assert count == 1
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def wait_for_rows(cluster: SlurmCluster, job: str, run: Path, count: int = 3) -> None:
    """Wait until the run of a job has logged ``count`` rows of metrics."""

    def logged() -> bool:
        state = cluster.state(job)
        assert state in ("PENDING", "RUNNING"), f"job {job}: {state}"
        path = run / "metrics.csv"
        return path.exists() and len(path.read_text().splitlines()) > count

    cluster.wait_for(logged, 240, f"row {count} of {run}")
