import lightning.pytorch as pl
import pytest

from segdet.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, LastValidation
from segdet.callbacks.error_analysis import ErrorAnalysis
from segdet.callbacks.left_out import LeftOut
from segdet.callbacks.overhead import STEP_HOOKS, NoProfiler, without_idle_hooks
from segdet.callbacks.panels import ImagePanels
from segdet.callbacks.progress import Progress, StepLogger
from segdet.callbacks.run_folder import RunFolder
from segdet.callbacks.seeding import StepSeed


def test_hooks_that_do_something_stay() -> None:
    @without_idle_hooks
    class Watcher(pl.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            """Something."""

    assert callable(Watcher.on_train_batch_end)
    assert Watcher.on_train_batch_start is None
    assert callable(Watcher.on_train_epoch_end)  # is not of every step


@pytest.mark.parametrize(
    ("callback", "used"),
    [
        (BestCheckpoint, {"on_train_batch_end"}),
        (LastCheckpoint, {"on_train_batch_end"}),
        (LastValidation, set()),
        (ErrorAnalysis, set()),
        (LeftOut, set()),
        (ImagePanels, set()),
        (RunFolder, set()),
        (Progress, {"on_train_batch_end"}),
        (StepLogger, {"on_train_batch_end"}),
        (StepSeed, {"on_train_batch_start"}),
    ],
)
def test_no_callback_does_more_in_a_step_than_it_has_to(callback: type[pl.Callback], used: set[str]) -> None:
    assert {name for name in STEP_HOOKS if callable(getattr(callback, name))} == used


def test_nothing_is_profiled() -> None:
    profiler = NoProfiler()
    with profiler.profile("one"), profiler.profile("within"):
        pass
    assert profiler.summary() == ""
