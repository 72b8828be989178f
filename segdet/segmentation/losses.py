"""Pixel-wise losses, and class weights for rare classes.

All losses take logits ``[B, C, H, W]`` and masks int64 ``[B, H, W]`` with values 0..C-1 and 255 for pixels to ignore.
They compute in float32, even if the network's precision is lower. The result is a scalar: zero, not NaN, if all pixels
are ignored.
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

_EPSILON = 1e-6
"""The smallest denominator of a mean."""


def pixel_loss(
    logits: Tensor, masks: Tensor, kind: PixelLoss, weights: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """Return the loss called ``kind``.

    Args:
        logits: ``[B, C, H, W]``.
        masks: int64 ``[B, H, W]``.
        kind: The loss; ``cross_entropy_dice`` is the sum of `cross_entropy` and `dice`.
        weights: Class weights ``[C]``; None for equal weights.
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
    """Return the mean cross entropy over pixels, weighted by class."""
    losses = F.cross_entropy(logits.float(), masks, weights, ignore_index=IGNORE, reduction="sum")
    return losses / _normalizer(masks, weights)


def focal(logits: Tensor, masks: Tensor, weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Return the focal loss ``-(1 - p)^gamma log p`` of the true class's softmax probability p.

    The loss is the mean over pixels, weighted by class (the paper's alpha). It gives little weight to pixels that are
    classified correctly; with ``gamma`` 0 it is the cross entropy. (Lin et al., ICCV 2017, section 3.)
    """
    nll = F.cross_entropy(logits.float(), masks, ignore_index=IGNORE, reduction="none")
    # -expm1(-x) is 1 - p, accurate also for p close to 1. The clamp keeps the gradient of the power finite there.
    losses = (-torch.expm1(-nll)).clamp(min=_EPSILON) ** gamma * nll
    if weights is not None:
        losses = losses * _weight_of(masks, weights)
    return losses.sum() / _normalizer(masks, weights)


def dice(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return one minus the Dice coefficient ``2 sum(p g) / (sum(p) + sum(g))``, averaged over classes.

    p are the softmax probabilities of a class and g is its binary mask, over the whole batch. The mean is over the
    classes that occur in the batch, with class weights. Small and large classes have the same influence. (Milletari,
    Navab, Ahmadi, V-Net, 3DV 2016, section 3, square the terms of the denominator. The form here is the usual one
    without squares.)
    """
    valid = (masks != IGNORE)[:, None]
    probabilities = torch.where(valid, logits.float().softmax(1), 0.0)
    classes = torch.arange(logits.shape[1], device=masks.device).view(1, -1, 1, 1)
    truth = masks[:, None] == classes
    pixels = truth.sum((0, 2, 3))
    intersection = torch.where(truth, probabilities, 0.0).sum((0, 2, 3))
    losses = 1 - 2 * intersection / (probabilities.sum((0, 2, 3)) + pixels).clamp(min=_EPSILON)
    class_weight = (pixels > 0).float() if weights is None else (pixels > 0) * weights
    return (losses * class_weight).sum() / class_weight.sum().clamp(min=_EPSILON)


def _weight_of(masks: Tensor, weights: Tensor) -> Tensor:
    """Return the weight of each pixel, ``[B, H, W]``; 0 for ignored pixels."""
    return torch.where(masks != IGNORE, weights[masks.clamp(max=len(weights) - 1)], 0.0)


def _normalizer(masks: Tensor, weights: Tensor | None) -> Tensor:
    """Return the denominator of a mean over pixels: their number, or the sum of their weights."""
    if weights is None:
        return (masks != IGNORE).sum().clamp(min=1)
    return _weight_of(masks, weights).sum().clamp(min=_EPSILON)


def class_weights(frequency: ClassFrequency, weighting: Weighting) -> Tensor:
    """Return class weights that compensate for rare classes: float32 ``[C]``.

    - ``median_frequency``: the median frequency divided by the frequency of the class. The frequency is the class's
      fraction of the pixels of the images in which it occurs (Eigen, Fergus, ICCV 2015; used by SegNet).
    - ``inverse_sqrt_frequency``: one over the square root of the class's fraction of all pixels, scaled to a mean of 1;
      the weights differ less.

    A class without pixels has weight 0 and is left out of median and mean.
    """
    pixels = frequency.pixels.astype(np.float64)
    present = pixels > 0
    weights = np.zeros_like(pixels)
    if weighting == "median_frequency":
        fraction = pixels[present] / frequency.pixels_where[present]
        weights[present] = np.median(fraction) / fraction
    else:
        inverse = pixels[present] ** -0.5  # the scaling cancels the total number of pixels
        weights[present] = inverse / inverse.mean()
    return torch.from_numpy(weights).float()
