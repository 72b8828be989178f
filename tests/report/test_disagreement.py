"""Scores of single images and the disagreement of runs about an image."""

import numpy as np
import pytest
from random_evidence import random_detections, random_localization, random_segmentation

from segdet.report.detection_counts import detection_errors
from segdet.report.disagreement import disagreement, image_scores


def test_the_score_of_an_image_with_detections_is_its_f1():
    evidence = random_detections()
    errors = detection_errors(evidence)
    score = errors.best_score()
    scores = image_scores(evidence)
    for index in range(len(evidence)):
        mine = evidence.image == index
        match = evidence.match[mine & (evidence.score.astype(float) >= score), 0]
        objects = (
            (evidence.object_image == index) & ~(evidence.object_crowd | evidence.object_difficult)
        ).sum()
        total = (match != 2).sum() + objects
        assert scores[index] == pytest.approx(2 * (match == 1).sum() / total if total else 1)


def test_the_score_of_a_segmented_image_is_its_mean_iou():
    evidence = random_segmentation()
    scores = image_scores(evidence)
    for index in (0, 7):
        table = np.zeros((4, 4))
        mine = evidence.image == index
        table[evidence.truth[mine], evidence.predicted[mine]] = evidence.pixels[mine]
        iou = np.diag(table) / (table.sum(0) + table.sum(1) - np.diag(table))
        assert scores[index] == pytest.approx(np.nanmean(iou))


def test_a_wrong_class_scores_zero_in_localization():
    evidence = random_localization()
    scores = image_scores(evidence)
    wrong = evidence.label != evidence.predicted[:, 0]
    assert wrong.any() and not scores[wrong].any()
    assert scores[~wrong].tolist() == evidence.iou[~wrong].tolist()


def test_runs_disagree_about_an_image_whose_scores_differ():
    found = disagreement([np.array([1.0, 0.5, 0.0]), np.array([1.0, 0.7, 1.0])])
    assert found == pytest.approx([0, 0.1, 0.5])
    assert disagreement([np.array([0.2, 1.0])]).tolist() == [0, 0]
