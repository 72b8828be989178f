"""The wheel contains all that the commands need: they work in a new environment, outside a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command without PYTHONPATH and return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has the wheel and the dependencies of this environment."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "segdet", source / "segdet", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, cwd=source)
    venv.create(folder / "env")
    python = folder / "env" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Python does not read .pth files in this folder, so an editable installation of segdet is not found.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return python


@pytest.mark.slow
def test_the_commands_work_outside_a_checkout(python: Path, tmp_path: Path) -> None:
    where = run(python, "-c", "import segdet; print(segdet.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(python.parents[1])
    segdet = python.with_name("segdet")
    assert "segdet fit" in run(segdet, "--help", cwd=tmp_path)
    run(segdet, "data", "make", "data/shapes", "--train", "8", "--val", "2", "--test", "2", cwd=tmp_path)
    sizes = ["--data.num_train=8", "--data.num_val=2", "--data.num_test=2", "--data.num_workers=0"]
    training = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--wandb=false", "--run_dir=runs/ssd"]
    run(segdet, "fit", "--model", "SSD", "--data", "ShapesDataModule", *sizes, *training, cwd=tmp_path)
    assert (tmp_path / "runs/ssd/result.json").is_file()
    run(segdet, "report", "runs", cwd=tmp_path)
    assert (tmp_path / "runs/report.html").stat().st_size > 100_000


def test_the_package_is_typed_and_licensed() -> None:
    assert (ROOT / "segdet/py.typed").is_file()
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Copyright 2026 the segdet authors" in text


def test_the_commit_hooks_run_the_tools_of_make_lint() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local" and {hook["language"] for hook in repository["hooks"]} == {"system"}
    lint = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in repository["hooks"]:
        assert f"$(BIN)/{hook['entry'].replace(' --force-exclude', '')}" in lint
