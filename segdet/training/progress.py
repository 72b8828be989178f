"""The progress bar and the log of training steps. Neither waits for the device in every step.

Reading a loss waits until the device has finished the step. The bar reads it when it redraws, at most four times a
second; the log reads it every ``log_every_n_steps`` steps.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor
from tqdm import tqdm

from segdet.training.divergence import check_weights

BAR = "{desc} {bar:20} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]{postfix}"


def read_losses(pl_module: pl.LightningModule) -> dict[str, float]:
    """Return `Task.step_losses` under their logged names, in one transfer from the device; empty before any step."""
    losses: Mapping[str, Tensor] = getattr(pl_module, "step_losses", {})
    if not losses:
        return {}
    values = torch.stack([value.float() for value in losses.values()]).tolist()
    return {f"train/{name}": value for name, value in zip(losses, values, strict=True)}


def is_logged(step: int, every: int) -> bool:
    """Return whether ``log_every_n_steps`` (``every``) logs the losses after ``step`` steps; 0 logs none."""
    return every > 0 and step % every == 0


class StepLogger(pl.Callback):
    """Log learning rates, complete the log with the last batch of each epoch, and stop a training that diverged.

    Lightning writes the losses that the model logs every ``log_every_n_steps`` optimizer steps. This callback adds the
    learning rates to these rows: ``lr``, or ``lr/<n>`` if the parameter groups have different rates. It also writes a
    row for the last batch of an epoch, even if ``log_every_n_steps`` is 0. Losses are those of one batch on rank 0. At
    these steps the callback stops the training if a weight is NaN or infinite.
    """

    def __init__(self) -> None:
        self._logged = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        regular = is_logged(step, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        # With accumulated gradients the step stays the same for several batches.
        if not (regular or trainer.is_last_batch) or step == self._logged:
            return
        self._logged = step
        losses = read_losses(pl_module)
        check_weights(pl_module)
        if regular:
            # Lightning converts Python numbers to float32, which would log a rate of 0.1 as 0.10000000149.
            pl_module.log_dict({k: torch.tensor(v, dtype=torch.float64) for k, v in _rates(trainer).items()})
        elif trainer.is_global_zero:
            values = {**losses, **_rates(trainer), "epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step - 1)  # Lightning counts from 0


def _rates(trainer: pl.Trainer) -> dict[str, float]:
    rates = [float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups]
    if len(set(rates)) <= 1:
        return {"lr": rates[0]} if rates else {}
    return {f"lr/{index}": rate for index, rate in enumerate(rates)}


class _Line:
    """One line of progress on stderr, redrawn at most once per ``interval`` seconds."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.enabled = True
        self.done = 0
        self.bar: tqdm | None = None
        self._next = 0.0

    @property
    def due(self) -> bool:
        """Whether the line is open and the interval has passed."""
        return self.bar is not None and time.monotonic() >= self._next

    def open(self, title: str, total: float) -> None:
        """Open a new line; ``total`` may be infinite."""
        self.close()
        self.done = 0
        bar = tqdm(
            desc=title,
            total=int(total) if total != float("inf") else None,
            disable=not self.enabled,
            file=sys.stderr,
            dynamic_ncols=True,
            smoothing=0,
            mininterval=0,
            bar_format=BAR,
        )
        self._next = time.monotonic() + self.interval
        self.bar = None if bar.disable else bar

    def count(self) -> None:
        """Add a step, and draw the line if it is due."""
        self.done += 1
        if self.due:
            self.draw("")

    def draw(self, text: str) -> None:
        """Draw the line after ``done`` steps, with a text after the bar."""
        assert self.bar is not None
        self.bar.n = self.done
        self.bar.set_postfix_str(text, refresh=True)
        self._next = time.monotonic() + self.interval

    def finish(self, text: str = "") -> None:
        """Draw the line after its last step and close it."""
        if self.bar is not None:
            self.draw(text)
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _is_training(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == "fit"


def _epoch_batches(trainer: pl.Trainer, first: int) -> float:
    """Return the number of batches of the epoch, which ``max_steps`` may end early. Batch ``first`` is the next one."""
    batches = trainer.num_training_batches
    if trainer.max_steps < 0:
        return batches
    return min(batches, first + (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)


def _open_epoch(line: _Line, trainer: pl.Trainer, first: int) -> None:
    last = trainer.max_epochs
    of = f"/{last}" if last is not None and last > 0 else ""
    line.open(f"epoch {trainer.current_epoch + 1}{of}", _epoch_batches(trainer, first))


class Progress(ProgressBar):
    """One line on stderr: epoch, batch, loss and the last validation score.

    Args:
        interval: The minimum number of seconds between two redraws.
    """

    def __init__(self, interval: float = 0.25) -> None:
        super().__init__()
        self._line = _Line(interval)
        self._score = ""

    def disable(self) -> None:
        self._line.enabled = False

    def enable(self) -> None:
        self._line.enabled = True

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        tqdm.write(sep.join(map(str, args)), file=sys.stderr)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _open_epoch(self._line, trainer, 0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (
            self._line.bar is None and self._line.enabled
        ):  # Lightning resumes within an epoch without starting it
            _open_epoch(self._line, trainer, batch_idx)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._line.done = batch_idx + 1
        if self._line.due:
            self._line.draw(_loss_and_score(pl_module, self._score))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._line.bar is not None:
            self._read_score(trainer, pl_module)
            self._line.finish(_loss_and_score(pl_module, self._score))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show "validating" in the bar of the epoch; outside of training, open a bar for validation."""
        if not _is_training(trainer):
            self._line.open("validate", sum(trainer.num_val_batches))
        elif self._line.bar is not None:
            self._line.bar.set_postfix_str("validating", refresh=True)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if not _is_training(trainer):
            self._line.count()
        elif self._line.due:
            assert self._line.bar is not None
            self._line.draw(f"validating {batch_idx + 1}/{sum(trainer.num_val_batches)}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read_score(trainer, pl_module)
        if not _is_training(trainer):
            self._line.finish()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._line.open("test", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._line.count()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._line.finish()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = sum(trainer.num_predict_batches)
        if total == float("inf"):  # videos have no length, but their headers state a number of frames
            total = getattr(trainer.datamodule, "expected_predict_batches", None) or total  # type: ignore[attr-defined]
        self._line.open("predict", total)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._line.count()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._line.finish()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End the line, so that the next message starts on a new one."""
        self._line.close()

    def _read_score(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        monitor = getattr(pl_module, "monitor", None)
        score = trainer.callback_metrics.get(monitor) if monitor else None
        if score is not None:
            self._score = f"{monitor} {float(score):.4f}"


def _loss_and_score(pl_module: pl.LightningModule, score: str) -> str:
    losses = read_losses(pl_module)
    loss = f"loss {losses['train/loss']:.4g}" if losses else ""
    return "  ".join(part for part in (loss, score) if part)
