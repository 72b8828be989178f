"""The scores of the evidence equal those of the metrics, in usual and unusual cases."""

from typing import Any

import numpy as np
import pytest
import torch
from evidence_scores import scores_of
from torch import Tensor

from segdet.data.sample import Prediction, Target
from segdet.metrics import BoundaryScores, DetectionScores, LocalizationScores, SegmentationScores
from segdet.metrics.base import Scores
from segdet.runs.evidence import (
    CORRECT,
    IGNORED,
    WRONG,
    DetectionEvidence,
    Evidence,
    LocalizationEvidence,
    SegmentationEvidence,
)
from segdet.runs.evidence_from_scores import ImageFile, evidence_from_scores

CLASSES = ["a", "b", "c"]


def evidence_of(scores: Scores, ids: list[int]) -> Evidence:
    images = {image_id: ImageFile(f"images/{image_id}.jpg", (60 + image_id % 7, 80)) for image_id in ids}
    evidence = evidence_from_scores(scores, images)
    assert evidence is not None
    assert evidence.image_ids.tolist() == sorted(ids)
    assert evidence.file_names == [images[image_id].name for image_id in sorted(ids)]
    assert evidence.sizes.tolist() == [list(images[image_id].size) for image_id in sorted(ids)]
    return evidence


def assert_same_scores(evidence: Evidence, scores: Scores, *needed: str) -> None:
    again = scores_of(evidence)
    computed = {name: float(value) for name, value in scores.compute().items()}
    assert set(needed) <= again.keys() <= computed.keys()
    for name, value in again.items():
        assert value == pytest.approx(computed[name], abs=1e-9, rel=0, nan_ok=True), name


def boxes_near(random: np.random.Generator, boxes: np.ndarray, noise: float) -> np.ndarray:
    moved = boxes + random.normal(0, noise, boxes.shape)
    return np.concatenate([moved[:, :2], np.maximum(moved[:, 2:], moved[:, :2] + 1)], 1)


def scene(
    random: np.random.Generator, objects: int, extra: int, levels: int = 10
) -> tuple[Prediction, Target]:
    """Return objects, some of them crowds or difficult, with detections of equal scores, repeated and wrong ones."""
    start = random.uniform(0, 60, (objects, 2))
    boxes = np.concatenate([start, start + random.uniform(5, 50, (objects, 2))], 1)
    labels = random.integers(1, 4, objects)
    background = random.uniform(0, 60, (extra, 2))
    wrong = np.concatenate([background, background + 9], 1)
    found = np.concatenate([boxes_near(random, boxes, 2), boxes_near(random, boxes[::2], 4), wrong])
    found_labels = np.concatenate([labels, labels[::2], random.integers(1, 4, extra)])
    scores = (random.random(len(found)) * levels).round() / levels
    prediction = Prediction(
        boxes=torch.from_numpy(found).float(),
        scores=torch.from_numpy(scores).float(),
        labels=torch.from_numpy(found_labels),
    )
    target = Target(
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        iscrowd=torch.from_numpy(random.random(objects) < 0.15),
        difficult=torch.from_numpy(random.random(objects) < 0.15),
        area=torch.from_numpy(random.uniform(10, 3000, objects)),
    )
    return prediction, target


@pytest.mark.parametrize("seed", range(4))
def test_detection(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = DetectionScores(CLASSES)
    # Without objects; without detections; with more than 100 detections of a class; ids that no float represents.
    counts = [(3, 4), (0, 2), (2, 0), (5, 1), (4, 400), (0, 0), (7, 3)]
    ids = [2**60 + 3, 17, 5, 900, 2**60 + 2, 4, 30]
    for image_id, (objects, extra) in zip(ids, counts, strict=True):
        prediction, target = scene(random, objects, extra)
        if image_id == 5:
            prediction = Prediction(
                boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64)
            )
        scores.update([prediction], [target], [image_id])
    evidence = evidence_of(scores, ids)
    assert isinstance(evidence, DetectionEvidence)
    order = np.lexsort((-evidence.score, evidence.label, evidence.image))
    assert (order == np.arange(len(order))).all()
    needed = ("map", "map_50", "map_75", "ap/a", "map_voc07", "map_voc12")
    assert_same_scores(evidence, scores, *needed)
    assert evidence.object_crowd.any() and evidence.object_difficult.any()
    assert {WRONG, CORRECT, IGNORED} == set(evidence.match.flat) == set(evidence.voc_match.tolist())


def test_detections_that_coco_does_not_evaluate_are_ignored_in_its_matches_only() -> None:
    box = torch.tensor([[0.0, 0, 10, 10]])
    scores = DetectionScores(["a"])
    prediction = Prediction(
        boxes=torch.cat([box + 50] * 100 + [box]),
        scores=torch.linspace(1, 0, 101),
        labels=torch.ones(101).long(),
    )
    scores.update([prediction], [Target(boxes=box, labels=torch.ones(1).long())], [1])
    evidence = evidence_of(scores, [1])
    assert isinstance(evidence, DetectionEvidence)
    assert (evidence.match[:100] == WRONG).all() and (evidence.match[100] == IGNORED).all()
    assert evidence.voc_match.tolist() == [WRONG] * 100 + [CORRECT]
    assert_same_scores(evidence, scores, "map", "map_voc12")


def test_an_image_that_occurs_twice_is_stored_once_and_infinite_boxes_are_left_out() -> None:
    prediction, target = scene(np.random.default_rng(0), 3, 3)
    prediction["boxes"][0, 2] = float("inf")
    scores = DetectionScores(CLASSES)
    for _ in range(2):
        scores.update([prediction], [target], [7])
    evidence = evidence_of(scores, [7])
    assert isinstance(evidence, DetectionEvidence)
    assert len(evidence.score) == len(prediction["scores"]) - 1
    assert len(evidence.object_label) == 3
    assert_same_scores(evidence, scores, "map")


def test_masks() -> None:
    random = np.random.default_rng(0)
    scores = DetectionScores(CLASSES, masks=True)
    for image_id in (9, 3, 4):
        prediction, target = scene(random, 4 if image_id != 3 else 0, 3)
        for side in (prediction, target):
            side["masks"] = torch.stack(
                [filled(box, random.random() < 0.3) for box in side["boxes"]] or [torch.zeros(60, 80)]
            )[: len(side["boxes"])].to(torch.uint8)
        scores.update([prediction], [target], [image_id])
    evidence = evidence_of(scores, [3, 4, 9])
    assert isinstance(evidence, DetectionEvidence) and evidence.mask_match is not None
    assert (evidence.mask_match != evidence.match).any()
    assert_same_scores(evidence, scores, "map", "mask_map", "mask_map_50", "mask_ap/a")


def filled(box: Tensor, half: bool) -> Tensor:
    """Return a mask of a box, or of its upper half."""
    mask = torch.zeros(60, 80)
    x0, y0, x1, y1 = (int(each) for each in box)
    mask[max(y0, 0) : max((y0 + y1) // 2 if half else y1, 0), max(x0, 0) : max(x1, 0)] = 1
    return mask


def test_no_image() -> None:
    for metric in (DetectionScores(CLASSES), BoundaryScores(CLASSES), LocalizationScores(CLASSES)):
        metric.keep_images()
        assert len(evidence_of(metric, [])) == 0


@pytest.mark.parametrize("metric", [SegmentationScores, BoundaryScores])
def test_segmentation(metric: type[SegmentationScores]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = metric([*CLASSES, "absent"])
    scores.keep_images()
    ids = [8, 2, 2**60, 5]
    for image_id in ids:
        truth = torch.zeros(30, 41, dtype=torch.int64)
        truth[:, int(torch.randint(5, 35, (1,), generator=generator)) :] = 1
        truth[:7, :9] = 2 if image_id != 8 else 255
        if image_id == 5:
            truth[:] = 255  # nothing is annotated
        predicted = truth.roll(2, 1) % 255
        scores.update(predicted, truth, image_id)
    evidence = evidence_of(scores, ids)
    assert isinstance(evidence, SegmentationEvidence)
    assert (evidence.pixels > 0).all()
    boundaries = ("bf", "boundary_iou", "bf/a") if metric is BoundaryScores else ()
    assert (evidence.boundary_f1 is not None) == bool(boundaries)
    assert_same_scores(evidence, scores, "miou", "iou/a", "pixel_acc", *boundaries)


@pytest.mark.parametrize("classes", [3, 7])
def test_localization(classes: int) -> None:
    random = np.random.default_rng(0)
    scores = LocalizationScores([f"c{index}" for index in range(classes)])
    scores.keep_images()
    ids, guesses = [6, 1, 2**60, 3, 4], min(classes, 5)
    for image_id in ids:
        _, target = scene(random, 1, 0)
        boxes = boxes_near(random, target["boxes"].numpy().repeat(guesses, 0), 3)
        prediction = Prediction(
            boxes=torch.from_numpy(boxes).float(),
            labels=torch.from_numpy(random.permutation(classes)[:guesses] + 1),
            scores=torch.linspace(0.9, 0.1, guesses),
        )
        scores.update([prediction], [target], [image_id])
    evidence = evidence_of(scores, ids)
    assert isinstance(evidence, LocalizationEvidence)
    assert evidence.predicted.shape == (5, 5)
    assert ((evidence.predicted == 0).sum(1) == 5 - guesses).all()
    np.testing.assert_array_equal(evidence.score, np.float32(0.9))
    assert_same_scores(evidence, scores, "top1", "loc_acc", "loc_error_top5", "box_iou")


@pytest.mark.parametrize(
    ("metric", "arguments"),
    [
        (SegmentationScores(CLASSES), (torch.zeros(2, 2).long(), torch.zeros(2, 2).long())),
        (LocalizationScores(CLASSES), ([], [])),
    ],
)
def test_image_ids_are_needed_to_keep_images(metric: Scores, arguments: tuple[Any, ...]) -> None:
    metric.update(*arguments)
    metric.keep_images()
    with pytest.raises(ValueError, match="missing"):
        metric.update(*arguments)
