"""Test the AP of masks against pycocotools' numbers for segmentations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segdet.data.sample import Prediction, Target
from segdet.metrics import DetectionScores
from segdet.metrics.average_precision import COCO_NAMES
from segdet.metrics.detection import mask_areas, run_lengths

CLASSES = ["a", "b", "c"]


def _ellipse(random: np.random.Generator, size: tuple[int, int], radius: float) -> np.ndarray:
    y, x = np.ogrid[: size[0], : size[1]]
    cy, cx = random.uniform(0, size[0]), random.uniform(0, size[1])
    ry, rx = random.uniform(0.3, 1, 2) * radius
    return ((((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2) < 1).astype(np.uint8)


def _boxes(masks: np.ndarray) -> np.ndarray:
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 1, 1])
    return np.array(boxes, np.float64).reshape(-1, 4)


def _scene(
    random: np.random.Generator, objects: int, extra: int
) -> tuple[Prediction, Target, tuple[int, int]]:
    """Return objects of all COCO sizes, including crowds, with shifted, duplicate and wrong detections."""
    size = (int(random.integers(90, 240)), int(random.integers(90, 240)))
    truth = np.stack(
        [_ellipse(random, size, random.choice([12, 40, 150])) for _ in range(objects)] or [np.zeros(size)]
    )
    truth = truth[truth.any((1, 2))].astype(np.uint8) if objects else np.zeros((0, *size), np.uint8)
    labels = random.integers(1, 4, len(truth))
    shifted = [np.roll(mask, random.integers(-3, 4, 2), (0, 1)) for mask in truth]
    wrong = [_ellipse(random, size, 30) for _ in range(extra)]
    found = np.stack([*shifted, *truth[: len(truth) // 3], *wrong, np.zeros(size, np.uint8)])
    found_labels = np.concatenate([labels, labels[: len(truth) // 3], random.integers(1, 4, extra + 1)])
    swapped = random.random(len(found)) < 0.1
    found_labels[swapped] = random.integers(1, 4, swapped.sum())
    prediction = Prediction(
        boxes=torch.from_numpy(_boxes(found)), scores=torch.from_numpy(random.random(len(found)).round(2)),
        labels=torch.from_numpy(found_labels), masks=torch.from_numpy(found),
    )  # fmt: skip
    target = Target(
        boxes=torch.from_numpy(_boxes(truth)), labels=torch.from_numpy(labels),
        iscrowd=torch.from_numpy(random.random(len(truth)) < 0.15), difficult=torch.zeros(len(truth), dtype=torch.bool),
        area=torch.from_numpy(truth.sum((1, 2)).astype(np.float64)), masks=torch.from_numpy(truth),
    )  # fmt: skip
    return prediction, target, size


def _runs(mask: torch.Tensor) -> dict[str, object]:
    encoded = rle.encode(np.asfortranarray(mask.numpy()))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def _reference(
    scenes: list[tuple[Prediction, Target, tuple[int, int]]], ids: list[int], folder: Path
) -> dict[str, float]:
    annotations, results = [], []
    for image, (prediction, target, _) in zip(ids, scenes, strict=True):
        for box, label, crowd, area, mask in zip(
            *(target[key] for key in ("boxes", "labels", "iscrowd", "area", "masks")),  # type: ignore[literal-required]
            strict=True,
        ):
            x0, y0, x1, y1 = box.tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": int(label),
                    "iscrowd": int(crowd), "area": float(area), "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": _runs(mask),
                }
            )  # fmt: skip
        for score, label, mask in zip(
            *(prediction[key] for key in ("scores", "labels", "masks")),  # type: ignore[literal-required]
            strict=True,
        ):
            results.append(
                {
                    "image_id": image,
                    "category_id": int(label),
                    "score": float(score),
                    "segmentation": _runs(mask),
                }
            )
    document = {
        "info": {},
        "images": [{"id": i, "height": s[0], "width": s[1]} for i, (*_, s) in zip(ids, scenes, strict=True)],
        "annotations": annotations, "categories": [{"id": k, "name": n} for k, n in enumerate(CLASSES, 1)],
    }  # fmt: skip
    (folder / "truth.json").write_text(json.dumps(document))
    coco = COCO(str(folder / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    numbers = {name: float(value) for name, value in zip(COCO_NAMES, evaluation.stats, strict=True)}
    for k, name in enumerate(CLASSES):
        precision = evaluation.eval["precision"][:, :, k, 0, -1]
        numbers[f"ap/{name}"] = float(precision[precision > -1].mean())
    return numbers


def test_equal_to_pycocotools(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    scenes = [_scene(random, int(random.integers(0, 9)), int(random.integers(0, 4))) for _ in range(40)]
    ids = random.permutation(1000)[: len(scenes)].tolist()
    expected = _reference(scenes, ids, tmp_path)
    assert min(expected.values()) > 0
    scores = DetectionScores(CLASSES, masks=True)
    for start in range(0, len(scenes), 7):
        predictions, targets, _ = zip(*scenes[start : start + 7], strict=True)
        scores.update(predictions, targets, ids[start : start + 7])
    # Images that pad the last batch of several processes occur twice.
    scores.update(*map(list, zip(*[scene[:2] for scene in scenes[:3]], strict=True)), ids[:3])  # type: ignore[arg-type]
    found = {name: float(value) for name, value in scores.compute().items()}
    for name, value in expected.items():
        assert found[f"mask_{name}"] == pytest.approx(value, abs=1e-9), name
    boxes = DetectionScores(CLASSES)
    predictions, targets, _ = zip(*scenes, strict=True)
    boxes.update(predictions, targets, ids)
    for name, value in boxes.compute().items():
        assert found[name] == pytest.approx(float(value), abs=1e-12, nan_ok=True)
    assert found["mask_map"] != found["map"]


def test_a_detection_that_is_not_finite_is_left_out_with_its_mask() -> None:
    mask = torch.zeros(2, 20, 20, dtype=torch.uint8)
    mask[0, 2:9, 2:9] = 1
    mask[1, 10:19, 10:19] = 1
    target = Target(
        boxes=torch.tensor([[2.0, 2, 9, 9], [10, 10, 19, 19]]), labels=torch.tensor([1, 2]), masks=mask
    )
    boxes = torch.tensor([[torch.nan, 2, 9, 9], [10, 10, 19, 19]])
    prediction = Prediction(boxes=boxes, scores=torch.ones(2), labels=torch.tensor([1, 2]), masks=mask)
    scores = DetectionScores(CLASSES, masks=True)
    scores.update([prediction], [target], [5])
    found = scores.compute()
    assert found["mask_ap/a"] == 0
    assert found["mask_ap/b"] == pytest.approx(1)


def test_without_images_and_with_an_empty_one() -> None:
    scores = DetectionScores(CLASSES, masks=True)
    assert scores.compute()["mask_map"].isnan()
    empty = Prediction(
        boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64),
        masks=torch.zeros(0, 8, 8, dtype=torch.uint8),
    )  # fmt: skip
    target = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), masks=empty["masks"])
    scores.update([empty], [target], [1])
    assert scores.compute()["mask_map"].isnan()


def test_areas_of_more_masks_than_pycocotools_accepts_at_once() -> None:
    encoded = run_lengths(torch.ones(300, 3, 4, dtype=torch.uint8))
    assert mask_areas(encoded).tolist() == [12.0] * 300
    assert mask_areas([]).shape == (0,)
