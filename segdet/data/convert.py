"""Convert a dataset between VOC, COCO and Cityscapes, through the readers and writers of the formats."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from segdet.data.formats.cityscapes import CityscapesReader
from segdet.data.formats.coco import COCOReader
from segdet.data.formats.detect import Dataset
from segdet.data.formats.outlines import outline_mask, outline_of
from segdet.data.formats.reader import Reader, for_each_sample
from segdet.data.formats.voc import VOCReader
from segdet.data.images import image_info
from segdet.data.importing.plan import unique_names
from segdet.data.sample import IGNORE, TaskName
from segdet.data.writers.cityscapes import LABEL_OF, write_cityscapes
from segdet.data.writers.coco import write_coco
from segdet.data.writers.folder import check_target
from segdet.data.writers.record import AnnotatedImage, AnnotatedObject, LazyImages, class_objects
from segdet.data.writers.voc import can_contain, write_voc
from segdet.util.errors import BadSample, UserError
from segdet.util.nouns import counted

ConvertTarget = Literal["voc", "coco", "cityscapes"]

REPORT = "convert.txt"
"""Name of the report in the new folder."""

_GROUND = "unlabeled"
_CITYSCAPES_NAME = re.compile(r"[^_]+_\d{6}_\d{6}")
_MOST_SHOWN = 10


@dataclass
class _Survey:
    """The content of a sample that the other format cannot contain, and the error if the sample cannot be read."""

    losses: Counter[str] = field(default_factory=Counter)
    error: BadSample | None = None


@dataclass
class Conversion:
    """The result of a conversion.

    Attributes:
        dataset: The dataset that was converted.
        root: The new folder.
        target: Its format.
        images: Number of images of each split.
        losses: Descriptions of content that the new format cannot contain, with the number of occurrences.
        left_out: The images that cannot be read.
        renamed: The old path of each renamed image, by its new name.
    """

    dataset: Dataset
    root: Path
    target: ConvertTarget
    images: dict[str, int] = field(default_factory=dict)
    losses: Counter[str] = field(default_factory=Counter)
    left_out: list[BadSample] = field(default_factory=list)
    renamed: dict[str, Path] = field(default_factory=dict)

    def summary(self) -> str:
        """Return the counts: converted, lost and left out."""
        splits = ", ".join(f"{count:,} in {split}" for split, count in self.images.items())
        total = counted(sum(self.images.values()), "image")
        lines = [f"{self.dataset} -> {self.root} ({self.target}): {total} ({splits})"]
        losses = self.losses.most_common()
        lines += [f"  {count:,} x {loss}" for loss, count in losses[:_MOST_SHOWN]]
        if len(losses) > _MOST_SHOWN:
            lines.append(f"  and {len(losses) - _MOST_SHOWN} more kinds, listed in {self.root / REPORT}")
        if self.left_out:
            lines.append(f"left out: {counted(len(self.left_out), 'image')}, listed in {self.root / REPORT}")
            lines += [f"  {error}" for error in self.left_out[:_MOST_SHOWN]]
        return "\n".join(lines)

    def listing(self) -> str:
        """Return the summary, each image that is left out and each new name."""
        lines = [self.summary(), ""]
        lines += [f"{count:,} x {loss}" for loss, count in self.losses.most_common()[_MOST_SHOWN:]]
        lines += [f"left out: {error}" for error in self.left_out]
        lines += [f"{name}: {path}" for name, path in self.renamed.items()]
        return "\n".join(lines) + "\n"


def convert_dataset(
    dataset: Dataset, root: Path | str, target: ConvertTarget, copy: bool = False
) -> Conversion:
    """Write a dataset in another format.

    For detection, objects keep their boxes and, if both formats have outlines, their outlines. For segmentation, each
    pixel keeps its class. The classes of Cityscapes are fixed. Classes of the dataset with the same names are kept, and
    pixels of other classes become unlabeled.

    Args:
        dataset: The dataset, its task and its splits.
        root: The folder to create. If it exists, it must be empty.
        target: The format to write.
        copy: Whether to copy the images instead of linking them.

    Raises:
        UserError: If the dataset has this format already, or the format cannot contain its annotations.
    """
    root = Path(root)
    check_target(root)
    if dataset.format == target:
        raise UserError(f"{dataset.root}: is in the format {target} already; give another --to")
    # The folder of an annotation file is no dataset; the new folder may be beside the file.
    if dataset.annotation_file is None and root.resolve().is_relative_to(dataset.root.resolve()):
        raise UserError(f"{root}: lies in {dataset.root}, where nothing is written; give a folder elsewhere")
    if dataset.format == "voc" and target == "cityscapes" and dataset.task != "segmentation":
        raise UserError(f"{dataset.root}: Cityscapes needs the pixels of objects; give --task segmentation")
    readers = {split: _open(dataset, split) for split in dataset.splits}
    first = next(iter(readers.values()))
    task: TaskName = "segmentation" if dataset.task == "segmentation" else "detection"
    names = first.mask_names if task == "segmentation" else first.class_names
    if target == "cityscapes" and not set(names) & LABEL_OF.keys():
        known = ", ".join(label for label, each in LABEL_OF.items() if not each.ignore_in_eval)
        raise UserError(
            f"{dataset.root}: none of its classes is a label of Cityscapes ({known}); use another --to"
        )
    done = Conversion(dataset, root, target)
    usable: dict[str, list[int]] = {}
    survey = partial(_survey, task, target)
    for split, reader in readers.items():
        surveys = for_each_sample(reader, survey, f"reading {split}", delay=2.0)
        usable[split] = [index for index, each in enumerate(surveys) if each.error is None]
        done.left_out += [each.error for each in surveys if each.error is not None]
        done.images[split] = len(usable[split])
        done.losses += sum((each.losses for each in surveys if each.error is None), Counter())
    if not any(usable.values()):
        raise UserError(f"{dataset.root}: no image can be converted; the first fault: {done.left_out[0]}")
    names_of = _names(dataset, readers, usable, target)
    done.renamed = {
        name: path for path, name in names_of.items() if name != path.stem.removesuffix("_leftImg8bit")
    }
    images = {
        split.replace("/", "_"): ConvertedImages(reader, usable[split], names_of, task, target)
        for split, reader in readers.items()
    }
    files = {REPORT: done.listing()}
    if target == "voc":
        mask_names = first.mask_names if task == "segmentation" else ["background", *first.class_names]
        write_voc(root, images, mask_names, [task], copy=copy, progress=True, files=files)
    elif target == "coco":
        classes = [name for name in names if name != "background"]
        by_name = dict(zip(first.class_names, first.category_ids, strict=True))
        # The reader of Cityscapes has ids only for the classes with instances.
        ids = (
            [by_name[name] for name in classes]
            if by_name.keys() >= set(classes)
            else range(1, len(classes) + 1)
        )
        categories = [{"id": number, "name": name} for number, name in zip(ids, classes, strict=True)]
        write_coco(root, images, categories, copy=copy, progress=True, files=files)
    else:
        write_cityscapes(root, images, ground=_GROUND, copy=copy, progress=True, files=files)
    return done


class ConvertedImages(LazyImages):
    """The images of a split in the form that the writers need. Annotations are read on access."""

    def __init__(
        self,
        reader: Reader,
        indices: Sequence[int],
        names: dict[Path, str],
        task: TaskName,
        target: ConvertTarget,
    ) -> None:
        self.reader, self.indices, self.names = reader, indices, names
        self.task, self.target = task, target

    def __len__(self) -> int:
        return len(self.indices)

    def image_at(self, position: int) -> AnnotatedImage:
        made = _record(self.reader, self.indices[position], self.task, self.target)
        assert isinstance(made.image, Path)
        made.name = self.names[made.image]
        return made


def _open(dataset: Dataset, split: str) -> Reader:
    """Return the reader of a split, with the outlines or masks of objects if the format has them."""
    if dataset.format == "coco":
        return replace(dataset, task="segmentation").open(split)
    if dataset.format == "cityscapes" and dataset.task != "segmentation":
        return CityscapesReader(dataset.root, split, "detection", masks=True)
    return dataset.open(split)


def _names(
    dataset: Dataset, readers: dict[str, Reader], usable: dict[str, list[int]], target: ConvertTarget
) -> dict[Path, str]:
    """Return the new name of each image file."""
    paths = list(
        dict.fromkeys(
            readers[split].image_path(index) for split, indices in usable.items() for index in indices
        )
    )
    keys = [
        path.relative_to(dataset.root) if path.is_relative_to(dataset.root) else Path(path.name)
        for path in paths
    ]
    names = unique_names([str(key).replace("_leftImg8bit.", ".") for key in keys])
    if target == "cityscapes" and not all(map(_CITYSCAPES_NAME.fullmatch, names)):
        names = [f"image_{number:06d}_000000" for number in range(1, len(paths) + 1)]
    return dict(zip(paths, names, strict=True))


def _survey(task: TaskName, target: ConvertTarget, reader: Reader, index: int) -> _Survey:
    found = _Survey()
    try:
        _record(reader, index, task, target, found.losses)
    except BadSample as error:
        found.error = error
    return found


def _record(
    reader: Reader, index: int, task: TaskName, target: ConvertTarget, losses: Counter[str] | None = None
) -> AnnotatedImage:
    """Return the image ``index`` with the annotation that ``target`` can contain, and count the rest in ``losses``."""
    losses = Counter() if losses is None else losses
    path = reader.image_path(index)
    info, declared = image_info(path), reader.declared_size(index)
    upright = info.orientation >= 5 and declared != info.size and declared == info.size[::-1]
    record = AnnotatedImage(path, info.size[::-1] if upright else info.size, upright=upright)
    if isinstance(reader, VOCReader):
        lost = len(reader.object_masks(index))
        _count(losses, "mask in SegmentationObject, which is not converted", lost)
    # COCO's objects have outlines, so a Cityscapes folder gets their classes and instances for every task.
    if task == "detection" or (target == "cityscapes" and isinstance(reader, COCOReader)):
        record.objects = _objects(reader, index, record.size, losses)
        _fit_objects(record, reader.annotation_paths(index, task)[0], target, losses)
        return record
    mask = reader.mask(index)
    if mask.shape != record.size:
        fault = f"is {mask.shape[1]}x{mask.shape[0]}, but {path.name} is {record.size[1]}x{record.size[0]}"
        raise BadSample(reader.annotation_paths(index, task)[0], fault)
    if target != "coco" and isinstance(reader, COCOReader):
        objects = reader.objects(index)
        _count(losses, "object whose pixels keep their class but not their instance", len(objects))
        _count(losses, "crowd region, written as ignored pixels", int(objects.iscrowd.sum()))
    if target == "voc":
        record.mask = mask
        return record
    if target == "coco":
        record.objects = class_objects(mask, reader.mask_names)
        handling = "written as a crowd region of the first class" if record.objects else "which are left out"
        ignored = int((mask == IGNORE).any())
        _count(losses, f"image with ignored pixels, {handling}", ignored)
        return record
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[:IGNORE])
    # Without instances, all pixels of a class are one region.
    regions = [
        (AnnotatedObject(reader.mask_names[label], (0, 0, 0, 0), crowd=True), mask == label)
        for label in present
    ]
    _paint(record, [each for each in regions if each[0].name != "background"], losses)
    return record


def _objects(
    reader: Reader, index: int, size: tuple[int, int], losses: Counter[str]
) -> list[AnnotatedObject]:
    """Return the objects of an image with their outlines. Objects whose box has no area are left out."""
    objects = reader.objects(index)
    outlines = reader.outlines(index) if isinstance(reader, COCOReader) else [None] * len(objects)
    made = []
    for row, (label, (x0, y0, x1, y1)) in enumerate(
        zip(objects.labels.tolist(), objects.boxes.tolist(), strict=True)
    ):
        if not (np.isfinite([x0, y0, x1, y1]).all() and x1 > x0 and y1 > y0):
            _count(losses, "box without area, left out", 1)
            continue
        crowd, outline = bool(objects.iscrowd[row]), outlines[row]
        if objects.masks is not None:
            outline = outline_of(objects.masks[row].astype(bool), crowd)
        made.append(
            AnnotatedObject(
                reader.class_names[label - 1],
                (x0, y0, x1, y1),
                outline,
                float(objects.area[row]),
                crowd=crowd,
                difficult=bool(objects.difficult[row]),
            )
        )
    return made


def _fit_objects(record: AnnotatedImage, path: Path, target: ConvertTarget, losses: Counter[str]) -> None:
    """Remove the objects that the format cannot contain, and count all losses; for Cityscapes, paint the others."""
    if target == "voc":
        kept = [each for each in record.objects if can_contain(each.box)]
        _count(losses, "box of at most one pixel, left out", len(record.objects) - len(kept))
        record.objects = kept
        _count(
            losses,
            "outline, which VOC does not have",
            sum(each.outline is not None for each in record.objects),
        )
        _count(
            losses, "crowd region, written as a difficult object", sum(each.crowd for each in record.objects)
        )
    elif target == "coco":
        _count(
            losses,
            "mark 'difficult', which COCO does not have",
            sum(each.difficult for each in record.objects),
        )
    else:
        # The smallest object is on top, and objects cover crowd regions.
        record.objects.sort(key=lambda each: (not each.crowd, -(each.area or 0)))
        outlined = [each for each in record.objects if each.outline is not None]
        _count(losses, "object without an outline, left out", len(record.objects) - len(outlined))
        try:
            regions = [(each, outline_mask(each.outline, record.size)) for each in outlined]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadSample(path, f"an outline of an object cannot be read ({error})") from None
        _paint(record, regions, losses)


def _paint(
    record: AnnotatedImage, regions: Sequence[tuple[AnnotatedObject, np.ndarray]], losses: Counter[str]
) -> None:
    """Set the objects of ``record`` and the pixels of each object. Later regions cover earlier ones."""
    place = np.zeros(record.size, np.int32)
    known: list[AnnotatedObject] = []
    visible: list[int] = []
    for each, inside in regions:
        if each.name not in LABEL_OF:
            _count(
                losses,
                f"region of class {each.name!r}, which Cityscapes does not have, written as unlabeled",
                1,
            )
            place[inside] = 0
            continue
        known.append(each)
        visible.append(int(inside.sum()))
        place[inside] = len(known)
    counts = np.bincount(place.ravel(), minlength=len(known) + 1)[1:]
    kept = [index for index, count in enumerate(counts.tolist()) if count]
    _count(losses, "object that is covered by others, left out", len(known) - len(kept))
    partly = sum(int(counts[index]) < visible[index] for index in kept)
    _count(losses, "object that is partly covered, written with its visible pixels", partly)
    lookup = np.zeros(len(known) + 1, np.int32)
    lookup[[index + 1 for index in kept]] = np.arange(1, len(kept) + 1)
    record.objects, record.instances = [known[index] for index in kept], lookup[place]


def _count(losses: Counter[str], loss: str, count: int) -> None:
    if count:
        losses[loss] += count
