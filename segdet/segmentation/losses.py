"""The losses of pixels, and the class weights that make rare classes count.

All take logits ``[B, C, H, W]`` and masks int64 ``[B, H, W]`` with values 0..C-1 and 255, which no loss counts,
compute in float32 whatever the precision of the network, and give a scalar: zero, not NaN, where no pixel counts.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.data.frequency import ClassFrequency
from segdet.data.sample import IGNORE

PixelLoss = Literal["cross_entropy", "focal", "dice", "cross_entropy_dice"]
Weighting = Literal["median_frequency", "inverse_sqrt_frequency"]

_LEAST = 1e-6
"""The least weight that a mean divides by."""


def pixel_loss(
    logits: Tensor, masks: Tensor, kind: PixelLoss, weights: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """The loss called ``kind``.

    Args:
        logits: ``[B, C, H, W]``.
        masks: int64 ``[B, H, W]``.
        kind: ``cross_entropy_dice`` is the sum of both.
        weights: How much each class counts, ``[C]``; all the same when None.
        gamma: The exponent of `focal`.
    """
    match kind:
        case "cross_entropy":
            return cross_entropy(logits, masks, weights)
        case "focal":
            return focal(logits, masks, weights, gamma)
        case "dice":
            return dice(logits, masks, weights)
        case "cross_entropy_dice":
            return cross_entropy(logits, masks, weights) + dice(logits, masks, weights)


def cross_entropy(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean cross entropy of the pixels, each with its class's weight."""
    losses = F.cross_entropy(logits.float(), masks, weights, ignore_index=IGNORE, reduction="sum")
    return losses / _counted(masks, weights)


def focal(logits: Tensor, masks: Tensor, weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """The focal loss ``-(1 - p)^gamma log p`` of the true class's softmax probability p (Lin et al., ICCV 2017,
    section 3), the mean of the pixels, each with its class's weight (the paper's alpha).

    What is already right counts little. With a ``gamma`` of 0 it is the cross entropy.
    """
    surprise = F.cross_entropy(logits.float(), masks, ignore_index=IGNORE, reduction="none")
    # -expm1(-x) is 1 - p, exact where p is almost 1; the clamp keeps the gradient of its power finite there.
    losses = (-torch.expm1(-surprise)).clamp(min=_LEAST) ** gamma * surprise
    if weights is not None:
        losses = losses * _weight_of(masks, weights)
    return losses.sum() / _counted(masks, weights)


def dice(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """One minus the Dice overlap ``2 sum(p g) / (sum(p) + sum(g))`` of a class's softmax probabilities p with its
    pixels g over the whole batch; the mean of the classes that occur in the batch, each with its weight.

    Every class counts as much as any other, however few its pixels. (Milletari, Navab, Ahmadi, V-Net, 3DV 2016,
    section 3, who square the summands below the line; here they are not, which is the usual form.)
    """
    valid = (masks != IGNORE)[:, None]
    probabilities = torch.where(valid, logits.float().softmax(1), 0.0)
    classes = torch.arange(logits.shape[1], device=masks.device).view(1, -1, 1, 1)
    truth = masks[:, None] == classes
    pixels = truth.sum((0, 2, 3))
    common = torch.where(truth, probabilities, 0.0).sum((0, 2, 3))
    losses = 1 - 2 * common / (probabilities.sum((0, 2, 3)) + pixels).clamp(min=_LEAST)
    counts = (pixels > 0).float() if weights is None else (pixels > 0) * weights
    return (losses * counts).sum() / counts.sum().clamp(min=_LEAST)


def _weight_of(masks: Tensor, weights: Tensor) -> Tensor:
    """The weight of each pixel ``[B, H, W]``, 0 where it is ignored."""
    return torch.where(masks != IGNORE, weights[masks.clamp(max=len(weights) - 1)], 0.0)


def _counted(masks: Tensor, weights: Tensor | None) -> Tensor:
    """What a mean over the pixels divides by: their number, or the sum of their weights."""
    if weights is None:
        return (masks != IGNORE).sum().clamp(min=1)
    return _weight_of(masks, weights).sum().clamp(min=_LEAST)


def class_weights(frequency: ClassFrequency, weighting: Weighting) -> Tensor:
    """How much each class is to count so that rare ones are learned too: float32 ``[C]``.

    - ``median_frequency``: the median of the classes' frequencies divided by the class's own, where the
      frequency is the class's share of all pixels of those images in which it occurs (Eigen, Fergus, ICCV 2015;
      used by SegNet).
    - ``inverse_sqrt_frequency``: one over the square root of the class's share of all pixels, scaled to a mean
      of 1, which is gentler.

    A class without any pixel has a weight of 0, and is left out of median and mean.
    """
    pixels = frequency.pixels.astype(np.float64)
    there = pixels > 0
    weights = np.zeros_like(pixels)
    if weighting == "median_frequency":
        share = pixels[there] / frequency.pixels_where[there]
        weights[there] = np.median(share) / share
    else:
        rarity = pixels[there] ** -0.5  # shares differ from numbers by a factor, which the scaling takes out
        weights[there] = rarity / rarity.mean()
    return torch.from_numpy(weights).float()
