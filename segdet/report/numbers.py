"""Numbers as text, the same in Markdown tables and on the HTML page."""

import math


def significant(value: float) -> str:
    """Return ``value`` with at least three significant digits: ``0.0123``, ``12.3``, ``1234``."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def count(value: float) -> str:
    """Return a count, or a mean of counts with one decimal."""
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"


def minutes(seconds: float) -> str:
    """Return a duration as minutes and seconds: ``12:05``."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def score(value: float) -> str:
    """Return a score with three decimals, or a dash for NaN."""
    if math.isnan(value):
        return "\u2013"
    return f"{value:.3f}"


def short_count(value: float) -> str:
    """Return a count in at most four characters: ``987``, ``12k``, ``3.4M``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"
