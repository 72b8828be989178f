"""``segdet score``: score a file of predictions that segdet or another tool wrote."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from segdet.cli.error_messages import write_line
from segdet.data.formats.class_names import class_names_from
from segdet.metrics.average_precision import COCO_NAMES
from segdet.runs.predictions_file import (
    GroundTruth,
    read_folder,
    read_ground_truth,
    read_predictions,
    score_predictions,
    write_scores,
)
from segdet.runs.record import to_json
from segdet.util.errors import UserError
from segdet.util.tables import plain_table

DEFINITIONS = {"coco": COCO_NAMES, "voc07": ("map_voc07",), "voc12": ("map_voc12",)}
"""The scores of each definition."""

_LARGE = 20_000_000
"""The size in bytes from which on reading a file takes over two seconds."""


def main(argv: Sequence[str]) -> int:
    """Run ``segdet score PREDICTIONS ANNOTATIONS [--split NAME] [--as NAME] [--json] [--output DIR]``.

    Returns:
        The exit status: 0.

    Raises:
        UserError: If a file cannot be read, or the folder cannot be written.
    """
    arguments = _parser().parse_args(argv)
    for path in (arguments.predictions, arguments.annotations):
        if path.is_file() and path.stat().st_size > _LARGE:
            write_line(f"segdet: reading {path}")
    truth = _ground_truth(arguments)
    predictions = read_predictions(arguments.predictions, truth)
    if truth.orphans:
        write_line(
            f"segdet: {truth.path}: annotations of images that are not listed: {truth.orphans} left out"
        )
    for line in predictions.lines():
        write_line(f"segdet: {arguments.predictions}: {line}")
    scores, evaluation = score_predictions(predictions, truth)
    shown = _select(scores, arguments.definition)
    if arguments.json:
        sys.stdout.write(json.dumps(to_json(shown), indent=1) + "\n")
    else:
        sys.stdout.write(
            plain_table([["score", "value"], *([name, f"{shown[name]:.4f}"] for name in shown)]) + "\n"
        )
    if arguments.output is not None:
        command = shlex.join(["segdet", "score", *argv])
        write_scores(arguments.output, predictions, truth, scores, evaluation, command)
        write_line(f"segdet: compare with: segdet report {shlex.quote(str(arguments.output))} ...")
    return 0


def _ground_truth(arguments: argparse.Namespace) -> GroundTruth:
    """Read the annotation file or folder.

    Raises:
        UserError: If an option does not fit it, or it cannot be read.
    """
    path = arguments.annotations
    if path.is_dir():
        return read_folder(path, arguments.split, class_names_from(arguments.class_names, path))
    for option in ("split", "class_names"):
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option}: for folders, but {path} is not one; leave it out")
    return read_ground_truth(path)


def _select(scores: Mapping[str, float], definition: str) -> dict[str, float]:
    """Return the scores of a definition in its order; those of COCO with masks and classes."""
    if definition == "all":
        return dict(scores)
    names = [name for name in DEFINITIONS[definition] if name in scores]
    if definition == "coco":
        names += [f"mask_{name}" for name in COCO_NAMES if f"mask_{name}" in scores]
        names += [name for name in scores if name.startswith(("ap/", "mask_ap/"))]
    return {name: scores[name] for name in names}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segdet score",
        allow_abbrev=False,
        description="Score predictions in COCO's results format, from any tool, "
        "against a COCO annotation file or a dataset folder.",
    )
    add = parser.add_argument
    add("predictions", type=Path, metavar="PREDICTIONS", help="list of image_id, category_id, bbox and score")
    add(
        "annotations",
        type=Path,
        metavar="ANNOTATIONS",
        help="annotation file, such as instances_val2017.json, or the folder of a dataset",
    )
    add("--split", metavar="NAME", help="the split of a folder, such as val")
    add("--class_names", metavar="A,B,C|FILE", help="the classes of a VOC folder (default: found)")
    add(
        "--as",
        dest="definition",
        choices=[*DEFINITIONS, "all"],
        default="coco",
        help="coco: the twelve numbers and each class (default); voc07, voc12: mAP at IoU .5",
    )
    add("--json", action="store_true", help="print JSON")
    add("--output", type=Path, metavar="DIR", help="new folder for a record that segdet report reads")
    return parser
