from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from segdet.runs.checkpoint_callbacks import BestCheckpoint, LastCheckpoint, LastValidation
from segdet.runs.interruption import Stopped
from segdet.runs.loop_position import LoopPosition
from segdet.training.divergence import check_checkpoint


@pytest.mark.parametrize(
    ("processes", "exception", "saves"),
    [
        (1, RuntimeError(), True),
        (1, KeyboardInterrupt(), False),
        (1, Stopped(143), False),
        (1, SIGTERMException(), True),
        (2, RuntimeError(), False),
        (2, KeyboardInterrupt(), False),
        (2, SIGTERMException(), True),
    ],
)
@pytest.mark.parametrize("weight", [1.0, float("nan")])
@pytest.mark.parametrize("trained", [True, False])
def test_saves_valid_weights_on_an_exception_that_all_processes_see(
    processes: int, exception: BaseException, saves: bool, weight: float, trained: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    saved: list[Any] = []

    def save(*_: object) -> None:
        module = nn.Linear(1, 1)
        nn.init.constant_(module.weight, weight)
        module._trainer = None  # type: ignore[assignment]
        check_checkpoint(module, {"state_dict": module.state_dict()})  # type: ignore[arg-type]
        saved.append(1)

    monkeypatch.setattr(LastCheckpoint, "save_now", save)
    trainer: Any = SimpleNamespace(world_size=processes)
    last = LastCheckpoint(tmp_path)
    last.trained = trained
    last.on_exception(trainer, trainer, exception)
    assert bool(saved) == (saves and weight == 1 and trained)


def test_an_exception_within_a_step_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(LastCheckpoint, "save_now", lambda *_: saved.append(1))
    trainer: Any = SimpleNamespace(
        world_size=1, global_step=1, max_steps=-1, should_stop=False, training=True
    )
    last = LastCheckpoint(tmp_path)
    last.on_train_batch_end(trainer)
    last.on_train_batch_start(trainer)
    last.on_exception(trainer, trainer, RuntimeError())
    assert not saved
    last.on_train_batch_end(trainer)
    last.on_exception(trainer, trainer, RuntimeError())
    assert saved == [1]


def test_the_keys_of_their_states_differ(tmp_path: Path) -> None:
    ours = [LastCheckpoint(tmp_path), BestCheckpoint(tmp_path, "val/map"), LoopPosition()]
    assert len({callback.state_key for callback in ours}) == 3


@pytest.mark.parametrize(
    ("epoch", "every", "expected"), [(3, 5, 1), (2, 5, 5), (3, 2, 1), (3, None, None), (2, 1, 1)]
)
def test_the_last_epoch_is_validated(epoch: int, every: int | None, expected: int | None) -> None:
    for hook in (LastValidation.on_train_start, LastValidation.on_train_epoch_start):
        trainer: Any = SimpleNamespace(current_epoch=epoch, max_epochs=4, check_val_every_n_epoch=every)
        hook(LastValidation(), trainer, trainer)
        assert trainer.check_val_every_n_epoch == expected


@pytest.mark.parametrize(("stopped", "step", "ends"), [(False, 7, False), (False, 8, True), (True, 7, True)])
def test_a_training_that_ends_within_an_epoch_is_validated(
    stopped: bool, step: int, ends: bool, tmp_path: Path
) -> None:
    trainer: Any = SimpleNamespace(
        should_stop=stopped, global_step=step, max_steps=8, check_val_every_n_epoch=5
    )
    LastCheckpoint(tmp_path).on_train_batch_end(trainer)
    assert trainer.check_val_every_n_epoch == (1 if ends else 5)
    assert trainer.should_stop == ends
