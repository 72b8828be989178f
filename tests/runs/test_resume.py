"""A training that is killed within an epoch and resumed has the same result as without interruption, bit for bit.

Dropout and augmentation are on, so that every random number has to be the same too.
"""

import os
import shutil
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from killed_process import run_until_killed
from lightning.pytorch.callbacks import ModelCheckpoint

from segdet.cli.main import main
from segdet.data import ShapesDataModule
from segdet.data.base import DataModule
from segdet.data.transforms import ScaleJitter
from segdet.segmentation.fcn import FCN
from segdet.training.optim import Optimization
from segdet.training.progress import StepLogger

ARGUMENTS = [
    "fit", "--model=FCN", "--model.backbone=test_resnet", "--model.width=8", "--model.dropout=0.5",
    "--model.optim.name=sgd", "--model.optim.warmup_steps=2", "--data=ShapesDataModule", "--data.num_train=10",
    "--data.num_val=2", "--data.num_test=2", "--data.image_size=[64, 64]", "--data.batch_size=2",
    "--data.recipe=ScaleJitter",
    "--panels.images=0", "--trainer.accelerator=cpu", "--trainer.max_epochs=3",
    "--trainer.enable_progress_bar=false", "--trainer.check_val_every_n_epoch=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "shapes"


def killed_at(step: int, arguments: list[str]) -> None:
    """Run the command in another process, which is killed after ``step`` steps."""

    def kill(self: StepLogger, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        StepLogger.on_train_batch_end = kill  # type: ignore[method-assign]
        main(arguments)

    run_until_killed(run)


def final(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return state


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["global_step"] == other["global_step"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    assert torch.equal(
        torch.cat([s["momentum_buffer"].flatten() for s in one["optimizer_states"][0]["state"].values()]),
        torch.cat([s["momentum_buffer"].flatten() for s in other["optimizer_states"][0]["state"].values()]),
    )
    assert one["lr_schedulers"] == other["lr_schedulers"]


# An epoch has 5 batches. A run has 15 steps of one batch, or 9 steps of two batches, with one batch in the third step
# of each epoch.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on a single core
@pytest.mark.parametrize(("accumulate", "every", "kill", "workers"), [(1, 3, 8, [0, 2]), (2, 2, 6, [0])])
def test_a_killed_training_is_resumed_bit_for_bit(
    accumulate: int, every: int, kill: int, workers: list[int], shapes: Path, tmp_path: Path
) -> None:
    arguments = [
        *ARGUMENTS, f"--data.root={shapes}", f"--trainer.accumulate_grad_batches={accumulate}",
        f"--checkpoint_every_n_steps={every}",
    ]  # fmt: skip
    whole = tmp_path / "whole"
    assert main([*arguments, "--data.num_workers=0", f"--run_dir={whole}"]) == 0
    expected = final(whole)
    for number in workers:
        run = tmp_path / f"workers_{number}"
        killed_at(kill, [*arguments, f"--data.num_workers={number}", f"--run_dir={run}"])
        stopped = final(run)
        assert stopped["global_step"] == kill // every * every - (every if kill % every == 0 else 0)
        assert stopped["ShapesDataModule"]["batches"] > 0  # in the middle of an epoch
        assert main(["fit", f"--run_dir={run}", "--ckpt_path=last"]) == 0
        assert_same(final(run), expected)


class Model(FCN):
    """A small network with dropout."""

    def __init__(self) -> None:
        super().__init__(
            [str(number) for number in range(7)],
            backbone="test_resnet", width=8, dropout=0.5, optim=Optimization("sgd", warmup_steps=2),
        )  # fmt: skip


def _data(root: Path, workers: int = 0) -> ShapesDataModule:
    return ShapesDataModule(
        root, num_train=16, num_val=2, num_test=2, image_size=(64, 64), task="segmentation",
        recipe=ScaleJitter(), batch_size=2, num_workers=workers,
    )  # fmt: skip


def _fit(
    folder: Path,
    data: DataModule,
    resume: Path | None = None,
    others: Sequence[pl.Callback] = (),
    **trainer: Any,
) -> None:
    pl.seed_everything(0)
    saves = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(
            accelerator="cpu", max_epochs=3, limit_val_batches=0, logger=False, use_distributed_sampler=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[*others, saves],
            **trainer,
        ).fit(Model(), data, ckpt_path=resume, weights_only=True)  # fmt: skip


def test_two_processes(tmp_path: Path) -> None:
    """Each process has 4 steps per epoch, so the checkpoint of step 6 is within an epoch."""
    data = _data(tmp_path / "shapes")
    data.prepare_data()
    two = {"devices": 2, "strategy": "ddp_fork"}
    _fit(tmp_path / "whole", data, **two)
    _fit(tmp_path / "again", data, tmp_path / "whole" / "step=6.ckpt", **two)
    whole, again = (
        torch.load(tmp_path / name / "step=12.ckpt", weights_only=True) for name in ("whole", "again")
    )
    assert not (tmp_path / "again" / "step=6.ckpt").exists()
    assert_same(whole, again)


class SavesBetween(pl.Callback):
    """Save before the first batch of the second epoch, as after SLURM's signal, and end the training."""

    def __init__(self, path: Path, late: bool) -> None:
        self.path = path
        self.late = late

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def save(*_: Any) -> None:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

        if trainer.current_epoch == 1 and self.late:
            trainer.fit_loop.epoch_loop.run = save  # type: ignore[method-assign]
        elif trainer.current_epoch == 1:
            save()


def test_stopped_between_two_epochs(tmp_path: Path) -> None:
    """The sampler and Lightning do not skip the epoch that had not begun. The run may be stopped again."""
    data = _data(tmp_path / "shapes")
    few: dict[str, Any] = {"limit_train_batches": 3}
    _fit(tmp_path / "whole", data, **few)
    for name, late in (("early", False), ("late", True)):
        saved = tmp_path / f"{name}.ckpt"
        with pytest.raises(SystemExit):
            _fit(tmp_path / name, data, None, [SavesBetween(saved, late)], **few)
        content = torch.load(saved, weights_only=True)
        assert (content["global_step"], content["ShapesDataModule"]["epoch"]) == (3, 1)
        _fit(tmp_path / name, data, saved, **few)
        _fit(tmp_path / f"{name}_again", data, tmp_path / name / "step=6.ckpt", **few)
        for folder in (name, f"{name}_again"):
            whole, again = (
                torch.load(tmp_path / one / "step=9.ckpt", weights_only=True) for one in ("whole", folder)
            )
            assert_same(whole, again)


def test_another_batch_size_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = _data(tmp_path / "shapes")
    data.load_state_dict({"epoch": 1, "batches": 3, "batch_size": 2})
    assert capsys.readouterr().err == ""
    data.load_state_dict({"epoch": 1, "batches": 0, "batch_size": 8})
    assert capsys.readouterr().err == ""
    data.load_state_dict({"epoch": 1, "batches": 3, "batch_size": 8})
    message = capsys.readouterr().err
    assert message.startswith(
        "segdet: the checkpoint was saved within an epoch with 8 images per step, but this run has 2"
    )
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_epochs=1"], "max_epochs"),
        (["--model.freeze=[backbone]"], "defines the trained parameters"),
        (["--model.optim.lr_factors={backbone: 0}"], "defines the trained parameters"),
        (["--model.optim.name=sgd"], "--model.optim.name muon -> sgd: defines the optimizer"),
        (["--model.width=16"], "settings: --model.width 8 -> 16 (Error(s)"),
        (["--seed_everything=1"], "--seed_everything 0 -> 1: defines the order of the images"),
        (["--ema=0.9"], "--ema null -> 0.9: defines whether the weights are averaged"),
        (["--model.backbone=resnet18"], "--model.backbone test_resnet -> resnet18: defines the network"),
        (["--model=UNet"], "segdet.segmentation.UNet: defines the network"),
    ],
)
def test_settings_that_do_not_fit_the_checkpoint_leave_it_as_it_is(
    options: list[str], message: str, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that fails while it is resumed has not restored everything, and must not replace the checkpoint."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    last = run / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    assert main(["fit", f"--ckpt_path={last}", f"--run_dir={run}", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot be resumed from it with these" in error or "cannot change when a run is resumed" in error
    assert message in error
    assert (
        "max_epochs" in message
        or f"start a new run from its weights with --model.weights {last}"
        in error.replace("these weights", "its weights")
    )
    assert last.read_bytes() == before
    assert main(["fit", f"--ckpt_path={last}", f"--run_dir={run}"]) == 0
    assert final(run)["epoch"] == 4
    # A run that was stopped at its very end has nothing left to train.
    record = run / "result.json"
    record.write_text(record.read_text().replace('"finished"', '"interrupted"'))
    assert main(["fit", f"--ckpt_path={last}", f"--run_dir={run}"]) == 0
    assert '"status": "finished"' in record.read_text()


def test_an_end_before_the_present_step_does_not_complete_a_run(stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    record = run / "result.json"
    for _ in range(2):  # without a record, and with one
        assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=-1", "--trainer.max_steps=3"]) == 0
        assert '"status": "interrupted"' in record.read_text()
    assert main(["fit", f"--ckpt_path={run}"]) == 0
    assert '"status": "finished"' in record.read_text()


def test_an_error_after_the_restoration_keeps_its_traceback(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after everything is restored keeps its traceback, even in the first step."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("not from the settings")

    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    for name in ("losses", "configure_gradient_clipping"):
        with monkeypatch.context() as broken, pytest.raises(ValueError, match="not from the settings"):
            broken.setattr(FCN, name, fail)
            main(["fit", f"--ckpt_path={run}"])


@pytest.fixture(scope="module")
def stopped(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five epochs, killed in the last."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    arguments = [*ARGUMENTS, f"--data.root={shapes}", f"--run_dir={run}", "--data.num_workers=0"]
    killed_at(22, [*arguments, "--model.optim.name=muon", "--trainer.max_epochs=5"])
    return run
