"""Optimizers and schedules: learning rates, parameter groups and errors."""

import math

import pytest
import torch
from torch import nn

from segdet.detection import YOLOv1
from segdet.training.optim import DEFAULTS, Optimization
from segdet.util.errors import UserError


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


def _rates(optim: Optimization, steps: int, per_epoch: int = 10) -> list[float]:
    optimizer, schedule = optim.build(_Net(), steps, per_epoch)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_warmup_rises_linearly_to_the_rate() -> None:
    rates = _rates(Optimization(lr=1.0, schedule="constant", warmup_steps=10, warmup_factor=0.1), 20)
    assert rates[0] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.55)
    assert rates[10:] == [1.0] * 10


def test_cosine_and_poly_fall_from_the_rate_to_zero() -> None:
    for schedule, half in (("cosine", 0.5), ("poly", 0.5**0.9)):
        optim = Optimization(lr=2.0, schedule=schedule, warmup_steps=0)
        factor = optim.schedule_factor(100, 10)
        assert factor(0) == 1.0
        assert factor(50) == pytest.approx(half)
        assert factor(100) == pytest.approx(0.0)


def test_step_drops_at_epochs_and_at_fractions() -> None:
    by_epoch = Optimization(schedule="step", milestones=[2, 3], warmup_steps=0).schedule_factor(math.inf, 10)
    assert [by_epoch(s) for s in (19, 20, 30)] == pytest.approx([1, 0.1, 0.01])
    by_share = Optimization(schedule="step", milestones=[0.5], warmup_steps=0).schedule_factor(100, 10)
    assert [by_share(s) for s in (49, 50)] == pytest.approx([1, 0.1])


def test_a_schedule_that_needs_the_length_of_the_training_is_refused_if_it_is_unlimited() -> None:
    with pytest.raises(UserError, match=r"--model\.optim\.schedule cosine: .* give --trainer\.max_epochs"):
        Optimization(schedule="cosine").build(_Net(), math.inf, 10)
    with pytest.raises(UserError, match=r"--model\.optim\.milestones .* is unlimited; give epochs"):
        Optimization(schedule="step", milestones=[2, 0.9]).build(_Net(), math.inf, 10)


def test_biases_and_norms_do_not_decay_and_factors_apply_by_prefix() -> None:
    optim = Optimization(lr=1.0, weight_decay=0.5, bias_lr_factor=2.0, lr_factors={"backbone": 0.1})
    groups = {
        (g["lr"], g["weight_decay"]): {tuple(p.shape) for p in g["params"]} for g in optim.groups(_Net())
    }
    assert groups[(0.1, 0.5)] == {(4, 3, 3, 3)}
    assert groups[(1.0, 0.5)] == {(2, 4)}
    assert groups[(0.2, 0.0)] == {(4,)}  # convolution's and norm's bias
    assert groups[(0.1, 0.0)] == {(4,)}  # norm's weight
    assert groups[(2.0, 0.0)] == {(2,)}


def test_decay_all_decays_everything() -> None:
    assert {g["weight_decay"] for g in Optimization("sgd", decay_all=True).groups(_Net())} == {5e-4}


def test_factor_zero_freezes() -> None:
    net = _Net()
    optim = Optimization(lr_factors={"backbone": 0})
    optim.freeze(net)
    groups = optim.groups(net)
    assert not any(p.requires_grad for p in net.backbone.parameters())
    assert sum(len(g["params"]) for g in groups) == 2


def test_a_prefix_that_matches_no_parameter_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"no parameter begins with 'bakbone'; there are \['backbone', 'head'\]"
    ):
        Optimization(lr_factors={"bakbone": 0.1}).groups(_Net())


@pytest.mark.parametrize("name,kind", [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizers_by_name(name: str, kind: type) -> None:
    assert isinstance(Optimization(name=name).build(_Net(), 10, 10)[0], kind)


def test_every_optimizer_has_its_own_defaults() -> None:
    for name, values in DEFAULTS.items():
        optimizer, _ = Optimization(name, schedule="constant", warmup_steps=0).build(_Net(), 10, 10)
        assert {group["lr"] for group in optimizer.param_groups} == {values["lr"]}
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, values["weight_decay"]}
    given = Optimization("adamw", lr=0.5, weight_decay=0.0, schedule="constant", warmup_steps=0)
    optimizer, _ = given.build(_Net(), 10, 10)
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.5, 0.0)}


def test_without_a_number_of_steps_the_schedule_follows_the_time() -> None:
    shares = iter([0.0, 0.5, 1.0, 1.2])
    factor = Optimization(schedule="cosine", warmup_steps=2).schedule_factor(
        math.inf, 10, lambda: next(shares)
    )
    assert factor(1) == pytest.approx(0.505)  # warm-up counts steps
    assert [factor(step) for step in range(2, 6)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    times = iter([0.4, 0.4, 0.6, 0.6])
    drops = Optimization(schedule="step", milestones=[0.5, 3], warmup_steps=0)
    factor = drops.schedule_factor(math.inf, 10, lambda: next(times))
    assert [factor(29), factor(30)] == pytest.approx([1.0, 0.1])
    assert [factor(29), factor(30)] == pytest.approx([0.1, 0.01])
    # A number of steps takes precedence.
    limited = Optimization(schedule="cosine", warmup_steps=0).schedule_factor(100, 10, lambda: 1.0)
    assert limited(50) == pytest.approx(0.5)


@pytest.mark.parametrize(("name", "rate"), [("adamw", 1e-4), ("sgd", 1e-3)])
def test_families_scale_the_default_rate_of_each_optimizer(name: str, rate: float) -> None:
    model = YOLOv1(["a"], backbone="test_resnet", optim=Optimization(name))  # type: ignore[arg-type]
    assert model.optim.value_of("lr") == pytest.approx(rate)
    assert model.optim.value_of("weight_decay") == Optimization(name).value_of("weight_decay")  # type: ignore[arg-type]
    assert YOLOv1(["a"], optim=Optimization(name, lr=0.5)).optim.value_of("lr") == 0.5  # type: ignore[arg-type]
    assert Optimization(name).value_of("lr") == pytest.approx(10 * rate)  # type: ignore[arg-type]
