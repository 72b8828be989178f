"""Read a whole dataset and list every fault.

A fault is fatal if training would stop on it. A warning describes a problem and how it is handled.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from segdet.data.annotation_faults import Tally, object_faults, rotation_fault, size_fault, wh
from segdet.data.faults import Fault, FaultKind
from segdet.data.formats.detect import Dataset
from segdet.data.formats.reader import KnownClasses, Reader, for_each_sample
from segdet.data.images import SUFFIXES, ImageInfo, image_info, image_size, read_image
from segdet.data.mask_faults import PixelTally, count_pixels, mask_size_fault
from segdet.data.sample import IGNORE, TaskName
from segdet.data.transforms import Size, resized_size
from segdet.util.background import has_background
from segdet.util.errors import BadSample
from segdet.util.nouns import counted

# Usual names of mask values that mean "not annotated".
_IGNORE_NAMES = {
    "void", "unlabeled", "unlabelled", "unlabeled/void", "ignore", "ignored", "don't care", "dontcare", "unknown",
}  # fmt: skip


_DARK = 32
"""A 16-bit image is reported as nearly black if its highest value in 8 bits is lower, as for 12-bit values."""


@dataclass
class Report:
    """The result of a check.

    Attributes:
        faults: In the order of splits and images.
        images: Number of images per split.
        empty: Number of images per split without objects or, for segmentation, without pixels of any class except
            background.
        crowds: Number of crowds, which training ignores.
        difficult: Number of difficult objects, which training ignores.
    """

    faults: list[Fault] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)
    crowds: int = 0
    difficult: int = 0

    def count(self, severity: str) -> int:
        """Return the number of faults of a severity."""
        return sum(fault.severity == severity for fault in self.faults)

    def summary(self) -> str:
        """Return one line with all counts."""
        splits = ", ".join(f"{count:,} in {split}" for split, count in self.images.items())
        total = sum(self.images.values())
        ignored = "".join(
            f", {counted(count, name)}"
            for count, name in ((self.crowds, "crowd"), (self.difficult, "difficult object"))
            if count
        )
        return (
            f"{counted(total, 'image')} ({splits}), {sum(self.empty.values()):,} without objects{ignored}: "
            f"{self.count('fatal')} fatal, {counted(self.count('warning'), 'warning')}"
        )

    def record(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        faults = [
            {**asdict(fault), "path": str(fault.path), "severity": fault.severity} for fault in self.faults
        ]
        counts = {"fatal": self.count("fatal"), "warnings": self.count("warning")}
        ignored = {"crowds": self.crowds, "difficult": self.difficult}
        return {"images": self.images, "empty": self.empty, **ignored, **counts, "faults": faults}


@dataclass
class _Finding:
    """The result for one sample: its faults, a digest of its image file, and its objects."""

    faults: list[Fault]
    digest: str | None = None
    empty: bool = False
    tally: Tally = field(default_factory=Tally)
    pixels: PixelTally = field(default_factory=PixelTally)


def check_dataset(dataset: Dataset, workers: int | None = None, size: Size = None) -> Report:
    """Check all splits of a dataset, with a progress bar.

    A corrupt annotation file of a split is a fatal fault. An image in two splits is a fault. If ``dataset`` contains
    all splits, an image in no split is reported too.

    Args:
        dataset: The dataset.
        workers: Threads; by default one per core, at most 16.
        size: The size of images in training. Boxes that become smaller than a pixel are faults. None for the original
            size.

    Raises:
        UserError: If a split does not exist.
    """
    report = Report()
    readers: dict[str, Reader] = {}
    known: KnownClasses | None = None
    for split in dataset.splits:
        try:
            reader = readers[split] = dataset.open(split, known, strict=False)
        except BadSample as error:
            report.faults.append(Fault.of(error))
            continue
        if known is None and len(reader):
            ids = dict(zip(reader.class_names, reader.category_ids, strict=True))
            known = KnownClasses(ids, str(next(iter(reader.annotation_paths(0, dataset.task)), split)))
    earlier: dict[str, dict[Path, str | None]] = {}
    for split, reader in readers.items():
        check = partial(_check_sample, dataset.task, size)
        findings = for_each_sample(reader, check, f"checking {split}", workers)
        report.images[split] = len(reader)
        report.empty[split] = sum(finding.empty for finding in findings)
        # Several splits may have the same faults of files.
        of_files = [fault for fault in reader.file_faults() if fault not in report.faults]
        faults = [*of_files, *(fault for finding in findings for fault in finding.faults)]
        tally = Tally()
        for finding in findings:
            tally.add(finding.tally)
        report.crowds += tally.crowds
        report.difficult += tally.difficult
        if not any(fault.fatal for fault in faults):
            pixels = count_pixels(reader, (finding.pixels for finding in findings))
            used = pixels if dataset.task == "segmentation" else tally
            faults += _unusable_split(used, split, reader, dataset.task)
        report.faults += faults
        paths = [reader.image_path(index) for index in range(len(reader))]
        digests = {path: finding.digest for path, finding in zip(paths, findings, strict=True)}
        report.faults += _copies(split, digests)
        for other, others in earlier.items():
            report.faults.extend(_shared(split, digests, other, others))
        earlier[split] = digests
    if dataset.all_splits and len(readers) == len(dataset.splits):
        report.faults.extend(_in_no_split(readers))
    if dataset.format == "voc" and dataset.task == "segmentation" and readers:
        report.faults += _named_to_ignore(dataset.root, next(iter(readers.values())))
    return report


def _unusable_split(tally: Tally | PixelTally, split: str, reader: Reader, task: TaskName) -> Iterator[Fault]:
    """Yield the fault of a split with nothing to learn from or to score, and of masks without a class."""
    files = {path for index in (0, len(reader) - 1) for path in reader.annotation_paths(index, task)}
    path = next(iter(files)) if len(files) == 1 else next(iter(files)).parent
    name = split.rpartition("/")[2]
    training, validation = name.startswith("train"), name.startswith("val")
    if training and isinstance(tally, PixelTally):
        yield from tally.training_faults(reader, path)
    fault = tally.nothing_to_learn(path) if training else tally.nothing_to_score(path, validation)
    if fault is not None:
        yield fault


def _check_sample(task: TaskName, training_size: Size, reader: Reader, index: int) -> _Finding:
    path = reader.image_path(index)
    finding = _Finding([])
    size = declared = None
    try:
        declared = reader.declared_size(index)
        size = _check_image(path, declared, reader.max_pixels, finding)
    except BadSample as error:
        finding.faults.append(Fault.of(error))
    except Exception as error:  # a file may be corrupt in an unexpected way
        finding.faults.append(_unexpected(path, error))
    annotations: list[Path] = []
    try:
        annotations = reader.annotation_paths(index, task)
        finding.faults += reader.faults(index, task)
        annotation = annotations[0] if annotations else path
        if task == "segmentation":
            mask = reader.mask(index)
            counted = mask != IGNORE
            if has_background(reader.mask_names):
                counted &= mask != 0
            finding.empty = not counted.any()
            finding.pixels = PixelTally.of(mask)
            mismatch = mask_size_fault(reader, index, mask, size) if size is not None else None
            if mismatch is not None:
                finding.faults.append(mismatch)
        else:
            objects = reader.objects(index)
            finding.empty = not len(objects)
            if (
                size is not None
                and annotation.suffix.lower() == ".png"
                and (found := image_size(annotation)) != size
            ):
                fault = f"is {wh(found)} but its image {path.name} is {wh(size)}"
                handling = "its boxes are assumed to be in pixels of the image; check that they are"
                finding.faults.append(Fault(annotation, fault, False, handling, kind=FaultKind.SIZE))
            limits = size or declared
            if limits is not None:
                faults, finding.tally = object_faults(
                    reader, index, objects, limits, resized_size(training_size, limits)
                )
                finding.faults += faults
    except BadSample as error:
        # `Reader.faults` yields most of these errors already.
        if (error.path, error.fault) not in [(fault.path, fault.fault) for fault in finding.faults]:
            finding.faults.append(Fault.of(error))
    except Exception as error:
        finding.faults.append(_unexpected(annotations[0] if annotations else path, error))
    return finding


def _unexpected(path: Path, error: Exception) -> Fault:
    reason = (str(error).splitlines() or [""])[0]
    fault = f"cannot be read ({type(error).__name__}: {reason})"
    return Fault(path, fault, True, "fix or remove the file", kind=FaultKind.UNREADABLE)


def _check_image(
    path: Path, declared: tuple[int, int] | None, limit: int, finding: _Finding
) -> tuple[int, int]:
    """Decode an image, add its faults and its digest to ``finding`` and return its (height, width)."""
    info = image_info(path)
    image = read_image(path, declared, max_pixels=limit)
    finding.digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    size = image.shape[0], image.shape[1]
    for fault, handling in _pixel_format_faults(info):
        finding.faults.append(Fault(path, fault, False, handling, kind=FaultKind.PIXEL_FORMAT))
    if info.bits == 16 and (highest := int(image.max())) < _DARK:
        fault = f"is nearly black in 8 bits: its highest value becomes {highest} of 255"
        remedy = "scale its values to the whole range of 16 bits"
        finding.faults.append(Fault(path, fault, False, remedy, kind=FaultKind.PIXEL_FORMAT))
    finding.faults += rotation_fault(path, info, applied=size != info.size)
    finding.faults += size_fault(path, size, declared)
    return size


def _pixel_format_faults(info: ImageInfo) -> Iterator[tuple[str, str]]:
    """Yield each difference of an image from plain 8-bit RGB, and how it is handled."""
    if info.bits == 16:
        yield "has 16 bits per channel", "the upper 8 are used"
    if info.mode in ("L", "LA", "1") or info.mode.startswith("I;16"):
        yield "is grayscale", "its one channel is used as red, green and blue"
    elif info.mode in ("CMYK", "YCCK", "LAB", "HSV"):
        yield f"is {info.mode}", "it is converted to RGB"
    if info.frames > 1:
        yield f"has {info.frames} frames or pages", "only the first is read"
    if info.mode in ("RGBA", "LA", "PA"):
        yield "has an alpha channel", "it is ignored"


def _shared(
    split: str, digests: Mapping[Path, str | None], other: str, others: Mapping[Path, str | None]
) -> Iterator[Fault]:
    """Yield images that are in two splits, by path or by content."""
    twins = {digest: path for path, digest in others.items() if digest is not None}
    stems = {path.stem for path in others}
    same_names = []
    for path, digest in digests.items():
        twin = path if path in others else twins.get(digest) if digest else None
        if twin is not None:
            renamed = "" if twin == path else f", there as {twin.name}"
            fault = f"is in the splits {other} and {split}{renamed}"
            remedy = "remove it from one of them: scores on training images are meaningless"
            yield Fault(path, fault, False, remedy, kind=FaultKind.SPLIT)
        elif path.stem in stems:
            same_names.append(path)
    if same_names:
        count = len(same_names)
        verb = "image has" if count == 1 else "images have"
        fault = f"{count:,} {verb} the name of another in {other} ({same_names[0].name})"
        folder = same_names[0].parent
        yield Fault(folder, fault, False, "the files differ", note=True, kind=FaultKind.SPLIT)


def _named_to_ignore(root: Path, reader: Reader) -> Iterator[Fault]:
    """Yield classes whose names suggest that their pixels should be ignored."""
    for name, value in zip(reader.mask_names, reader.mask_values, strict=True):
        if name.lower() in _IGNORE_NAMES:
            fault = f"the mask value {value} is named {name!r} but is a class like any other"
            remedy = f"to ignore it, give --ignore_index {value} here and --data.ignore_index {value} to fit"
            yield Fault(root, fault, False, remedy, note=True)


def _copies(split: str, digests: Mapping[Path, str | None]) -> Iterator[Fault]:
    """Yield the first image of a split whose file is a copy of another, with the number of such images."""
    first: dict[str, Path] = {}
    copies = []
    for path, digest in digests.items():
        if digest is not None and (original := first.setdefault(digest, path)) != path:
            copies.append((path, original))
    if copies:
        path, original = copies[0]
        more = f", and so are {len(copies) - 1:,} more images of the split" if len(copies) > 1 else ""
        fault = f"is a copy of {original.name}, also in {split}{more}"
        remedy = "remove it, or check that both annotations agree"
        yield Fault(path, fault, False, remedy, kind=FaultKind.SPLIT)


def _in_no_split(readers: Mapping[str, Reader]) -> Iterator[Fault]:
    """Yield the images that are in the same folders as the splits' images but in no split."""
    used = {reader.image_path(index) for reader in readers.values() for index in range(len(reader))}
    for folder in sorted({path.parent for path in used}):
        if not folder.is_dir():
            continue
        visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if unused := sorted({path for path in visible if path.suffix.lower() in SUFFIXES} - used):
            count = len(unused)
            names = ", ".join(path.name for path in unused[:3]) + (", ..." if count > 3 else "")
            verb = "image is" if count == 1 else "images are"
            fault = f"{count:,} {verb} in no split ({names})"
            yield Fault(folder, fault, False, "not read", note=True, kind=FaultKind.SPLIT)
