"""Find the splits of a dataset folder, without reading its annotations."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from segdet.util.errors import UserError

if TYPE_CHECKING:
    from segdet.data.sample import TaskName

# Other annotation files of COCO.
_NO_INSTANCES = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")


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
    plain = {file.stem: file for file in files if not file.stem.startswith(_NO_INSTANCES)}
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
        kind = "Segmentation" if task == "segmentation" else "Main"
        folders = {f"{name[3:]}/": root / name for name in voc_years(root)} or {"": root}
        stems = [prefix + name for prefix, folder in folders.items() for name in _voc_lists(folder, kind)]
        where = next(iter(folders.values())) / "ImageSets" / kind
        other = "Main" if task == "segmentation" else "Segmentation"
        if not stems and any(_voc_lists(folder, other) for folder in folders.values()):
            remedy = "detection or localization" if other == "Main" else "segmentation"
            raise UserError(f"{where}: has no split for {task}; there are some for --task {remedy}")
    if not stems:
        raise UserError(f"{where}: has no split for {task}; give --split, or another --task")

    def order(split: str) -> tuple[str, int, str]:
        year, _, name = split.rpartition("/")
        ranks = {"train": 0, "val": 1, "test": 2}
        return year, ranks.get(name.rstrip("0123456789"), 3), split

    return sorted(stems, key=order)


def _voc_lists(folder: Path, kind: str) -> list[str]:
    """Return the split lists in ``ImageSets/<kind>`` of a VOC folder."""
    names = []
    for path in (folder / "ImageSets" / kind).glob("*.txt"):
        if path.name.startswith("."):
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            first = next((line for line in file if line.strip()), "")
        # VOC also has one list per class, with a flag after each name.
        if not re.fullmatch(r"\S+\s+(-1|0|1)", first.strip()):
            names.append(path.stem)
    halves = {"train", "val"} <= set(names)
    return [name for name in names if not (halves and name == "trainval")]
