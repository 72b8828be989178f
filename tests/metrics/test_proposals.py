"""Test recall and MABO of proposals against loops."""

import numpy as np
import pytest

from segdet.metrics.proposals import ProposalScores, best_overlaps


def iou(one: np.ndarray, other: np.ndarray) -> float:
    w = min(one[2], other[2]) - max(one[0], other[0])
    h = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, w) * max(0.0, h)
    return common / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - common)


def boxes(random: np.random.Generator, count: int) -> np.ndarray:
    corner = random.uniform(0, 80, (count, 2))
    return np.concatenate([corner, corner + random.uniform(5, 60, (count, 2))], 1)


def test_equals_loops_over_images_objects_and_boxes() -> None:
    random = np.random.default_rng(0)
    counts = [1, 5, 20, 1000]
    scores = ProposalScores(counts)
    overlaps, labels = [], []
    for _ in range(12):
        found, truth = boxes(random, random.integers(0, 40)), boxes(random, random.integers(0, 6))
        classes = random.integers(1, 4, len(truth))
        scores.update(found, truth, classes)
        for box, label in zip(truth, classes, strict=True):
            overlaps.append([max([iou(box, b) for b in found[:n]], default=0.0) for n in counts])
            labels.append(label)
    best, labels = np.array(overlaps), np.array(labels)
    np.testing.assert_allclose(scores.best, best)
    for threshold in (0.3, 0.5):
        expected = [(best[:, i] >= threshold).sum() / len(best) for i in range(4)]
        np.testing.assert_allclose(scores.recall(threshold), expected)
        assert 0 < expected[-1] < 1
    means = [np.mean([best[labels == label, i].mean() for label in (1, 2, 3)]) for i in range(4)]
    np.testing.assert_allclose(scores.mabo(), means)
    assert scores.images == 12


def test_mabo_weighs_all_classes_equally() -> None:
    box = np.array([[0, 0, 10, 10]])
    scores = ProposalScores([1])
    scores.update(box, np.repeat(box, 9, 0), np.ones(9))
    scores.update(np.zeros((0, 4)), box, np.array([2]))
    assert scores.recall(0.5).tolist() == [0.9]
    assert scores.mabo().tolist() == [0.5]
    assert scores.abo()[1].tolist() == [1.0]
    assert scores.boxes_per_image == 0.5


def test_scores_without_objects_are_nan() -> None:
    scores = ProposalScores([1, 2])
    assert np.isnan(scores.boxes_per_image)
    scores.update(np.ones((3, 4)), np.zeros((0, 4)), np.zeros(0))
    assert np.isnan(scores.recall(0.5)).all() and np.isnan(scores.mabo()).all()
    assert best_overlaps(np.zeros((0, 4)), np.array([[0, 0, 1, 1]]), [3]).tolist() == [[0]]
    with pytest.raises(ValueError, match="must be 1 or more"):
        ProposalScores([0])
