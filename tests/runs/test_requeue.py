"""SLURM jobs that are stopped and started again."""

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import MODELS, TINY

from segdet.cli.main import main


def test_a_job_that_slurm_restarts_is_resumed(
    run: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", f"--run_dir={run}"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main([*arguments, "--trainer.max_epochs=2", "--overwrite=true"]) == 0
    record = json.loads((run / "result.json").read_text())
    assert (record["epochs"], record["steps"]) == (2, 4)
    assert len(json.loads((run / "provenance.json").read_text())["resumed"]) == 1


def test_a_requeued_job_finds_its_folder(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job has one task, and its script has two commands without --run_dir. Each command resumes its own run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NAME", "train.sh")
    first = ["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}", "--panels.images=0"]
    second = [*first, "--model.optim.lr=0.02"]
    assert main(first) == main(second) == 0
    folders = [tmp_path / "runs" / name for name in ("fcn-shapes-4711", "fcn-shapes-4711-2")]
    assert sorted((tmp_path / "runs").iterdir()) == folders
    (folders[1] / "result.json").unlink()  # as if the job had been stopped
    last = folders[1] / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(first) == main(second) == 0
    assert sorted((tmp_path / "runs").iterdir()) == folders
    assert (folders[1] / "result.json").exists()
    assert torch.load(last, weights_only=True)["global_step"] == state["global_step"]
    assert len(json.loads((folders[0] / "provenance.json").read_text()).get("resumed", [])) == 0


def test_a_shell_on_a_node_is_no_job(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    arguments = ["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}", "--panels.images=0"]
    assert main(arguments) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert "4711" not in folder.name


def test_a_job_that_slurm_restarts_before_the_first_checkpoint_starts_again(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", f"--run_dir={run}"]
    run.mkdir()
    (run / "config.yaml").write_text("")
    (run / "metrics.csv").write_text("epoch,step\n0,1\n")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main([*arguments, "--panels.images=0"]) == 0
    assert (run / "metrics.csv").read_text().count(
        "0,1"
    ) == 2  # the last step of the epoch, and its validation
    assert len(json.loads((run / "provenance.json").read_text()).get("resumed", [])) == 0
