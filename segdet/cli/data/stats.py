"""``segdet data stats``: count images, classes and sizes."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.cli.arguments import CommandParser, check_least, check_output, dataset_from, run_command
from segdet.util.files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``segdet data stats ROOT`` and return the exit status."""
    parser = CommandParser("segdet data stats", "Count a dataset's images, objects, classes and sizes.")
    parser.add_dataset_arguments()
    parser.add_report_arguments("the numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="plot the numbers to this file")
    return run_command(parser, argv, _stats)


def _stats(arguments: argparse.Namespace) -> int:
    from segdet.data.inspect.stats import describe, measure, plot
    from segdet.util.plots import SUFFIXES

    check_least(arguments, workers=1)
    check_output("--json", arguments.json)
    check_output("--plot", arguments.plot, SUFFIXES)
    dataset = dataset_from(arguments)
    readers = [(split, dataset.open(split)) for split in dataset.splits]
    stats = {split: measure(reader, dataset.task, arguments.workers, split) for split, reader in readers}
    sys.stdout.write(f"{dataset}\n\n{describe(stats, dataset.task)}\n")
    bad = [line for item in stats.values() for line in item.bad]
    if bad:
        sys.stdout.write(
            f"\nsamples that cannot be read: {len(bad):,}, the first: {bad[0]}; see segdet data check\n"
        )
    if arguments.json:
        record = {split: item.record(dataset.task) for split, item in stats.items()}
        text = {"root": str(dataset.root), "format": dataset.format, "task": dataset.task, "splits": record}
        write_text(arguments.json, json.dumps(text, indent=1) + "\n")
    if arguments.plot:
        plot(stats, dataset.task, arguments.plot, str(dataset))
        sys.stdout.write(f"\n{arguments.plot}\n")
    return 0
