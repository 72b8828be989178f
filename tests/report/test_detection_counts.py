"""Numbers at each score threshold equal those of the metric that scores a test."""

import numpy as np
import pytest
from random_evidence import random_detections

from segdet.report.detection_counts import count_by_score, detection_errors, thresholds


@pytest.mark.parametrize("levels", [None, 20])
def test_precision_recall_and_f1_equal_those_of_the_evaluator_at_every_threshold(levels):
    evidence = random_detections(levels=levels)
    errors = detection_errors(evidence)
    grid = thresholds([evidence])
    counts = count_by_score(evidence, grid)
    objects = (~errors.objects.ignored).sum()
    for index in range(0, len(grid), 25):
        images = errors.of_images(grid[index])
        correct = images.correct.sum()
        wrong = (errors.detections.scores >= grid[index]).sum() - correct
        if correct:
            assert counts.precision[index] == pytest.approx(correct / (correct + wrong), abs=1e-12)
        assert counts.recall[index] == pytest.approx(correct / objects, abs=1e-12)
        assert counts.f1[index] == pytest.approx(2 * correct / (correct + wrong + objects), abs=1e-12)
    assert grid[counts.best] == errors.best_score()
    assert counts.f1[counts.best] == np.nanmax(counts.f1)


def test_the_thresholds_cover_scores_that_are_not_probabilities():
    runs = [random_detections(seed) for seed in (0, 1)]
    assert thresholds(runs)[[0, -1]].tolist() == [0, 1]
    assert 0.3 in thresholds(runs)
    runs[0].score[:] = runs[0].score * 6 - 4
    detection_errors.cache_clear()
    grid = thresholds(runs)
    assert grid[0] == pytest.approx(runs[0].score.min(), abs=1e-5) and grid[-1] >= runs[0].score.max() - 1e-5
    assert {detection_errors(run).best_score() for run in runs} <= {*grid.tolist()}


def test_the_matches_of_the_evidence_equal_those_of_the_errors():
    evidence = random_detections(3)
    counts = count_by_score(evidence, np.array([-1.0]))
    assert counts.correct[0] == detection_errors(evidence).correct.sum() > 0
    assert counts.wrong[0] == (~detection_errors(evidence).correct).sum() > 0
