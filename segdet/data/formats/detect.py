"""Which dataset a command means: a folder's format, task and splits, guessed where they are not given."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from segdet.util.errors import UserError
from segdet.util.suggest import closest

if TYPE_CHECKING:
    from segdet.data.formats.reader import Reader
    from segdet.data.sample import Task

FORMATS = ("voc", "coco", "cityscapes")
TASKS = ("segmentation", "localization", "detection")

# What else COCO keeps in its folder of annotations.
_NO_INSTANCES = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")


def guess_format(root: Path) -> str:
    """``coco``, ``cityscapes`` or ``voc``, by what ``root`` holds.

    Raises:
        UserError: If it holds none of them.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give the dataset's folder")
    if (format := _format_of(root)) is not None:
        return format
    try:
        around = [*root.resolve().parents[:2], *sorted(path for path in root.iterdir() if path.is_dir())]
    except OSError:
        around = []
    near = [str(folder) for folder in around if _format_of(folder) is not None]
    remedy = f"did you mean {' or '.join(near[:3])}?" if near else "give the folder that does"
    raise UserError(
        f"{root}: holds neither annotations/instances_*.json (coco) nor leftImg8bit (cityscapes) nor "
        f"JPEGImages or VOC2007 and its like (voc); {remedy}"
    )


def coco_files(root: Path) -> dict[str, Path]:
    """The annotation file of each split in a folder of COCO's shape.

    These are COCO's own ``annotations/instances_<split>.json``; where there is none, ``annotations/<split>.json``;
    and where these are missing too, ``<split>/_annotations.coco.json`` beside the images, as Roboflow exports them.
    """
    # Not what macOS puts beside a file, "._train.json".
    files = [file for file in (root / "annotations").glob("*.json") if not file.name.startswith(".")]
    named = {
        file.stem.removeprefix("instances_"): file for file in files if file.stem.startswith("instances_")
    }
    plain = {file.stem: file for file in files if not file.stem.startswith(_NO_INSTANCES)}
    return named or plain or {file.parent.name: file for file in root.glob("*/_annotations.coco.json")}


def _format_of(root: Path) -> str | None:
    if any((root / "annotations").glob("instances_*.json")):
        return "coco"
    if (root / "leftImg8bit").is_dir():
        return "cityscapes"
    if (root / "JPEGImages").is_dir() or _voc_years(root):
        return "voc"
    return "coco" if coco_files(root) else None


def guess_task(root: Path, format: str) -> "Task":
    """Segmentation for Cityscapes and for a VOC folder without boxes, else detection."""
    if format == "voc":
        folders = [root / name for name in _voc_years(root)] or [root]
        boxes = any((folder / "Annotations").is_dir() for folder in folders)
        masks = any((folder / "SegmentationClass").is_dir() for folder in folders)
        return "segmentation" if masks and not boxes else "detection"
    return "segmentation" if format == "cityscapes" else "detection"


def list_splits(root: Path, format: str, task: "Task") -> list[str]:
    """The splits of a folder, train, val and test first; ``trainval`` only where its halves are missing.

    VOC's years come as ``2007/train``, as the reader takes them.

    Raises:
        UserError: If there is none.
    """
    if format == "coco":
        stems = list(coco_files(root))
        where = root / "annotations/instances_*.json"
    elif format == "cityscapes":
        stems = [path.name for path in (root / "leftImg8bit").glob("*") if path.is_dir()]
        where = root / "leftImg8bit"
    else:
        kind = "Segmentation" if task == "segmentation" else "Main"
        folders = {f"{name[3:]}/": root / name for name in _voc_years(root)} or {"": root}
        stems = [prefix + name for prefix, folder in folders.items() for name in _voc_sets(folder, kind)]
        where = next(iter(folders.values())) / "ImageSets" / kind
        other = "Main" if task == "segmentation" else "Segmentation"
        if not stems and any(_voc_sets(folder, other) for folder in folders.values()):
            remedy = "detection or localization" if other == "Main" else "segmentation"
            raise UserError(f"{where}: holds no split for {task}; there are some for --task {remedy}")
    if not stems:
        raise UserError(f"{where}: holds no split for {task}; give --split, or another --task")
    order = ("train", "val", "test")
    ranks = {
        stem: [order.index(o) if (o := stem.rpartition("/")[2].rstrip("0123456789")) in order else 3]
        for stem in stems
    }
    return sorted(stems, key=lambda stem: (stem.rpartition("/")[0], ranks[stem], stem))


def _voc_years(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("VOC[0-9][0-9][0-9][0-9]") if path.is_dir())


def _voc_sets(folder: Path, kind: str) -> list[str]:
    names = []
    for path in (folder / "ImageSets" / kind).glob("*.txt"):
        if path.name.startswith("."):
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            first = next((line for line in file if line.strip()), "")
        # VOC keeps a list for each class as well, with a flag behind every name.
        if not re.fullmatch(r"\S+\s+(-1|0|1)", first.strip()):
            names.append(path.stem)
    halves = {"train", "val"} <= set(names)
    return [name for name in names if not (halves and name == "trainval")]


@dataclass(frozen=True)
class Dataset:
    """A folder with all that is needed to read its splits.

    Attributes:
        root: The folder that the readers take.
        format: ``voc``, ``coco`` or ``cityscapes``.
        task: segmentation, localization or detection.
        splits: The names of its splits, as the readers take them.
        all_splits: Whether these are all that the folder has.
        class_names: The classes of a VOC folder, or a choice of COCO's categories; None to read them.
        ignore_index: The mask value of a VOC folder that is no class, besides 255.
    """

    root: Path
    format: str
    task: "Task"
    splits: tuple[str, ...]
    all_splits: bool
    class_names: list[str] | None = None
    ignore_index: int = 255

    def open(self, split: str) -> "Reader":
        """The reader of one split.

        Raises:
            UserError: If the split does not exist or cannot be read (then a `BadSample` names the file).
        """
        if self.format == "voc":
            from segdet.data.formats.voc import VOCReader

            return VOCReader(self.root, [split], self.task, self.class_names, self.ignore_index)
        if self.format == "coco":
            from segdet.data.formats.coco import COCOReader

            reader = COCOReader(self.root, split, self.task, class_names=self.class_names)
            if not reader.annotated:
                raise UserError(
                    f"{reader.annotation_file}: names images alone; `segdet predict` can use them"
                )
            return reader
        from segdet.data.formats.cityscapes import CityscapesReader

        return CityscapesReader(self.root, split, self.task)


def find_dataset(
    root: Path | str,
    format: str | None = None,
    task: "Task | None" = None,
    splits: Sequence[str] | None = None,
    class_names: list[str] | None = None,
    ignore_index: int | None = None,
) -> Dataset:
    """What a folder holds; what is None is guessed (see `guess_format`, `guess_task`, `list_splits`).

    Raises:
        UserError: If the folder is of none of the formats, or holds no split.
    """
    root = Path(root)
    if format in (None, "voc") and (root / "VOCdevkit").is_dir():
        root = root / "VOCdevkit"
    format = format or guess_format(root)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give the dataset's folder")
    task = task or guess_task(root, format)
    if format != "voc" and ignore_index is not None:
        raise UserError(f"--ignore_index: only voc folders have one, and {root} is {format}; leave it out")
    if format == "cityscapes" and class_names:
        raise UserError("--class_names: the classes of Cityscapes are fixed; leave it out")
    found = tuple(splits) if splits else tuple(list_splits(root, format, task))
    ignored = 255 if ignore_index is None else ignore_index
    return Dataset(root, format, task, found, not splits, class_names, ignored)


def open_readers(root: Path | str, *args: Any, **kwargs: Any) -> "dict[str, Reader]":
    """The readers of a folder's splits, by split; the arguments are those of `find_dataset`."""
    dataset = find_dataset(root, *args, **kwargs)
    return {split: dataset.open(split) for split in dataset.splits}


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Ends the command with status 2 and one line."""
        unknown = re.match(r"unrecognized arguments: (--?\w[^\s=]*)", message)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            longer = (o for o in options if o.startswith(unknown[1]) and len(unknown[1]) > 2)
            near = next(longer, None) or closest(unknown[1], options)
            if near:
                self.exit(2, f"{self.prog}: {message}; did you mean {near}? see {self.prog} --help\n")
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def add_dataset_arguments(self) -> None:
        """What says which dataset is meant: see `open_readers`."""
        self.add_argument("root", type=Path, help="the dataset's folder")
        self.add_argument("--format", choices=FORMATS, help="guessed from the folder when not given")
        self.add_argument(
            "--task", choices=TASKS, help="guessed when not given: detection where there are boxes"
        )
        self.add_argument(
            "--split", nargs="+", metavar="SPLIT", help="all when not given; 2007/train for VOC's years"
        )
        self.add_argument(
            "--class_names", metavar="A,B,C|FILE", help="the classes, or a file with one a line"
        )
        self.add_argument(
            "--ignore_index", type=int, help="the mask value that is no class (voc), besides 255"
        )


def dataset_from(arguments: argparse.Namespace) -> Dataset:
    """The dataset that the arguments of `CommandParser.add_dataset_arguments` mean."""
    return find_dataset(
        arguments.root,
        arguments.format,
        cast("Task | None", arguments.task),
        arguments.split,
        _class_names(arguments.class_names, arguments.root),
        arguments.ignore_index,
    )


def check_output(option: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Makes sure, before any work is done, that a file can be written there.

    Raises:
        UserError: If it has another ending than one of ``suffixes`` (where some are given), or its folder
            cannot be written to.
    """
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {path}: must end in {' or '.join(suffixes)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror}); give another file") from None


def _class_names(given: str | None, root: Path) -> list[str] | None:
    """The names of ``a,b,c``, or in a file with one a line, looked for in ``root`` first."""
    from segdet.data.formats.reader import checked_names, names_from

    if given is None:
        return None
    if (root / given).is_file() or Path(given).is_file() or "/" in given or given.endswith(".txt"):
        return names_from(given, root)
    return checked_names([name.strip() for name in given.split(",") if name.strip()], "--class_names")


def run(
    parser: CommandParser,
    argv: Sequence[str] | None,
    command: Callable[[argparse.Namespace], int],
    **defaults: Any,
) -> int:
    """Parse ``argv`` and run ``command`` with what it says: a user's mistake is one line and status 2."""
    parser.set_defaults(**defaults)
    arguments = parser.parse_args(argv)
    try:
        return command(arguments)
    except UserError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    except BrokenPipeError:
        # The reader of our output (head, say) has seen enough.
        sys.stderr.close()
        return 0
