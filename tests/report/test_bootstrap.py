"""Scores of weighted images equal those of the metrics for datasets that hold copies of the images."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from simulated_evidence import Scenes, detection
from torch import Tensor

from segdet.metrics import BoundaryScores, DetectionScores, LocalizationScores
from segdet.metrics.base import Scores
from segdet.report.bootstrap import resample_weights, scores_of
from segdet.runs.evidence import Evidence
from segdet.runs.evidence_from_scores import ImageFile, evidence_from_scores

CLASSES = ["a", "b", "c", "in one image"]
IMAGES = 9
COPIES = 10
"""Ids of the copies of an image: those of the image number n are COPIES * n, COPIES * n + 1, ..."""

Sample = tuple[dict[str, Tensor], dict[str, Tensor]]


def squares(boxes: np.ndarray) -> Tensor:
    """Return masks of boxes, ``[N, 60, 60]``."""
    rows, columns = np.mgrid[:60, :60]
    left, top, right, bottom = boxes.T[:, :, None, None]
    return torch.from_numpy((columns >= left) & (columns < right) & (rows >= top) & (rows < bottom))


def detection_sample(random: np.random.Generator, index: int) -> Sample:
    """Return objects with crowds and difficult ones, and detections with few different scores."""
    count = int(random.integers(0, 6))
    start = random.uniform(0, 30, (count, 2))
    boxes = np.concatenate([start, start + random.uniform(8, 28, (count, 2))], 1).round()
    labels = random.integers(1, 4, count)
    if index == 0:
        boxes, labels = np.concatenate([boxes, [[1.0, 1, 20, 20]]]), np.append(labels, 4)
    moved = np.concatenate([boxes, boxes[::2], random.uniform([0, 0, 40, 40], [30, 30, 58, 58], (3, 4))])
    moved = (moved + random.normal(0, 1, moved.shape)).round(1)
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 2)
    prediction = {
        "boxes": torch.from_numpy(moved).float(),
        "scores": torch.from_numpy(random.integers(1, 4, len(moved)) / 4).float(),
        "labels": torch.from_numpy(np.concatenate([labels, labels[::2], random.integers(1, 5, 3)])),
        "masks": squares(moved),
    }
    target = {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(labels),
        "iscrowd": torch.from_numpy(random.random(len(labels)) < 0.15),
        "difficult": torch.from_numpy(random.random(len(labels)) < 0.15),
        "area": torch.from_numpy(
            np.where(random.random(len(labels)) < 0.1, 2e10, 100.0)
        ),  # too large for COCO
        "masks": squares(boxes),
    }
    return prediction, target


def segmentation_sample(random: np.random.Generator, index: int) -> tuple[Tensor, Tensor]:
    """Return blocks of classes with ignored pixels and errors. Only the first image has the last class."""
    blocks = random.integers(0, 3, (4, 4))
    if index == 0:
        blocks[0, 0] = 3
    truth = np.kron(blocks, np.ones((8, 8), np.int64))
    predicted = np.where(random.random(truth.shape) < 0.2, random.integers(0, 3, truth.shape), truth)
    truth[random.random(truth.shape) < 0.05] = 255
    return torch.from_numpy(predicted), torch.from_numpy(truth)


def localization_sample(random: np.random.Generator, index: int) -> Sample:
    box = np.array([5.0, 5, 25, 25])
    guesses = torch.from_numpy(box + random.normal(0, 4, (4, 4))).float()
    prediction = {
        "boxes": guesses,
        "labels": torch.from_numpy(random.integers(1, 4, 4)),
        "scores": torch.ones(4),
    }
    return prediction, {"boxes": torch.from_numpy(box)[None].float(), "labels": torch.tensor([1])}


def detection_scores() -> Scores:
    return DetectionScores(CLASSES, masks=True)


def updated(scores: Scores, samples: list[tuple[Any, Any]], ids: list[int]) -> Scores:
    """Update ``scores`` with one image at a time and its id."""
    scores.keep_images()
    for (prediction, target), image_id in zip(samples, ids, strict=True):
        if isinstance(scores, BoundaryScores):
            scores.update(prediction, target, image_id)
        else:
            scores.update([prediction], [target], [image_id])  # type: ignore[operator]
    return scores


def evidence_of(scores: Scores, ids: list[int]) -> Evidence:
    evidence = evidence_from_scores(scores, {each: ImageFile(f"{each}.png", (60, 60)) for each in ids})
    assert evidence is not None
    return evidence


CASES: dict[str, tuple[Callable[[np.random.Generator, int], Any], Callable[[], Scores], set[str]]] = {
    "detection": (
        detection_sample, detection_scores,
        {"map", "map_50", "map_75", "map_voc07", "map_voc12", "mask_map", "mask_map_50", "ap/a", "mask_ap/a"},
    ),
    "segmentation": (
        segmentation_sample, lambda: BoundaryScores(CLASSES),
        {"miou", "pixel_acc", "class_acc", "iou/a", "bf", "bf/a", "boundary_iou", "boundary_iou/in one image"},
    ),
    "localization": (
        localization_sample, lambda: LocalizationScores(CLASSES),
        {"loc_acc", "top1", "box_iou", "loc_error_top5"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_weighted_images_equal_copies_of_the_images(task: str, seed: int) -> None:
    sample, metric, names = CASES[task]
    random = np.random.default_rng(seed)
    samples = [sample(random, index) for index in range(IMAGES)]
    ids = [COPIES * index for index in range(IMAGES)]
    evidence = evidence_of(updated(metric(), samples, ids), ids)
    weights = np.concatenate([np.ones((1, IMAGES), np.int64), random.integers(0, 4, (4, IMAGES))])
    weights[1, 0] = 0  # without the only image of a class
    scores = scores_of(evidence, weights)
    assert names <= scores.keys()
    for row, copies in enumerate(weights):
        copied = [samples[index] for index in range(IMAGES) for _ in range(copies[index])]
        copied_ids = [ids[index] + copy for index in range(IMAGES) for copy in range(copies[index])]
        expected = {
            name: float(value) for name, value in updated(metric(), copied, copied_ids).compute().items()
        }
        for name, values in scores.items():
            assert values[row] == pytest.approx(expected[name], abs=1e-9, rel=0, nan_ok=True), (name, copies)


def drawn(images: int, **options: Any) -> tuple[np.random.Generator, Scenes]:
    random = np.random.default_rng(0)
    return random, Scenes.draw(random, images, **options)


def test_classes_without_an_object_are_left_out_of_means() -> None:
    scenes = Scenes(np.zeros(3), np.array([0, 1, 1]), np.array([1, 2, 3]), ["a", "b", "c"])
    evidence = detection(np.random.default_rng(0), scenes)
    scores = scores_of(evidence, np.array([[1, 1, 1], [1, 0, 0], [0, 0, 1]]))
    assert np.isnan(scores["ap/b"]).tolist() == [False, True, True]
    assert scores["map"][1] == pytest.approx(scores["ap/a"][1], abs=1e-12)
    assert np.isnan([scores[name][2] for name in ("map", "map_50", "map_voc07", "map_voc12")]).all()


def test_a_test_without_detections_scores_0() -> None:
    evidence = detection(*drawn(5), found=1e-12, false=0.0)
    assert len(evidence.image) == 0 and len(evidence.object_image) > 0
    scores = scores_of(evidence, resample_weights(5, 3))
    assert all((scores[name] == 0).all() for name in ("map", "map_50", "map_voc07", "map_voc12"))


def test_resamples_are_drawn_with_replacement_and_repeat_with_their_seed() -> None:
    weights = resample_weights(50, 400, seed=3)
    assert (weights.sum(1) == 50).all() and (weights >= 0).all()
    assert abs((weights == 0).mean() - (1 - 1 / 50) ** 50) < 0.01
    assert np.array_equal(weights, resample_weights(50, 400, seed=3))
    assert not np.array_equal(weights, resample_weights(50, 400, seed=4))


@pytest.mark.parametrize(("weights", "message"), [([[1, 2]], "shape"), ([[1, 1, -1, 1, 1]], "negative")])
def test_wrong_weights_are_refused(weights: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores_of(detection(*drawn(5)), np.array(weights))


def test_a_thousand_resamples_of_coco_take_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """The time of 100 resamples of 5,000 images with 100 detections each of 80 classes, in seconds of one core."""
    classes = [str(index) for index in range(80)]
    evidence = detection(*drawn(5000, objects=7.3, classes=classes), false=85.0)
    assert len(evidence.image) > 450_000
    scores_of(evidence, resample_weights(5000, 1))  # compiles
    weights = resample_weights(5000, 100)
    start = time.process_time()  # other processes do not count
    scores_of(evidence, weights)
    seconds = time.process_time() - start
    with capsys.disabled():
        print(f"\n100 resamples of 5,000 images take {seconds:.2f} s of one core")
    assert seconds < 2.0  # 1,000 resamples then take under 10 s on two cores


def test_scores_import_no_torch() -> None:
    code = "import sys, segdet.report.bootstrap; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
