"""Callbacks define only the hooks of a training step that they need."""

import lightning.pytorch as pl
import pytest

from segdet.runs.checkpoint_callbacks import BestCheckpoint, LastCheckpoint, LastValidation
from segdet.runs.error_analysis import ErrorAnalysis
from segdet.runs.evidence_writer import EvidenceWriter
from segdet.runs.left_out import LeftOut
from segdet.runs.panels import ImagePanels
from segdet.runs.record_callback import RunRecorder
from segdet.training.progress import Progress, StepLogger

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


@pytest.mark.parametrize(
    ("callback", "used"),
    [
        (BestCheckpoint, {"on_train_batch_end"}),
        (LastCheckpoint, {"on_train_batch_start", "on_train_batch_end"}),
        (LastValidation, {"on_train_batch_end"}),
        (ErrorAnalysis, set()),
        (EvidenceWriter, set()),
        (LeftOut, set()),
        (ImagePanels, set()),
        (RunRecorder, set()),
        (Progress, {"on_train_batch_start", "on_train_batch_end"}),
        (StepLogger, {"on_train_batch_end"}),
    ],
)
def test_a_callback_defines_only_the_step_hooks_that_it_needs(
    callback: type[pl.Callback], used: set[str]
) -> None:
    own = {name for name in STEP_HOOKS if getattr(callback, name) is not getattr(pl.Callback, name)}
    assert own == used
