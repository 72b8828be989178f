"""Test every detection score against the evaluator that defines it: pycocotools, and a copy of voc_eval."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segdet.metrics import DetectionScores, average_precision
from segdet.metrics.average_precision import COCO_NAMES


def image(found=(), truth=(), image_id=1):
    """Return an image: ``found`` are (box, score, label), ``truth`` are (box, label) or (box, label, extra dict)."""
    truth = [(*each, {}) if len(each) == 2 else each for each in truth]
    boxes = torch.tensor([box for box, _, _ in truth], dtype=torch.float64).reshape(-1, 4)
    return (
        {
            "boxes": torch.tensor([box for box, _, _ in found], dtype=torch.float64).reshape(-1, 4),
            "scores": torch.tensor([score for _, score, _ in found], dtype=torch.float64),
            "labels": torch.tensor([label for _, _, label in found], dtype=torch.int64),
        },
        {
            "boxes": boxes,
            "labels": torch.tensor([label for _, label, _ in truth], dtype=torch.int64),
            "iscrowd": torch.tensor([extra.get("iscrowd", False) for _, _, extra in truth], dtype=torch.bool),
            "difficult": torch.tensor(
                [extra.get("difficult", False) for _, _, extra in truth], dtype=torch.bool
            ),
            "area": torch.tensor(
                [
                    extra.get("area", (box[2] - box[0]) * (box[3] - box[1]))
                    for box, (_, _, extra) in zip(boxes.tolist(), truth, strict=True)
                ],
                dtype=torch.float64,
            ),
        },
        image_id,
    )


def scored(images, classes, batch=4):
    scores = DetectionScores([f"c{label}" for label in range(1, classes + 1)])
    for start in range(0, len(images), batch):
        scores.update(*zip(*images[start : start + batch], strict=True))
    return {name: value.item() for name, value in scores.compute().items()}


def coco_results(scores, category_ids):
    """Return the detections of a metric as COCO's results list."""
    found, *_ = scores._gathered()
    boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1)
    columns = found.images, np.asarray(category_ids)[found.labels - 1], boxes, found.scores
    keys = ("image_id", "category_id", "bbox", "score")
    return [
        dict(zip(keys, row, strict=True)) for row in zip(*(each.tolist() for each in columns), strict=True)
    ]


def reference(images, classes):
    """Return the twelve numbers of pycocotools and the AP of each class."""
    header = {
        "info": {},
        "images": [{"id": image_id} for _, _, image_id in images],
        "categories": [{"id": label} for label in range(1, classes + 1)],
    }

    def coco(annotations):
        made = COCO()
        made.dataset = {**header, "annotations": [{**each, "id": i} for i, each in enumerate(annotations, 1)]}
        made.createIndex()
        return made

    def xywh(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    objects = [
        {
            "image_id": image_id,
            "category_id": target["labels"][i].item(),
            "bbox": xywh(target["boxes"][i].tolist()),
            "area": target["area"][i].item(),
            "iscrowd": int(target["iscrowd"][i] | target["difficult"][i]),
        }
        for _, target, image_id in images
        for i in range(len(target["labels"]))
    ]
    detections = [
        {
            "image_id": image_id,
            "category_id": prediction["labels"][i].item(),
            "bbox": (box := xywh(prediction["boxes"][i].tolist())),
            "area": box[2] * box[3],
            "score": prediction["scores"][i].item(),
            "iscrowd": 0,
        }
        for prediction, _, image_id in images
        for i in range(len(prediction["labels"]))
    ]
    return evaluated(COCOeval(coco(objects), coco(detections), "bbox"), classes)


def evaluated(evaluator, classes):
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    numbers = dict(zip(COCO_NAMES, evaluator.stats.tolist(), strict=True))
    for label in range(classes):
        precision = evaluator.eval["precision"][:, :, label, 0, -1]
        numbers[f"ap/c{label + 1}"] = precision.mean() if (precision > -1).all() else -1
    return {name: math.nan if value == -1 else value for name, value in numbers.items()}


def same(scores):
    """Compare exactly, including NaN."""
    return pytest.approx(scores, abs=0, rel=0, nan_ok=True)


def assert_equal(ours, theirs):
    assert set(theirs) <= set(ours)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-7, nan_ok=True), name


def random_images(
    seed, count=12, classes=4, objects=6, noise=4.0, extra=0.3, missed=0.2, crowd=0.1, levels=None, size=160
):
    """Return objects with shifted, missing, duplicate, misclassified and background detections, and equal scores."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        truth, found = [], []
        for _ in range(rng.poisson(objects)):
            start = rng.uniform(0, size, 2)
            box = np.concatenate([start, start + rng.uniform(6, size, 2)]).round(2)
            label = int(rng.integers(1, classes + 1))
            area = float((box[2:] - box[:2]).prod() * rng.uniform(0.3, 1))
            truth.append(
                (
                    box.tolist(),
                    label,
                    {"iscrowd": rng.random() < crowd, "difficult": rng.random() < crowd / 2, "area": area},
                )
            )
            if rng.random() < missed:
                continue
            for _ in range(1 + (rng.random() < extra)):
                moved = np.float32(box + rng.normal(0, noise, 4)).tolist()
                named = int(rng.integers(1, classes + 1)) if rng.random() < 0.1 else label
                found.append((moved, float(np.float32(rng.random())), named))
        for _ in range(rng.poisson(objects * extra)):
            start = rng.uniform(0, size, 2)
            box = np.float32(np.concatenate([start, start + rng.uniform(6, size, 2)])).tolist()
            found.append((box, float(np.float32(rng.random())), int(rng.integers(1, classes + 1))))
        if levels:
            found = [(box, round(score * levels) / levels, label) for box, score, label in found]
        images.append(image(found, truth, image_id=1000 - 7 * number))
    return images


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_equals_pycocotools_on_real_annotations(real_data, tmp_path, split, dtype):
    path = real_data / "tiny_coco" / "annotations" / f"instances_{split}.json"
    annotations = json.loads(path.read_text())
    category_ids = sorted(category["id"] for category in annotations["categories"])
    label_of = {category: label for label, category in enumerate(category_ids, 1)}
    rng = np.random.default_rng(0)
    images = {each["id"]: ([], []) for each in annotations["images"]}
    assert any(each["iscrowd"] for each in annotations["annotations"])
    for each in annotations["annotations"]:
        x, y, w, h = each["bbox"]
        found, truth = images[each["image_id"]]
        label = label_of[each["category_id"]]
        truth.append(([x, y, x + w, y + h], label, {"iscrowd": bool(each["iscrowd"]), "area": each["area"]}))
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            shift = rng.normal(0, 0.08, 4) * [w, h, w, h]
            box = np.float32(np.array([x, y, x + w, y + h]) + shift).tolist()
            named = int(rng.integers(1, 81)) if rng.random() < 0.1 else label
            # Two digits, so that many scores are equal.
            found.append((box, round(float(rng.random()), 2), named))
    made = [image(found, truth, image_id) for image_id, (found, truth) in images.items()]
    scores = DetectionScores([f"c{label}" for label in range(1, 81)])
    for prediction, target, image_id in made:
        target = {
            key: value.to(dtype) if value.is_floating_point() else value for key, value in target.items()
        }
        scores.update([prediction], [target], [image_id])
    file = tmp_path / "results.json"
    file.write_text(json.dumps(coco_results(scores, category_ids)))

    ground = COCO(str(path))
    theirs = evaluated(COCOeval(ground, ground.loadRes(str(file)), "bbox"), 80)
    assert 0.2 < theirs["map"] < 0.9
    assert_equal({name: value.item() for name, value in scores.compute().items()}, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"levels": 10},
        {"levels": 1, "extra": 1.5},
        {"noise": 0.0},
        {"crowd": 0.5, "extra": 1.0},
        {"crowd": 1.0},
        {"classes": 1, "objects": 12, "count": 30, "size": 90},
        {"classes": 30, "objects": 3},
        {"missed": 1.0, "extra": 0.0},
        {"count": 3, "classes": 2, "objects": 70, "extra": 2.0, "size": 90},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_pycocotools_on_random_sets(options, seed):
    images = random_images(seed, **options)
    # An image without objects, one without detections and one without either.
    images += [
        image([([0, 0, 9, 9], 0.5, 1)], [], 5),
        image([], [([0, 0, 9, 9], 1)], 6),
        image([], [], 7),
    ]
    classes = options.get("classes", 4) + 1
    assert_equal(scored(images, classes), reference(sorted(images, key=lambda each: each[2]), classes))


def test_the_random_sets_have_more_than_a_hundred_detections():
    images = random_images(0, count=3, classes=2, objects=70, extra=2.0, size=90)
    assert max((p["labels"] == 1).sum().item() for p, _, _ in images) > 100


def test_coco_evaluates_the_hundred_best_detections():
    boxes = [([20.0 * i, 0, 20.0 * i + 10, 10], i) for i in range(130)]
    images = [
        image([(box, 1 - i / 200, 1) for box, i in boxes][::-1], [(box, 1) for box, _ in boxes]),
    ]
    ours = scored(images, 1)
    assert_equal(ours, reference(images, 1))
    assert ours["mar_100"] == pytest.approx(100 / 130)
    assert ours["map_voc12"] == pytest.approx(1)


def test_overlaps_and_areas_equal_to_a_threshold():
    # IoU .5, .55 ... .95; and areas that are both small and medium, or both medium and large.
    for across in range(10, 20):
        images = [image([([0, 0, across, 10], 0.9, 1)], [([0, 0, 20, 10], 1)])]
        ours = scored(images, 1)
        assert_equal(ours, reference(images, 1))
        assert ours["mar_100"] == pytest.approx((across - 9) / 10)
    for area in (32.0**2, 96.0**2):
        images = [image([([0, 0, 40, 40], 0.9, 1)], [([0, 0, 40, 40], 1, {"area": area})])]
        ours = scored(images, 1)
        assert_equal(ours, reference(images, 1))
        assert ours["mar_medium"] == ours["mar_small" if area == 1024 else "mar_large"] == 1


def test_coco_matches_the_later_object_of_equal_overlaps():
    left, right = ([0, 0, 20, 20], 1), ([4, 0, 24, 20], 1)
    found = [([2, 0, 22, 20], 0.9, 1), ([0, 0, 20, 20], 0.8, 1)]
    for truth, recall in (([left, right], 0.85), ([right, left], 0.7)):
        images = [image(found, truth)]
        ours = scored(images, 1)
        assert_equal(ours, reference(images, 1))
        assert ours["mar_100"] == pytest.approx(recall)


def test_scores_without_any_object_are_nan():
    ours = scored([image([([0, 0, 9, 9], 0.5, 1)], [])], 2)
    assert all(math.isnan(value) for value in ours.values())
    only_crowds = scored([image([([0, 0, 9, 9], 0.5, 1)], [([0, 0, 9, 9], 1, {"iscrowd": True})])], 2)
    assert all(math.isnan(value) for value in only_crowds.values())


def test_scores_without_any_image_are_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = DetectionScores(["a", "b"])
        result = scores.compute()
        assert all(value.isnan() for value in result.values())
        assert set(result) == {*COCO_NAMES, "map_voc07", "map_voc12", "ap/a", "ap/b"}
        assert coco_results(scores, [1, 2]) == []
        scores.reset()
        scores.update([], [], [])
        assert scores.compute()["map"].isnan()


def test_scores_without_detections_are_zero():
    ours = scored([image([], [([0, 0, 50, 50], 1)])], 2)
    assert ours["map"] == ours["mar_100"] == ours["map_voc07"] == ours["map_voc12"] == ours["ap/c1"] == 0
    assert math.isnan(ours["ap/c2"]) and math.isnan(ours["map_small"])


def test_scores_do_not_depend_on_batches_order_and_repetition():
    images = random_images(3, levels=5)
    expected = scored(images, 4, batch=len(images))
    assert scored(images[::-1], 4, batch=1) == same(expected)
    assert scored(images[5:] + images[:5], 4, batch=3) == same(expected)
    assert scored([*images, images[2], images[0]], 4, batch=5) == same(expected)


def test_scores_do_not_depend_on_the_chunk_size(monkeypatch):
    images = random_images(4)
    expected = scored(images, 4)
    monkeypatch.setattr(average_precision, "_CHUNK", 3)
    assert scored(images, 4) == same(expected)


def test_optional_target_fields_may_be_missing():
    images = random_images(2, crowd=0.0)
    for _, target, _ in images:
        del target["area"]
    expected = scored(
        [
            (p, {**t, "area": (t["boxes"][:, 2:] - t["boxes"][:, :2]).prod(1)}, image_id)
            for p, t, image_id in images
        ],
        4,
    )
    for _, target, _ in images:
        del target["iscrowd"], target["difficult"]
    assert scored(images, 4) == same(expected)


def test_detections_that_are_not_finite_are_left_out():
    images = random_images(6)
    expected = scored(images, 4)
    prediction, target, image_id = images[0]
    nan, inf = math.nan, math.inf
    odd = torch.tensor([[nan, 0, 5, 5], [0, 0, inf, 5], [0, 0, 5, 5]], dtype=torch.float64)
    images[0] = (
        {
            "boxes": torch.cat([prediction["boxes"], odd]),
            "scores": torch.cat([prediction["scores"], torch.tensor([0.9, 0.9, nan])]),
            "labels": torch.cat([prediction["labels"], torch.tensor([1, 1, 1])]),
        },
        target,
        image_id,
    )
    assert scored(images, 4) == same(expected)


@pytest.mark.parametrize("label", [0, 3])
def test_a_label_out_of_range_is_an_error(label):
    with pytest.raises(ValueError, match=rf"a prediction has the label {label}, but the labels are 1\.\.2"):
        scored([image([([0, 0, 9, 9], 0.5, label)], [])], 2)
    with pytest.raises(ValueError, match=f"a target has the label {label}"):
        scored([image([], [([0, 0, 9, 9], label)])], 2)


def test_lists_of_different_lengths_are_an_error():
    prediction, target, _ = image()
    with pytest.raises(ValueError, match="1 predictions, 1 targets and 2 image_ids"):
        DetectionScores(["a"]).update([prediction], [target], [1, 2])


def test_ids_of_images_are_not_rounded():
    prediction, target, _ = image([([10, 20, 40, 60], 0.5, 2), ([0, 0, 5, 6], 0.25, 1)], [([0, 0, 5, 5], 1)])
    scores = DetectionScores(["cat", "dog"])
    # A float64 state would round this id.
    image_id = 2**60 + 1
    scores.update([prediction], [target], [image_id])
    expected = [
        {"image_id": image_id, "category_id": 90, "bbox": [10.0, 20.0, 30.0, 40.0], "score": 0.5},
        {"image_id": image_id, "category_id": 17, "bbox": [0.0, 0.0, 5.0, 6.0], "score": 0.25},
    ]
    assert coco_results(scores, [17, 90]) == expected


# VOC


def row(hits, objects, difficult=0):
    """Return an image of separate objects with detections, best first, that hit or miss."""
    boxes = [[30.0 * i, 0, 30.0 * i + 20, 20] for i in range(objects + difficult)]
    found, free = [], iter(boxes)
    for i, hit in enumerate(hits):
        box = next(free) if hit else [30.0 * i, 500, 30.0 * i + 20, 520]
        found.append((box, 1 - i / 100, 1))
    return image(found, [(box, 1, {"difficult": i >= objects}) for i, box in enumerate(boxes)])


@pytest.mark.parametrize(
    ("hits", "objects", "voc07", "voc12", "coco"),
    [
        # (3 * 1 + 2 * 2/3 + 2 * 3/5) / 11: eleven recalls in exact tenths.
        ([True, False, True, False, True], 5, (3 + 4 / 3 + 6 / 5) / 11, 0.45333333, 0.45874587),
        ([True], 2, 6 / 11, 0.5, 0.50495050),
        ([True, True, True], 10, 4 / 11, 0.3, 31 / 101),
        # COCO's recalls are floating point: its .7 is above 7 / 10 and is not reached.
        ([True] * 7, 10, 8 / 11, 0.7, 70 / 101),
        ([False, False], 3, 0, 0, 0),
    ],
)
def test_worked_examples(hits, objects, voc07, voc12, coco):
    ours = scored([row(hits, objects)], 1)
    assert ours["map_voc07"] == pytest.approx(voc07, abs=1e-7)
    assert ours["map_voc12"] == pytest.approx(voc12, abs=1e-7)
    assert ours["map_50"] == pytest.approx(coco, abs=1e-7)


def voc_eval(images, label, eleven):
    """Return the AP by a copy of voc_eval: with inclusive 1-based boxes, one detection at a time."""
    objects, detections = {}, []
    for prediction, target, image_id in images:
        of_class = target["labels"] == label
        inclusive = (target["boxes"][of_class] + torch.tensor([1.0, 1, 0, 0])).numpy()
        objects[image_id] = {
            "bbox": inclusive,
            "difficult": target["difficult"][of_class].numpy(),
            "taken": [False] * len(inclusive),
        }
        for box, score, named in zip(*(prediction[k] for k in ("boxes", "scores", "labels")), strict=True):
            if named == label:
                detections.append((score.item(), image_id, (box + torch.tensor([1.0, 1, 0, 0])).numpy()))
    positives = sum((~each["difficult"]).sum() for each in objects.values())
    detections.sort(key=lambda each: -each[0])
    tp, fp = np.zeros(len(detections)), np.zeros(len(detections))
    for d, (_, image_id, box) in enumerate(detections):
        here, best, which = objects[image_id], -np.inf, -1
        for g, other in enumerate(here["bbox"]):
            width = max(min(box[2], other[2]) - max(box[0], other[0]) + 1.0, 0.0)
            height = max(min(box[3], other[3]) - max(box[1], other[1]) + 1.0, 0.0)
            common = width * height
            union = (
                (box[2] - box[0] + 1.0) * (box[3] - box[1] + 1.0)
                + (other[2] - other[0] + 1.0) * (other[3] - other[1] + 1.0)
                - common
            )
            if common / union > best:
                best, which = common / union, g
        if best > 0.5:
            if not here["difficult"][which]:
                if here["taken"][which]:
                    fp[d] = 1.0
                else:
                    tp[d], here["taken"][which] = 1.0, True
        else:
            fp[d] = 1.0
    fp, tp = np.cumsum(fp), np.cumsum(tp)
    recall = tp / positives
    precision = tp / np.maximum(tp + fp, np.finfo(np.float64).eps)
    if eleven:
        tenths = [k / 10 for k in range(11)]
        return sum(max(precision[recall >= t - 1e-12], default=0.0) for t in tenths) / 11
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    steps = np.where(recall[1:] != recall[:-1])[0]
    return np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1])


@pytest.mark.parametrize("seed", range(6))
def test_equals_voc_eval_on_inclusive_boxes(seed):
    rng = np.random.default_rng(seed)
    images = []
    for image_id in range(1, 16):
        truth, found = [], []
        for _ in range(rng.poisson(5)):
            start = rng.integers(0, 40, 2)
            box = np.concatenate([start, start + rng.integers(4, 20, 2)])
            truth.append((box.tolist(), int(rng.integers(1, 4)), {"difficult": rng.random() < 0.25}))
            for _ in range(rng.integers(0, 4)):
                moved = np.concatenate([box[:2] + rng.integers(-3, 4, 2), box[2:] + rng.integers(-3, 4, 2)])
                found.append((moved.tolist(), rng.random(), truth[-1][1]))
        images.append(image(found, truth, image_id))
    ours = scored(images, 4)
    # Class 4 does not occur and is left out of the mean.
    for name, eleven in (("map_voc07", True), ("map_voc12", False)):
        expected = [voc_eval(images, label, eleven) for label in (1, 2, 3)]
        assert 0.1 < np.mean(expected) < 0.9
        assert ours[name] == pytest.approx(np.mean(expected), abs=1e-9), name


def test_voc_requires_an_iou_above_half():
    half = scored([image([([0, 0, 10, 10], 0.9, 1)], [([0, 0, 10, 20], 1)])], 1)
    assert half["map_voc12"] == 0 and half["map_50"] == pytest.approx(1)
    more = scored([image([([0, 0, 10, 11], 0.9, 1)], [([0, 0, 10, 20], 1)])], 1)
    assert more["map_voc12"] == 1


def test_duplicates_are_wrong_and_detections_of_difficult_objects_are_ignored():
    box, other, far = [0, 0, 20, 20], [40, 0, 60, 20], [80, 0, 100, 20]
    truth = [(box, 1), (other, 1), (far, 1, {"difficult": True})]
    alone = scored([image([(box, 0.9, 1), (other, 0.5, 1)], truth)], 1)
    assert alone["map_voc12"] == 1 and alone["map"] == pytest.approx(1)
    doubled = scored([image([(box, 0.9, 1), (box, 0.8, 1), (other, 0.5, 1)], truth)], 1)
    assert doubled["map_voc12"] == pytest.approx((1 + 2 / 3) / 2)
    on_difficult = [(box, 0.9, 1), (far, 0.8, 1), (far, 0.7, 1), (other, 0.5, 1)]
    assert scored([image(on_difficult, truth)], 1) == same(alone)
