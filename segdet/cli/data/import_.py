"""``segdet data import``: turn the files of an annotation tool into a VOC or COCO folder with splits."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.cli.arguments import CommandParser, check_least, run_command

_ORIGINS = ("labelme", "cvat", "via", "coco", "voc", "yolo", "masks")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``segdet data import SOURCE ROOT`` and return the exit status."""
    description = (
        "Turn images with annotations into a VOC or COCO folder with splits. Recognized are Pascal VOC XML, COCO JSON, "
        "YOLO, LabelMe, CVAT for images, VIA, the exports of Roboflow, and masks. The source is not changed."
    )
    parser = CommandParser("segdet data import", description)
    add = parser.add_argument
    add("source", type=Path, help="folder with images and annotations, or an annotation file")
    add("root", type=Path, help="folder to create")
    add("--from", dest="origin", choices=_ORIGINS, help="format of the annotations (default: recognized)")
    add(
        "--to",
        choices=("voc", "coco"),
        help="format of the new folder (default: coco for COCO JSON, else voc)",
    )
    task_help = "default: segmentation if the annotations have outlines or masks, else detection"
    add("--task", choices=("segmentation", "detection"), help=task_help)
    split_help = "fractions, if the source has no split (default: 0.7 0.1 0.2); an existing split is kept"
    add("--split", nargs=3, type=float, metavar=("TRAIN", "VAL", "TEST"), help=split_help)
    add("--seed", type=int, default=0, help="seed of the split (default: 0)")
    names_help = (
        "classes to use (YOLO: names of classes 0, 1, ...; masks: names of the values in ascending order)"
    )
    add("--class_names", metavar="A,B,C|FILE", help=names_help)
    add("--images", type=Path, metavar="DIR", help="folder of the images, if it is not in the source")
    copy_help = (
        "copy the images; by default they are linked, which needs no space but breaks if the source is moved"
    )
    add("--copy", action="store_true", help=copy_help)
    return run_command(parser, argv, _import)


def _import(arguments: argparse.Namespace) -> int:
    from segdet.data.formats.class_names import class_names_from
    from segdet.data.importing.run import import_dataset

    check_least(arguments, seed=0)
    report = import_dataset(
        arguments.source,
        arguments.root,
        origin=arguments.origin,
        target=arguments.to,
        task=arguments.task,
        fractions=arguments.split,
        seed=arguments.seed,
        class_names=class_names_from(arguments.class_names, arguments.source),
        image_root=arguments.images,
        copy=arguments.copy,
    )
    sys.stdout.write(f"{report.summary()}\ntrain: {report.next_command()}\n")
    return 0
