"""Peak memory of a training step and of a prediction."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


def peak_memory_mb(work: Callable[[], Any], module: nn.Module) -> float:
    """Return the peak memory in MiB of ``work``, including the weights of ``module``.

    On a GPU this is the memory that torch allocates. On the CPU it is the memory of all tensors that exist at the same
    time. The memory that an operator uses within itself is not included on the CPU. In contrast to the resident memory
    of the process, the result depends neither on earlier work nor on the load of the machine.
    """
    device = next(module.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        others = torch.cuda.memory_allocated(device) - _bytes_of(module)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - others) / MIB
    with torch.inference_mode(False), _TensorMemory(module) as memory:
        work()
    return memory.peak / MIB


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes_of(module: nn.Module) -> int:
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in _tensors_of(module)
    }
    return sum(storage.nbytes() for storage in storages.values())


class _TensorMemory(TorchDispatchMode):
    """A mode that sums the bytes of the tensors that exist, and keeps the maximum.

    Args:
        module: The network, whose weights exist already.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}
        for tensor in _tensors_of(module):
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(results):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._add(leaf)
        return results

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in self._known:
            return
        self._known[address] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        # The Python object of a storage lives as long as the storage.
        weakref.finalize(storage, self._remove, address)

    def _remove(self, address: int) -> None:
        self.now -= self._known.pop(address, 0)
