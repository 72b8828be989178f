"""``segdet report``: print the results of runs as Markdown tables, and write them as an HTML page."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from segdet.report.comparisons import Comparisons, Pairs
from segdet.report.page import PAGE_NAME, page_of, render_page, write_page
from segdet.report.page_data import PageData
from segdet.report.run_data import group_runs
from segdet.report.table import find_records, table
from segdet.report.wandb_records import write_records
from segdet.report.wandb_views import FILE_NAME as VIEW_NAME
from segdet.report.wandb_views import can_create_views, check_view, create_view, view_of
from segdet.report.watch import watch_page
from segdet.runs.record import RECORD_NAME
from segdet.runs.wandb_mode import wandb_mode
from segdet.util.errors import UserError
from segdet.util.files import write_text


def main(argv: Sequence[str]) -> int:
    """Run ``segdet report DIR... [--output FILE] [--html FILE] [--sort COLUMN] [--score NAME] [--pairs PAIRS] ...``.

    Returns:
        The exit status, always 0. Corrupt and missing records are listed in the output.

    Raises:
        UserError: If a folder does not exist or holds no run, no run has the score, or Weights & Biases cannot be used.
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
    score_help = (
        "score of the differences between runs, such as map_50 or ap/cat; by default each task's main score"
    )
    parser.add_argument("--score", metavar="NAME", help=score_help)
    parser.add_argument(
        "--pairs",
        choices=get_args(Pairs),
        default="neighbours",
        help="runs to compare: each with the one above it, each with each, or none (default: neighbours)",
    )
    wandb_help = "record the runs and the tables on Weights & Biases; offline, in wandb/ beside the page"
    parser.add_argument("--wandb", action="store_true", help=wandb_help)
    parser.add_argument("--wandb_project", default="segdet", metavar="NAME", help="the project on W&B")
    watch_help = "write the page again whenever a run has changed, until all runs have ended; Ctrl-C stops"
    parser.add_argument("--watch", action="store_true", help=watch_help)
    arguments = parser.parse_args(argv)
    path = arguments.html or arguments.folders[0] / PAGE_NAME
    if arguments.watch:
        if arguments.no_html:
            raise UserError("--watch writes the page; remove --no_html")
        sys.stderr.write(f"segdet: see {path}; it is updated until all runs have ended, Ctrl-C stops\n")
        watch_page(arguments.folders, path)
    records, faults = find_records(arguments.folders)
    if not records and not faults:
        folders = ", ".join(str(folder) for folder in arguments.folders)
        raise UserError(f"{folders}: no {RECORD_NAME} in it; run segdet fit or segdet bench first")
    page = page_of(arguments.folders)
    finished = [run for run in page.runs if run.record.status == "finished"]
    comparisons = Comparisons(group_runs(finished), arguments.score, arguments.pairs)
    faults += [fault for run in finished for fault in dict.fromkeys(run.faults)]
    text = table(records, arguments.sort, faults, comparisons)
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        write_text(arguments.output, text)
    if not arguments.no_html and not arguments.watch:
        write_page(page, path)
        sys.stderr.write(f"segdet: see {path}\n")
    if arguments.wandb:
        _record_on_wandb(page, path.parent, arguments.wandb_project)
    return 0


def _record_on_wandb(page: PageData, folder: Path, project: str) -> None:
    """Record the runs and the tables on Weights & Biases, and create the workspace and the report if it is online.

    Raises:
        UserError: If Weights & Biases is turned off or cannot be reached.
    """
    mode = wandb_mode()
    if mode == "disabled":
        raise UserError("--wandb: WANDB_MODE or WANDB_DISABLED turns Weights & Biases off; unset it")
    with tqdm(total=len(page.runs) + 1, desc="records", leave=False) as bar:
        tables = write_records(page, render_page(page), folder, project, mode, lambda _: bar.update())
    counts = f"{len(page.runs)} runs and {len(tables)} tables"
    view = view_of(page, project, tables)
    view.write(folder / "wandb" / VIEW_NAME)
    if mode == "online":
        sys.stderr.write(f"segdet: recorded {counts} in the project {project}\n")
    else:
        files = shlex.quote(str(folder / "wandb")) + "/offline-run-*"
        sys.stderr.write(f"segdet: recorded {counts} offline; upload them with: wandb sync {files}\n")
    if not can_create_views():
        sys.stderr.write(f"segdet: pip install 'segdet[wandb-workspaces]' for the {view}\n")
    elif mode == "online":
        sys.stderr.write("".join(f"segdet: see {address}\n" for address in create_view(view)))
    else:
        check_view(view)
        described = folder / "wandb" / VIEW_NAME
        sys.stderr.write(f"segdet: with an account, --wandb also creates the {view}; see {described}\n")
