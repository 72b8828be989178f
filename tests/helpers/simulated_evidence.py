"""Evidence of simulated tests, drawn from a known distribution of images and networks."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from segdet.runs.evidence import IOUS, DetectionEvidence, LocalizationEvidence, SegmentationEvidence

CLASSES = ["a", "b", "c"]


def _files(count: int, classes: list[str]) -> dict[str, Any]:
    return {
        "class_names": classes,
        "image_ids": np.arange(count),
        "file_names": [f"{index}.jpg" for index in range(count)],
        "sizes": np.ones((count, 2), np.int64),
    }


@dataclass
class Scenes:
    """Images with objects. Some images are harder than others, for all detectors.

    Attributes:
        difficulty: float64 ``[I]``.
        image: int64 ``[M]``, the image of each object.
        label: int64 ``[M]``, the class of each object, 1..K.
        classes: The names of the classes.
    """

    difficulty: np.ndarray
    image: np.ndarray
    label: np.ndarray
    classes: list[str]

    @classmethod
    def draw(
        cls, random: np.random.Generator, images: int, objects: float = 3.0, classes: list[str] = CLASSES
    ) -> "Scenes":
        """Draw images with a mean number of objects."""
        counts = random.poisson(objects, images)
        labels = random.integers(1, len(classes) + 1, counts.sum())
        return cls(random.normal(0, 0.5, images), np.repeat(np.arange(images), counts), labels, classes)


def detection(
    random: np.random.Generator, scenes: Scenes, found: float = 0.7, false: float = 3.0
) -> DetectionEvidence:
    """Return the test of a detector.

    Args:
        random: The random numbers.
        scenes: The images.
        found: The mean probability that an object is found.
        false: The mean number of false detections per image.
    """
    images = len(scenes.difficulty)
    logit = np.log(found / (1 - found)) - scenes.difficulty[scenes.image]
    hit = random.random(len(scenes.image)) < 1 / (1 + np.exp(-logit))
    false_image = np.repeat(np.arange(images), random.poisson(false * np.exp(scenes.difficulty)))
    image = np.concatenate([scenes.image[hit], false_image])
    false_label = random.integers(1, len(scenes.classes) + 1, len(false_image))
    label = np.concatenate([scenes.label[hit], false_label])
    overlap = np.concatenate([random.uniform(0.5, 1, hit.sum()), np.zeros(len(false_image))])
    score = np.concatenate([random.normal(1.2, 1, hit.sum()), random.normal(0, 1, len(false_image))])
    order = np.lexsort((-score, label, image))
    match = (overlap[order, None] >= np.array(IOUS)).astype(np.uint8)
    objects = len(scenes.image)
    return DetectionEvidence(
        **_files(images, scenes.classes),
        image=image[order],
        label=label[order],
        score=score[order],
        box=np.zeros((len(order), 4)),
        match=match,
        voc_match=match[:, 0],
        object_image=scenes.image,
        object_label=scenes.label,
        object_box=np.zeros((objects, 4)),
        object_crowd=np.zeros(objects, bool),
        object_difficult=np.zeros(objects, bool),
        object_area=np.ones(objects),
    )


def segmentation(
    random: np.random.Generator, pixels: np.ndarray, accuracy: tuple[float, ...] = (8.0, 5.0, 3.0)
) -> SegmentationEvidence:
    """Return the test of a network whose accuracy varies from image to image.

    Args:
        random: The random numbers.
        pixels: int64 ``[I, 3]``, the number of pixels of each class.
        accuracy: The first parameter of the beta distribution of each class's accuracy.
    """
    correct = (pixels * random.beta(accuracy, [1, 2, 3], pixels.shape)).astype(np.int64)
    wrong = pixels - correct
    confusion = np.zeros((len(pixels), 3, 3), np.int64)
    for truth, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        confusion[:, truth, truth] = correct[:, truth]
        confusion[:, truth, first] = wrong[:, truth] // 4 * 3
        confusion[:, truth, second] = wrong[:, truth] - wrong[:, truth] // 4 * 3
    image, truths, predicted = np.nonzero(confusion)
    return SegmentationEvidence(
        **_files(len(pixels), CLASSES),
        image=image,
        truth=truths,
        predicted=predicted,
        pixels=confusion[image, truths, predicted],
    )


def draw_pixels(random: np.random.Generator, images: int) -> np.ndarray:
    """Draw the number of pixels of three classes in each image, int64 ``[I, 3]``."""
    return (random.dirichlet([4, 2, 1], images) * 10_000).astype(np.int64)


def localization(iou: np.ndarray, correct: np.ndarray | None = None) -> LocalizationEvidence:
    """Return the test of a classifier with a box.

    Args:
        iou: float64 ``[I]``, the IoU of the box.
        correct: bool ``[I]``, whether the class is correct; None for all.
    """
    images = len(iou)
    correct = np.ones(images, bool) if correct is None else correct
    predicted = np.zeros((images, 5), np.int64)
    predicted[:, 0] = np.where(correct, 1, 2)
    return LocalizationEvidence(
        **_files(images, CLASSES),
        label=np.ones(images, np.int64),
        predicted=predicted,
        iou=iou,
        located_top5=correct,
        box=np.zeros((images, 4)),
        object_box=np.ones((images, 4)),
        score=np.ones(images),
    )
