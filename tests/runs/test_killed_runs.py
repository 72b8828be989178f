"""A training that is killed at any time and resumed has the weights, scores and rows of an uninterrupted one."""

import json
import os
import random
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from killed_process import run_until_killed
from stopped_runs import Training, differences, kill_at_random
from tiny_runs import MODELS

from segdet.cli.main import main
from segdet.runs.checkpoint_callbacks import BestCheckpoint, LastCheckpoint, LastValidation

KILLS = int(os.environ.get("SEGDET_KILLS", "2"))
"""The number of kills per task in `test_random_kills`."""

DATA = [
    "--data=ShapesDataModule", "--data.num_train=12", "--data.num_val=4", "--data.num_test=2",
    "--data.image_size=[64, 64]", "--data.batch_size=2", "--data.recipe=ScaleJitter", "--panels.images=0",
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1",
    "--wandb=false",
]  # fmt: skip
AIDS = ["--ema=0.9", "--model.multi_scale=[0.5, 1, 1.5]", "--model.multi_scale_every=2"]
TASKS = {
    "segmentation": [*MODELS["segmentation"], "--model.dropout=0.5", "--trainer.accumulate_grad_batches=2", *AIDS],
    "localization": [*MODELS["localization"], "--trainer.val_check_interval=0.5", *AIDS],
    "detection": [*MODELS["detection"], "--data.mosaic=0.5", "--data.mosaic_off_epochs=1", *AIDS],
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "shapes"


def killed_after(kind: type[pl.Callback], hook: str, step: int, arguments: list[str]) -> None:
    """Run a command that is killed after a hook of a callback, when ``step`` steps are done."""
    original = getattr(kind, hook)

    def hook_and_kill(self: Any, trainer: pl.Trainer, *others: Any, **options: Any) -> None:
        original(self, trainer, *others, **options)
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        setattr(kind, hook, hook_and_kill)
        main(arguments)

    run_until_killed(run)


# An epoch has 6 batches.
@pytest.mark.parametrize(
    ("task", "options", "kills"),
    [
        (
            "segmentation",
            ["--trainer.max_steps=8", "--checkpoint_every_n_steps=2"],
            [
                (LastCheckpoint, "on_train_epoch_end", 3),
                (BestCheckpoint, "on_validation_end", 8),  # the last validation, after the last step
            ],
        ),
        (
            "localization",
            ["--trainer.max_epochs=2", "--checkpoint_every_n_steps=1"],
            [
                (BestCheckpoint, "on_validation_end", 3),
                (LastCheckpoint, "on_train_epoch_end", 12),
            ],
        ),
    ],
)
def test_a_kill_between_two_hooks(
    task: str,
    options: list[str],
    kills: list[tuple[type[pl.Callback], str, int]],
    shapes: Path,
    tmp_path: Path,
) -> None:
    arguments = ["fit", *DATA, *TASKS[task], *options, f"--data.root={shapes}", "--data.num_workers=0"]
    assert main([*arguments, f"--run_dir={tmp_path}/expected"]) == 0
    for number, (kind, hook, step) in enumerate(kills):
        run = tmp_path / f"run{number}"
        killed_after(kind, hook, step, [*arguments, f"--run_dir={run}"])
        assert main(["fit", f"--run_dir={run}", "--ckpt_path=last"]) == 0
        assert differences(run, tmp_path / "expected") == [], (hook, step)


def test_a_full_disk(shapes: Path, tmp_path: Path) -> None:
    """The earlier checkpoint is kept. One line names the file that cannot be written."""
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = [
        "fit", *DATA, *MODELS["segmentation"], f"--data.root={shapes}", f"--run_dir={run}", "--data.num_workers=0",
        "--trainer.max_epochs=3", "--resume=auto",
    ]  # fmt: skip

    def fill(trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    def train() -> None:
        with log.open("w") as stream:
            os.dup2(stream.fileno(), 2)
            sys.stderr = stream
            LastValidation.on_train_epoch_start = lambda _, *given: fill(*given)  # type: ignore[method-assign]
            status = main(arguments)
        (tmp_path / "status").symlink_to(str(status))
        os.kill(os.getpid(), signal.SIGKILL)

    run_until_killed(train)
    assert (tmp_path / "status").readlink() == Path("2")
    (line,) = [line for line in log.read_text().splitlines() if "error" in line]
    assert "last.ckpt: cannot be written (File too large)" in line
    assert f"of step 6 are valid; to resume, give --ckpt_path {run}" in line
    assert main(arguments) == 0
    assert json.loads((run / "result.json").read_text())["epochs"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("processes", [1, 2])
def test_random_kills(task: str, processes: int, shapes: Path, tmp_path: Path) -> None:
    """Set SEGDET_KILLS for more kills."""
    arguments = [
        "fit", *DATA, *TASKS[task], f"--data.root={shapes}", "--data.num_workers=1", "--resume=auto",
        "--trainer.max_epochs=6", "--checkpoint_every_n_steps=2", f"--trainer.devices={processes}",
        *(["--trainer.strategy=ddp"] if processes > 1 else []),
    ]  # fmt: skip
    expected, run = tmp_path / "expected", tmp_path / "run"
    assert Training([*arguments, f"--run_dir={expected}"], tmp_path / "log").end()[0] == 0
    chance = random.Random(f"{task}{processes}")
    assert kill_at_random([*arguments, f"--run_dir={run}"], run, chance, 2, KILLS)
    assert differences(run, expected) == []
