"""Named stages of a prediction, such as ``network`` and ``nms``, and the time spent in each."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch.profiler import record_function

PREFIX = "segdet::"
"""Prefix of the stages' names in traces of ``torch.profiler``."""


class _Timer:
    """A timer that sums the seconds per stage. It calls ``synchronize`` before each reading of the clock."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize
        self.seconds: dict[str, float] = {}

    def clock(self) -> float:
        self.synchronize()
        return time.perf_counter()


_active_timer: ContextVar[_Timer | None] = ContextVar("active_timer", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Mark a stage of a prediction for `time_stages`, and for ``torch.profiler`` as ``segdet::<name>``."""
    timer = _active_timer.get()
    with record_function(PREFIX + name):
        if timer is None:
            yield
            return
        timer.seconds.setdefault(name, 0.0)
        start = timer.clock()
        try:
            yield
        finally:
            timer.seconds[name] += timer.clock() - start


@contextmanager
def time_stages(synchronize: Callable[[], None] = lambda: None) -> Iterator[dict[str, float]]:
    """Measure the seconds spent in each stage inside this context. Stages are ordered by their first start.

    torch's profiler would report the same times, but it writes to stderr when it starts, and it records GPU work only
    on request.

    Args:
        synchronize: A function that waits for the device's pending work. It is called at both ends of every stage.
    """
    timer = _Timer(synchronize)
    token = _active_timer.set(timer)
    try:
        yield timer.seconds
    finally:
        _active_timer.reset(token)
