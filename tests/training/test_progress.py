"""The progress bar and the log of training steps."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segdet.training.divergence import DivergedError
from segdet.training.progress import Progress, StepLogger, read_losses


def module(**losses: float) -> Any:
    return SimpleNamespace(
        step_losses={name: torch.tensor(value) for name, value in losses.items()}, monitor="val/map"
    )


class TestReadLosses:
    def test_losses_have_their_logged_names(self) -> None:
        assert read_losses(module()) == {}
        assert read_losses(module(loss=3.0, loss_box=1.0, loss_class=2.0)) == {
            "train/loss": 3.0, "train/loss_box": 1.0, "train/loss_class": 2.0,
        }  # fmt: skip


class Rows(Logger):
    """A logger that keeps the rows in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    name = version = "rows"

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


class Line(pl.LightningModule):
    """A model that logs a constant loss as `Task` does."""

    def __init__(self, rates: Sequence[float] = (0.1, 0.1), loss: float = 2.0) -> None:
        super().__init__()
        self.rates, self.loss = rates, loss
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in rates])
        self.step_losses: dict[str, Tensor] = {}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = sum(weight * 0 for weight in self.weights).sum() + self.loss  # type: ignore[union-attr]
        self.step_losses = {"loss": loss.detach(), "loss_box": loss.detach()}
        self.log_dict({f"train/{name}": value for name, value in self.step_losses.items()})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [{"params": [w], "lr": r} for w, r in zip(self.weights, self.rates, strict=True)]
        )


def rows(model: Line, folder: Path, **options: Any) -> list[tuple[int | None, dict[str, float]]]:
    logger = Rows()
    trainer = pl.Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=1, logger=logger, log_every_n_steps=10,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[StepLogger()], **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader(torch.zeros(25, 1)))
    return logger.rows


@pytest.mark.filterwarnings("ignore")  # Lightning's warnings, which the command suppresses
class TestStepLogger:
    def test_every_so_many_steps_and_at_the_end_of_an_epoch(self, tmp_path: Path) -> None:
        found = rows(Line(), tmp_path)
        assert [step for step, _ in found] == [9, 19, 24]
        for _, row in found:
            assert row == {
                "train/loss": 2.0, "train/loss_box": 2.0, "lr": 0.1, "epoch": 0,
            }  # fmt: skip

    def test_once_a_step_with_accumulated_gradients(self, tmp_path: Path) -> None:
        assert [step for step, _ in rows(Line(), tmp_path, accumulate_grad_batches=2)] == [9, 12]

    def test_rates_of_groups(self, tmp_path: Path) -> None:
        for _, row in rows(Line(rates=(0.1, 0.2)), tmp_path):
            found = {name: v for name, v in row.items() if "lr" in name}
            assert found == {"lr/0": 0.1, "lr/1": 0.2}

    def test_ends_a_training_whose_weights_are_nan(self, tmp_path: Path) -> None:
        diverged = Line(loss=math.nan)
        diverged.weights.append(nn.Parameter(torch.tensor([0.0, math.nan])))
        diverged.rates = (0.1, 0.1, 0.1)
        with pytest.raises(DivergedError, match=r"diverged; give a lower --model\.optim\.lr"):
            rows(diverged, tmp_path)

    def test_a_loss_that_is_nan_once_is_logged(self, tmp_path: Path) -> None:
        state: Any = SimpleNamespace(
            global_step=10, log_every_n_steps=3, is_last_batch=True, is_global_zero=True, current_epoch=0,
            loggers=[Rows()], optimizers=[],
        )  # fmt: skip
        once = module(loss=math.nan)
        once.parameters = lambda: iter([torch.ones(2)])
        StepLogger().on_train_batch_end(state, once, None, None, 0)
        assert math.isnan(state.loggers[0].rows[0][1]["train/loss"])


def trainer(**more: Any) -> Any:
    known: dict[str, Any] = {
        "is_global_zero": True,
        "current_epoch": 0,
        "max_epochs": 3,
        "max_steps": -1,
        "global_step": 0,
        "accumulate_grad_batches": 1,
        "num_training_batches": 25,
        "state": SimpleNamespace(fn="fit"),
        "callback_metrics": {},
    }
    return SimpleNamespace(**{**known, **more})


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
        output = capsys.readouterr().err
        assert "epoch 1/3" in output
        assert "25/25" in output
        assert "loss 0.5  val/map 0.2500" in output

    def test_a_training_that_resumes_within_an_epoch_has_a_bar(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bar, state = Progress(interval=0.0), trainer()
        bar.setup(state, module(), "fit")
        bar.on_train_batch_start(state, module(), None, 7)
        bar.on_train_batch_end(state, module(loss=1.0), None, None, 7)
        assert "8/25" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("resumed_at", "accumulated", "total"), [(0, 1, 10), (0, 2, 20), (4, 1, 14), (0, 5, 25)]
    )
    def test_the_bar_ends_where_max_steps_ends_the_training(
        self, resumed_at: int, accumulated: int, total: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        state = trainer(max_steps=50, global_step=40, accumulate_grad_batches=accumulated)
        bar = Progress(interval=0.0)
        bar.setup(state, module(), "fit")
        for batch in range(resumed_at, total):
            bar.on_train_batch_start(state, module(), None, batch)
            bar.on_train_batch_end(state, module(), None, None, batch)
        bar.on_train_epoch_end(state, module())
        counts = re.findall(r"(\d+)/(\d+) \[", capsys.readouterr().err)
        assert {int(of) for _, of in counts} == {total}
        assert [int(done) for done, _ in counts[-2:]] == [total, total]

    def test_an_epoch_that_ends_early_does_not_jump_to_its_end(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bar, state = Progress(interval=1000.0), trainer()  # as with max_time
        bar.setup(state, module(), "fit")
        bar.on_train_epoch_start(state, module())
        for batch in range(7):
            bar.on_train_batch_end(state, module(), None, None, batch)
        bar.on_train_epoch_end(state, module())
        output = capsys.readouterr().err
        assert "7/25" in output
        assert "25/25" not in output

    @pytest.mark.parametrize(("expected", "shown"), [(6, "3/6"), (None, "3/?")])
    def test_batches_of_images_and_videos_are_counted_together(
        self, expected: int | None, shown: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = SimpleNamespace(expected_predict_batches=expected)
        state = trainer(num_predict_batches=[2, math.inf], datamodule=data)
        bar = Progress(interval=0.0)
        bar.setup(state, module(), "predict")
        bar.on_predict_start(state, module())
        for loader, batch in ((0, 0), (0, 1), (1, 0)):
            bar.on_predict_batch_end(state, module(), None, None, batch, loader)
        assert shown in capsys.readouterr().err

    def test_silent_on_other_ranks(self, capsys: pytest.CaptureFixture[str]) -> None:
        bar, state = Progress(interval=0.0), trainer(is_global_zero=False)
        bar.setup(state, module(), "fit")
        bar.on_train_epoch_start(state, module())
        bar.on_train_batch_start(state, module(), None, 0)
        bar.on_train_batch_end(state, module(loss=1.0), None, None, 0)
        bar.on_train_epoch_end(state, module(loss=1.0))
        assert capsys.readouterr().err == ""
