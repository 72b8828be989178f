"""``segdet report``: print the results of runs as Markdown tables, and write them as an HTML page."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.report.page import page_of, write_page
from segdet.report.table import find_records, table
from segdet.runs.record import RECORD_NAME
from segdet.util.errors import UserError
from segdet.util.files import write_text

PAGE_NAME = "report.html"
"""The default name of the HTML page."""


def main(argv: Sequence[str]) -> int:
    """Run ``segdet report DIR... [--output FILE] [--html FILE] [--sort COLUMN]``.

    Returns:
        The exit status, always 0. Corrupt and missing records are listed in the output.

    Raises:
        UserError: If a folder does not exist or holds no run.
    """
    parser = argparse.ArgumentParser(
        prog="segdet report",
        allow_abbrev=False,
        description="Tabulate the results of runs, one Markdown table for each task, and write an HTML page.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folders to search for result.json"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the tables to this file instead of printing them"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="the HTML page; by default report.html in the first folder"
    )
    parser.add_argument("--no_html", action="store_true", help="write no HTML page")
    sort_help = "column to sort by: name, a score (such as miou) or a cost (such as ms_per_image)"
    parser.add_argument("--sort", metavar="COLUMN", help=sort_help)
    arguments = parser.parse_args(argv)
    records, faults = find_records(arguments.folders)
    if not records and not faults:
        folders = ", ".join(str(folder) for folder in arguments.folders)
        raise UserError(f"{folders}: no {RECORD_NAME} in it; run segdet fit or segdet bench first")
    text = table(records, arguments.sort, faults)
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        write_text(arguments.output, text)
    if not arguments.no_html:
        path = arguments.html or arguments.folders[0] / PAGE_NAME
        write_page(page_of(arguments.folders), path)
        sys.stderr.write(f"segdet: see {path}\n")
    return 0
