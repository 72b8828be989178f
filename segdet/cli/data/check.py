"""``segdet data check``: read a whole dataset and list every fault."""

import argparse
import json
import sys
from collections.abc import Sequence

from segdet.cli.arguments import CommandParser, check_least, check_output, dataset_from, run_command
from segdet.util.errors import UserError
from segdet.util.files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``segdet data check ROOT``; return 1 if any fault is fatal, else 0."""
    parser = CommandParser("segdet data check", "Read a whole dataset and list every fault with its file.")
    parser.add_dataset_arguments()
    parser.add_report_arguments("the report")
    size_help = (
        "size of images in training, to list boxes that become too small: height and width, or shorter side"
    )
    parser.add_argument("--size", type=int, nargs="+", metavar="N", help=size_help)
    return run_command(parser, argv, _check)


def _check(arguments: argparse.Namespace) -> int:
    from segdet.data.inspect.check import check_dataset

    check_least(arguments, workers=1)
    check_output("--json", arguments.json)
    given = arguments.size
    if given is not None and (len(given) > 2 or min(given) < 1):
        raise UserError(f"--size {' '.join(map(str, given))}: give height and width, or the shorter side")
    size = None if given is None else given[0] if len(given) == 1 else (given[0], given[1])
    dataset = dataset_from(arguments)
    report = check_dataset(dataset, arguments.workers, size)
    for fault in report.faults:
        sys.stdout.write(f"{fault}\n")
    sys.stdout.write(f"{dataset}: {report.summary()}\n")
    if arguments.json:
        record = {"root": str(dataset.root), "format": dataset.format, "task": dataset.task}
        write_text(arguments.json, json.dumps(record | report.record(), indent=1) + "\n")
    return 1 if report.count("fatal") else 0
