"""Stages: their names in a profile, and the time spent in each."""

import pytest
import torch

from segdet.util.stage_timing import stage, time_stages


def test_times_are_summed_per_stage_in_order_of_first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("segdet.util.stage_timing.time.perf_counter", lambda: now)
    with time_stages() as times:
        now += 0.25
        for name, duration in (("network", 3.0), ("nms", 1.0), ("network", 0.5)):
            with stage(name):
                now += duration
        with stage("outer"):
            now += 4.0
            with stage("nms"):
                now += 2.0
            now += 1.0
        now += 0.5
    with stage("network"):
        now += 9.0
    assert list(times.seconds) == ["network", "nms", "outer"]
    assert times.seconds == {"network": 3.5, "nms": 3.0, "outer": 5.0}  # without the inner stage
    assert times.other == 0.75


def test_an_error_ends_its_stage() -> None:
    with time_stages() as times, pytest.raises(ZeroDivisionError), stage("network"):
        _ = 1 / 0
    assert times.seconds["network"] >= 0
    with stage("nms"):
        pass
    assert list(times.seconds) == ["network"]


def test_stages_are_ranges_of_the_profiler() -> None:
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        stage("network"),
    ):
        torch.zeros(3).add_(1)
    assert "segdet::network" in {event.key for event in profile.key_averages()}
