"""``segdet data show``: draw annotated samples on one sheet."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.cli.arguments import CommandParser, check_least, check_output, dataset_from, run_command

_MOST_LISTED = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``segdet data show ROOT`` and return the exit status."""
    parser = CommandParser("segdet data show", "Draw annotated samples of a dataset on one sheet.")
    parser.add_dataset_arguments()
    parser.add_argument("--count", type=int, default=12, help="number of random samples (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choice (default: 0)")
    index_help = "draw these samples of the first split, counted from 0"
    parser.add_argument("--index", type=int, nargs="+", metavar="I", help=index_help)
    parser.add_argument("--cell", type=int, default=400, help="width of a picture in pixels (default: 400)")
    parser.add_argument("--columns", type=int, help="pictures in a row")
    output, output_help = Path("sheet.png"), "image file to write (default: sheet.png)"
    parser.add_argument("--output", type=Path, default=output, help=output_help)
    return run_command(parser, argv, _show)


def _show(arguments: argparse.Namespace) -> int:
    from PIL import Image

    from segdet.data.inspect.show import draw_samples

    check_least(arguments, count=1, cell=64, columns=1)
    check_output("--output", arguments.output, (".png", ".jpg", ".jpeg"))
    page, faults = draw_samples(
        dataset_from(arguments),
        arguments.count,
        arguments.seed,
        arguments.index,
        arguments.cell,
        arguments.columns,
    )
    for fault in faults[:_MOST_LISTED]:
        sys.stderr.write(f"segdet: left out: {fault}\n")
    if len(faults) > _MOST_LISTED:
        more = f"and {len(faults) - _MOST_LISTED:,} more; `segdet data check {arguments.root}` lists all"
        sys.stderr.write(f"segdet: {more}\n")
    Image.fromarray(page).save(arguments.output)
    sys.stdout.write(f"{arguments.output}\n")
    return 0
