"""Import a source: recognize its format, read it, and write a VOC or COCO folder with a report."""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segdet.data.importing import coco, cvat, labelme, masks, via, voc_xml, yolo
from segdet.data.importing.foreign import Foreign, ForeignImage, LeftOut
from segdet.data.importing.plan import Plan, PlannedImages, make_plan
from segdet.data.importing.source import Source
from segdet.data.importing.split import check_fractions
from segdet.data.sample import TaskName
from segdet.data.writers.coco import write_coco
from segdet.data.writers.folder import check_target
from segdet.data.writers.voc import IMAGE_SUFFIXES, write_voc
from segdet.util.errors import UserError
from segdet.util.nouns import counted
from segdet.util.tables import plain_table

ImportTarget = Literal["voc", "coco"]

REPORT = "import.txt"
"""Name of the report in the new folder."""

_MOST_CLASSES = 12  # columns of the table
_MOST_SHOWN = 20


@dataclass(frozen=True)
class ForeignFormat:
    """A foreign format.

    Attributes:
        title: Its name for messages.
        recognize: Function that returns the annotation files of this format in a source.
        read: Function that reads them. Its last argument contains the class names that the user gave.
        outlines: Whether it can contain masks or outlines.
    """

    title: str
    recognize: Callable[[Source], list[Path]]
    read: Callable[[Source, list[Path], list[str] | None], Foreign]
    outlines: bool = True


FORMATS: dict[str, ForeignFormat] = {
    "labelme": ForeignFormat(labelme.TITLE, labelme.recognize, labelme.read),
    "cvat": ForeignFormat(cvat.TITLE, cvat.recognize, cvat.read),
    "via": ForeignFormat(via.TITLE, via.recognize, via.read),
    "coco": ForeignFormat(coco.TITLE, coco.recognize, coco.read),
    "voc": ForeignFormat(voc_xml.TITLE, voc_xml.recognize, voc_xml.read, outlines=False),
    "yolo": ForeignFormat(yolo.TITLE, yolo.recognize, yolo.read),
    "masks": ForeignFormat(masks.TITLE, masks.recognize, masks.read),
}
"""The foreign formats by their name for ``--from``, in the order in which they are tried."""


@dataclass(frozen=True)
class ImportReport:
    """The result of an import.

    Attributes:
        source: The source.
        root: The new folder.
        target: Format of the new folder.
        title: The foreign format.
        plan: The images that were written.
    """

    source: Path
    root: Path
    target: ImportTarget
    title: str
    plan: Plan

    def summary(self) -> str:
        """Return the counts: recognized, written and left out."""
        plan, counts = self.plan, self.plan.counts()
        images = sum(map(len, plan.images.values()))
        unit = "images with the class" if plan.mask_names and self.title == masks.TITLE else "objects"
        columns = plan.class_names[:_MOST_CLASSES]
        rows = [["split", "images", *columns]]
        rows += [
            [split, f"{len(plan.images[split]):,}", *(f"{counts[split][name]:,}" for name in columns)]
            for split in plan.images
        ]
        more = len(plan.class_names) - len(columns)
        lines = [
            f"{self.source}: {self.title}, {counted(images, 'image')}, "
            f"{counted(len(plan.class_names), 'class', 'classes')}",
            f"{self.root}: {self.target}, {plan.task}; split {plan.split_note}; {unit}:",
            plain_table(rows)
            + (f"\n(and {counted(more, 'more class', 'more classes')})" if more > 0 else ""),
            *(f"note: {note}" for note in plan.notes),
        ]
        reasons = Counter(each.reason for each in plan.left_out)
        lines.append(
            f"left out: {sum(reasons.values()):,}" + (f", listed in {self.root / REPORT}" if reasons else "")
        )
        lines += [f"  {count:,} x {reason}" for reason, count in reasons.most_common()]
        return "\n".join(lines)

    def next_command(self) -> str:
        """Return a command that trains on the new folder."""
        root, splits = shlex.quote(str(self.root)), list(self.plan.images)
        val = "val" if "val" in splits else splits[-1]
        if self.target == "coco":
            options = f"COCODataModule --data.root {root} --data.train train --data.val {val}"
            options += " --data.test test" if "test" in splits else ""
        else:
            options = f"VOCDataModule --data.root {root}"
            options += f" --data.val [{val}]" if val != "val" else ""
            options += " --data.test [test]" if "test" in splits else ""
        model = "FCN" if self.plan.task == "segmentation" else "SSD"
        return (
            f"segdet fit --model {model} --data {options} --run_dir {shlex.quote(f'runs/{self.root.name}')}"
        )

    def listing(self) -> str:
        """Return each file and object that is left out, one per line."""
        return "".join(
            f"{each.reason}: {each.path}{f': {each.detail}' if each.detail else ''}\n"
            for each in sorted(self.plan.left_out, key=lambda each: (each.reason, str(each.path)))
        )


def import_dataset(
    source: Path | str,
    root: Path | str,
    *,
    origin: str | None = None,
    target: ImportTarget | None = None,
    task: TaskName | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    class_names: list[str] | None = None,
    image_root: Path | str | None = None,
    copy: bool = False,
) -> ImportReport:
    """Write the annotated images of ``source`` as a VOC or COCO folder.

    Args:
        source: A folder with images and annotations, or an annotation file.
        root: The folder to create. If it exists, it must be empty.
        origin: The foreign format, a key of `FORMATS`; None to recognize it.
        target: Format of the new folder; default: coco for COCO JSON, else voc.
        task: segmentation or detection; default: the one that the annotations imply.
        fractions: Fractions of train, val and test for a source without a split; default: 0.7, 0.1 and 0.2.
        seed: Seed of the split.
        class_names: The classes to use, in this order. For masks: the class of each value, in ascending order of the
            values. For YOLO files without class names: the names of the classes 0, 1, 2, ...
        image_root: Folder of the images, if it is not in ``source``.
        copy: Whether to copy the images instead of linking them.

    Raises:
        UserError: If an argument is invalid, nothing is recognized, or the folder cannot be written.
        BadSample: If an annotation file of many images is invalid.
    """
    source, root = Path(source), Path(root)
    check_target(root)
    for base in (source, Path(image_root or source)):
        if base.is_dir() and root.resolve().is_relative_to(base.resolve()):
            raise UserError(
                f"{root}: lies in the source {base}, where nothing is written; give a folder elsewhere"
            )
    if fractions is not None:
        check_fractions(fractions)
    files = Source(source, image_root)
    name, found = _recognized(files, source, origin, task)
    foreign = FORMATS[name].read(files, found, class_names)
    target = target or ("coco" if foreign.from_coco else "voc")
    foreign.left_out += _unused_images(files, name, foreign)
    foreign.left_out += _drop_repeated(foreign)
    plan = make_plan(foreign, str(source), task, class_names, fractions, seed, target == "coco")
    plan.notes += _losses(plan, target)
    if files.listed_twice:
        plan.notes.append(
            f"{counted(len(files.listed_twice), 'image is', 'images are')} in the lists of several splits and used in "
            "one, the first: "
            f"{min(files.listed_twice)}"
        )
    report = ImportReport(source, root, target, foreign.title, plan)
    images = {split: PlannedImages(plan, split, target == "coco") for split in plan.images}
    text = {REPORT: f"{report.summary()}\n\n{report.listing()}"}
    if target == "coco":
        numbers = foreign.category_ids or {
            each: place for place, each in enumerate(plan.class_names, start=1)
        }
        categories = [{"id": numbers[each], "name": each} for each in plan.class_names]
        write_coco(root, images, categories, copy=copy, progress=True, files=text)
    else:
        database = source.resolve().name
        write_voc(
            root,
            images,
            plan.mask_names,
            [plan.task],
            database=database,
            copy=copy,
            progress=True,
            files=text,
        )
    return report


def _recognized(
    files: Source, source: Path, origin: str | None, task: TaskName | None
) -> tuple[str, list[Path]]:
    """Return the foreign format of the source and its annotation files."""
    if origin is not None:
        found = FORMATS[origin].recognize(files)
        if not found:
            raise UserError(
                f"{source}: no annotation in the format {FORMATS[origin].title}; leave out --from"
            )
        return origin, found
    all_found = {name: paths for name, each in FORMATS.items() if (paths := each.recognize(files))}
    if not all_found:
        titles = ", ".join(each.title for each in FORMATS.values())
        pictures = counted(len(files.images), "image") if files.images else "no image"
        raise UserError(
            f"{source}: {pictures}, but no annotations are recognized ({titles}); check the folder"
        )
    # A folder named "labels" or "annotations" may look like masks, and many formats come with masks.
    tools = {name: paths for name, paths in all_found.items() if name != "masks"}
    if not tools or (
        task == "segmentation" and "masks" in all_found and not any(FORMATS[n].outlines for n in tools)
    ):
        return "masks", all_found["masks"]
    if len(tools) > 1:
        shown = ", ".join(f"{name} ({counted(len(paths), 'file')})" for name, paths in tools.items())
        raise UserError(f"{source}: annotations in several formats: {shown}; choose one with --from")
    return next(iter(tools.items()))


def _drop_repeated(foreign: Foreign) -> list[LeftOut]:
    """Keep the first annotation of each image, and return the others."""
    first: dict[str, ForeignImage] = {}
    repeated = []
    for image in foreign.images:
        if first.setdefault(image.key, image) is not image:
            path = image.image if isinstance(image.image, Path) else Path(image.key)
            names = ", ".join(each.name for each in image.objects)
            repeated.append(LeftOut("second annotation of an image", path, names))
    foreign.images = list(first.values())
    return repeated


def _unused_images(files: Source, name: str, foreign: Foreign) -> list[LeftOut]:
    """Return the images that the annotations do not mention."""
    used = {image.image for image in foreign.images if isinstance(image.image, Path)}
    used |= {path for each in foreign.left_out for path in (each.path, each.image) if path is not None}
    skipped = masks.mask_files(files) if name == "masks" else set()
    mask_folders = {"segmentationclass", "segmentationobject"}
    return [
        LeftOut("image without annotation", path)
        for path in files.images
        if path not in used and path not in skipped and path.parent.name.casefold() not in mask_folders
    ]


def _losses(plan: Plan, target: ImportTarget) -> list[str]:
    """Return notes about annotations that the new folder cannot contain."""
    images = [image for images in plan.images.values() for _, image in images]
    objects = [each for image in images for each in image.objects]
    notes = []
    crowds = sum(each.crowd for each in objects)
    if target == "voc" and plan.task == "detection":
        if outlines := sum(each.outline is not None for each in objects):
            notes.append(
                f"{counted(outlines, 'outline is', 'outlines are')} not written, because VOC has boxes only; --to coco "
                "keeps outlines"
            )
        if crowds:
            notes.append(f"written as difficult: {counted(crowds, 'crowd region')}")
    if target == "coco" and (difficult := sum(each.difficult for each in objects)):
        notes.append(
            f"{counted(difficult, 'object loses', 'objects lose')} the mark 'difficult', which COCO does not have"
        )
    if target == "voc":
        paths = (image.image for image in images if isinstance(image.image, Path) and not image.upright)
        if other := sum(path.suffix.lower() not in IMAGE_SUFFIXES for path in paths):
            notes.append(f"written as PNG, because VOC has JPEG and PNG only: {counted(other, 'image')}")
    return notes
