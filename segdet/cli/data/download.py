"""``segdet data download``: fetch a public dataset from its owner's server."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.cli.arguments import CommandParser, run_command
from segdet.data.download import DATASETS, download
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean

_CITYSCAPES = """\
Cityscapes is available to registered users only:
  1. Register and log in at https://www.cityscapes-dataset.com/login/
  2. From https://www.cityscapes-dataset.com/downloads/ download
       leftImg8bit_trainvaltest.zip   (11 GB, the images)
       gtFine_trainvaltest.zip        (241 MB, the annotations)
  3. Unpack both in {root}, which then contains
       leftImg8bit/{{train,val,test}}/<city>/*_leftImg8bit.png
       gtFine/{{train,val,test}}/<city>/*_gtFine_{{labelIds,instanceIds}}.png
  4. Check the result: segdet data check {root}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``segdet data download NAME ROOT`` and return the exit status."""
    parser = CommandParser("segdet data download", "Download a public dataset from its owner's server.")
    parser.add_argument("name", choices=[*DATASETS, "cityscapes"], help="the dataset")
    parser.add_argument("root", type=Path, help="target folder; existing files are kept")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="download only these parts")
    parser.add_argument("--keep", action="store_true", help="keep the downloaded archives")
    return run_command(parser, argv, _download)


def _download(arguments: argparse.Namespace) -> int:
    if arguments.name == "cityscapes":
        sys.stdout.write(_CITYSCAPES.format(root=arguments.root))
        return 0
    parts = {part.name: part for part in DATASETS[arguments.name]}
    for name in arguments.parts or ():
        if name not in parts:
            raise UserError(f"--parts {name}: not a part of {arguments.name}; {did_you_mean(name, parts)}")
    chosen = [part for name, part in parts.items() if not arguments.parts or name in arguments.parts]
    for line in download(chosen, arguments.root, keep=arguments.keep):
        sys.stdout.write(line + "\n")
    return 0
