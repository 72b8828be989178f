"""Numbers as text, the same in Markdown tables and on the HTML page."""


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
    """Return a score with three decimals."""
    return f"{value:.3f}"
