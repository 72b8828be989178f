"""Numbers at each score threshold equal those of the metric that scores a test."""

import numpy as np
import pytest
import torch
from random_evidence import random_detections

from segdet.metrics import DetectionScores
from segdet.report.detection_counts import count_by_score, detection_errors, thresholds
from segdet.runs.evidence_from_scores import ImageFile, evidence_from_scores


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


def test_counts_from_the_evidence_of_a_metric_equal_its_errors():
    source = random_detections(5)
    metric = DetectionScores(source.class_names)
    for index, image_id in enumerate(source.image_ids.tolist()):
        mine, objects = source.image == index, source.object_image == index
        prediction = {"boxes": source.box, "scores": source.score, "labels": source.label.astype(np.int64)}
        target = {
            "boxes": source.object_box,
            "labels": source.object_label.astype(np.int64),
            "iscrowd": source.object_crowd,
            "difficult": source.object_difficult,
        }
        prediction = {name: torch.from_numpy(values[mine]) for name, values in prediction.items()}
        target = {name: torch.from_numpy(values[objects]) for name, values in target.items()}
        metric.update([prediction], [target], [image_id])
    files = {int(each): ImageFile(str(each), (96, 128)) for each in source.image_ids}
    evidence = evidence_from_scores(metric, files)
    errors = metric.errors()
    grid = thresholds([evidence])
    counts = count_by_score(evidence, grid)
    assert grid[counts.best] == errors.best_score()
    for index in (0, 250, counts.best, 700):
        shown = errors.detections.scores >= grid[index]
        correct, objects = (shown & errors.correct).sum(), (~errors.objects.ignored).sum()
        assert counts.precision[index] == pytest.approx(correct / shown.sum(), abs=1e-12)
        assert counts.recall[index] == pytest.approx(correct / objects, abs=1e-12)
    assert detection_errors(evidence).gains() == pytest.approx(errors.gains(), abs=1e-12)
