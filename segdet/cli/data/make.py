"""``segdet data make``: generates the Shapes dataset as a VOC, COCO or Cityscapes folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.data.formats.detect import CommandParser, run
from segdet.util.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """``segdet data make ROOT``: returns the exit status."""
    parser = CommandParser("segdet data make", "Generate scenes of shapes that are worth learning on.")
    parser.add_argument("root", type=Path, help="the folder to make")
    parser.add_argument("--format", choices=("voc", "coco", "cityscapes"), default="voc", help="default: voc")
    parser.add_argument("--train", type=int, default=4000, metavar="N", help="training images (4000)")
    parser.add_argument("--val", type=int, default=400, metavar="N", help="validation images (400)")
    parser.add_argument("--test", type=int, default=400, metavar="N", help="test images (400)")
    parser.add_argument("--size", default="128x128", metavar="WxH", help="of the images (128x128)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another dataset (0)")
    return run(parser, argv, _make)


def _make(arguments: argparse.Namespace) -> int:
    from segdet.data.shapes.generator import make_shapes

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
    """``160x120`` (width first, as people say it) or ``128`` as ``(height, width)``."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() for part in parts):
        raise UserError(f"--size {text}: no size; give it as 160x120")
    return int(parts[-1]), int(parts[0])
