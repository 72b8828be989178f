"""``segdet status``: the state of the runs of a bench or a sweep, from their files and SLURM's queue."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.cli.error_messages import write_line
from segdet.launch.display import render, table
from segdet.launch.slurm import find_failures, read_queue
from segdet.launch.state import find_runs
from segdet.util.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Run ``segdet status DIR``.

    Returns:
        The exit status: 0.

    Raises:
        UserError: If the folder does not exist or holds no runs.
    """
    folder: Path = _parser().parse_args(argv).folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a bench or a sweep, such as runs/demo")
    runs = find_runs(folder)
    if not runs:
        raise UserError(f"{folder}: holds no runs; give the folder of a bench or a sweep, such as runs/demo")
    failures: dict[str, str] = {}
    states: dict[str, str] = {}
    try:
        queue = read_queue(folder)
        failures = find_failures(folder, queue)
        states = {name: entry.describe() for name, entry in queue.items()} | dict.fromkeys(failures, "failed")
    except UserError as error:  # the files contain all other states
        write_line(f"segdet: {error}")
    rows = table(runs, states)
    sys.stdout.write(render(rows) + "\n")
    for row in rows:
        fault = row.fault or failures.get(row.name)
        if fault and row.state == "failed":
            sys.stdout.write(f"{row.name}: {fault}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segdet status",
        allow_abbrev=False,
        description="Show the state of the runs of a bench or a sweep.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder of a bench or a sweep, such as runs/demo"
    )
    return parser
