"""The callback that records a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segdet.runs.folder_choice import Run
from segdet.runs.record_callback import RunRecorder
from segdet.util.errors import UserError


def test_peak_memory_is_that_of_the_training_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After training Lightning moves the model to the CPU."""
    monkeypatch.setattr("segdet.runs.record_callback.peak_memory_mb", lambda d: {"cuda": 5.0, "cpu": 9.0}[d])
    recorder = RunRecorder(Run("fit", tmp_path), "")
    state: Any = SimpleNamespace(current_epoch=1, global_step=2, world_size=1, precision="32-true")
    model: Any = SimpleNamespace(device="cuda", parameters=list, step_losses={})
    recorder.on_train_end(state, model)
    model.device = "cpu"
    assert recorder._record(state, model, "finished").cost.peak_memory_mb == 5.0


def test_all_processes_start_from_the_same_checkpoint(tmp_path: Path) -> None:
    """A process with the right checkpoint is stopped too, because it would wait for the others."""
    chosen: list[Any] = ["last.ckpt of step 4", "last.ckpt of step 4", ""]
    same = [one == chosen[0] for one in chosen]
    for own in chosen:
        strategy = SimpleNamespace(
            broadcast=lambda _: chosen[0],
            reduce_boolean_decision=lambda decision: decision and all(same),
        )
        state: Any = SimpleNamespace(world_size=3, is_global_zero=False, strategy=strategy)
        with pytest.raises(UserError, match=f"starts from {own or 'none'}, rank 0 from last.ckpt of step 4"):
            RunRecorder(Run("fit", tmp_path, checkpoint=own), "").setup(state, state, "fit")
    same = [True]
    RunRecorder(Run("fit", tmp_path, checkpoint=chosen[0]), "").setup(state, state, "fit")


def test_the_record_has_the_first_sentence_of_the_docstring_of_the_model(tmp_path: Path) -> None:
    class Model:
        """Predict boxes with `Layers`
        of one kind, e.g. VGG. Not a word more.

        Args:
            x: Nothing.
        """

        parameters, step_losses, device = list, {}, "cpu"

    state: Any = SimpleNamespace(current_epoch=1, global_step=2, world_size=1, precision="32-true")
    recorder = RunRecorder(Run("fit", tmp_path), "")
    recorder.peak_memory = 5.0
    record = recorder._record(state, Model(), "finished")  # type: ignore[arg-type]
    assert record.description == "Predict boxes with Layers of one kind, e.g. VGG."
    Model.__doc__ = None
    assert recorder._record(state, Model(), "finished").description is None  # type: ignore[arg-type]
