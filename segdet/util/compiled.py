"""Functions that Numba compiles when they are first called, and keeps on disk for the next process."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiles ``function`` to machine code on its first call.

    The code is kept beside the source or, where that cannot be written, in the user's cache folder, so
    that the seconds of compiling are paid once. Where neither can be written, each process compiles.
    Sums may be reordered, which is what lets them use vector registers, but NaN and infinity stay as they are.
    """
    options: dict[str, Any] = {
        "fastmath": {"reassoc", "contract", "nsz"},
        "nogil": True,
        "boundscheck": False,
    }
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # "cannot cache function ...: no locator available"
        return numba.njit(**options)(function)
