"""A training resumes with the settings of its model, whatever the settings of the checkpoint."""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from segdet.data import ShapesDataModule
from segdet.segmentation.fcn import FCN
from segdet.training.optim import Optimization
from segdet.training.resumed_optimizer import regroup, schedule_position


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.head = nn.Conv2d(3, 3, 1)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.5}, {"weight_decay": 0.0}, {"decay_all": True}, {"bias_lr_factor": 2.0},
        {"lr_factors": {"backbone": 0.1}}, {"lr_factors": {"head": 0.1}, "bias_lr_factor": 2.0},
    ],
)  # fmt: skip
def test_the_state_of_each_parameter_is_kept_in_other_groups(name: Any, change: dict[str, Any]) -> None:
    earlier = Optimization(name=name, schedule="constant")
    now = replace(earlier, **change)
    network = Network()
    before, _ = earlier.build(network, math.inf, 1)
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    before.step()
    after, _ = now.build(network, math.inf, 1)
    after.load_state_dict(regroup(before.state_dict(), network, earlier, now))
    for parameter in network.parameters():
        saved, kept = before.state[parameter], after.state[parameter]
        assert saved.keys() == kept.keys()
        for key, value in saved.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(kept[key]))


def test_the_state_of_other_parameters_is_left_to_torch() -> None:
    network = Network()
    earlier, now = Optimization(), Optimization(lr_factors={"backbone": 0.0})
    state = earlier.build(network, 10, 1)[0].state_dict()
    now.freeze(network)
    assert regroup(state, network, earlier, now) is state
    assert regroup(state, network, Optimization(lr_factors={"neck": 0.1}), now) is state


@pytest.mark.parametrize(
    ("position", "saved", "now", "limit", "expected"),
    [
        (500, (1000, 100), (1000, 100), -1, 500),
        (500, (1000, 100), (2000, 100), -1, 500),  # twice the number of epochs
        (500, (1000, 100), (500, 50), -1, 250),  # twice the batch size
        (500, (1000, 100), (2000, 200), -1, 1000),
        (500, (1000, 100), (1000, 50), 1000, 500),  # --trainer.max_steps 1000
        (20, (1000, 100), (500, 50), -1, 20),  # within the warm-up
        (40, (1000, 100), (500, 50), -1, 30),
        (500, None, (500, 50), -1, 500),
    ],
)
def test_the_schedule_continues_after_the_same_number_of_epochs(
    position: int, saved: Any, now: Any, limit: int, expected: int
) -> None:
    assert schedule_position(position, saved, now, 30, limit) == expected


class RateLog(pl.Callback):
    """The settings of the first parameter group in each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.others: set[tuple[float, float]] = set()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        (group, *_) = optimizer.param_groups
        self.rates.append(group["lr"])
        self.others.add((group["momentum"], group["weight_decay"]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShapesDataModule:
    module = ShapesDataModule(
        tmp_path_factory.mktemp("data") / "shapes", num_train=8, num_val=2, num_test=2, image_size=(64, 64),
        task="segmentation", batch_size=2, num_workers=0,
    )  # fmt: skip
    module.prepare_data()
    return module


def fit(
    data: ShapesDataModule, optim: Optimization, folder: Path, resume: Path | None = None, epochs: int = 4
) -> tuple[RateLog, Path]:
    log, saves = RateLog(), ModelCheckpoint(folder, "{step}", save_top_k=-1)
    model = FCN(data.class_names, backbone="test_resnet", width=8, optim=optim)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(
            accelerator="cpu", max_epochs=epochs, limit_val_batches=0, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[log, saves],
        ).fit(model, data, ckpt_path=resume, weights_only=True)  # fmt: skip
    return log, folder / "step=8.ckpt"


def test_a_script_resumes_with_the_settings_of_its_model(data: ShapesDataModule, tmp_path: Path) -> None:
    """The training has 4 epochs of 4 steps. The checkpoint was saved after the second epoch."""
    first = Optimization("sgd", lr=0.1, schedule="cosine", warmup_steps=2)
    whole, saved = fit(data, first, tmp_path / "whole")
    same, _ = fit(data, first, tmp_path / "same", saved)
    assert same.rates == whole.rates[8:]  # bit for bit
    changed, _ = fit(data, replace(first, lr=0.01, momentum=0.5, weight_decay=0.0), tmp_path / "c", saved)
    assert changed.rates == pytest.approx([rate / 10 for rate in whole.rates[8:]])
    assert changed.others == {(0.5, 0.0)}
    step, _ = fit(data, replace(first, schedule="step", milestones=[0.6]), tmp_path / "step", saved)
    assert step.rates == pytest.approx([0.1, 0.1] + [0.01] * 6)  # the rate drops after 0.6 of 16 steps
    factor, _ = fit(data, replace(first, lr_factors={"backbone": 0.1}), tmp_path / "factor", saved)
    assert factor.rates == pytest.approx([rate / 10 for rate in whole.rates[8:]])
    longer, _ = fit(data, first, tmp_path / "longer", saved, epochs=6)
    expected, _ = fit(data, first, tmp_path / "expected", epochs=6)
    assert longer.rates == expected.rates[8:]
