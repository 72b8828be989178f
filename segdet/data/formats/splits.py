"""Find the splits of a dataset folder, without reading its annotations."""

import os
import re
import shlex
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from segdet.data import images
from segdet.util.errors import UserError

if TYPE_CHECKING:
    from segdet.data.sample import TaskName

NO_INSTANCES = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
"""The beginnings of the names of COCO's annotation files for other tasks."""

_KINDS: dict["TaskName", str] = {"segmentation": "Segmentation", "detection": "Main", "localization": "Main"}

IMPORT_COMMAND = "segdet data import {0} NEW_FOLDER --split 0.7 0.1 0.2 --seed 0"
"""The command that makes a dataset with splits from a folder without them."""

_MOST_FILES = 10_000
"""The maximum number of files that `import_remedy` searches for an image."""


def import_remedy(root: Path) -> str | None:
    """Return the command that imports a folder of images.

    The result is None if the folder has no images, or is in the format of COCO or Cityscapes.
    """
    if coco_files(root) or (root / "leftImg8bit").is_dir():
        return None
    names = (name for _, _, files in os.walk(root) for name in files)
    if any(Path(name).suffix.lower() in images.SUFFIXES for name in islice(names, _MOST_FILES)):
        return f"to import an annotated folder: segdet data import {shlex.quote(str(root))} NEW_FOLDER"
    return None


def coco_files(root: Path) -> dict[str, Path]:
    """Return the annotation file of each split in a COCO-shaped folder.

    These are COCO's own ``annotations/instances_<split>.json``; if there are none, ``annotations/<split>.json``; if
    there are none either, Roboflow's ``<split>/_annotations.coco.json``.
    """
    # macOS stores companions of files as "._train.json".
    files = [file for file in (root / "annotations").glob("*.json") if not file.name.startswith(".")]
    named = {
        file.stem.removeprefix("instances_"): file for file in files if file.stem.startswith("instances_")
    }
    plain = {file.stem: file for file in files if not file.stem.startswith(NO_INSTANCES)}
    return named or plain or {file.parent.name: file for file in root.glob("*/_annotations.coco.json")}


def voc_years(root: Path) -> list[str]:
    """Return the names of the folders ``VOC2007`` and the like in ``root``, sorted."""
    return sorted(path.name for path in root.glob("VOC[0-9][0-9][0-9][0-9]") if path.is_dir())


def list_splits(root: Path, format: str, task: "TaskName") -> list[str]:
    """Return the splits of a folder: train, val and test first, ``trainval`` only if train or val is missing.

    Splits of VOC's years are named ``2007/train``, as `VOCReader` expects them.

    Raises:
        UserError: If there are none.
    """
    if format == "coco":
        stems = list(coco_files(root))
        where = root / "annotations/instances_*.json"
    elif format == "cityscapes":
        stems = [path.name for path in (root / "leftImg8bit").glob("*") if path.is_dir()]
        where = root / "leftImg8bit"
    else:
        folders = {f"{name[3:]}/": root / name for name in voc_years(root)} or {"": root}
        stems = [prefix + name for prefix, folder in folders.items() for name in _voc_splits(folder, task)]
        first = next(iter(folders.values()))
        where = first / "ImageSets" / _KINDS[task]
        other: TaskName = "detection" if task == "segmentation" else "segmentation"
        if not stems and any(_voc_splits(folder, other) for folder in folders.values()):
            remedy = "detection or localization" if other == "detection" else "segmentation"
            raise UserError(f"{where}: has no split for {task}; there are some for --task {remedy}")
        if not stems:
            raise UserError(
                f"{where}: has no split list; to make them: {IMPORT_COMMAND.format(shlex.quote(str(first)))}"
            )
    if not stems:
        raise UserError(f"{where}: has no split for {task}; give --split, or another --task")

    def order(split: str) -> tuple[str, int, str]:
        year, _, name = split.rpartition("/")
        ranks = {"train": 0, "val": 1, "test": 2}
        return year, ranks.get(name.rstrip("0123456789"), 3), split

    return sorted(stems, key=order)


def voc_list(folder: Path, split: str, task: "TaskName") -> Path | None:
    """Return the list of a split of a VOC folder, or None.

    It is in ``ImageSets/Main`` or ``ImageSets/Segmentation``, depending on the task, or else directly in ``ImageSets``.
    """
    places = (folder / "ImageSets" / _KINDS[task], folder / "ImageSets")
    return next((path for place in places if (path := place / f"{split}.txt").is_file()), None)


def voc_lists(folder: Path) -> list[Path]:
    """Return all lists of a VOC folder, sorted."""
    found = [*(folder / "ImageSets").glob("*.txt"), *(folder / "ImageSets").glob("*/*.txt")]
    return sorted(path for path in found if not path.name.startswith("."))


def _voc_splits(folder: Path, task: "TaskName") -> list[str]:
    """Return the splits of a VOC folder for a task."""
    names = []
    for path in voc_lists(folder):
        if path != voc_list(folder, path.stem, task):
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            first = next((line for line in file if line.strip()), "")
        # VOC also has one list per class, with a flag after each name.
        if not re.fullmatch(r"\S+\s+(-1|0|1)", first.strip()):
            names.append(path.stem)
    halves = {"train", "val"} <= set(names)
    return [name for name in names if not (halves and name == "trainval")]
