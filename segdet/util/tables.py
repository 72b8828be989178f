"""Tables as Markdown and as plain text."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Return ``rows`` as a Markdown table. Its columns are also aligned as plain text.

    Args:
        rows: The cells. The first row is the heading.
        text_columns: The number of columns on the left that hold text and are aligned left. The others hold
            numbers and are aligned right.
    """
    escaped = [[*map(_escaped, row)] for row in rows]
    widths = _widths(escaped)
    rule = [
        "-" * (width + 2) if column < text_columns else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    ]
    heading, *body = [f"| {' | '.join(_aligned(row, widths, text_columns))} |" for row in escaped]
    return "\n".join([heading, f"|{'|'.join(rule)}|", *body])


def markdown_row(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table without alignment, for tables that are printed row by row."""
    return f"| {' | '.join(map(_escaped, cells))} |"


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Return ``rows`` as aligned plain text: the first column to the left, the others to the right."""
    widths = _widths(rows)
    return "\n".join("  ".join(_aligned(row, widths, 1)).rstrip() for row in rows)


def _escaped(cell: str) -> str:
    return " ".join(cell.splitlines()).replace("|", "\\|")


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _aligned(row: Sequence[str], widths: Sequence[int], text_columns: int) -> list[str]:
    return [
        cell.ljust(width) if column < text_columns else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
