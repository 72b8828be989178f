"""What keeps Lightning's loop short where a step takes but a few milliseconds."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.profilers import PassThroughProfiler

TRAINER_DEFAULTS: dict[str, Any] = {
    "log_every_n_steps": 50,
    "use_distributed_sampler": False,  # the data modules' samplers know their rank
    "num_sanity_val_steps": 0,  # a score on two batches is no score
    "enable_autolog_hparams": False,  # the run folder's callback records the whole configuration
    "enable_model_summary": False,  # the record has the number of parameters
}
"""What a run's trainer has where its configuration says nothing else."""

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
"""The hooks of a callback that every training step calls."""

_Callback = TypeVar("_Callback", bound=type[pl.Callback])
_NOTHING: AbstractContextManager[None] = nullcontext()


def without_idle_hooks(callback: _Callback) -> _Callback:
    """A class of callbacks whose hooks of every step are None where they would do nothing.

    Lightning passes over a hook that cannot be called, and saves the context and the names that it makes for one
    that can: six a step for each callback.
    """
    for name in STEP_HOOKS:
        if getattr(callback, name) is getattr(pl.Callback, name):
            setattr(callback, name, None)
    return callback


class NoProfiler(PassThroughProfiler):
    """Lightning's own default measures nothing either, but makes a new context for it, some fifty in every step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """A context that does nothing."""
        return _NOTHING
