"""Evidence of tests on random images: objects, and predictions that are correct with a given probability."""

import numpy as np

from segdet.metrics.average_precision import Detections, Evaluation, Objects
from segdet.runs.evidence import (
    CORRECT,
    IGNORED,
    WRONG,
    DetectionEvidence,
    LocalizationEvidence,
    SegmentationEvidence,
)

SIZE = 96, 128


def image_values(images, classes):
    return {
        "class_names": [f"class {label}" for label in range(1, classes + 1)],
        "image_ids": 7 + 3 * np.arange(images),
        "file_names": [f"images/{index:03d}.jpg" for index in range(images)],
        "sizes": np.tile(np.array(SIZE), (images, 1)),
    }


def random_boxes(rng, count):
    corner = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(10, 36, (count, 2))], 1).astype(np.float32)


def random_detections(seed=0, images=40, classes=3, quality=0.7, scene=0, levels=None):
    """Return evidence of detections; runs with the same ``scene`` have the same objects."""
    rng = np.random.default_rng([scene, 99])
    values = image_values(images, classes)
    object_image = np.sort(rng.integers(0, images - 1, 3 * images))  # the last image is empty
    object_label = rng.integers(1, classes + 1, 3 * images)
    order = np.lexsort((object_label, object_image))
    object_image, object_label = object_image[order], object_label[order]
    object_box = random_boxes(rng, 3 * images)
    crowd, difficult = rng.random((2, 3 * images)) < 0.06
    rng = np.random.default_rng(seed)
    found = np.flatnonzero(rng.random(3 * images) < quality)
    noise = rng.integers(0, images, images)
    box = np.concatenate([object_box[found] + rng.normal(0, 2, (len(found), 4)), random_boxes(rng, images)])
    label = np.concatenate([object_label[found], rng.integers(1, classes + 1, images)])
    label = np.where(rng.random(len(label)) < 0.15, rng.integers(1, classes + 1, len(label)), label)
    image = np.concatenate([object_image[found], noise])
    score = np.clip(np.r_[rng.normal(0.7, 0.2, len(found)), rng.normal(0.35, 0.2, images)], 0, 1)
    score = (score if levels is None else np.round(score * levels) / levels).astype(np.float32)
    order = np.lexsort((-score, label, image))
    box, label, image, score = box[order].astype(np.float32), label[order], image[order], score[order]
    ids = values["image_ids"]
    objects = Objects(
        ids[object_image], object_box.astype(float), object_label, crowd, difficult,
        (object_box[:, 2:] - object_box[:, :2]).prod(1).astype(float),
    )  # fmt: skip
    evaluation = Evaluation(
        values["class_names"], Detections(ids[image], box.astype(float), label, score.astype(float)), objects
    )
    matches = evaluation.match(objects.ignored)
    states = np.where(matches >= 0, np.where(objects.ignored[matches], IGNORED, CORRECT), WRONG)
    return DetectionEvidence(
        **values,
        image=image,
        label=label,
        score=score,
        box=box,
        match=states.T,
        voc_match=states[0],
        object_image=object_image,
        object_label=object_label,
        object_box=object_box,
        object_crowd=crowd,
        object_difficult=difficult,
        object_area=objects.areas,
    )


def random_segmentation(seed=0, images=12, classes=4, quality=0.8):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (images, 200))
    predicted = np.where(rng.random(truth.shape) < quality, truth, rng.integers(0, classes, truth.shape))
    keys = (np.arange(images)[:, None] * classes + truth) * classes + predicted
    keys, pixels = np.unique(keys, return_counts=True)
    return SegmentationEvidence(
        **image_values(images, classes),
        image=keys // classes**2,
        truth=keys // classes % classes,
        predicted=keys % classes,
        pixels=pixels,
    )


def random_localization(seed=0, images=20, classes=6, quality=0.7):
    rng = np.random.default_rng(seed)
    label = np.arange(images) % classes + 1
    predicted = np.stack([rng.permutation(classes)[:5] + 1 for _ in range(images)])
    sure = rng.random(images) < quality
    predicted[sure, 0] = label[sure]
    box = np.tile(np.array([10.0, 20, 60, 70]), (images, 1))
    return LocalizationEvidence(
        **image_values(images, classes),
        label=label,
        predicted=predicted,
        iou=rng.random(images),
        located_top5=rng.random(images) < 0.8,
        box=box + 4,
        object_box=box,
        score=rng.random(images),
    )
