"""What is computed once for a size of images."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Results by their keys, such as image sizes; all are forgotten when there would be too many of them.

    Args:
        most: How many are kept: images of ever new sizes must not fill the memory.
    """

    def __init__(self, most: int = 16) -> None:
        self.most = most
        self._results: dict[Hashable, T] = {}

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of ``key``, computed if it is not there."""
        if key not in self._results:
            if len(self._results) >= self.most:
                self._results.clear()
            self._results[key] = compute()
        return self._results[key]
