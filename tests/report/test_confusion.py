"""Confusion matrices equal those of the metrics, and their cells list the images of their counts."""

import numpy as np
import pytest
from random_evidence import random_detections, random_localization, random_segmentation

from segdet.report.confusion import BACKGROUND, OTHER, confusion_of
from segdet.report.detection_counts import detection_errors


def test_the_matrix_of_detections_equals_that_of_the_errors():
    evidence = random_detections()
    errors = detection_errors(evidence)
    for score in (0.2, None):
        confusion = confusion_of(evidence, score)
        least = errors.best_score() if score is None else score
        assert confusion.min_score == least
        assert confusion.names == [*evidence.class_names, BACKGROUND]
        assert confusion.matrix.tolist() == errors.confusion(least).tolist()


@pytest.mark.parametrize("evidence", [random_detections(), random_segmentation(), random_localization()])
def test_the_images_of_a_cell_hold_its_count(evidence):
    confusion = confusion_of(evidence)
    matrix, cells = confusion.matrix, confusion.images_by_cell()
    assert {*cells} == {*zip(*np.nonzero(matrix), strict=True)}
    for cell, (images, counts) in cells.items():
        assert counts.sum() == matrix[cell] and (np.diff(counts) <= 0).all()
        assert len({*images.tolist()}) == len(images)
        for image, count in zip(images, counts, strict=True):
            mine = (confusion.images == image) & (confusion.rows == cell[0]) & (confusion.columns == cell[1])
            assert confusion.counts[mine].sum() == count


def test_a_reduced_matrix_keeps_the_classes_with_the_most_errors_and_every_count():
    confusion = confusion_of(random_detections(classes=9, images=80))
    small = confusion.reduced(3)
    assert small.names[3:] == [OTHER, BACKGROUND] and len(small.names) == 5
    assert small.matrix.sum() == confusion.matrix.sum()
    assert small.matrix[-1].sum() == confusion.matrix[-1].sum()
    errors = confusion.matrix.sum(0) + confusion.matrix.sum(1) - 2 * confusion.matrix.diagonal()
    most = {confusion.names[index] for index in np.argsort(-errors[:-1], kind="stable")[:3]}
    assert {*small.names[:3]} == most
    first, index = small.names[0], confusion.names.index(small.names[0])
    assert small.matrix[0, 0] == confusion.matrix[index, index], first
    assert confusion.reduced(8) is confusion


def test_a_reduced_matrix_of_pixels_has_no_background_row_of_its_own():
    confusion = confusion_of(random_segmentation(classes=7)).reduced(2)
    assert confusion.names[2:] == [OTHER] and confusion.matrix.sum() == 12 * 200
