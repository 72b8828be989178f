"""Check the annotations of a subset before the first step, without decoding its images."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segdet.data.annotation_faults import Tally, object_faults, rotation_fault, size_fault
from segdet.data.dataset import TaskDataset
from segdet.data.faults import Fault, FaultKind
from segdet.data.formats.reader import Reader, for_each_sample
from segdet.data.images import ImageInfo, check_pixels, image_info, image_size
from segdet.data.mask_faults import PixelTally, count_pixels, mask_size_fault
from segdet.data.transforms import Size, resized_size
from segdet.util.disk_cache import files_key, load, save
from segdet.util.errors import BadSample, UserError
from segdet.util.nouns import counted

_CACHE = "mask_pixels"

_HEADERS = 2000
"""Maximum number of images whose size is compared with the annotation."""

_MASKS = 5000
"""Maximum number of masks that are read."""

_LISTED = 3
"""Maximum number of faults of one kind that are printed."""

_LABELS = {
    FaultKind.NOT_FINITE: "boxes are not finite and are left out",
    FaultKind.DEGENERATE: "boxes have no width or height and are left out",
    FaultKind.OUTSIDE: "boxes lie outside their image and are left out",
    FaultKind.SMALL: "boxes are smaller than a pixel and are not trained on",
    FaultKind.CLIPPED: "boxes reach beyond their image and are clipped",
    FaultKind.ROTATION: "images have an EXIF rotation and are used as they are stored",
    FaultKind.SIZE: "images differ in size from their annotation",
    FaultKind.UNREADABLE: "samples cannot be used and are skipped",
}

_LEFT_OUT = {
    FaultKind.NOT_FINITE,
    FaultKind.DEGENERATE,
    FaultKind.OUTSIDE,
    FaultKind.SMALL,
    FaultKind.CATEGORY,
}
"""Faults of objects that are left out."""


@dataclass
class Survey:
    """The faults in the annotations of a subset.

    Attributes:
        faults: The faults, those of the whole file first.
        tally: Numbers of objects; all 0 for segmentation.
        pixels: For segmentation, numbers of pixels.
        without_dominant: For localization, the number of images without a dominant object, which are left out.
    """

    faults: list[Fault] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    pixels: PixelTally | None = None
    without_dominant: int = 0

    def left_out(self) -> list[str]:
        """Return one line for each object and sample that is left out."""
        objects = [fault.note_line for fault in self.faults if fault.kind in _LEFT_OUT and not fault.note]
        return objects + [str(fault.error()) for fault in self.faults if fault.fatal]

    def lines(self, subset: str, root: Path, skips: bool, size: Size = None) -> list[str]:
        """Return a summary of a few lines for the terminal.

        Args:
            subset: The subset.
            root: The folder of the dataset.
            skips: Whether bad samples are skipped. If not, fatal faults are not in the summary, because an error
                reports them.
            size: The size of images in training.
        """
        groups: dict[tuple[FaultKind, bool], list[Fault]] = {}
        for fault in self.faults:
            if fault.fatal and not skips:
                continue  # an error reports it and stops the run
            groups.setdefault((fault.kind, fault.fatal), []).append(fault)
        lines, shortened = [], False
        for (kind, fatal), faults in groups.items():
            label = _LABELS[FaultKind.UNREADABLE] if fatal else _LABELS.get(kind)
            if label is not None and len(faults) > 1:
                shortened = True
                lines.append(f"{len(faults):,} {label}, the first: {faults[0].path}: {faults[0].fault}")
                continue
            lines += [f"{fault.path}: {fault.fault}; {fault.remedy}" for fault in faults[:_LISTED]]
            if len(faults) > _LISTED:
                shortened = True
                lines.append(f"{counted(len(faults) - _LISTED, 'more fault')} of annotations")
        if subset == "train":
            lines += list(self._ignored())
        if shortened:
            command = f"segdet data check {shlex.quote(str(root))}"
            if any(fault.kind is FaultKind.SMALL for fault in self.faults) and size is not None:
                command += f" --size {size}" if isinstance(size, int) else f" --size {size[0]} {size[1]}"
            lines.append(f"`{command}` lists every fault")
        return [f"segdet: {subset}: {line}" for line in lines]

    def _ignored(self) -> Iterator[str]:
        for count, name in ((self.tally.crowds, "crowds"), (self.tally.difficult, "difficult")):
            if count:
                total = counted(self.tally.objects, "object")
                yield f"{count:,} of {total} {'is' if count == 1 else 'are'} not trained on: {name}"
        if self.without_dominant:
            yield f"{counted(self.without_dominant, 'image is', 'images are')} left out: no dominant object"


def survey(dataset: TaskDataset, subset: str, earlier: Sequence[Fault] = ()) -> Survey:
    """Check the annotations of a dataset, with a progress bar.

    Subsets may share annotation files. ``earlier`` contains the faults that were found in other subsets; faults of
    shared files are not reported again.

    For segmentation, at most `_MASKS` masks are read, and the result is cached if they have no faults.
    """
    reader = dataset.reader
    found = Survey([fault for fault in reader.file_faults() if fault not in earlier])
    indices = dataset.indices.tolist()
    if dataset.task == "segmentation":
        _check_masks(found, dataset, subset, indices)
        return found
    step = max(1, -(-len(indices) // _HEADERS))
    with_header = set(indices[::step])

    def check(own: Reader, index: int) -> tuple[list[Fault], Tally]:
        try:
            return _check_sample(own, index, dataset, index in with_header)
        except BadSample as error:
            return [Fault.of(error)], Tally()

    for faults, tally in for_each_sample(reader, check, f"checking {subset}", indices=indices, delay=2.0):
        found.faults += faults
        found.tally.add(tally)
    found.without_dominant = dataset.without_dominant
    return found


def _check_masks(found: Survey, dataset: TaskDataset, subset: str, indices: list[int]) -> None:
    """Add the faults and the pixel counts of the masks to ``found``. If the counts are cached, no mask is read."""
    reader = dataset.reader
    chosen = indices[:: max(1, -(-len(indices) // _MASKS))]
    files = [(reader.image_path(index), *reader.annotation_paths(index, dataset.task)) for index in chosen]
    names = [image.name for image, *_ in files]  # images may share one annotation file
    key = files_key(
        (path for paths in files for path in paths),
        type(reader).__name__,
        names,
        reader.mask_encoding,
        reader.max_pixels,
    )

    def check(own: Reader, index: int) -> tuple[list[Fault], PixelTally]:
        faults = list(own.faults(index, dataset.task))
        try:
            mask = own.mask(index)
            image = own.image_path(index)
            info = image_info(image)
            check_pixels(image, info.size, own.max_pixels)
            size, turned = _size_in_use(info, own.declared_size(index))
            faults += [] if turned else rotation_fault(image, info, applied=False)
            fault = mask_size_fault(own, index, mask, size)
            return ([*faults, fault] if fault else faults), PixelTally.of(mask)
        except BadSample as error:
            return [*faults, Fault.of(error)], PixelTally()

    cached = load(_CACHE, key)
    if cached is not None:
        tallies = [PixelTally(cached["pixels"])]
    else:
        results = for_each_sample(reader, check, f"checking {subset}", indices=chosen, delay=2.0)
        found.faults += [fault for faults, _ in results for fault in faults]
        tallies = [tally for _, tally in results]
    complete = len(chosen) == len(indices) and not any(fault.fatal for fault in found.faults)
    found.pixels = count_pixels(reader, tallies, complete)
    if dataset.training and chosen:
        found.faults += found.pixels.training_faults(reader, files[0][-1].parent)
    if cached is None and not any(faults for faults, _ in results):
        save(_CACHE, key, {"pixels": found.pixels.pixels})


def _check_sample(
    reader: Reader, index: int, dataset: TaskDataset, with_header: bool
) -> tuple[list[Fault], Tally]:
    declared, path = reader.declared_size(index), reader.image_path(index)
    faults = list(reader.faults(index, dataset.task))
    if any(fault.fatal for fault in faults):
        return faults, Tally()
    objects = reader.objects(index)
    size = declared or image_size(path)
    if with_header and declared is not None:
        info = image_info(path)
        check_pixels(path, info.size, reader.max_pixels)
        size, turned = _size_in_use(info, declared)
        faults += [] if turned else rotation_fault(path, info, applied=False)
        faults += size_fault(path, size, declared)
    of_objects, tally = object_faults(reader, index, objects, size, resized_size(dataset.size, size))
    if not dataset.training:  # scores count small objects
        of_objects = [fault for fault in of_objects if fault.kind is not FaultKind.SMALL]
    return faults + of_objects, tally


def _size_in_use(info: ImageInfo, declared: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """Return the (height, width) of an image as `read_image` returns it, and whether it applies the EXIF rotation."""
    turned = info.orientation >= 5 and declared != info.size and declared == info.size[::-1]
    return (info.size[::-1] if turned else info.size), turned


def refuse_unusable(found: Survey, dataset: TaskDataset, subset: str) -> Fault | None:
    """Raise an error if a fault of a survey stops the run. Return the fault of a subset that cannot be scored, or None.

    Raises:
        BadSample: If a sample cannot be used, unless the dataset skips bad samples.
        UserError: If training has no object to learn from.
    """
    fatal = [fault for fault in found.faults if fault.fatal]
    if fatal and dataset.on_bad_sample == "raise":
        raise fatal[0].error(len(fatal) - 1).or_skip()
    first = int(dataset.indices[0])
    path = next(iter(dataset.reader.annotation_paths(first, dataset.task)), dataset.reader.image_path(first))
    path = path if len(set(_annotation_files(dataset))) == 1 else path.parent
    used = found.pixels or found.tally
    if subset == "train":
        fault = used.nothing_to_learn(path)
        if fault is not None:
            raise UserError(f"{fault.path}: {fault.fault}; {fault.remedy}")
        return None
    return used.nothing_to_score(path, validation=subset == "val")


def shared_images(train: TaskDataset, other: TaskDataset) -> int:
    """Return the number of images of ``other`` that are training images as well. Images are compared by path."""
    trained, others = (
        {dataset.reader.image_path(index) for index in dataset.indices.tolist()} for dataset in (train, other)
    )
    return len(trained & others)


def _annotation_files(dataset: TaskDataset) -> Iterator[Path]:
    """Yield the annotation files of the first and the last image, which are equal if all images share one file."""
    for index in (int(dataset.indices[0]), int(dataset.indices[-1])):
        yield from dataset.reader.annotation_paths(index, dataset.task)
