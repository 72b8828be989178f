"""A small cache of results that depend on the size of the images."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class SizeCache(Generic[T]):
    """A cache of results by key, such as anchors by image size. It is emptied when it is full.

    Args:
        capacity: The maximum number of entries, so that images of many sizes do not fill the memory.
    """

    def __init__(self, capacity: int = 16) -> None:
        self.capacity = capacity
        self._results: dict[Hashable, T] = {}

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the result for ``key``; call ``compute`` if it is not in the cache."""
        if key not in self._results:
            if len(self._results) >= self.capacity:
                self._results.clear()
            self._results[key] = compute()
        return self._results[key]
