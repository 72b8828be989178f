"""The sections of the HTML page, in their order.

Each module has a function ``section`` that returns the section's HTML, or None if the runs have nothing to show. It
computes plain values for one template, ``templates/<module>.html.j2``.
"""

from collections.abc import Callable

from segdet.report.page_data import PageData, Section
from segdet.report.sections import (
    budget,
    confusion,
    curves,
    errors,
    gallery,
    ladder,
    per_class,
    proposals,
    repeat,
    results,
    settings,
    stages,
    sweep,
    tradeoffs,
)

SECTIONS: tuple[Callable[[PageData], Section | None], ...] = (
    ladder.section,
    results.section,
    tradeoffs.section,
    budget.section,
    curves.section,
    sweep.section,
    per_class.section,
    errors.section,
    proposals.section,
    confusion.section,
    gallery.section,
    stages.section,
    settings.section,
    repeat.section,
)
"""The functions that build the sections, from top to bottom."""
