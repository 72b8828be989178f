"""What keeps Lightning's loop short where a step takes but a few milliseconds."""

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import lightning.pytorch as pl
from lightning.pytorch.profilers import PassThroughProfiler

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
