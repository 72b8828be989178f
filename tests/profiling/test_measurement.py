"""Latency, stages, the rule to stop, and the order of several models, on models that sleep or move a clock."""

import time
from collections.abc import Callable

import pytest
import torch

from segdet.profiling import measurement
from segdet.profiling.measurement import LatencyMeasurement, ThroughputMeasurement, measure_in_turn
from segdet.util.stage_timing import stage

CPU = torch.device("cpu")


class Clock:
    """A clock that only predictions move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("segdet.profiling.measurement.time.perf_counter", lambda: self.now)

    def predictor(self, seconds: Callable[[int], float]) -> Callable[[int], None]:
        """Return a predictor that takes ``seconds(call)``: a tenth before a stage, six tenths in it."""
        calls = iter(range(10**6))

        def predict(index: int) -> None:
            duration = seconds(next(calls))
            self.now += duration / 10
            with stage("network"):
                self.now += duration * 0.6
            self.now += duration * 0.3

        return predict


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_constant_time_stops_at_the_least_number_of_predictions(clock: Clock) -> None:
    latency = LatencyMeasurement(clock.predictor(lambda _: 0.1), range(4), CPU, time_limit=1000)
    measure_in_turn([latency], "test")
    result = latency.latency()
    assert result.reached and result.count == measurement.LEAST and result.warm_up == 3
    assert (result.p50.value, result.p50.low, result.p50.high) == pytest.approx((100, 100, 100))


def test_every_image_is_predicted_several_times(clock: Clock) -> None:
    latency = LatencyMeasurement(clock.predictor(lambda _: 0.1), range(50), CPU, time_limit=1000)
    measure_in_turn([latency], "test")
    assert latency.latency().count == measurement.ROUNDS * 50


def test_a_noisy_time_goes_on_until_the_interval_is_narrow(clock: Clock) -> None:
    noise = torch.rand(10**4, generator=torch.Generator().manual_seed(0))
    latency = LatencyMeasurement(
        clock.predictor(lambda call: 0.09 + 0.02 * float(noise[call])), [0], CPU, 1000
    )
    measure_in_turn([latency], "test")
    result = latency.latency()
    assert result.reached and result.count > measurement.LEAST
    assert result.p50.half_width is not None and result.p50.half_width < 0.02


def test_the_time_limit_ends_a_measurement_that_does_not_reach_the_target(clock: Clock) -> None:
    wide = LatencyMeasurement(clock.predictor(lambda call: 0.1 * (1 + call % 7)), [0], CPU, time_limit=20)
    measure_in_turn([wide], "test")
    assert not wide.latency().reached
    assert 20 <= wide.spent < 22
    slow = LatencyMeasurement(clock.predictor(lambda _: 100.0), [0], CPU, time_limit=20)
    measure_in_turn([slow], "test")
    assert slow.latency().count == 1  # at least one prediction


def test_stages_add_up_to_the_whole(clock: Clock) -> None:
    latency = LatencyMeasurement(clock.predictor(lambda call: 0.1 * (1 + call % 3)), range(3), CPU, 1000)
    measure_in_turn([latency], "test")
    stages = latency.stage_times()
    assert stages.ratio == pytest.approx(1)
    assert stages.ms["network"] == pytest.approx(0.6 * stages.whole_ms)
    assert stages.ms["other"] == pytest.approx(0.4 * stages.whole_ms)


def test_models_are_measured_in_turn(clock: Clock) -> None:
    order: list[str] = []

    def predictor(name: str, seconds: float) -> Callable[[int], None]:
        inner = clock.predictor(lambda _: seconds)

        def predict(index: int) -> None:
            order.append(name)
            inner(index)

        return predict

    fast = LatencyMeasurement(predictor("fast", 0.01), [0, 1], CPU, 1000)
    slow = LatencyMeasurement(predictor("slow", 1.0), [0, 1], CPU, time_limit=20)
    measure_in_turn([fast, slow], "test")
    turns = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    together = turns[: 2 * slow.latency().count]
    assert together == ["fast", "slow"] * (len(together) // 2)
    assert slow.latency().count < fast.latency().count


def test_a_known_sleep_is_measured() -> None:
    def predict(index: int) -> None:
        time.sleep(0.01)
        with stage("network"):
            time.sleep(0.03)

    latency = LatencyMeasurement(predict, [0], CPU, time_limit=3)
    measure_in_turn([latency], "test")
    assert 40 <= min(latency.seconds) * 1000 < 60
    assert latency.latency().p50.value >= 40
    assert latency.latency().processor_ms < 20  # sleeping takes no processor time
    stages = latency.stage_times()
    assert stages.ratio == pytest.approx(1, abs=0.03)
    assert stages.ms["network"] == pytest.approx(30, rel=0.2)
    assert stages.processor_ms["network"] < 5


def test_throughput_is_the_batch_size_per_median_time(clock: Clock) -> None:
    predict = clock.predictor(lambda call: 5.0 if call == 0 else 0.5)  # the first call is the warm-up
    throughput = ThroughputMeasurement(lambda: predict(0), batch_size=8, time_limit=1000)
    measure_in_turn([throughput], "test")
    result = throughput.throughput()
    assert (result.batch_size, result.count) == (8, measurement.LEAST)
    assert result.images_per_second.value == pytest.approx(16)


def test_processor_time_shows_work_that_other_processes_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    now = used = 0.0
    monkeypatch.setattr("segdet.profiling.measurement.time.perf_counter", lambda: now)
    monkeypatch.setattr("segdet.profiling.measurement.time.process_time", lambda: used)
    waits = iter([0.0, *torch.rand(10**4, generator=torch.Generator().manual_seed(0)).tolist()])

    def predict(index: int) -> None:
        nonlocal now, used
        with stage("network"):
            used += 0.2
            now += 0.2 + next(waits)
        used += 0.05
        now += 0.05

    latency = LatencyMeasurement(predict, [0, 1], CPU, time_limit=30)
    measure_in_turn([latency], "test")
    stages = latency.stage_times()
    assert stages.processor_ms == pytest.approx({"network": 200, "other": 50})
    assert stages.processor_ratio == pytest.approx(1)
    assert latency.latency().processor_ms == pytest.approx(250)
