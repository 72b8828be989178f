"""Argument parsing shared by the commands that use argparse: `segdet data ...` and `segdet proposals`.

This module does not import torch, so that ``--help`` and error messages appear at once.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from segdet.data.formats.detect import FORMATS, TASKS, Dataset, find_dataset
from segdet.util.errors import UserError, check_range
from segdet.util.suggest import closest


class CommandParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and a message of one line. If an option is unknown, the closest one is suggested."""
        unknown = re.match(r"unrecognized arguments: (--?\w[^\s=]*)", message)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            near = [option for option in options if option.startswith(unknown[1]) and len(unknown[1]) > 2]
            suggestion = near[0] if near else closest(unknown[1], options)
            if suggestion:
                message += f"; did you mean {suggestion}?"
                self.exit(2, f"{self.prog}: {message} see {self.prog} --help\n")
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def add_dataset_arguments(self) -> None:
        """Add the arguments that select a dataset, its task and splits; see `dataset_from`."""
        add = self.add_argument
        add("root", type=Path, help="folder of the dataset, or a COCO annotation file")
        images_help = "folder of the images of a COCO annotation file (default: searched near the file)"
        add("--images", type=Path, metavar="DIR", help=images_help)
        add("--format", choices=FORMATS, help="format of the dataset (default: detected)")
        add("--task", choices=TASKS, help="default: detection if the dataset has boxes, else segmentation")
        split_help = "splits to use, such as train, or 2007/train for one year of VOC (default: all)"
        add("--split", nargs="+", metavar="SPLIT", help=split_help)
        add("--class_names", metavar="A,B,C|FILE", help="class names, or a text file with one name per line")
        add(
            "--mask_values",
            metavar="[A,B,C]",
            help="mask value of each class name, such as [0,255] (VOC only)",
        )
        add("--ignore_index", type=int, help="mask value to ignore besides 255 (VOC only)")
        pixels_help = "the largest number of pixels of an image that is read (default: 178,956,970)"
        add("--max_pixels", type=int, metavar="N", help=pixels_help)

    def add_report_arguments(self, content: str) -> None:
        """Add the arguments of a command that reads a whole dataset and writes ``content``."""
        self.add_argument("--json", type=Path, metavar="FILE", help=f"also write {content} to this file")
        workers_help = "number of threads (default: one per core)"
        self.add_argument("--workers", type=int, metavar="N", help=workers_help)


def dataset_from(arguments: argparse.Namespace) -> Dataset:
    """Return the dataset that the arguments of `CommandParser.add_dataset_arguments` select; see `find_dataset`."""
    from segdet.data.formats.class_names import class_names_from

    if arguments.max_pixels is not None:
        from segdet.data.images import MOST_PIXELS

        check_range("--max_pixels", arguments.max_pixels, least=1, most=MOST_PIXELS)
    names = class_names_from(arguments.class_names, arguments.root)
    options: dict[str, Any] = {
        "class_names": names,
        "ignore_index": arguments.ignore_index,
        "mask_values": _integers("--mask_values", arguments.mask_values),
        "max_pixels": arguments.max_pixels,
        "image_folder": arguments.images,
    }
    return find_dataset(arguments.root, arguments.format, arguments.task, arguments.split, **options)


def _integers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(word) for word in text.strip("[] ").split(",")]
    except ValueError:
        raise UserError(
            f"{option} {text}: is not a list of whole numbers; give, for example, [0,255]"
        ) from None


def check_least(arguments: argparse.Namespace, **least: int) -> None:
    """Raise `UserError` if an argument is below its minimum. Arguments that are None are not checked."""
    for name, limit in least.items():
        if (value := getattr(arguments, name)) is not None:
            check_range(f"--{name}", value, least=limit)


def check_output(option: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Check that an output file can be written, before any work is done.

    Raises:
        UserError: If ``suffixes`` is not empty and does not contain the suffix, or the file cannot be written.
    """
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {path}: must end in {' or '.join(suffixes)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror}); give another file") from None


def run_command(
    parser: CommandParser, argv: Sequence[str] | None, command: Callable[[argparse.Namespace], int]
) -> int:
    """Parse ``argv``, run ``command`` and return its exit status.

    A `UserError` is printed as one line, and the status is 2.
    """
    arguments = parser.parse_args(argv)
    try:
        return command(arguments)
    except UserError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    except BrokenPipeError:  # the process that reads the output, such as head, has ended
        sys.stderr.close()
        return 0
