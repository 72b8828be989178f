"""``segdet data check``: read a whole dataset and list every fault."""

import argparse
import json
import sys
from collections.abc import Sequence

from segdet.cli.arguments import CommandParser, check_least, check_output, dataset_from, run_command
from segdet.util.files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``segdet data check ROOT``; return 1 if any fault is fatal, else 0."""
    parser = CommandParser("segdet data check", "Read a whole dataset and list every fault with its file.")
    parser.add_dataset_arguments()
    parser.add_report_arguments("the report")
    return run_command(parser, argv, _check)


def _check(arguments: argparse.Namespace) -> int:
    from segdet.data.inspect.check import check_dataset

    check_least(arguments, workers=1)
    check_output("--json", arguments.json)
    dataset = dataset_from(arguments)
    report = check_dataset(dataset, arguments.workers)
    for fault in report.faults:
        sys.stdout.write(f"{fault}\n")
    sys.stdout.write(f"{dataset}: {report.summary()}\n")
    if arguments.json:
        record = {"root": str(dataset.root), "format": dataset.format, "task": dataset.task}
        write_text(arguments.json, json.dumps(record | report.record(), indent=1) + "\n")
    return 1 if report.count("fatal") else 0
