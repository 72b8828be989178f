"""Experiment files of tests, and the folder that holds them."""

from pathlib import Path

import pytest

FILE = """
seeds: [0, 1]
prepare: [segdet data make data/shapes --images 8]
data: configs/data.yaml
budget: {trainer.max_time: 00:00:10:00}
runs:
  fcn: {configs: [configs/fcn.yaml], overrides: {model.optim.lr: 1e-3, model.weights: null}}
  ssd: {configs: configs/ssd.yaml, test: false}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with an experiment file and the configs that it names."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs/data.yaml", "configs/fcn.yaml", "configs/ssd.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("seed_everything: 0\n")
    Path("experiments").mkdir()
    Path("experiments/demo.yaml").write_text(FILE)
    return tmp_path


def write_dependent_runs(fcn: str = "", ssd: str = "after: fcn") -> None:
    """Write an experiment whose second run uses the first, with two seeds."""
    Path("experiments/turn.yaml").write_text(
        "seeds: [0, 1]\nat_once: 2\nruns:\n"
        f"  fcn: {{configs: configs/fcn.yaml, {fcn}}}\n"
        '  ssd: {configs: configs/ssd.yaml, overrides: {model.weights: {a: "{after}"}}, test: false, '
        f"{ssd}}}\n"
    )
