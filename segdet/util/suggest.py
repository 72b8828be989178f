"""Suggestions for misspelled names in error messages."""

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 24


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name in ``known`` that is most similar to ``name``, or None if none is similar.

    Args:
        name: The misspelled name. Case is ignored.
        known: The valid names.
        cutoff: The minimum similarity, between 0 (always suggest a name) and 1, as in `difflib.get_close_matches`.
    """
    by_folded = {each.casefold(): each for each in known}
    near = get_close_matches(name.casefold(), by_folded, 1, cutoff)
    return by_folded[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "did you mean X?" for the closest valid name or, if none is close, "choose from A, B, ...".

    Args:
        name: The misspelled name.
        known: The valid names, at least one.
        cutoff: See `closest`.
    """
    known = list(known)
    near = closest(name, known, cutoff)
    if near is not None:
        return f"did you mean {near}?"
    more = [f"{len(known) - _LISTED} more"] if len(known) > _LISTED else []
    return f"choose from {', '.join([*known[:_LISTED], *more])}"
