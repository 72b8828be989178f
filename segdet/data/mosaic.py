"""Mosaic augmentation: four training images combined into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from segdet.data.dataset import TaskDataset
from segdet.data.sample import Sample, Target
from segdet.data.sampler import Draw
from segdet.data.transforms import MEAN_COLOUR

_STREAM = 4
"""A part of the seed. It makes the random numbers of a mosaic differ from those that augment its first image."""


class MosaicDataset(Dataset[Sample]):
    """A training dataset of detection that replaces each sample by a `mosaic` with a given probability.

    Args:
        dataset: The training samples.
        probability: Probability of a mosaic, 0 to 1.
        epochs: Number of epochs with mosaics, after which samples are not replaced. None for all epochs.
    """

    def __init__(self, dataset: TaskDataset, probability: float, epochs: int | None = None) -> None:
        self.dataset = dataset
        self.probability = probability
        self.epochs = epochs

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: int | Draw) -> Sample:
        draw = Draw(draw) if isinstance(draw, int) else draw
        if self.epochs is not None and draw.epoch >= self.epochs:
            return self.dataset[draw]
        index = int(self.dataset.indices[draw.index])
        rng = np.random.default_rng([self.dataset.seed, draw.epoch, index, _STREAM])
        if rng.random() >= self.probability:
            return self.dataset[draw]
        others = [Draw(int(other), draw.epoch) for other in rng.integers(len(self), size=3)]
        samples = [self.dataset[each] for each in (draw, *others)]
        return mosaic(samples, rng, self.dataset.min_visibility)


def mosaic(samples: Sequence[Sample], rng: np.random.Generator, min_visibility: float = 0.0) -> Sample:
    """Combine four augmented images into one (Bochkovskiy, Wang, Liao, 2020, "YOLOv4", section 3.3).

    A random point between 0.2 and 0.8 of the image's sides, as in the authors' code, divides the image into four
    parts. Each part is a random crop of one sample. Nothing is resized. Where a sample is smaller than its part, the
    rest has the mean colour.

    Args:
        samples: Four samples of detection. The result has the size and the source of the first.
        rng: Random number generator.
        min_visibility: Minimum share of a box's area that remains in the mosaic; boxes with less are dropped.
    """
    height, width = samples[0].image.shape[1:]
    down, across = (round(float(rng.uniform(0.2, 0.8)) * side) for side in (height, width))
    image = torch.empty(height, width, 3, dtype=torch.uint8)
    image[:] = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)
    image = image.permute(2, 0, 1)
    crops: list[Target] = []
    for place, sample in enumerate(samples):
        lower, right = divmod(place, 2)
        part = (height - down if lower else down, width - across if right else across)
        rows, columns = (min(n, m) for n, m in zip(part, sample.image.shape[1:], strict=True))
        # All crops touch the common point, so that there is no gap between them.
        top, left = down if lower else down - rows, across if right else across - columns
        y, x = (
            int(rng.integers(side - length + 1))
            for side, length in zip(sample.image.shape[1:], (rows, columns), strict=True)
        )
        image[:, top : top + rows, left : left + columns] = sample.image[:, y : y + rows, x : x + columns]
        place_in_mosaic = (left, top, columns, rows)
        crops.append(_crop(sample.target, (x, y), place_in_mosaic, (height, width), min_visibility))
    notes = tuple(dict.fromkeys(note for sample in samples for note in sample.source.notes))
    target: Target = {key: torch.cat([crop[key] for crop in crops]) for key in crops[0]}  # type: ignore[assignment,literal-required]
    return replace(samples[0], image=image, target=target, source=replace(samples[0].source, notes=notes))


def _crop(
    target: Target,
    start: tuple[int, int],
    place: tuple[int, int, int, int],
    size: tuple[int, int],
    min_visibility: float,
) -> Target:
    """Return the part of a target inside a crop, in pixels of the mosaic.

    The crop starts at ``start`` (x, y) of the sample and is placed at ``place`` (left, top, width, height) of the
    mosaic. The mosaic has the ``size`` (height, width).
    """
    (x, y), (left, top, columns, rows) = start, place
    whole = target["boxes"] - torch.tensor([x, y, x, y])
    visible = whole.clamp(min=0).minimum(torch.tensor([columns, rows, columns, rows]))
    before, after = _area(whole), _area(visible)
    # As in `Pipeline`, a box needs an area of at least one pixel.
    keep = (after >= 1) & (after >= min_visibility * before)
    crop: Target = {key: value[keep] for key, value in target.items()}  # type: ignore[assignment,index]
    crop["boxes"] = (visible + torch.tensor([left, top, left, top]))[keep]
    crop["area"] = crop["area"] * (after / before.clamp(min=1e-9))[keep]
    if "masks" in target:
        part = target["masks"][keep, y : y + rows, x : x + columns]
        below, right = size[0] - top - rows, size[1] - left - columns
        crop["masks"] = pad(part, (left, right, top, below))
    return crop


def _area(boxes: Tensor) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]
