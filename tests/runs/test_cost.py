"""The measured cost of an image."""

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from segdet.runs.cost import measure_cost
from segdet.util.stage_timing import stage


class Windows(nn.Module):
    """A classifier of all windows of 8 pixels, in batches of at most 3 windows."""

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.side = side
        self.network = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(), nn.Flatten(), nn.LazyLinear(5)
        )
        self.network(torch.zeros(1, 3, side, side))
        self.network[0].weight.requires_grad_(False)

    @property
    def pass_module(self) -> nn.Module:
        return self.network

    def predict_tensors(self, images: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        windows = images.float().unfold(2, self.side, self.side).unfold(3, self.side, self.side)
        windows = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return torch.cat([self.network(part) for part in windows.split(3)])


def test_flops_passes_and_parameters_equal_a_count_by_hand() -> None:
    model = Windows()
    with torch.inference_mode():  # as Lightning does in a test
        cost = measure_cost(model, torch.zeros(1, 3, 16, 32, dtype=torch.uint8), repeats=3)
    windows = 2 * 4
    assert cost.passes_per_image == windows
    assert cost.flops == windows * 2 * (8 * 8 * 4 * 3 * 3 * 3 + 4 * 8 * 8 * 5)
    assert cost.parameters == (3 * 4 * 9 + 4) + (256 * 5 + 5)
    assert cost.ms_per_image is not None and 0 < cost.ms_per_image < 1000
    assert cost.peak_memory_mb is not None and cost.peak_memory_mb > 50
    assert cost.train_seconds is None


def test_modes_hooks_and_random_state_are_unchanged() -> None:
    model = Windows().train()
    model.network[1].eval()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure_cost(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), repeats=1)
    assert torch.equal(torch.rand(1), expected)
    assert model.training and model.network[0].training and not model.network[1].training
    assert not model.network._forward_pre_hooks


class Clocked(Windows):
    """A model that advances a clock by the given durations, one per prediction."""

    def __init__(self, durations: list[float]) -> None:
        super().__init__()
        self.durations, self.now, self.calls = durations, 0.0, 0

    def predict_tensors(self, images: Tensor) -> Tensor:
        self.now += self.durations[min(self.calls, len(self.durations) - 1)]
        self.calls += 1
        return super().predict_tensors(images)


@pytest.mark.parametrize(
    ("durations", "milliseconds", "calls"),
    [
        ([9.0, 1.0, 2.0, 3.0], 9000.0, 2),  # slower than the limit: timed once, then once for the FLOPs
        ([0.9, 0.1, 0.1, 0.3, 0.1, 0.1], 100.0, 7),  # a median without the warm-up: 5 times at most
        ([1.0, 1.0], 1000.0, 5),  # as many as fit into the limit of 3 seconds
    ],
)
def test_the_time_is_a_bounded_median(
    durations: list[float], milliseconds: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Clocked(durations)
    monkeypatch.setattr("segdet.runs.cost.time.perf_counter", lambda: model.now)
    cost = measure_cost(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), repeats=5, seconds=3.0)
    assert cost.ms_per_image == pytest.approx(milliseconds)
    assert model.calls == calls


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
def test_only_a_single_uint8_image_is_accepted(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[1, 3, H, W\]"):
        measure_cost(Windows(), images)


class Staged(Clocked):
    """A model with two stages, which take 0.1 and 0.3 of each prediction. The first stage has two parts.

    Another range of the profiler encloses each part, and must not be counted as a stage.
    """

    def predict_tensors(self, images: Tensor) -> Tensor:
        before = self.now
        found = super().predict_tensors(images)
        duration, self.now = self.now - before, before
        for name, share in (
            ("proposals", 0.05),
            ("network", 0.3),
            ("proposals", 0.05),
        ):
            with record_function("something else"), stage(name):
                self.now += share * duration
        self.now = before + duration
        return found


@pytest.mark.parametrize(
    ("durations", "milliseconds", "calls"),
    [
        ([9.0, 1.0], 9000.0, 2),  # slow: the stages of the one timed prediction
        (
            [1.0, 0.2, 0.2, 0.2, 0.4, 0.5, 9.0],
            400.0,
            7,
        ),  # the median of three predictions that start within a second
        ([0.1, 0.1], 100.0, 9),  # at most five
    ],
)
def test_stages_are_timed_separately_in_their_order(
    durations: list[float], milliseconds: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Staged(durations)
    monkeypatch.setattr("segdet.runs.cost.time.perf_counter", lambda: model.now)
    cost = measure_cost(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), repeats=2, seconds=3.0)
    assert list(cost.stages_ms) == ["proposals", "network"]
    assert cost.stages_ms == pytest.approx({"proposals": milliseconds / 10, "network": milliseconds * 0.3})
    assert model.calls == calls


def test_a_model_without_stages_has_no_stage_times() -> None:
    assert measure_cost(Windows(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), repeats=1).stages_ms == {}
