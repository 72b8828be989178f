"""The ladder: one row per rung with its idea, its picture, and what the idea changed."""

from segdet.report.html import render
from segdet.report.ladder.rows import COLUMNS, ladders_of
from segdet.report.page_data import PageData, Section


def section(page: PageData) -> Section | None:
    """Return the rows of all tasks in the order of their ideas."""
    ladders = ladders_of(page.groups, page.split_of)
    if not ladders:
        return None
    return Section(
        "ladder", "The ladder", render("ladder.html.j2", page=page, ladders=ladders, columns=COLUMNS)
    )
