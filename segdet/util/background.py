"""Class names that mean the background."""

from collections.abc import Sequence

_BACKGROUND_NAMES = ("background", "__background__", "_background_")


def is_background(name: str) -> bool:
    """Return whether a class name means the background."""
    return name.lower() in _BACKGROUND_NAMES


def has_background(names: Sequence[str]) -> bool:
    """Return whether mask value 0 is the background. Background is drawn without a tint."""
    return bool(names) and is_background(names[0])
