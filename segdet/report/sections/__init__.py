"""The sections of the HTML page, in their order.

Each module has a function ``section`` that returns the section's HTML, or None if the runs have nothing to show. It
computes plain values for one template, ``templates/<module>.html.j2``.
"""

from collections.abc import Callable

from segdet.report.page_data import PageData, Section
from segdet.report.sections import (
    confusion,
    curves,
    errors,
    gallery,
    ladder,
    per_class,
    proposals,
    results,
    tradeoffs,
)

SECTIONS: tuple[Callable[[PageData], Section | None], ...] = (
    ladder.section,
    results.section,
    tradeoffs.section,
    curves.section,
    per_class.section,
    errors.section,
    proposals.section,
    confusion.section,
    gallery.section,
)
"""The functions that build the sections, from top to bottom."""
