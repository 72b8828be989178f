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
    parser = CommandParser(
        "segdet data make", "Generate the Shapes dataset: synthetic scenes with exact labels."
    )
    parser.add_argument("root", type=Path, help="folder to create")
    parser.add_argument("--format", choices=FORMATS, default="voc", help="format of the files (default: voc)")
    parser.add_argument(
        "--train", type=int, default=4000, metavar="N", help="training images (default: 4000)"
    )
    parser.add_argument("--val", type=int, default=400, metavar="N", help="validation images (default: 400)")
    parser.add_argument("--test", type=int, default=400, metavar="N", help="test images (default: 400)")
    parser.add_argument("--size", default="128x128", metavar="WxH", help="image size (default: 128x128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default: 0)")
    return run_command(parser, argv, _make)


def _make(arguments: argparse.Namespace) -> int:
    from segdet.data.shapes.make import make_shapes

    root = make_shapes(
        arguments.root,
        arguments.format,
        train=arguments.train,
        val=arguments.val,
        test=arguments.test,
        size=_height_width(arguments.size),
        seed=arguments.seed,
    )
    sys.stdout.write(f"{root}\n")
    return 0


def _height_width(text: str) -> tuple[int, int]:
    """Return ``160x120`` (width first) or ``128`` (both sides) as ``(height, width)``."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() for part in parts):
        raise UserError(f"--size {text}: is not a size; give width x height, such as 160x120")
    return int(parts[-1]), int(parts[0])
