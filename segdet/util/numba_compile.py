"""Functions compiled by Numba on their first call and cached on disk for later processes."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile ``function`` to machine code on its first call.

    Compilation takes seconds. The machine code is therefore cached beside the source or, if that folder is read-only,
    in the user's cache folder. If neither is writable, each process compiles. The compiler may reorder sums to use
    vector registers. NaN and infinity are preserved.
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
