"""Numbers that bfloat16 would round too far."""

import torch
from torch import Tensor


def at_least_float32(numbers: Tensor) -> Tensor:
    """Logits and boxes in float32, or in float64 where they are.

    Of logits that are interpolated in bfloat16 a pixel in a hundred would be a tie of two classes.
    """
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))
