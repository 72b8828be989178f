"""The operations of one prediction: FLOPs, network passes, and the operators whose operations are not counted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

MOVING = {
    "_to_copy", "arange", "cat", "clone", "constant_pad_nd", "copy", "copy_", "empty", "empty_like", "empty_permuted",
    "empty_strided", "expand", "fill", "fill_", "flip", "full", "full_like", "gather", "index", "index_put_",
    "index_select", "lift_fresh", "lift_fresh_copy", "masked_select", "new_empty", "new_empty_strided", "new_full",
    "new_ones", "new_zeros", "nonzero", "ones", "ones_like", "repeat", "resize_", "roll", "scalar_tensor", "scatter",
    "scatter_", "split_with_sizes_copy", "stack", "zero_", "zeros", "zeros_like", "_local_scalar_dense", "item",
    "_reshape_copy", "_unsafe_view", "_unsafe_index", "_assert_async", "set_", "max_unpool2d", "detach_",
}  # fmt: skip
"""The operators that only allocate, move or select numbers. Views need no entry, because torch marks them."""


@dataclass
class Uncounted:
    """The calls of an operator that computes but is not counted.

    Attributes:
        calls: The number of calls.
        elements: The number of elements of all results.
    """

    calls: int = 0
    elements: int = 0


@dataclass
class Operations:
    """The operations of one prediction.

    Attributes:
        flops: Floating-point operations of matrix products, convolutions and attention. A multiply-add counts as two.
        passes: The number of samples that went through the counted module.
        uncounted: The operators that compute but are not in ``flops``, by name, such as ``torchvision::nms``.
    """

    flops: int
    passes: int
    uncounted: dict[str, Uncounted] = field(default_factory=dict)


def count_operations(predict: Callable[[], Any], model: nn.Module, pass_module: nn.Module) -> Operations:
    """Count the operations of one call of ``predict``.

    Only operators that torch runs are recorded. Work in NumPy, Numba or OpenCV, such as Selective Search, is neither
    counted nor listed.

    Args:
        predict: A function that predicts one image with ``model``.
        model: The network. Compiled parts run uncompiled, because compilation hides their operators.
        pass_module: The module whose passes are counted. Each sample in a call of it is one pass.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    listing = _UncountedOperators(counter.flop_registry)
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    # Inference mode would hide single operators from the counter.
    with (
        torch.inference_mode(False),
        eager,
        torch.no_grad(),
        _batch_sizes(pass_module) as sizes,
        counter,
        listing,
    ):
        predict()
    return Operations(int(counter.get_total_flops()), sum(sizes), listing.found)


def _attention_flops(
    query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))


_CPU_ATTENTION: dict[Any, Any] = {
    # torch registers the kernels of GPUs only.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}


class _UncountedOperators(TorchDispatchMode):
    """A mode that lists the operators that compute but are ignored by the FLOP counter.

    Args:
        counted: The operators that are counted.
    """

    def __init__(self, counted: Mapping[Any, Any]) -> None:
        super().__init__()
        self.counted = counted
        self.found: dict[str, Uncounted] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        namespace, name = func.name().split(".")[0].split("::")
        if packet in self.counted or func.is_view or (namespace == "aten" and name in MOVING):
            return results
        if namespace in ("prim", "profiler"):
            return results
        tensors = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        if tensors:
            entry = self.found.setdefault(f"{namespace}::{name}", Uncounted())
            entry.calls += 1
            entry.elements += sum(tensor.numel() for tensor in tensors)
        return results


@contextmanager
def _batch_sizes(module: nn.Module) -> Iterator[list[int]]:
    """Collect the batch sizes of all forward passes of ``module``."""
    sizes: list[int] = []

    def append_size(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes.append(len(next(iter((*args, *kwargs.values())))))

    handle = module.register_forward_pre_hook(append_size, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()
