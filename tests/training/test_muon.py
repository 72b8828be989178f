"""Muon: singular values of a step, AdamW for the other parameters, resuming, and a comparison with SGD."""

import pytest
import torch
from torch import nn

from segdet.training.muon import Muon, orthogonalize
from segdet.training.optim import Optimization


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (1, 9)])
def test_a_step_keeps_the_singular_vectors_and_equalizes_the_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * torch.logspace(0, -2, shape[1])
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.mT @ orthogonalize(matrix) @ vh.mT
    # The polynomials keep the singular vectors. They map singular values above 0.005 of the norm to about 1.
    assert (inside - torch.diag(inside.diag())).abs().max() < 1e-4
    assert ((inside.diag() > 0.6) & (inside.diag() < 1.3))[s / s.norm() > 0.005].all()


def test_a_zero_gradient_gives_a_zero_step() -> None:
    assert orthogonalize(torch.zeros(3, 4)).abs().max() == 0


def test_the_step_is_as_large_as_that_of_adamw_and_weights_decay() -> None:
    weight = nn.Parameter(torch.full((64, 16, 3, 3), 2.0))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    torch.manual_seed(0)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    step = weight.detach() - 2.0 * (1 - 0.1 * 0.5)
    assert step.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)


def test_other_parameters_are_updated_by_adamw_as_in_torch() -> None:
    torch.manual_seed(0)
    start = torch.randn(7)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    muon = Muon([{"params": [ours], "muon": False}], lr=0.02, betas=(0.9, 0.98), weight_decay=0.1)
    adamw = torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.98), weight_decay=0.1)
    for _ in range(20):
        ours.grad = torch.randn(7)
        theirs.grad = ours.grad.clone()
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_muon_updates_matrices_but_not_embeddings_biases_or_norms() -> None:
    net = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.Embedding(6, 5)])
    optimizer, _ = Optimization(name="muon", schedule="constant").build(net, 10, 10)
    rule = {id(p): g["muon"] for g in optimizer.param_groups for p in g["params"]}
    shapes = {tuple(p.shape): rule[id(p)] for p in net.parameters()}
    assert {shape for shape, muon in shapes.items() if muon} == {(4, 3, 3, 3), (2, 4)}
    assert not shapes[(6, 5)]


def test_training_resumes_exactly_from_a_saved_state() -> None:
    def train(steps: list[int], saved: dict | None = None) -> tuple[nn.Module, dict]:
        torch.manual_seed(0)
        net = nn.Linear(6, 4)
        if saved:
            net.load_state_dict(saved["net"])
        optimizer, _ = Optimization(name="muon", schedule="constant", lr=0.02).build(net, 10, 10)
        if saved:
            optimizer.load_state_dict(saved["optimizer"])
        for step in steps:
            inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (net(inputs) - inputs[:, :4]).square().mean().backward()
            optimizer.step()
        return net, {"net": net.state_dict(), "optimizer": optimizer.state_dict()}

    whole, _ = train([0, 1, 2, 3])
    _, half = train([0, 1])
    resumed, _ = train([2, 3], half)
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.bias, resumed.bias)


def test_muon_fits_inputs_of_small_variance_better_than_sgd() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(256, 16) * torch.logspace(0, -3, 16)
    targets = inputs @ torch.randn(16, 16)

    def error(optimizer: type[torch.optim.Optimizer], **options: float) -> float:
        net = nn.Linear(16, 16, bias=False)
        nn.init.zeros_(net.weight)
        learner = optimizer(net.parameters(), **options)
        for step in range(200):
            for group in learner.param_groups:
                group["lr"] = options["lr"] * (1 - step / 200)
            learner.zero_grad()
            (net(inputs) - targets).square().mean().backward()
            learner.step()
        scaled = (net(inputs) - targets).square().mean(0) / targets.square().mean(0)
        return float(scaled.detach().mean())

    assert error(Muon, lr=0.1, weight_decay=0.0) < 0.1 * error(torch.optim.SGD, lr=0.1)
