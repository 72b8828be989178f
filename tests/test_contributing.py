"""CONTRIBUTING.md: the example family works with one file and one config, and the layout matches the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segdet.runs.record import Record

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

TINY = [
    "--data.num_train=8", "--data.num_val=4", "--data.num_test=4", "--data.num_workers=0",
    "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--wandb=false", "--run_dir=runs/toy",
]  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package and the shared data config, with the files of the example added and no file changed."""
    shutil.copytree(ROOT / "segdet", tmp_path / "segdet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs" / "shapes", tmp_path / "configs" / "shapes")
    files = re.findall(r"Save it as `([^`]+)`:\n\n```\w+\n(.*?)```", TEXT, re.DOTALL)
    assert [Path(name).suffix for name, _ in files] == [".py", ".yaml"]
    for name, content in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.slow
def test_the_example_of_a_family_is_trained_and_tested(checkout: Path) -> None:
    (family,) = re.findall(r"Save it as `(segdet/[^`]+)`", TEXT)
    (training,) = re.findall(r"^segdet (fit --config .*)$", TEXT, re.MULTILINE)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}

    def run(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, *words], cwd=checkout, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), family)
    run("-m", "ruff", "format", "--check", "--config", str(ROOT / "pyproject.toml"), family)
    commands = [[*training.split(), *TINY], ["test", "--ckpt_path", "runs/toy"]]
    run("-c", f"from segdet.cli.main import main\nfor command in {commands}: assert main(command) == 0")
    record = Record.read(checkout / "runs/toy/result.json")
    assert (record.model, record.task, record.steps) == ("CellDetector", "detection", 2)
    assert record.is_tested and record.cost.flops and record.cost.passes_per_image == 1


def test_the_layout_matches_the_package() -> None:
    (layout,) = re.findall(r"## Layout\n\n```\n(.*?)```", TEXT, re.DOTALL)
    inside = set(re.findall(r"^  ([\w.]+)/?  ", layout, re.MULTILINE))
    modules = {p.name for p in (ROOT / "segdet").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert inside == {*modules, "task.py"}
