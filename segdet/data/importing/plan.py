"""Choose the images of a foreign format to write, with their classes, splits and names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from segdet.data.formats.class_names import IGNORED
from segdet.data.formats.outlines import outline_runs
from segdet.data.images import SUFFIXES
from segdet.data.importing.foreign import BACKGROUND, Foreign, ForeignImage, LeftOut
from segdet.data.importing.geometry import rectangle_outline
from segdet.data.importing.source import folded
from segdet.data.importing.split import SPLITS, stratified_split
from segdet.data.sample import TaskName
from segdet.data.writers.record import (
    AnnotatedImage,
    AnnotatedObject,
    LazyImages,
    class_objects,
    painted_mask,
)
from segdet.data.writers.voc import can_contain
from segdet.util.errors import UserError
from segdet.util.nouns import counted
from segdet.util.suggest import did_you_mean


@dataclass
class Plan:
    """The images to write.

    Attributes:
        task: segmentation or detection.
        class_names: Names of the object classes.
        mask_names: Names of the mask values.
        images: The images of each split, with their names in the new folder.
        split_note: The origin of the split.
        left_out: The files and objects that are not imported.
        notes: Facts that the user should check.
    """

    task: TaskName
    class_names: list[str]
    mask_names: list[str]
    images: dict[str, list[tuple[str, ForeignImage]]]
    split_note: str
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, Counter[str]]:
        """Return the number of objects of each class in each split; for masks, the number of images with the class."""
        return {
            split: Counter(name for _, image in images for name in _counted(image))
            for split, images in self.images.items()
        }


def make_plan(
    foreign: Foreign,
    place: str,
    task: TaskName | None,
    class_names: Sequence[str] | None,
    fractions: Sequence[float] | None,
    seed: int,
    coco: bool,
) -> Plan:
    """Return the images to write.

    Args:
        foreign: The content of the source.
        place: The source, for messages.
        task: The task; None for the one that the annotations imply.
        class_names: The classes to use, in this order; None for all.
        fractions: Fractions of train, val and test. None keeps the split of the source; for a source without a split,
            the fractions are then 0.7, 0.1 and 0.2.
        seed: Seed of the split.
        coco: Whether a COCO folder is written.

    Raises:
        UserError: If the source has no image or no annotation for the task, or if ``class_names`` or ``fractions`` do
            not fit the source.
    """
    task = task or foreign.task
    left_out = list(foreign.left_out)
    masks = any(image.mask is not None for image in foreign.images)
    if masks and task == "detection":
        raise UserError(f"{place}: masks have no boxes; leave out --task detection")
    known = list(foreign.class_names)
    names = {each.name for image in foreign.images for each in image.objects} - {IGNORED, BACKGROUND}
    known += sorted(names - set(known))
    for name in class_names or () if not masks else ():
        if name not in known:
            hint = did_you_mean(name, known) if known else "there are no objects"
            raise UserError(f"--class_names: {place} has no class {name!r}; {hint}")
    chosen = list(class_names) if class_names and not masks else known
    if not masks:
        for image in foreign.images:
            image.objects = _usable(image, foreign, task, set(chosen), coco, left_out)
        if task == "segmentation" and not any(image.objects for image in foreign.images):
            raise UserError(
                f"{place}: no object has an outline ({foreign.title}); leave out --task segmentation"
            )
        if not chosen:
            raise UserError(
                f"{place}: no image has an object ({foreign.title}); annotate some, or give another folder"
            )
    mask_names = foreign.mask_names if masks else [BACKGROUND, *chosen]
    object_names = [name for name in mask_names if name != BACKGROUND]
    if not foreign.images:
        first = f"; the first: {left_out[0].path}: {left_out[0].reason}" if left_out else ""
        raise UserError(f"{place}: no image can be imported ({foreign.title}){first}")
    splits, note = _splits(foreign, place, fractions, seed, left_out)
    images: dict[str, list[tuple[str, ForeignImage]]] = {
        split: [] for split in SPLITS if split in splits.values()
    }
    kept = sorted((image for image in foreign.images if image.key in splits), key=lambda image: image.key)
    for name, image in zip(unique_names([image.key for image in kept]), kept, strict=True):
        images[splits[image.key]].append((name, image))
    notes = [*foreign.notes, *_written_anew(kept)]
    return Plan(task, object_names, mask_names, images, note, left_out, notes)


def unique_names(keys: Sequence[str]) -> list[str]:
    """Return a unique file name without suffix for each path.

    If several paths have the same file name, the names of their folders are put before it.
    """
    stems = [_plain(PurePosixPath(key).stem) for key in keys]
    counts = Counter(map(folded, stems))
    taken = {folded(stem) for stem in stems if counts[folded(stem)] == 1}
    names = []
    for key, stem in zip(keys, stems, strict=True):
        name = stem
        if counts[folded(stem)] > 1:
            path = PurePosixPath(key)
            name = base = _plain("_".join([*path.parts[:-1], path.stem]))
            number = 2
            while folded(name) in taken:
                name, number = f"{base}_{number}", number + 1
            taken.add(folded(name))
        names.append(name)
    return names


def _plain(stem: str) -> str:
    # In a split list, spaces at the ends are lost, and ".jpg" would be read as the suffix.
    stem = stem.strip() or "image"
    inner = PurePosixPath(stem)
    return f"{inner.stem}_{inner.suffix[1:]}" if inner.suffix.lower() in SUFFIXES else stem


def _usable(
    image: ForeignImage,
    foreign: Foreign,
    task: TaskName,
    chosen: set[str],
    coco: bool,
    left_out: list[LeftOut],
) -> list[AnnotatedObject]:
    """Return the objects that the task can use. The other objects are added to ``left_out``."""
    path = image.image if isinstance(image.image, Path) else Path(image.key)
    kept = []
    for each in image.objects:
        x0, y0, x1, y1 = each.box
        if task == "segmentation" and each.outline is None and foreign.boxes_are_filled:
            each.outline = rectangle_outline(each.box)
        reason = ""
        if each.name == BACKGROUND and (task == "detection" or coco):
            reason = "region of the background"
        elif each.name == IGNORED and (task == "detection" or coco):
            reason = "region to ignore"
        elif each.name not in chosen | {BACKGROUND, IGNORED}:
            reason = "class that is not selected"
        elif not (np.isfinite(each.box).all() and x1 > x0 and y1 > y0):
            reason = "box without area"
        elif task == "detection" and not coco and not can_contain(each.box):
            reason = "box of at most one pixel, which VOC cannot contain"
        elif task == "segmentation" and each.outline is None:
            reason = "box without an outline"
        elif each.outline is not None and (fault := _outline_fault(each, image.size)):
            if task == "segmentation":
                left_out.append(LeftOut("outline that cannot be used", path, f"{each.name}: {fault}"))
                continue
            each.outline = None
        if reason:
            left_out.append(LeftOut(reason, path, f"{each.name} at {x0:g}, {y0:g}, {x1:g}, {y1:g}"))
        else:
            kept.append(each)
    return kept


def _outline_fault(each: AnnotatedObject, size: tuple[int, int]) -> str:
    try:
        outline_runs(each.outline, size)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return str(error)
    return ""


def _splits(
    foreign: Foreign, place: str, fractions: Sequence[float] | None, seed: int, left_out: list[LeftOut]
) -> tuple[dict[str, str], str]:
    """Return the split of each image by its key, and the origin of the split."""
    stated = Counter(image.split for image in foreign.images if image.split)
    if len(stated) > 1 and "train" in stated:
        if fractions is not None:
            shown = ", ".join(f"{split} {stated[split]}" for split in SPLITS if split in stated)
            raise UserError(f"{place}: has a split already (images: {shown}); leave out --split")
        for image in foreign.images:
            if image.split is None:
                path = image.image if isinstance(image.image, Path) else Path(image.key)
                left_out.append(LeftOut("image in no split", path))
        return {image.key: image.split for image in foreign.images if image.split}, "as in the source"
    fractions = fractions or (0.7, 0.1, 0.2)
    classes = {image.key: frozenset(_counted(image)) for image in foreign.images}
    shown = " ".join(f"{fraction:g}" for fraction in fractions)
    return stratified_split(classes, fractions, seed), f"{shown}, stratified by class, seed {seed}"


def _counted(image: ForeignImage) -> list[str]:
    """Return the class of each object, or the classes in the mask."""
    if image.mask is not None:
        return sorted(image.classes - {BACKGROUND})
    return [each.name for each in image.objects if each.name not in (BACKGROUND, IGNORED)]


def _written_anew(images: Sequence[ForeignImage]) -> list[str]:
    rotated = sum(image.upright for image in images)
    notes = []
    if rotated:
        turned = counted(rotated, "image with an EXIF rotation is", "images with an EXIF rotation are")
        notes.append(f"{turned} written rotated, as PNG")
    empty = sum(not _counted(image) for image in images)
    if empty:
        notes.append(f"{counted(empty, 'image has', 'images have')} no object")
    return notes


class PlannedImages(LazyImages):
    """The images of a split in the form that the writers need. Masks are read or painted on access."""

    def __init__(self, plan: Plan, split: str, coco: bool) -> None:
        self.images = plan.images[split]
        self.task, self.class_names, self.mask_names = plan.task, plan.class_names, plan.mask_names
        self.coco = coco

    def __len__(self) -> int:
        return len(self.images)

    def image_at(self, position: int) -> AnnotatedImage:
        name, image = self.images[position]
        made = AnnotatedImage(image.image, image.size, name, image.objects, upright=image.upright)
        if image.mask is not None:
            made.mask = image.mask()
        elif self.task == "segmentation" and not self.coco:
            made.mask = painted_mask(image.objects, image.size, self.class_names)
        if made.mask is not None and self.coco:
            made.objects = class_objects(made.mask, self.mask_names)
        return made
