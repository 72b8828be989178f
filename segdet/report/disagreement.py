"""Scores of single images, and the disagreement of runs on them."""

from collections.abc import Sequence

import numpy as np

from segdet.report.detection_counts import detection_errors
from segdet.runs.evidence import DetectionEvidence, Evidence, LocalizationEvidence, SegmentationEvidence

SCORE_NAMES = {"detection": "F1", "segmentation": "mean IoU", "localization": "IoU"}
"""The name of the score of an image, by task."""


def image_scores(evidence: Evidence) -> np.ndarray:
    """Return a score between 0 and 1 of each image: float64 ``[I]``.

    - detection: F1 at IoU .5, of the detections above the score of the run's best F1; 1 without detections and objects;
    - segmentation: the mean IoU of the classes that occur in the image or its prediction; 1 if all pixels are ignored;
    - localization: the IoU of the box, 0 if the class is wrong.
    """
    if isinstance(evidence, DetectionEvidence):
        return _f1(evidence)
    if isinstance(evidence, SegmentationEvidence):
        return _mean_iou(evidence)
    assert isinstance(evidence, LocalizationEvidence)
    return np.where(evidence.label == evidence.predicted[:, 0], evidence.iou, 0.0)


def _f1(evidence: DetectionEvidence) -> np.ndarray:
    errors = detection_errors(evidence)
    images = errors.of_images(errors.best_score())
    scores = np.ones(len(evidence))
    known = ~np.isnan(images.f1)
    scores[np.searchsorted(evidence.image_ids, images.images[known])] = images.f1[known]
    return scores


def _mean_iou(evidence: SegmentationEvidence) -> np.ndarray:
    shape = len(evidence), len(evidence.class_names)
    intersection, targets, predictions = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    same = evidence.truth == evidence.predicted
    np.add.at(intersection, (evidence.image[same], evidence.truth[same]), evidence.pixels[same])
    np.add.at(targets, (evidence.image, evidence.truth), evidence.pixels)
    np.add.at(predictions, (evidence.image, evidence.predicted), evidence.pixels)
    union = targets + predictions - intersection
    present = union > 0
    iou = np.divide(intersection, union, out=np.zeros(shape), where=present)
    classes = present.sum(1)
    return np.divide(iou.sum(1), classes, out=np.ones(len(evidence)), where=classes > 0)


def disagreement(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Return the standard deviation of each image's score over runs: float64 ``[I]``, 0 for a single run.

    Args:
        scores: `image_scores` of each run, ``[I]`` each, for the same images.
    """
    return np.stack(scores).std(0)
