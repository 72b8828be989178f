"""Named stages of a prediction, such as ``network`` and ``nms``, and the time spent in each."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import record_function

PREFIX = "segdet::"
"""Prefix of the stages' names in traces of ``torch.profiler``."""


@dataclass
class StageTimes:
    """The seconds spent in each stage, complete at the end of `time_stages`.

    Attributes:
        seconds: Seconds of each stage, in the order of their first start.
        other: Seconds outside of all stages.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    other: float = 0.0

    @property
    def total(self) -> float:
        """The seconds of all stages and outside of them."""
        return sum(self.seconds.values()) + self.other


class _Timer:
    """A timer that notes a mark whenever a stage starts or ends, and divides the time between the marks."""

    def __init__(self, device: torch.device, clock: Callable[[], float] | None) -> None:
        self.device, self.clock = device, clock
        self.uses_events = device.type == "cuda" and clock is None
        self.open: list[str | None] = [None]
        self.marks: list[tuple[str | None, Any]] = []
        self.times = StageTimes()
        self.note()

    def start(self, name: str) -> None:
        self.times.seconds.setdefault(name, 0.0)
        self.note()
        self.open.append(name)

    def end(self) -> None:
        self.note()
        self.open.pop()

    def note(self) -> None:
        """Charge the time since the last mark to the innermost open stage."""
        self.marks.append((self.open[-1], self._mark()))

    def finish(self) -> None:
        self.note()
        if self.uses_events:
            torch.cuda.synchronize(self.device)
        for (_, before), (name, after) in itertools.pairwise(self.marks):
            seconds = before.elapsed_time(after) / 1000 if self.uses_events else after - before
            if name is None:
                self.times.other += seconds
            else:
                self.times.seconds[name] += seconds

    def _mark(self) -> Any:
        if not self.uses_events:
            return time.perf_counter() if self.clock is None else self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


_active_timer: ContextVar[_Timer | None] = ContextVar("active_timer", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Mark a stage of a prediction for `time_stages`, and for ``torch.profiler`` as ``segdet::<name>``.

    Stages may be nested. The time of an inner stage does not count for the outer one.
    """
    timer = _active_timer.get()
    with record_function(PREFIX + name):
        if timer is None:
            yield
            return
        timer.start(name)
        try:
            yield
        finally:
            timer.end()


@contextmanager
def time_stages(
    device: torch.device | None = None, clock: Callable[[], float] | None = None
) -> Iterator[StageTimes]:
    """Measure the seconds spent in each stage inside this context.

    On a GPU the times are those of CUDA events, so that no stage waits for the device. The device must be idle at the
    beginning; then the stages that run on the CPU are measured correctly too. The context waits for the device at its
    end only.

    torch's profiler would report the same times, but it writes to stderr when it starts.

    Args:
        device: The device of the prediction; None for the CPU.
        clock: The clock in seconds, such as `time.process_time` for the processor time. None for the passed time.
    """
    timer = _Timer(torch.device("cpu") if device is None else device, clock)
    token = _active_timer.set(timer)
    try:
        yield timer.times
    finally:
        _active_timer.reset(token)
        timer.finish()
