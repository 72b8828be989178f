"""Default image size, augmentation and batch size for a dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from segdet.data.formats.reader import Reader
from segdet.data.images import image_size
from segdet.data.sample import TaskName
from segdet.data.transforms import Recipe, ScaleJitter, Size, SSDAugmentation
from segdet.util.errors import BadSample, UserError

PIXELS = {"cpu": 90_000, "gpu": 640 * 640}
"""The largest area of a training image, by hardware."""

BATCH_SIZE = {"cpu": 4, "gpu": 8}
"""Images per training step on each device, by hardware."""

MIN_STEPS = 3000
"""The smallest number of steps of a training run. Small datasets are trained on for more epochs to reach it."""

MIN_EPOCHS = 12

_MULTIPLE = 16
"""Sides of resized images are multiples of this."""

_SAMPLE = 256
"""The number of images that determine the size."""

_SCALE = {"segmentation": (0.7, 1.4), "detection": (0.8, 1.3), "localization": (0.8, 1.3)}
"""The range of the random scale, by task."""


def hardware() -> str:
    """Return ``gpu`` if torch has an accelerator, or ``cpu``."""
    return "gpu" if torch.cuda.is_available() or torch.backends.mps.is_available() else "cpu"


def default_recipe(reader: Reader, task: TaskName, fixed_size: Size = None) -> Recipe:
    """Return the transforms for the images of a reader.

    Images larger than the `PIXELS` of this machine are reduced to that area; small images keep their size. If most
    images have about the same aspect ratio, all are resized to one size of that ratio. Otherwise all images are resized
    to the same shorter side, and training uses square crops. Augmentation is a random scale, crop, horizontal flip and
    change of colours.

    Args:
        reader: The training images.
        task: The task.
        fixed_size: The ``(height, width)`` that the network needs; None for any size.
    """
    if isinstance(fixed_size, tuple | list):
        return SSDAugmentation((fixed_size[0], fixed_size[1]))
    size, crop = choose_size(_sizes(reader), PIXELS[hardware()])
    return ScaleJitter(size, scale=_SCALE[task], crop=crop)


def choose_size(sizes: Sequence[tuple[int, int]], pixels: int) -> tuple[Size, tuple[int, int]]:
    """Return the evaluation size and the training crop for images of the given sizes.

    Args:
        sizes: ``(height, width)`` of the images, at least one.
        pixels: The largest area of a resized image.

    Returns:
        The size for `segdet.data.transforms.resize`, and the ``(height, width)`` of training crops.
    """
    heights, widths = np.array(sizes, float).T
    ratios = np.log(widths / heights)
    ratio = float(np.exp(np.median(ratios)))
    if np.mean(np.abs(ratios - np.log(ratio)) < 0.1) >= 0.8:
        height, width = int(np.median(heights)), int(np.median(widths))
        if height * width > pixels:
            height, width = _nearest_ratio(ratio, pixels)
        return (height, width), (height, width)
    elongation = float(np.exp(np.median(np.abs(ratios))))
    shorter = min(float(np.median(np.minimum(heights, widths))), (pixels / elongation) ** 0.5)
    side = max(_MULTIPLE, int(shorter) // _MULTIPLE * _MULTIPLE)
    crop = max(_MULTIPLE, int(side * elongation**0.5) // _MULTIPLE * _MULTIPLE)
    return side, (crop, crop)


def _nearest_ratio(ratio: float, pixels: int) -> tuple[int, int]:
    """Return the height and width, both multiples of 16, whose ratio width / height is nearest to ``ratio``.

    Their area is 80 to 100% of ``pixels``.
    """
    multiples = np.arange(
        _MULTIPLE, max(2 * _MULTIPLE, int((pixels * max(ratio, 1 / ratio)) ** 0.5) + 1), _MULTIPLE
    )
    heights, widths = np.meshgrid(multiples, multiples, indexing="ij")
    # The second term prefers the larger of two sizes with the same ratio.
    error = np.abs(np.log(widths / heights / ratio)) - 1e-9 * heights
    error[(heights * widths > pixels) | (heights * widths < 0.8 * pixels)] = np.inf
    best = np.unravel_index(np.argmin(error), error.shape)
    return int(heights[best]), int(widths[best])


def _sizes(reader: Reader) -> list[tuple[int, int]]:
    """Return the sizes of up to 256 images, evenly spaced over the split. Images that cannot be read are left out."""
    sizes = []
    for index in np.unique(np.linspace(0, len(reader) - 1, min(len(reader), _SAMPLE)).astype(int)).tolist():
        try:
            sizes.append(reader.declared_size(index) or image_size(reader.image_path(index)))
        except BadSample:
            continue
    if not sizes:
        raise UserError(f"{reader.image_path(0)}: no training image can be read; run segdet data check")
    return sizes


def default_epochs(steps_per_epoch: int) -> int:
    """Return the number of epochs for at least `MIN_STEPS` steps and at least `MIN_EPOCHS` epochs."""
    return max(MIN_EPOCHS, -(-MIN_STEPS // max(1, steps_per_epoch)))
