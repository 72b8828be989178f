"""Checkpoints that a model requests during training."""

from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl

from segdet.runs.checkpoint_callbacks import LastCheckpoint
from segdet.training.callback_interfaces import SavesOnRequest, request_checkpoint


class Saver(pl.Callback, SavesOnRequest):
    saved = 0

    def save_now(self, trainer: pl.Trainer) -> None:
        self.saved += 1


def test_only_the_first_callback_that_can_save_on_request_saves() -> None:
    first, second = Saver(), Saver()
    assert request_checkpoint(SimpleNamespace(callbacks=[pl.Callback(), first, second]))  # type: ignore[arg-type]
    assert (first.saved, second.saved) == (1, 0)


def test_without_a_callback_that_can_save_nothing_is_saved() -> None:
    assert not request_checkpoint(SimpleNamespace(callbacks=[pl.Callback()]))  # type: ignore[arg-type]


def test_the_runs_last_checkpoint_is_saved(tmp_path: Path) -> None:
    paths: list[str] = []
    trainer = SimpleNamespace(
        callbacks=[LastCheckpoint(tmp_path)], save_checkpoint=lambda path, _: paths.append(path), global_step=1,
        is_global_zero=False,
    )  # fmt: skip
    assert request_checkpoint(trainer)  # type: ignore[arg-type]
    assert paths == [str(tmp_path / "last.ckpt")]
