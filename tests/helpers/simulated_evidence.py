"""Evidence of simulated tests, drawn from a known distribution of images."""

from typing import Any

import numpy as np

from segdet.runs.evidence import IOUS, DetectionEvidence, LocalizationEvidence, SegmentationEvidence

CLASSES = ["a", "b", "c"]


def _images(count: int, classes: list[str]) -> dict[str, Any]:
    return {
        "class_names": classes,
        "image_ids": np.arange(count),
        "file_names": [f"{index}.jpg" for index in range(count)],
        "sizes": np.ones((count, 2), np.int64),
    }


def detection(
    random: np.random.Generator,
    images: int,
    *,
    found: float = 0.7,
    false: float = 0.8,
    objects: float = 3.0,
    classes: list[str] = CLASSES,
    truth: tuple[np.ndarray, np.ndarray] | None = None,
) -> DetectionEvidence:
    """Return the test of a detector that finds a fraction of the objects. Some images are harder than others.

    Args:
        random: The random numbers.
        images: The number of images.
        found: The mean probability that an object is found.
        false: The mean number of false detections per object.
        objects: The mean number of objects per image.
        classes: The names of the classes.
        truth: The images and the labels of the objects, for several detectors on the same images.
    """
    difficulty = np.random.default_rng(images).normal(0, 0.5, images)  # the same for all detectors
    if truth is None:
        counts = random.poisson(objects, images)
        truth = np.repeat(np.arange(images), counts), random.integers(1, len(classes) + 1, counts.sum())
    object_image, object_label = truth
    logit = np.log(found / (1 - found)) - difficulty[object_image]
    hit = random.random(len(object_image)) < 1 / (1 + np.exp(-logit))
    false_image = np.repeat(np.arange(images), random.poisson(objects * false, images))
    image = np.concatenate([object_image[hit], false_image])
    label = np.concatenate([object_label[hit], random.integers(1, len(classes) + 1, len(false_image))])
    overlap = np.concatenate([random.uniform(0.5, 1, hit.sum()), np.zeros(len(false_image))])
    score = np.concatenate([random.normal(1.2, 1, hit.sum()), random.normal(0, 1, len(false_image))])
    order = np.lexsort((-score, label, image))
    match = (overlap[order, None] >= np.array(IOUS)).astype(np.uint8)
    return DetectionEvidence(
        **_images(images, classes),
        image=image[order],
        label=label[order],
        score=score[order],
        box=np.zeros((len(order), 4)),
        match=match,
        voc_match=match[:, 0],
        object_image=object_image,
        object_label=object_label,
        object_box=np.zeros((len(object_image), 4)),
        object_crowd=np.zeros(len(object_image), bool),
        object_difficult=np.zeros(len(object_image), bool),
        object_area=np.ones(len(object_image)),
    )


def segmentation(random: np.random.Generator, images: int, *, skill: float = 0.0) -> SegmentationEvidence:
    """Return the test of a network whose accuracy varies from image to image; a larger ``skill`` is better."""
    pixels = (random.dirichlet([4, 2, 1], images) * 10_000).astype(np.int64)
    accuracy = random.beta([8 + skill, 5 + skill, 3 + skill], [1, 2, 3], (images, 3))
    correct = (pixels * accuracy).astype(np.int64)
    wrong = pixels - correct
    confusion = np.zeros((images, 3, 3), np.int64)
    for truth, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        confusion[:, truth, truth] = correct[:, truth]
        confusion[:, truth, first] = wrong[:, truth] // 4 * 3
        confusion[:, truth, second] = wrong[:, truth] - wrong[:, truth] // 4 * 3
    image, truths, predicted = np.nonzero(confusion)
    counts = confusion[image, truths, predicted]
    return SegmentationEvidence(
        **_images(images, CLASSES), image=image, truth=truths, predicted=predicted, pixels=counts
    )


def localization(random: np.random.Generator, images: int, *, accuracy: float = 0.7) -> LocalizationEvidence:
    """Return the test of a classifier with a box."""
    correct = random.random(images) < accuracy
    predicted = np.zeros((images, 5), np.int64)
    predicted[:, 0] = np.where(correct, 1, 2)
    return LocalizationEvidence(
        **_images(images, CLASSES),
        label=np.ones(images, np.int64),
        predicted=predicted,
        iou=random.beta(6, 2, images),
        located_top5=correct,
        box=np.zeros((images, 4)),
        object_box=np.ones((images, 4)),
        score=np.ones(images),
    )
