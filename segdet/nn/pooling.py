"""Max pooling that returns its switches, the positions of the maxima, for max unpooling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Pooled(NamedTuple):
    """A feature map after max pooling, with all that unpooling needs."""

    features: Tensor  # [B, C, ceil(h / 2), ceil(w / 2)]
    switches: (
        Tensor  # int64, of the same shape: the position of each maximum in its channel, in row-major order
    )
    size: tuple[int, int]  # (h, w) of the map before pooling


class MaxPooling(nn.Module):
    """2x2 max pooling that returns its switches. An odd last row or column is pooled alone, as in Caffe."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, ceil_mode=True, return_indices=True)

    def forward(self, features: Tensor) -> Pooled:
        """Pool features ``[B, C, h, w]``."""
        pooled, switches = self.pool(features)
        return Pooled(pooled, switches, (features.shape[-2], features.shape[-1]))


def switch_map(pooled: Pooled) -> Tensor:
    """Return, for each pixel before pooling, the share of channels with their maximum there.

    Edges are bright, because many channels have their maximum at the same pixel.

    Returns:
        float32 ``[h, w]``, for the first image of the batch.
    """
    h, w = pooled.size
    switches = pooled.switches[0].flatten()
    counts = torch.zeros(h * w, device=switches.device)
    counts.index_add_(0, switches, torch.ones_like(switches, dtype=counts.dtype))
    return counts.view(h, w) / pooled.switches.shape[1]
