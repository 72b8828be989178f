import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segdet.training.progress import Progress, StepLogger, read_losses
from segdet.util.errors import UserError


def module(**losses: float) -> Any:
    return SimpleNamespace(
        step_losses={name: torch.tensor(value) for name, value in losses.items()}, monitor="val/map"
    )


class TestReadLosses:
    def test_names_and_sum(self) -> None:
        assert read_losses(module()) == {}
        assert read_losses(module(box=1.0, loss_class=2.0)) == {
            "train/loss": 3.0, "train/loss_box": 1.0, "train/loss_class": 2.0,
        }  # fmt: skip
        assert read_losses(module(loss=3.5, loss_box=1.0))["train/loss"] == 3.5


class Log:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))


def trainer(**more: Any) -> Any:
    groups = [{"lr": 0.1}, {"lr": 0.1}]
    known: dict[str, Any] = {
        "global_step": 0,
        "log_every_n_steps": 10,
        "is_last_batch": False,
        "is_global_zero": True,
        "current_epoch": 0,
        "loggers": [Log()],
        "optimizers": [SimpleNamespace(param_groups=groups)],
        "max_epochs": 3,
        "num_training_batches": 25,
        "state": SimpleNamespace(fn=SimpleNamespace(value="fit")),
        "callback_metrics": {},
    }
    return SimpleNamespace(**{**known, **more})


class TestStepLogger:
    def test_every_so_many_steps_and_at_the_end_of_an_epoch(self) -> None:
        logger, state = StepLogger(), trainer()
        for step in range(1, 26):
            state.global_step, state.is_last_batch = step, step == 25
            logger.on_train_batch_end(state, module(box=2.0), None, None, step - 1)
        assert [step for step, _ in state.loggers[0].rows] == [9, 19, 24]
        assert state.loggers[0].rows[0][1] == {
            "train/loss": 2.0, "train/loss_box": 2.0, "lr": 0.1, "epoch": 0,
        }  # fmt: skip

    def test_once_a_step_with_accumulated_gradients(self) -> None:
        logger, state = StepLogger(), trainer(global_step=10)
        for batch in range(4):
            logger.on_train_batch_end(state, module(box=2.0), None, None, batch)
        assert len(state.loggers[0].rows) == 1

    def test_rates_of_groups(self) -> None:
        groups = [{"lr": 0.1}, {"lr": 0.2}]
        state = trainer(global_step=10, optimizers=[SimpleNamespace(param_groups=groups)])
        StepLogger().on_train_batch_end(state, module(box=2.0), None, None, 0)
        assert {name: v for name, v in state.loggers[0].rows[0][1].items() if "lr" in name} == {
            "lr/0": 0.1,
            "lr/1": 0.2,
        }

    def test_ends_a_training_whose_weights_are_nan(self) -> None:
        state = trainer(global_step=10, is_global_zero=False)  # all processes, for the others would wait
        diverged = module(box=math.nan)
        diverged.parameters = lambda: iter([torch.ones(2), torch.tensor([0.0, math.nan])])
        with pytest.raises(UserError, match=r"step 10: .*lower --model\.optim\.lr"):
            StepLogger().on_train_batch_end(state, diverged, None, None, 0)

    def test_a_loss_that_is_nan_once_is_logged(self) -> None:
        state, once = trainer(global_step=10), module(box=math.nan)
        once.parameters = lambda: iter([torch.ones(2)])
        StepLogger().on_train_batch_end(state, once, None, None, 0)
        assert math.isnan(state.loggers[0].rows[0][1]["train/loss"])


class TestProgress:
    def test_reads_no_loss_between_redraws(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        reads = []
        monkeypatch.setattr(
            "segdet.training.progress.read_losses", lambda m: reads.append(1) or {"train/loss": 0.5}
        )
        bar, state = Progress(interval=1000.0), trainer()
        bar.setup(state, module(), "fit")
        bar.on_train_epoch_start(state, module())
        for batch in range(25):
            bar.on_train_batch_end(state, module(), None, None, batch)
        assert not reads
        state.callback_metrics = {"val/map": torch.tensor(0.25)}
        bar.on_train_epoch_end(state, module())
        assert len(reads) == 1
        said = capsys.readouterr().err
        assert "epoch 1/3" in said
        assert "25/25" in said
        assert "loss 0.5  val/map 0.2500" in said

    def test_silent_on_other_ranks(self, capsys: pytest.CaptureFixture[str]) -> None:
        bar, state = Progress(interval=0.0), trainer(is_global_zero=False)
        bar.setup(state, module(), "fit")
        bar.on_train_epoch_start(state, module())
        bar.on_train_batch_end(state, module(box=1.0), None, None, 0)
        bar.on_train_epoch_end(state, module(box=1.0))
        assert capsys.readouterr().err == ""
