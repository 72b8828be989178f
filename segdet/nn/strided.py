"""A convolution that halves a feature map, for maps of a single column too."""

import torch.nn.functional as F
from torch import Tensor, nn


class HalvingConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 and padding 1, with correct bfloat16 gradients on CPUs.

    If a map has a single column, oneDNN's bfloat16 kernel for AVX-512 leaves the weight gradients of the left and right
    taps uninitialized. They should be zero, because these taps cover only the padding. This layer appends a column of
    zeros to such a map, which changes neither the output nor the gradients.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Convert a map ``[B, C, H, W]`` to ``[B, C', ceil(H / 2), ceil(W / 2)]``."""
        return super().forward(F.pad(features, (0, 1)) if features.shape[-1] == 1 else features)
