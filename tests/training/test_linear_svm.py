"""Linear SVMs: training with mined negatives reaches the optimum of training with all negatives."""

import numpy as np
import pytest
import torch

from segdet.training.linear_svm import LinearSVMs, Mining, Round, mine


def blobs(seed: int = 0) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Return positives of three classes, and ten blocks of 60 rows with the classes that they are negatives of."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 8)) * 6
    positives = [(centre + random.normal(size=(20, 8)) * 3).astype(np.float32) for centre in centres]
    blocks = []
    for _ in range(10):
        labels = random.integers(-9, 3, 60)
        rows = random.normal(size=(60, 8)) * 4 + np.where(labels[:, None] >= 0, centres[labels.clip(0)], 0)
        blocks.append((rows.astype(np.float32), labels[:, None] != np.arange(3)))
    return positives, blocks


def objective(
    weight: np.ndarray, bias: float, positives: np.ndarray, negatives: np.ndarray, mining: Mining
) -> float:
    # In float64, because the relevant differences are smaller than the rounding of sums in float32.
    weight, bias, positives, negatives = (
        np.asarray(each, float) for each in (weight, bias, positives, negatives)
    )
    hinge = mining.positive_weight * np.maximum(0, 1 - positives @ weight - bias).sum()
    hinge += np.maximum(0, 1 + negatives @ weight + bias).sum()
    return float((weight @ weight + (bias / mining.bias) ** 2) / 2 + mining.cost * hinge)


def test_mining_ends_at_the_optimum_over_all_negatives() -> None:
    positives, blocks = blobs()
    mining = Mining(retrain=40, tolerance=1e-9)
    rounds: list[Round] = []
    weight, bias = mine(positives, blocks, mining, rounds.append)
    for label in range(3):
        negatives = np.concatenate([rows[may[:, label]] for rows, may in blocks])
        mined = objective(weight[label], bias[label], positives[label], negatives, mining)
        own = [done for done in rounds if done.label == label]
        assert len(own) > 2 and own[-1].gap < 1e-9
        assert sum(done.added for done in own) <= len(negatives)
        everything = Mining(hard=-np.inf, easy=-np.inf, tolerance=1e-9)
        all_weight, all_bias = mine(
            [positives[label]], [(negatives, np.ones((len(negatives), 1), bool))], everything
        )
        best = objective(all_weight[0], all_bias[0], positives[label], negatives, mining)
        assert mined == pytest.approx(best, rel=1e-9)
        # No nearby weights are better.
        random = np.random.default_rng(1)
        for _ in range(50):
            other = all_weight[0] * (1 + 0.05 * random.normal(size=8))
            assert objective(other, all_bias[0], positives[label], negatives, mining) >= best


def test_easy_negatives_are_dropped_and_hard_ones_counted() -> None:
    positives, blocks = blobs()
    rounds: list[Round] = []
    mine(positives, blocks, Mining(retrain=40, cost=0.1), rounds.append)
    assert any(done.left < done.negatives for done in rounds)
    assert [done.label for done in rounds[-3:]] == [0, 1, 2]
    assert all(0.7 < done.accuracy <= 1 for done in rounds)


def test_a_larger_cost_of_positives_raises_the_recall() -> None:
    positives, blocks = blobs(1)
    recalls = []
    for factor in (1.0, 20.0):
        weight, bias = mine(positives, blocks, Mining(positive_weight=factor))
        recalls.append(
            np.mean([(p @ w + b > 0).mean() for p, w, b in zip(positives, weight, bias, strict=True)])
        )
    assert recalls[0] < recalls[1]


def test_a_class_without_an_object_is_never_detected() -> None:
    positives, blocks = blobs()
    weight, bias = mine([*positives[:2], positives[2][:0]], blocks)
    assert all((rows @ weight[2] + bias[2] < 0).all() for rows, _ in blocks)


def test_the_module_returns_the_margins() -> None:
    positives, blocks = blobs()
    scale = 0.3
    scaled = [scale * rows for rows in positives]
    weight, bias = mine(scaled, [(scale * rows, may) for rows, may in blocks])
    svms = LinearSVMs(3, 8)
    assert not svms.fitted
    svms.set(weight, bias, scale)
    margins = svms(torch.from_numpy(positives[1]))
    assert svms.fitted
    torch.testing.assert_close(margins, torch.from_numpy(scaled[1] @ weight.T + bias))
    assert float((margins.argmax(1) == 1).float().mean()) > 0.8


def test_margins_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    svms = LinearSVMs(3, 64)
    svms.set(np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32), np.ones(3, np.float32), 0.7)
    features = torch.randn(500, 64)
    expected = svms(features)
    assert len(expected.unique()) > 1490
    with torch.autocast("cpu", torch.bfloat16):
        found = svms(features)
        of_half = svms(features.bfloat16())
    assert found.dtype == of_half.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(of_half, svms(features.bfloat16().float()))


@pytest.mark.parametrize("field", ["weight", "bias", "scale", "fitted"])
def test_the_state_contains_all_fields(field: str) -> None:
    assert field in LinearSVMs(2, 4).state_dict()
