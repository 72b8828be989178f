"""``segdet data show``: draw annotated samples on one sheet."""

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.cli.arguments import CommandParser, check_least, check_output, dataset_from, run_command
from segdet.util.files import write_atomically

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
    output_help = "image file to write or replace (default: sheet.png, or sheet-2.png ... if it exists)"
    parser.add_argument("--output", type=Path, help=output_help)
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
        command = f"segdet data check {shlex.quote(str(arguments.root))}"
        sys.stderr.write(f"segdet: and {len(faults) - _MOST_LISTED:,} more; `{command}` lists all\n")
    output = arguments.output or _unused_sheet()
    replaced = " (replaced)" if output.exists() else ""
    with write_atomically(output) as temporary:
        Image.fromarray(page).save(temporary, "PNG" if output.suffix.lower() == ".png" else "JPEG")
    sys.stdout.write(f"{output}{replaced}\n")
    return 0


def _unused_sheet() -> Path:
    """Return the first of ``sheet.png``, ``sheet-2.png`` ... that does not exist."""
    names = itertools.chain(["sheet.png"], (f"sheet-{number}.png" for number in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())
