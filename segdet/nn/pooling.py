"""Max pooling that remembers: the switches by which max unpooling puts values back where they came from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Pooled(NamedTuple):
    """A map after max pooling, and what is needed to undo it.

    Attributes:
        features: ``[B, C, ceil(h / 2), ceil(w / 2)]``.
        switches: int64, of the same shape: where each maximum stood in its channel, row by row.
        size: ``(h, w)`` of the map before.
    """

    features: Tensor
    switches: Tensor
    size: tuple[int, int]


class MaxPooling(nn.Module):
    """Max pooling of 2x2 that keeps its switches; an odd row or column is a window of its own, as in Caffe."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, ceil_mode=True, return_indices=True)

    def forward(self, features: Tensor) -> Pooled:
        """Features ``[B, C, h, w]``, pooled."""
        pooled, switches = self.pool(features)
        return Pooled(pooled, switches, (features.shape[-2], features.shape[-1]))


def switch_map(pooled: Pooled) -> Tensor:
    """For each pixel before the pooling, the share of channels whose maximum stood there: float32 ``[h, w]``.

    Of the first image. Edges light up, for there the channels agree on a pixel.
    """
    h, w = pooled.size
    switches = pooled.switches[0].flatten()
    counts = torch.zeros(h * w, device=switches.device)
    counts.index_add_(0, switches, torch.ones_like(switches, dtype=counts.dtype))
    return counts.view(h, w) / pooled.switches.shape[1]
