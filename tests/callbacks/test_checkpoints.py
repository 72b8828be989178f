from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from segdet.callbacks.checkpoints import BestCheckpoint, LastCheckpoint


@pytest.mark.parametrize(
    ("processes", "exception", "saves"),
    [(1, RuntimeError(), True), (2, RuntimeError(), False), (2, KeyboardInterrupt(), True)],
)
def test_saves_on_an_exception_that_all_processes_know(
    processes: int, exception: BaseException, saves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(ModelCheckpoint, "on_exception", lambda *_: saved.append(1))
    trainer: Any = SimpleNamespace(world_size=processes)
    LastCheckpoint(tmp_path).on_exception(trainer, SimpleNamespace(), exception)  # type: ignore[arg-type]
    assert bool(saved) == saves


def test_the_keys_of_their_states_are_lightning_s_and_apart(tmp_path: Path) -> None:
    ours = [LastCheckpoint(tmp_path), LastCheckpoint(tmp_path, 3), BestCheckpoint(tmp_path, "val/map")]
    for callback in ours:
        assert callback.state_key == ModelCheckpoint.state_key.fget(callback)  # type: ignore[attr-defined]
    assert len({callback.state_key for callback in ours}) == 3
