"""Detect the format, task and splits of a dataset folder, and open its readers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segdet.data.formats.splits import coco_files, import_remedy, list_splits, voc_years
from segdet.util.errors import UserError, check_range

if TYPE_CHECKING:
    from segdet.data.formats.reader import KnownClasses, Reader
    from segdet.data.sample import TaskName

FORMATS = ("voc", "coco", "cityscapes")
DATA_MODULES = {"voc": "VOCDataModule", "coco": "COCODataModule", "cityscapes": "CityscapesDataModule"}
"""The data module of each format."""
TASKS = ("segmentation", "localization", "detection")


@dataclass(frozen=True)
class Dataset:
    """A dataset folder, with the settings to read its splits.

    Attributes:
        root: The folder.
        format: ``voc``, ``coco`` or ``cityscapes``.
        task: segmentation, localization or detection.
        splits: Names of the splits.
        all_splits: Whether ``splits`` contains all splits of the folder.
        class_names: Classes of a VOC folder, or a selection of COCO's categories; None to read them from the files.
        ignore_index: Mask value of a VOC folder to ignore, besides 255.
        mask_values: Mask value of each class name of a VOC folder; None for 0, 1, 2, ...
        max_pixels: The largest number of pixels of an image; None for the default.
        annotation_file: The COCO annotation file of the only split; None to find the files of the splits.
        image_folder: The folder of the images of ``annotation_file``; None to search for it.
    """

    root: Path
    format: str
    task: "TaskName"
    splits: tuple[str, ...]
    all_splits: bool
    class_names: list[str] | None = None
    ignore_index: int = 255
    mask_values: list[int] | None = None
    max_pixels: int | None = None
    annotation_file: Path | None = None
    image_folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.annotation_file or self.root} ({self.format}, {self.task})"

    def open(self, split: str, known: "KnownClasses | None" = None, strict: bool = True) -> "Reader":
        """Return the reader of one split.

        Args:
            split: The split.
            known: Classes of another split. COCO's categories are matched to them by name.
            strict: Whether a fatal fault of an annotation file is an error; see `COCOReader`.

        Raises:
            UserError: If the split does not exist or has no annotations.
            BadSample: If the split's annotation file cannot be read.
        """
        reader = self._reader(split, known, strict)
        if self.max_pixels is not None:
            reader.max_pixels = self.max_pixels
        return reader

    def _reader(self, split: str, known: "KnownClasses | None", strict: bool) -> "Reader":
        if self.format == "voc":
            from segdet.data.formats.voc import VOCReader

            return VOCReader(
                self.root,
                [split],
                self.task,
                self.class_names,
                self.ignore_index,
                mask_values=self.mask_values,
            )
        if self.format == "coco":
            from segdet.data.formats.coco import COCOReader

            reader = COCOReader(
                self.root,
                split,
                self.task,
                self.annotation_file,
                self.image_folder,
                self.class_names,
                known=known,
                strict=strict,
            )
            if not reader.annotated:
                raise UserError(
                    f"{reader.annotation_file}: lists images without annotations; use it with `segdet predict`"
                )
            return reader
        from segdet.data.formats.cityscapes import CityscapesReader

        return CityscapesReader(self.root, split, self.task)


def guess_format(root: Path) -> str:
    """Return the format of a folder: ``coco``, ``cityscapes`` or ``voc``.

    Raises:
        UserError: If the folder has none of these formats.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the dataset's folder")
    if (format := format_of(root)) is not None:
        return format
    try:
        around = [*root.resolve().parents[:2], *sorted(path for path in root.iterdir() if path.is_dir())]
    except OSError:
        around = []
    near = [str(folder) for folder in around if format_of(folder) is not None]
    remedy = import_remedy(root) or "give the dataset's folder"
    if near:
        remedy = f"did you mean {' or '.join(near[:3])}?"
    raise UserError(
        f"{root}: contains neither annotations/instances_*.json (coco) nor leftImg8bit (cityscapes) nor "
        f"JPEGImages or VOC2007 (voc); {remedy}"
    )


def format_of(root: Path) -> str | None:
    """Return the format of a folder, or None if it has none of them."""
    if any((root / "annotations").glob("instances_*.json")):
        return "coco"
    if (root / "leftImg8bit").is_dir():
        return "cityscapes"
    if (root / "JPEGImages").is_dir() or voc_years(root):
        return "voc"
    return "coco" if coco_files(root) else None


def guess_task(root: Path, format: str) -> "TaskName":
    """Return segmentation for Cityscapes and for a VOC folder without boxes, else detection."""
    if format == "voc":
        folders = [root / name for name in voc_years(root)] or [root]
        boxes = any((folder / "Annotations").is_dir() for folder in folders)
        masks = any((folder / "SegmentationClass").is_dir() for folder in folders)
        return "segmentation" if masks and not boxes else "detection"
    return "segmentation" if format == "cityscapes" else "detection"


def find_dataset(
    root: Path | str,
    format: str | None = None,
    task: "TaskName | None" = None,
    splits: Sequence[str] | None = None,
    class_names: list[str] | None = None,
    ignore_index: int | None = None,
    mask_values: list[int] | None = None,
    max_pixels: int | None = None,
    image_folder: Path | None = None,
) -> Dataset:
    """Return the dataset in a folder, or the dataset of one COCO annotation file.

    A format, task or splits of None are detected (`guess_format`, `guess_task`, `list_splits`). The split of an
    annotation file has the name of the file without ``instances_``.

    Args:
        root: The folder or the annotation file.
        format: See `Dataset`.
        task: See `Dataset`.
        splits: See `Dataset`.
        class_names: See `Dataset`.
        ignore_index: See `Dataset`.
        mask_values: See `Dataset`.
        max_pixels: See `Dataset`.
        image_folder: See `Dataset`.

    Raises:
        UserError: If the folder has none of the formats, or no splits, or an option does not fit the format.
    """
    root = Path(root)
    annotation_file = root.absolute() if root.suffix.lower() == ".json" and not root.is_dir() else None
    if annotation_file is not None:
        if format not in (None, "coco"):
            raise UserError(f"--format {format}: {root} is a file of the format coco; leave it out")
        if splits:
            raise UserError(f"--split: {root} is the file of one split; leave it out")
        folder, format, splits = root.parent, "coco", [root.stem.removeprefix("instances_")]
        root = folder.parent if folder.name == "annotations" else folder
    elif image_folder is not None:
        raise UserError(f"--images: {root} is a folder; give a COCO annotation file with --images")
    if format in (None, "voc") and (root / "VOCdevkit").is_dir():
        root = root / "VOCdevkit"
    format = format or guess_format(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the dataset's folder")
    task = task or guess_task(root, format)
    if format != "voc" and ignore_index is not None:
        raise UserError(f"--ignore_index: for voc folders only, but {root} is {format}; leave it out")
    if format != "voc" and mask_values is not None:
        raise UserError(f"--mask_values: for voc folders only, but {root} is {format}; leave it out")
    if format == "cityscapes" and class_names:
        raise UserError("--class_names: the classes of Cityscapes are fixed; leave it out")
    if ignore_index is not None:
        check_range("--ignore_index", ignore_index, least=0, most=255)
    found = tuple(splits) if splits else tuple(list_splits(root, format, task))
    ignored = 255 if ignore_index is None else ignore_index
    return Dataset(
        root,
        format,
        task,
        found,
        not splits,
        class_names,
        ignored,
        mask_values,
        max_pixels,
        annotation_file,
        image_folder.absolute() if image_folder else None,
    )
