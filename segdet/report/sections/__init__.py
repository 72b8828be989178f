"""The sections of the HTML page, in their order.

Each module has a function ``section`` that returns the section's HTML, or None if the runs have nothing to show. It
computes plain values for one template, ``templates/<module>.html.j2``.
"""

from collections.abc import Callable

from segdet.report.page_data import PageData, Section
from segdet.report.sections import ladder, results

SECTIONS: tuple[Callable[[PageData], Section | None], ...] = (ladder.section, results.section)
"""The functions that build the sections, from top to bottom."""
