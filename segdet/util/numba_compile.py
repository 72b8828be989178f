"""Functions compiled by Numba on their first call and cached on disk for later processes."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile ``function`` to machine code on its first call.

    The code is cached beside the source or, if that folder is read-only, in the user's cache folder, so that the
    seconds of compilation are spent once. If neither can be written, each process compiles. Sums may be reordered,
    so that they use vector registers. NaN and infinity are preserved.
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
