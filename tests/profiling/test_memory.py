"""Peak memory: known tensors, weights, and growth with the batch and with training."""

import torch
from torch import nn

from segdet.profiling.memory import MIB, peak_memory_mb


def test_tensors_that_exist_together_are_summed() -> None:
    module = nn.Linear(256, 256, bias=False)  # 0.25 MiB

    def work() -> None:
        with torch.no_grad():
            first = torch.zeros(256, 1024)  # 1 MiB
            second = first + 1
            del first
            view = second[:10]
            third = second * 2
            del second, view
            third.add_(1)

    assert peak_memory_mb(work, module) == 2.25


def test_a_freed_tensor_does_not_count() -> None:
    module = nn.Linear(1, 1, bias=False)

    def work() -> None:
        for _ in range(5):
            torch.zeros(256, 1024)

    assert peak_memory_mb(work, module) == 1 + 4 / MIB


def test_training_adds_gradients_activations_and_the_state_of_the_optimizer() -> None:
    module = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    optimizer = torch.optim.Adam(module.parameters())
    weights = 4 * 64 * 64 * 4

    def predict(batch: int) -> None:
        with torch.no_grad():
            module(torch.zeros(batch, 64))

    def train(batch: int) -> None:
        for _ in range(2):
            module(torch.zeros(batch, 64)).sum().backward()
            optimizer.step()

    inference = [peak_memory_mb(lambda batch=batch: predict(batch), module) for batch in (1, 8, 64)]
    training = [peak_memory_mb(lambda batch=batch: train(batch), module) for batch in (1, 8, 64)]
    assert inference == sorted(inference) and training == sorted(training)
    assert inference[0] < inference[2] and training[0] < training[2]
    assert inference[2] * MIB == weights + 3 * 64 * 64 * 4  # input, and the activations around one layer
    assert training[0] * MIB >= 4 * weights  # weights, gradients and two moments
    assert training[2] * MIB >= 4 * weights + 4 * 64 * 64 * 4  # and the activations of all layers
