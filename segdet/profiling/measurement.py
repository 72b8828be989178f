"""Interleaved measurements: the models predict one image each in turn, so that noise affects all models alike."""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from tqdm import tqdm

from segdet.profiling.intervals import estimate_quantile, invert
from segdet.profiling.result import OTHER, Estimate, Latency, Stages, Throughput
from segdet.runs.record import in_stage_order
from segdet.util.stage_timing import StageTimes, time_stages

T = TypeVar("T")

TARGET = 0.02
"""The relative half width of the interval of the median at which a measurement stops."""

LEAST = 30
"""The minimum number of timed predictions. The time limit may end the measurement earlier."""

ROUNDS = 3
"""The minimum number of timed predictions of each image. The time limit may end the measurement earlier."""


class Measurement(Protocol):
    """A measurement that proceeds in steps."""

    @property
    def done(self) -> bool:
        """Whether no further step is necessary."""

    def step(self) -> None:
        """Time once."""


def measure_in_turn(measurements: Sequence[Measurement], description: str) -> None:
    """Run one step of each measurement in turn until all are finished. Show the progress after two seconds."""
    with torch.inference_mode(), tqdm(desc=description, unit=" predictions", delay=2, leave=False) as bar:
        while active := [each for each in measurements if not each.done]:
            bar.set_postfix_str(f"{len(active)} of {len(measurements)} models left", refresh=False)
            for measurement in active:
                measurement.step()
                bar.update()


class LatencyMeasurement:
    """The latency of a model and the times of its stages, measured in turn.

    The first predictions of each image are not timed, because caches, compiled code and the allocator are cold.

    Args:
        predict: A function that predicts the image at an index of the reader and waits for the device.
        indices: The images.
        device: The model's device.
        time_limit: The maximum time in seconds.
        warm_up: The number of predictions that are not timed.
        target: The relative half width of the interval of the median at which the measurement stops.
    """

    def __init__(
        self,
        predict: Callable[[int], Any],
        indices: Sequence[int],
        device: torch.device,
        time_limit: float,
        warm_up: int = 3,
        target: float = TARGET,
    ) -> None:
        self.predict, self.indices, self.device = predict, list(indices), device
        self.time_limit, self.warm_up, self.target = time_limit, warm_up, target
        self.seconds: list[float] = []
        self.processor_seconds: list[float] = []
        self.stages: list[StageTimes] = []
        self.processor_stages: list[StageTimes] = []
        self.spent = 0.0
        self._timed: list[int] = []
        self._next = 0
        self._warm = 0

    @property
    def reached(self) -> bool:
        """Whether the interval of the median is narrow enough, after at least `LEAST` and `ROUNDS` predictions."""
        if len(self.seconds) < max(LEAST, ROUNDS * len(self.indices)):
            return False
        half_width = estimate_quantile(self.seconds, 0.5).half_width
        return half_width is not None and half_width < self.target

    @property
    def done(self) -> bool:
        """Whether the target or the time limit is reached, with at least one prediction."""
        return bool(self.seconds) and (self.spent >= self.time_limit or self.reached)

    def step(self) -> None:
        """Predict the next image three times: as a whole, with stage times, and with processor times of the stages."""
        start = time.perf_counter()
        index = self.indices[self._next % len(self.indices)]
        if self._warm < self.warm_up and (not self._warm or self.spent < self.time_limit / 4):
            self.predict(index)
            self._warm += 1
        else:
            self._timed.append(index)
            # The image is in the processor's cache for the later predictions, so the order rotates.
            kinds = [self._time_whole, self._time_stages, self._time_processor_stages]
            first = sum(divmod(self._next, len(self.indices))) % len(kinds)
            for time_prediction in kinds[first:] + kinds[:first]:
                if hasattr(os, "sched_yield"):
                    os.sched_yield()  # so that each prediction starts with a new time slice
                time_prediction(index)
        self._next += 1
        self.spent += time.perf_counter() - start

    def latency(self) -> Latency:
        """Return the quantiles of the latency."""
        p50, p90, p99 = (_in_ms(estimate_quantile(self.seconds, share)) for share in (0.5, 0.9, 0.99))
        processor = 1000 * statistics.median(self.processor_seconds)
        count = len(self.seconds)
        return Latency(p50, p90, p99, count, self._warm, self.target, self.reached, processor)

    def stage_times(self) -> Stages:
        """Return the time of each stage in the fastest prediction of each image, averaged over the images.

        Other work on the machine can only slow down a prediction, so the fastest one is least disturbed.
        """
        names = in_stage_order(name for times in self.stages for name in times.seconds)
        by_time = self._least(self.stages, lambda times: times.total)
        by_use = self._least(self.processor_stages, lambda times: times.total)
        ms = {name: _mean_ms(times.seconds.get(name, 0.0) for times in by_time) for name in names}
        used = {name: _mean_ms(times.seconds.get(name, 0.0) for times in by_use) for name in names}
        return Stages(
            ms | {OTHER: _mean_ms(times.other for times in by_time)},
            _mean_ms(self._least(self.seconds, float)),
            len(self.stages),
            used | {OTHER: _mean_ms(times.other for times in by_use)},
            _mean_ms(self._least(self.processor_seconds, float)),
        )

    def _least(self, values: Sequence[T], key: Callable[[T], float]) -> list[T]:
        """Return the value with the smallest ``key`` for each image."""
        of_image: dict[int, list[T]] = {}
        for index, value in zip(self._timed, values, strict=True):
            of_image.setdefault(index, []).append(value)
        return [min(each, key=key) for each in of_image.values()]

    def _time_whole(self, index: int) -> None:
        processor, start = time.process_time(), time.perf_counter()
        self.predict(index)
        self.seconds.append(time.perf_counter() - start)
        self.processor_seconds.append(time.process_time() - processor)

    def _time_stages(self, index: int) -> None:
        with time_stages(self.device) as times:
            self.predict(index)
        self.stages.append(times)

    def _time_processor_stages(self, index: int) -> None:
        with time_stages(clock=time.process_time) as times:
            self.predict(index)
        self.processor_stages.append(times)


class ThroughputMeasurement:
    """The throughput of a model for a batch in memory.

    Args:
        predict: A function that predicts the batch and waits for the device.
        batch_size: The number of images of the batch.
        time_limit: The maximum time in seconds.
        target: The relative half width of the interval of the median at which the measurement stops.
    """

    def __init__(
        self, predict: Callable[[], Any], batch_size: int, time_limit: float, target: float = TARGET
    ) -> None:
        self.predict, self.batch_size, self.time_limit, self.target = predict, batch_size, time_limit, target
        self.seconds: list[float] = []
        self.spent = 0.0
        self._warm = False

    @property
    def done(self) -> bool:
        """Whether the target or the time limit is reached, with at least one batch."""
        if not self.seconds:
            return False
        half_width = estimate_quantile(self.seconds, 0.5).half_width
        reached = len(self.seconds) >= LEAST and half_width is not None and half_width < self.target
        return self.spent >= self.time_limit or reached

    def step(self) -> None:
        """Predict the batch. The first prediction is not timed."""
        start = time.perf_counter()
        self.predict()
        elapsed = time.perf_counter() - start
        if self._warm:
            self.seconds.append(elapsed)
        self._warm = True
        self.spent += elapsed

    def throughput(self) -> Throughput:
        """Return the images per second."""
        rate = invert(estimate_quantile(self.seconds, 0.5), self.batch_size)
        return Throughput(self.batch_size, rate, len(self.seconds))


def _mean_ms(seconds: Iterable[float]) -> float:
    return 1000 * statistics.fmean(seconds)


def _in_ms(seconds: Estimate) -> Estimate:
    low, high = (None if bound is None else 1000 * bound for bound in (seconds.low, seconds.high))
    return Estimate(1000 * seconds.value, low, high)
