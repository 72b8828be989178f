"""``segdet data make``: generate the Shapes dataset as a VOC, COCO or Cityscapes folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.cli.arguments import CommandParser, run_command
from segdet.data.formats.detect import FORMATS
from segdet.util.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``segdet data make ROOT`` and return the exit status."""
    description = "Generate the Shapes dataset: synthetic scenes with exact labels."
    parser = CommandParser("segdet data make", description)
    parser.add_argument("root", type=Path, help="folder to create")
    parser.add_argument("--format", choices=FORMATS, default="voc", help="format of the files (default: voc)")
    for split, name, count in (
        ("train", "training", 4000),
        ("val", "validation", 400),
        ("test", "test", 400),
    ):
        described = f"{name} images (default: {count})"
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help=described)
    parser.add_argument("--size", default="128x128", metavar="WxH", help="image size (default: 128x128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default: 0)")
    return run_command(parser, argv, _make)


def _make(arguments: argparse.Namespace) -> int:
    from segdet.data.shapes.make import make_shapes

    counts = {split: getattr(arguments, split) for split in ("train", "val", "test")}
    size = _height_width(arguments.size)
    root = make_shapes(arguments.root, arguments.format, **counts, size=size, seed=arguments.seed)
    sys.stdout.write(f"{root}\n")
    return 0


def _height_width(text: str) -> tuple[int, int]:
    """Return ``160x120`` (width first) or ``128`` (both sides) as ``(height, width)``."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() for part in parts):
        raise UserError(f"--size {text}: is not a size; give width x height, such as 160x120")
    return int(parts[-1]), int(parts[0])
