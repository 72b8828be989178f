"""``segdet data convert``: convert a dataset between VOC, COCO and Cityscapes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.cli.arguments import CommandParser, dataset_from, run_command
from segdet.data.formats.detect import FORMATS


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``segdet data convert ROOT TARGET --to FORMAT`` and return the exit status."""
    parser = CommandParser("segdet data convert", "Convert a dataset between VOC, COCO and Cityscapes.")
    parser.add_dataset_arguments()
    parser.add_argument("target", type=Path, help="folder to create")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format of the new folder")
    copy_help = (
        "copy the images; by default they are linked, which needs no space but breaks if the source is moved"
    )
    parser.add_argument("--copy", action="store_true", help=copy_help)
    return run_command(parser, argv, _convert)


def _convert(arguments: argparse.Namespace) -> int:
    from segdet.data.convert import convert_dataset

    done = convert_dataset(dataset_from(arguments), arguments.target, arguments.to, arguments.copy)
    sys.stdout.write(f"{done.summary()}\n")
    return 0
