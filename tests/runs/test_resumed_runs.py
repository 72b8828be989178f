"""``segdet fit --ckpt_path``: a run is resumed in its folder."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from tiny_runs import MODELS, TINY

from segdet.cli import train
from segdet.cli.main import main
from segdet.runs.folder_choice import Run
from segdet.util.errors import UserError


def test_a_run_is_resumed_in_its_folder(run: Path) -> None:
    rows = (run / "metrics.csv").read_text().splitlines()
    first = json.loads((run / "result.json").read_text())["command"]
    assert main(["fit", "--run_dir", str(run), "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    record = json.loads((run / "result.json").read_text())
    assert record["command"].startswith(f"{first} && segdet fit --run_dir {run}")
    assert (record["epochs"], record["steps"], record["status"]) == (2, 4, "finished")
    new = (run / "metrics.csv").read_text().splitlines()
    assert new[: len(rows)] == rows
    assert len(new) == len(rows) + 2
    provenance = json.loads((run / "provenance.json").read_text())
    assert len(provenance["resumed"]) == 1
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("given", ["run", "link", "elsewhere/../run", "absolute", "moved"])
def test_a_better_epoch_of_a_resumed_run_replaces_the_best_checkpoint(
    given: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of the folder may differ from the path at the start of the run."""
    monkeypatch.chdir(tmp_path)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (best,) = (
        state for state in last["callbacks"].values() if "best_model_score" in state and state["monitor"]
    )
    best["best_model_score"] = torch.tensor(-1.0)  # so that the next epoch is better
    best["best_k_models"] = {best["best_model_path"]: torch.tensor(-1.0)}
    torch.save(last, run / "checkpoints" / "last.ckpt")
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "elsewhere").mkdir()
    if given == "moved":
        run.rename(tmp_path / "moved")
    folder = str(run) if given == "absolute" else given
    before = (Path(folder) / "checkpoints" / "best.ckpt").read_bytes()
    assert main(["fit", "--run_dir", folder, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    files = Path(folder) / "checkpoints"
    assert sorted(path.name for path in files.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert (files / "best.ckpt").read_bytes() != before


def test_a_corrupt_provenance_removes_no_command_from_the_record(run: Path) -> None:
    first = json.loads((run / "result.json").read_text())["command"]
    (run / "provenance.json").write_text('{"command": "seg')
    resume = ["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]
    assert main(resume) == 0
    command = json.loads((run / "result.json").read_text())["command"]
    assert command == f"{first} && segdet fit --ckpt_path={run} --trainer.max_epochs=2"


def test_a_checkpoint_alone_is_enough_to_resume(run: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"
    assert main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs=2"]) == 0
    assert json.loads((run / "result.json").read_text())["epochs"] == 2


def test_a_resume_that_fails_leaves_the_run_as_it_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("result.json", "config.yaml", "provenance.json")
    before = [(run / name).read_text() for name in names]
    # The weights do not fit.
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2", "--model.width=8"]) == 2
    assert [(run / name).read_text() for name in names] == before


def test_a_resume_with_nothing_left_keeps_the_record(run: Path) -> None:
    before = (run / "result.json").read_text()
    assert main(["fit", f"--ckpt_path={run}"]) == 0
    assert (run / "result.json").read_text() == before


def test_a_resumed_run_that_fails_keeps_its_scores(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segdet.training.progress import StepLogger

    def fail(self: StepLogger, *_: object) -> None:
        raise UserError("a: b; c")

    before = json.loads((run / "result.json").read_text())
    # Pretend that the run has taken an hour: the resumed run adds to its time.
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = (kept for kept in last["callbacks"].values() if "seconds" in kept)
    state["seconds"] = 3600.0
    torch.save(last, run / "checkpoints" / "last.ckpt")
    monkeypatch.setattr(StepLogger, "on_train_batch_end", fail)
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]) == 2
    after = json.loads((run / "result.json").read_text())
    assert after["status"] == "failed"
    assert after["metrics"]["val/map"] == before["metrics"]["val/map"]
    assert after["command"] == before["command"] + f" && segdet fit --ckpt_path={run} --trainer.max_epochs=2"
    assert after["cost"]["train_seconds"] > 3600


def test_an_interrupted_run_is_saved_and_reports_how_to_resume(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from segdet.training.progress import StepLogger

    def interrupt(self: StepLogger, trainer: object, *_: object) -> None:
        if trainer.global_step == 3:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StepLogger, "on_train_batch_end", interrupt)
    folder = tmp_path / "run"
    arguments = [*MODELS["segmentation"], *TINY, f"--data.root={shapes}", "--trainer.max_epochs=3"]
    assert main(["fit", *arguments, f"--run_dir={folder}"]) == 130
    message = capsys.readouterr().err
    assert f"resume with: segdet fit --ckpt_path {folder}/checkpoints/last.ckpt" in message
    record = json.loads((folder / "result.json").read_text())
    assert (record["status"], record["steps"]) == ("interrupted", 3)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_only_a_training_reports_how_to_resume(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    train._report_interruption(Run(command, tmp_path))
    assert capsys.readouterr().err == "segdet: interrupted\n"
