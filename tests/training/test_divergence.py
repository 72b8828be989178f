import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from segdet.training.divergence import DivergedError, LossHistory, all_finite, check_checkpoint


def history(*rows: dict[str, float]) -> str:
    losses = LossHistory()
    for step, row in enumerate(rows, 1):
        losses.add({name: torch.tensor(value) for name, value in row.items()}, step)
    return str(losses)


def test_the_history_names_the_step_and_the_part_that_diverged_first() -> None:
    good = {"loss": 1.0, "loss_box": 0.5, "loss_class": 0.5}
    box = good | {"loss": math.nan, "loss_box": math.inf}
    everything = dict.fromkeys(good, math.nan)
    assert history(good, box, everything).startswith("loss_box became NaN or infinite at step 2")
    assert history(good, everything).startswith("loss_box and loss_class became NaN or infinite at step 2")
    assert history({"loss": math.nan}).startswith("loss became NaN or infinite at step 1")


def test_a_step_that_the_gradient_scaler_skips_is_not_a_divergence() -> None:
    good = {"loss": 1.0}
    assert history(good, {"loss": math.inf}, good, good, {"loss": math.nan}).startswith(
        "loss became NaN or infinite at step 5"
    )
    assert history(good, {"loss": math.inf}, good).startswith("the losses are finite")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_any_tensor_with_a_value_that_is_not_finite(dtype: torch.dtype, value: float) -> None:
    tensors = [torch.ones(3, dtype=dtype), torch.zeros(0, dtype=dtype), torch.arange(3), torch.ones(2)]
    assert all_finite(tensors)
    assert all_finite([torch.full((2,), torch.finfo(dtype).max, dtype=dtype)])
    assert not all_finite([*tensors, torch.tensor([[1.0, value]], dtype=dtype)])


class Network(pl.LightningModule):
    """A network with an infinite constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))


def weight(checkpoint: dict[str, Any]) -> Tensor:
    value: Tensor = checkpoint["state_dict"]["layers.0.weight"]
    return value


@pytest.mark.parametrize(
    "place",
    [
        weight,
        lambda checkpoint: checkpoint["state_dict"]["layers.1.running_var"],
        lambda checkpoint: checkpoint["current_model_state"]["layers.0.bias"],
        lambda checkpoint: checkpoint["optimizer_states"][0]["state"][0]["exp_avg_sq"],
    ],
)
def test_a_checkpoint_with_a_nan_is_refused(place: Callable[[dict[str, Any]], Tensor]) -> None:
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters())
    network.layers(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    average = {name: value.clone() for name, value in network.state_dict().items()}
    checkpoint = {
        "state_dict": network.state_dict(), "current_model_state": average,
        "optimizer_states": [optimizer.state_dict()],
    }  # fmt: skip
    check_checkpoint(network, checkpoint)
    place(checkpoint).flatten()[-1] = math.nan
    with pytest.raises(DivergedError, match=r"the training diverged; give a lower --model\.optim\.lr"):
        check_checkpoint(network, checkpoint)
