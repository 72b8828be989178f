"""Four images in one: each gives a corner of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from segdet.data.sample import Sample, Target
from segdet.data.transforms import MEAN_COLOUR


def mosaic(samples: Sequence[Sample], rng: np.random.Generator, min_visibility: float = 0.0) -> Sample:
    """Mosaic (Bochkovskiy, Wang, Liao, 2020, "YOLOv4", section 3.3): four augmented images in the place of one.

    A point in the middle part of the image (0.2 to 0.8 of its sides, as in the authors' code) parts it into
    four; each takes a cut of its size, at a random place, out of one of the samples. Nothing is resized. What a
    smaller sample cannot fill has the mean colour.

    Args:
        samples: Four samples of detection. The result has the size of the first, and is said to be it.
        rng: Draws the point and the cuts.
        min_visibility: The share of its area that a box must keep to stay.
    """
    height, width = samples[0].image.shape[1:]
    down, across = (round(float(rng.uniform(0.2, 0.8)) * side) for side in (height, width))
    image = torch.empty(height, width, 3, dtype=torch.uint8)
    image[:] = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)
    image = image.permute(2, 0, 1)
    cuts: list[Target] = []
    for place, sample in enumerate(samples):
        lower, right = divmod(place, 2)
        room = (height - down if lower else down, width - across if right else across)
        rows, columns = (min(n, m) for n, m in zip(room, sample.image.shape[1:], strict=True))
        # Against the common point, so that no gap is between the four.
        top, left = down if lower else down - rows, across if right else across - columns
        y, x = (
            int(rng.integers(side - part + 1))
            for side, part in zip(sample.image.shape[1:], (rows, columns), strict=True)
        )
        image[:, top : top + rows, left : left + columns] = sample.image[:, y : y + rows, x : x + columns]
        cuts.append(_cut(sample.target, (x, y), (left, top, columns, rows), (height, width), min_visibility))
    notes = tuple(dict.fromkeys(note for sample in samples for note in sample.source.notes))
    target: Target = {key: torch.cat([cut[key] for cut in cuts]) for key in cuts[0]}  # type: ignore[assignment,literal-required]
    return replace(samples[0], image=image, target=target, source=replace(samples[0].source, notes=notes))


def _cut(
    target: Target,
    start: tuple[int, int],
    place: tuple[int, int, int, int],
    size: tuple[int, int],
    min_visibility: float,
) -> Target:
    """What a cut that starts at ``x, y`` keeps of a target, where it stands at ``left, top, width, height``."""
    (x, y), (left, top, columns, rows) = start, place
    whole = target["boxes"] - torch.tensor([x, y, x, y])
    shown = whole.clamp(min=0).minimum(torch.tensor([columns, rows, columns, rows]))
    before, after = _area(whole), _area(shown)
    # As `Pipeline` has it, a pixel is the least.
    keep = (after >= 1) & (after >= min_visibility * before)
    cut: Target = {key: value[keep] for key, value in target.items()}  # type: ignore[assignment,index]
    cut["boxes"] = (shown + torch.tensor([left, top, left, top]))[keep]
    cut["area"] = cut["area"] * (after / before.clamp(min=1e-9))[keep]
    if "masks" in target:
        masks = torch.zeros(int(keep.sum()), *size, dtype=target["masks"].dtype)
        masks[:, top : top + rows, left : left + columns] = target["masks"][
            keep, y : y + rows, x : x + columns
        ]
        cut["masks"] = masks
    return cut


def _area(boxes: Tensor) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]
