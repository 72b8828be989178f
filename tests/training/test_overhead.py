import lightning.pytorch as pl
import pytest

from segdet.runs.checkpoints import BestCheckpoint, LastCheckpoint, LastValidation
from segdet.runs.error_analysis import ErrorAnalysis
from segdet.runs.folder import RunFolder
from segdet.runs.left_out import LeftOut
from segdet.runs.panels import ImagePanels
from segdet.training.overhead import STEP_HOOKS, NoProfiler, without_idle_hooks
from segdet.training.progress import Progress, StepLogger
from segdet.training.seeding import StepSeed


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
