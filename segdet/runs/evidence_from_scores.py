"""The evidence of a test from the metrics that were updated with its images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segdet.metrics import DetectionScores, LocalizationScores, SegmentationScores
from segdet.metrics.average_precision import Evaluation
from segdet.metrics.base import Scores
from segdet.metrics.boundary import F1_UNIT, BoundaryScores
from segdet.metrics.localization import GUESSES
from segdet.runs.evidence import (
    CORRECT,
    IGNORED,
    WRONG,
    DetectionEvidence,
    Evidence,
    LocalizationEvidence,
    SegmentationEvidence,
)


@dataclass(frozen=True)
class ImageFile:
    """The file of an image.

    Attributes:
        name: The path relative to the root of the dataset, with ``/`` on all systems.
        size: ``(height, width)`` of the image on disk.
    """

    name: str
    size: tuple[int, int]


def evidence_from_scores(scores: Scores, images: Mapping[int, ImageFile]) -> Evidence | None:
    """Return the evidence of all images that ``scores`` was updated with, in all processes.

    All processes must call this function.

    Args:
        scores: Metrics whose ``keep_images`` was called before the first update.
        images: The image files by image id, at least those of the images of all processes.

    Returns:
        The evidence, or None for metrics of other tasks. An image that occurs twice is included once.
    """
    if isinstance(scores, DetectionScores):
        image_ids, by_box, by_mask = scores.evaluations()
        return detection_evidence(image_ids, images, by_box, by_mask)
    if isinstance(scores, SegmentationScores):
        return _segmentation_evidence(scores, images)
    if isinstance(scores, LocalizationScores):
        return _localization_evidence(scores, images)
    return None


def detection_evidence(
    image_ids: np.ndarray,
    images: Mapping[int, ImageFile],
    by_box: Evaluation,
    by_mask: Evaluation | None = None,
) -> DetectionEvidence:
    """Return the evidence of an evaluation of detections.

    Args:
        image_ids: int64 ``[I]``, the ids of all images, ascending.
        images: The image files by image id.
        by_box: The evaluation of the boxes.
        by_mask: The evaluation of the masks of the same detections; None without masks.
    """
    detections, objects = by_box.detections, by_box.objects
    return DetectionEvidence(
        **_described(image_ids, images, by_box.class_names),
        image=np.searchsorted(image_ids, detections.images),
        label=detections.labels,
        score=detections.scores,
        box=detections.boxes,
        match=_codes(*by_box.coco_matches()).T,
        voc_match=_codes(*by_box.voc_matches()),
        object_image=np.searchsorted(image_ids, objects.images),
        object_label=objects.labels,
        object_box=objects.boxes,
        object_crowd=objects.iscrowd,
        object_difficult=objects.difficult,
        object_area=objects.areas,
        mask_match=None if by_mask is None else _codes(*by_mask.coco_matches()).T,
    )


def _codes(correct: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    return np.select([ignored, correct], [IGNORED, CORRECT], WRONG).astype(np.uint8)


def _segmentation_evidence(
    scores: SegmentationScores, images: Mapping[int, ImageFile]
) -> SegmentationEvidence:
    boundaries: dict[str, Any] = {}
    with scores.sync_context():
        rows = scores.concatenated_state("image_rows").cpu().numpy()
        # Sort the entries, and keep the first ones of an image that occurs twice.
        rows = rows[np.unique(rows[:, :3], axis=0, return_index=True)[1]]
        if isinstance(scores, BoundaryScores):
            table = scores.concatenated_state("image_boundaries").cpu().numpy()
            table = table[np.unique(table[:, 0], return_index=True)[1]]
            f1, *bands = np.split(table[:, 1:], 3, axis=1)
            boundaries["boundary_f1"] = np.where(f1 < 0, np.nan, f1 * F1_UNIT)
            boundaries["boundary_bands"] = np.stack(bands, 1)
    image_ids = np.unique(rows[:, 0])
    rows = rows[rows[:, 3] > 0]
    return SegmentationEvidence(
        **_described(image_ids, images, scores.class_names),
        image=np.searchsorted(image_ids, rows[:, 0]),
        truth=rows[:, 1],
        predicted=rows[:, 2],
        pixels=rows[:, 3],
        **boundaries,
    )


def _localization_evidence(
    scores: LocalizationScores, images: Mapping[int, ImageFile]
) -> LocalizationEvidence:
    with scores.sync_context():
        labels = scores.concatenated_state("image_labels").cpu().numpy()
        boxes = scores.concatenated_state("image_boxes").cpu().numpy().astype(np.float64)
    image_ids, first = np.unique(labels[:, 0], return_index=True)
    labels, boxes = labels[first], boxes[first]
    return LocalizationEvidence(
        **_described(image_ids, images, scores.class_names),
        label=labels[:, 1],
        predicted=labels[:, 2 : 2 + GUESSES],
        located_top5=labels[:, -1] != 0,
        iou=boxes[:, 0],
        box=boxes[:, 1:5],
        score=boxes[:, 5],
        object_box=boxes[:, 6:],
    )


def _described(
    image_ids: np.ndarray, images: Mapping[int, ImageFile], class_names: list[str]
) -> dict[str, Any]:
    files = [images[int(image_id)] for image_id in image_ids]
    return {
        "class_names": [str(name) for name in class_names],
        "image_ids": image_ids,
        "file_names": [file.name for file in files],
        "sizes": np.array([file.size for file in files], np.int64).reshape(-1, 2),
    }
