"""Test pixel losses and class weights against their definitions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segdet.data import VOCDataModule
from segdet.data.frequency import ClassFrequency, class_frequency
from segdet.segmentation.losses import class_weights, cross_entropy, dice, focal, pixel_loss

KINDS = ("cross_entropy", "focal", "dice", "cross_entropy_dice")
WEIGHTS = torch.tensor([0.3, 1.0, 2.5, 0.7])


def random_pixels(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and masks of four classes; the last does not occur, and some pixels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 4, 5, 6, generator=generator)
    masks = torch.randint(0, 3, (2, 5, 6), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = 255
    return logits, masks


def by_hand(
    logits: torch.Tensor, masks: torch.Tensor, weights: list[float], gamma: float
) -> tuple[float, float, float]:
    """Return cross entropy, focal loss and Dice loss by their definitions, one pixel at a time."""
    probabilities = logits.double().softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).tolist()
    pixels = [(p, t) for p, t in zip(probabilities, masks.flatten().tolist(), strict=True) if t != 255]
    counted = sum(weights[t] for _, t in pixels)
    entropy = sum(-weights[t] * math.log(p[t]) for p, t in pixels) / counted
    focused = sum(-weights[t] * (1 - p[t]) ** gamma * math.log(p[t]) for p, t in pixels) / counted
    overlap = {
        c: 2 * sum(p[c] for p, t in pixels if t == c) / (sum(p[c] + (t == c) for p, t in pixels))
        for c in {t for _, t in pixels}
    }
    total = sum(weights[c] for c in overlap)
    return entropy, focused, sum(weights[c] * (1 - overlap[c]) for c in overlap) / total


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_are_those_computed_by_hand(weights: torch.Tensor | None) -> None:
    logits, masks = random_pixels()
    entropy, focused, overlap = by_hand(
        logits, masks, [1.0] * 4 if weights is None else weights.tolist(), 1.5
    )
    assert cross_entropy(logits, masks, weights).item() == pytest.approx(entropy, rel=1e-5)
    assert focal(logits, masks, weights, 1.5).item() == pytest.approx(focused, rel=1e-5)
    assert dice(logits, masks, weights).item() == pytest.approx(overlap, rel=1e-5)
    both = pixel_loss(logits, masks, "cross_entropy_dice", weights)
    assert both.item() == pytest.approx(entropy + overlap, rel=1e-5)
    assert pixel_loss(logits, masks, "focal", weights, 1.5).item() == pytest.approx(focused, rel=1e-5)
    expected = F.cross_entropy(logits, masks, weights, ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, masks, weights), expected)


def test_focal_with_gamma_0_is_cross_entropy() -> None:
    logits, masks = random_pixels(1)
    torch.testing.assert_close(focal(logits, masks, WEIGHTS, 0.0), cross_entropy(logits, masks, WEIGHTS))
    assert focal(logits, masks, None, 2.0) < cross_entropy(logits, masks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ignored_pixels_have_neither_loss_nor_gradient(kind: str, weights: torch.Tensor | None) -> None:
    logits, masks = random_pixels(2)
    other = torch.where((masks == 255)[:, None], logits + 5 * torch.randn_like(logits), logits)
    logits.requires_grad_()
    loss = pixel_loss(logits, masks, kind, weights)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, pixel_loss(other, masks, kind, weights))  # type: ignore[arg-type]
    loss.backward()
    gradients = logits.grad.abs().sum(1)  # type: ignore[union-attr]
    assert (gradients[masks == 255] == 0).all() and (gradients[masks != 255] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_zero_if_all_pixels_are_ignored(kind: str) -> None:
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 3, 3), 255), kind, WEIGHTS)  # type: ignore[arg-type]
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_loss_is_finite_for_extreme_logits(kind: str, gamma: float) -> None:
    masks = torch.tensor([[[0, 1], [2, 3]]])
    correct = 1000.0 * F.one_hot(masks, 4).permute(0, 3, 1, 2)
    for logits in (correct, -correct):
        logits = logits.bfloat16().requires_grad_()
        loss = pixel_loss(logits, masks, kind, None, gamma)  # type: ignore[arg-type]
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()  # type: ignore[union-attr]

    assert pixel_loss(correct, masks, kind, None, gamma) < 1e-5  # type: ignore[arg-type]
    assert pixel_loss(-correct, masks, kind, None, gamma) > 0.9  # type: ignore[arg-type]


def test_class_weights_by_hand() -> None:
    frequency = ClassFrequency(np.array([600, 100, 0, 50]), np.array([1000, 1000, 0, 200]))
    # frequencies .6, .1, .25; their median is .25
    expected = torch.tensor([0.25 / 0.6, 2.5, 0.0, 1.0])
    torch.testing.assert_close(class_weights(frequency, "median_frequency"), expected)
    inverse_sqrt = class_weights(frequency, "inverse_sqrt_frequency")
    assert inverse_sqrt[2] == 0 and inverse_sqrt[[0, 1, 3]].mean().item() == pytest.approx(1)
    assert (inverse_sqrt[1] / inverse_sqrt[0]).item() == pytest.approx(6**0.5)
    assert (inverse_sqrt[3] / inverse_sqrt[1]).item() == pytest.approx(2**0.5)


def test_camvids_weights_are_the_published_ones(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGDET_CACHE", str(tmp_path))
    data = VOCDataModule(real_data / "camvid", task="segmentation", ignore_index=11)
    weights = class_weights(class_frequency(data.dataset("train")), "median_frequency")
    published = [0.2793, 0.2017, 4.7865, 0.1490, 1, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]
    assert weights.tolist() == pytest.approx(published, abs=5.1e-5)
