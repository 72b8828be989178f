"""``segdet data check``: reads a whole dataset and lists every fault with its file.

A fault is fatal where training would stop on it. A warning tells of something that is handled, and how.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segdet.data.cleaning import clean_objects, describe_box, overhang, usable
from segdet.util.errors import BadSample, UserError

if TYPE_CHECKING:
    from segdet.data.formats.reader import Reader
    from segdet.data.images import ImageInfo
    from segdet.data.sample import Objects, Task

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}

# What data sets call the pixels that nobody has told the class of.
_NO_CLASSES = {
    "void", "unlabeled", "unlabelled", "unlabeled/void", "ignore", "ignored", "don't care", "dontcare", "unknown",
}  # fmt: skip

# Annotations are often rounded; half a pixel beyond the border is no fault.
_TOLERANCE = 0.5


@dataclass(frozen=True)
class Fault:
    """Something wrong with a dataset.

    Attributes:
        path: The file at fault.
        fault: What is wrong.
        fatal: Whether the sample cannot be used as it is, so that training stops on it.
        remedy: What to do about it, or how it is handled.
        note: True for what is no fault but good to know.
    """

    path: Path
    fault: str
    fatal: bool
    remedy: str
    note: bool = False

    @property
    def severity(self) -> str:
        """``fatal``, ``warning`` or ``note``."""
        return "fatal" if self.fatal else "note" if self.note else "warning"

    def __str__(self) -> str:
        return f"{self.severity:<8} {self.path}: {self.fault}; {self.remedy}"


@dataclass
class Report:
    """What a check found.

    Attributes:
        faults: In the order of splits and images.
        images: The number of images of each split.
        empty: Of them, the number without any object (for segmentation: without a pixel of a class
            besides the background).
    """

    faults: list[Fault] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)

    def count(self, severity: str) -> int:
        """The number of faults of a severity."""
        return sum(fault.severity == severity for fault in self.faults)

    def summary(self) -> str:
        """One line with all the counts."""
        splits = ", ".join(f"{count:,} in {split}" for split, count in self.images.items())
        total = sum(self.images.values())
        return (
            f"{total:,} image{_s(total)} ({splits}), {sum(self.empty.values()):,} without objects: "
            f"{self.count('fatal')} fatal, {self.count('warning')} warning{_s(self.count('warning'))}"
        )


@dataclass
class _Finding:
    faults: list[Fault]
    digest: str | None = None
    empty: bool = False


def check(
    reader: "Reader", task: "Task", workers: int | None = None, split: str = "the split"
) -> list[Fault]:
    """Every fault of the samples of one reader, with a progress bar.

    Args:
        reader: The images and annotations.
        task: What is to be learned of them: segmentation looks at masks, the others at boxes.
        workers: Threads that decode; by default as many as there are cores, at most 16.
        split: What the progress bar calls it.
    """
    return [fault for finding in _findings(reader, task, workers, split) for fault in finding.faults]


def check_splits(
    readers: "Mapping[str, Reader]", task: "Task", workers: int | None = None, all_splits: bool = True
) -> Report:
    """Every fault of a dataset: those of each split, and images that two splits share or none has.

    Args:
        readers: The reader of each split.
        task: See `check`.
        workers: See `check`.
        all_splits: Whether these are all splits there are; only then images that no split names are told.
    """
    report = Report()
    earlier: dict[str, dict[Path, str | None]] = {}
    for split, reader in readers.items():
        findings = _findings(reader, task, workers, split)
        report.images[split] = len(reader)
        report.empty[split] = sum(finding.empty for finding in findings)
        report.faults.extend(fault for finding in findings for fault in finding.faults)
        paths = [reader.image_path(index) for index in range(len(reader))]
        digests = {path: finding.digest for path, finding in zip(paths, findings, strict=True)}
        for other, others in earlier.items():
            report.faults.extend(_shared(split, digests, other, others))
        earlier[split] = digests
    if all_splits:
        report.faults.extend(_in_no_split(readers))
    return report


def _findings(reader: "Reader", task: "Task", workers: int | None, split: str) -> list[_Finding]:
    from segdet.data.formats.reader import for_each_sample

    return for_each_sample(
        reader, lambda own, index: _check_sample(own, task, index), f"checking {split}", workers
    )


def _check_sample(reader: "Reader", task: "Task", index: int) -> _Finding:
    path = reader.image_path(index)
    finding = _Finding([])
    size = declared = None
    try:
        declared = reader.declared_size(index)
        size = _check_image(path, declared, finding)
    except BadSample as error:
        finding.faults.append(_fatal(error))
    except Exception as error:  # a file can be wrong in ways that nobody foresaw; the others want reading
        finding.faults.append(_unforeseen(path, error))
    annotations: list[Path] = []
    try:
        annotations = reader.annotation_paths(index, task)
        for file, fault, fatal in reader.faults(index, task):
            handling = "it is dropped" if "degenerate" in fault else "see that it is meant"
            finding.faults.append(Fault(file, fault, fatal, "mend the annotation" if fatal else handling))
        annotation = annotations[0] if annotations else path
        if task == "segmentation":
            mask = reader.mask(index)
            finding.empty = not holds_class(mask, reader.mask_names)
            _check_mask(mask, annotation, path, size, finding)
        else:
            objects = reader.objects(index)
            finding.empty = not len(objects)
            if size is not None and annotation.suffix.lower() == ".png":
                _check_drawn(annotation, path, size, finding)
            limits = size or declared
            if limits is not None:
                _check_objects(objects, annotation, path, limits, reader.class_names, finding)
    except BadSample as error:
        if _fatal(error) not in finding.faults:
            finding.faults.append(_fatal(error))
    except Exception as error:
        finding.faults.append(_unforeseen(annotations[0] if annotations else path, error))
    return finding


def _fatal(error: BadSample) -> Fault:
    return Fault(error.path, error.fault, True, error.remedy)


def _unforeseen(path: Path, error: Exception) -> Fault:
    reason = (str(error).splitlines() or [""])[0]
    return Fault(path, f"cannot be read ({type(error).__name__}: {reason})", True, "mend or remove the file")


def _check_image(path: Path, declared: tuple[int, int] | None, finding: _Finding) -> tuple[int, int]:
    """Decode an image, note what is unusual about it, and give its (height, width)."""
    from segdet.data.images import image_info, read_image

    info = image_info(path)
    image = read_image(path, declared)
    finding.digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    size = image.shape[0], image.shape[1]
    turned = size != info.size
    for fault, handling in _unusual(info, turned):
        finding.faults.append(Fault(path, fault, False, handling))
    if declared is not None and declared != size:
        finding.faults.append(
            Fault(
                path,
                f"is {_wh(size)} but its annotation says {_wh(declared)}",
                False,
                "the annotation is taken to be in pixels of the file: see that it is",
            )
        )
    return size


def _unusual(info: "ImageInfo", turned: bool) -> Iterable[tuple[str, str]]:
    """What an image's header has that is not plain 8-bit RGB, and what is done about it."""
    if info.bits == 16:
        yield "has 16 bits per channel", "the upper 8 are used"
    if info.mode in ("L", "LA", "1") or info.mode.startswith("I;16"):
        yield "is grayscale", "its one channel is used as red, green and blue"
    elif info.mode in ("CMYK", "YCCK", "LAB", "HSV"):
        yield f"is {info.mode}", "it is converted to RGB"
    if info.mode in ("RGBA", "LA", "PA"):
        yield "has an alpha channel", "it is left out"
    if info.orientation != 1:
        yield (
            f"is to be rotated or flipped by its EXIF orientation {info.orientation}",
            "it is turned upright, as its annotation's size says"
            if turned
            else "its pixels are used as they are stored: see that the annotation was made on these",
        )


def _check_drawn(annotation: Path, image: Path, size: tuple[int, int], finding: _Finding) -> None:
    """Note an annotation that is a picture of its objects but not of its image's size."""
    from segdet.data.images import image_size

    found = image_size(annotation)
    if found != size:
        fault = f"is {_wh(found)} but its image {image.name} {_wh(size)}"
        remedy = "its boxes are taken to be in pixels of the image: see that they are"
        finding.faults.append(Fault(annotation, fault, False, remedy))


def _check_objects(
    objects: "Objects",
    annotation: Path,
    image: Path,
    size: tuple[int, int],
    class_names: Sequence[str],
    finding: _Finding,
) -> None:
    """Note the boxes that are dropped or clipped."""
    where = "" if annotation.stem == image.stem else f"image {image.name}: "
    _, dropped = clean_objects(objects, size, class_names)
    # A format that names degenerate boxes does so with the numbers as its file has them.
    told = any("degenerate" in known.fault for known in finding.faults)
    for phrase in dropped:
        if told and phrase.endswith("is degenerate"):
            continue
        finding.faults.append(Fault(annotation, where + phrase, False, "it is dropped"))
    outside = usable(objects, size) & (overhang(objects.boxes, size) > _TOLERANCE)
    for index in np.flatnonzero(outside):
        box, label = objects.boxes[index], int(objects.labels[index])
        phrase = f"{describe_box(box, label, class_names)} reaches beyond the image of {_wh(size)}"
        finding.faults.append(Fault(annotation, where + phrase, False, "it is clipped"))


def holds_class(mask: np.ndarray, mask_names: Sequence[str]) -> bool:
    """Whether a mask has a pixel of any class besides background and what is ignored."""
    from segdet.data.inspect.show import has_background

    counted = mask != 255
    return bool((counted & (mask != 0)).any() if has_background(mask_names) else counted.any())


def _check_mask(
    mask: np.ndarray, annotation: Path, image: Path, size: tuple[int, int] | None, finding: _Finding
) -> None:
    """Note a mask that does not fit its image."""
    found = mask.shape[0], mask.shape[1]
    if size is not None and found != size:
        fault = f"the mask is {_wh(found)} but its image {image.name} {_wh(size)}"
        finding.faults.append(Fault(annotation, fault, True, "mend or remove the file"))


def _shared(
    split: str, digests: Mapping[Path, str | None], other: str, others: Mapping[Path, str | None]
) -> Iterable[Fault]:
    """Images that two splits share, by path or by content."""
    twins = {digest: path for path, digest in others.items() if digest is not None}
    stems = {path.stem for path in others}
    namesakes = []
    for path, digest in digests.items():
        twin = path if path in others else twins.get(digest) if digest else None
        if twin is not None:
            alike = "" if twin == path else f", there as {twin.name}"
            fault = f"is in the splits {other} and {split}{alike}"
            yield Fault(path, fault, False, "scores on images seen before mean little: take it out of one")
        elif path.stem in stems:
            namesakes.append(path)
    if namesakes:
        count = len(namesakes)
        verb = "image has" if count == 1 else "images have"
        fault = f"{count:,} {verb} the name of another in {other} ({namesakes[0].name})"
        yield Fault(namesakes[0].parent, fault, False, "the files differ", note=True)


def _named_to_ignore(root: Path, readers: "Mapping[str, Reader]") -> Iterable[Fault]:
    """Classes whose names say that they are none."""
    for reader in list(readers.values())[:1]:
        for name, value in zip(reader.mask_names, reader.mask_values, strict=True):
            if name.lower() in _NO_CLASSES:
                fault = f"the mask value {value} is called {name!r} and counts as a class like any other"
                remedy = f"give --ignore_index {value}, and --data.ignore_index {value} to fit, if it is none"
                yield Fault(root, fault, False, remedy, note=True)


def _in_no_split(readers: "Mapping[str, Reader]") -> Iterable[Fault]:
    """Images beside those of the splits that no split names."""
    used = {reader.image_path(index) for reader in readers.values() for index in range(len(reader))}
    for folder in sorted({path.parent for path in used}):
        if not folder.is_dir():
            continue
        found = {
            path
            for path in folder.iterdir()
            if path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith(".")
        }
        if unused := sorted(found - used):
            count = len(unused)
            names = ", ".join(path.name for path in unused[:3]) + (", ..." if count > 3 else "")
            verb = "image is" if count == 1 else "images are"
            yield Fault(folder, f"{count:,} {verb} in no split ({names})", False, "not read", note=True)


def _wh(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def main(argv: Sequence[str] | None = None) -> int:
    """``segdet data check ROOT``: returns 1 if any fault is fatal, else 0."""
    from segdet.data.formats.detect import CommandParser, run

    parser = CommandParser("segdet data check", "Read a whole dataset and list every fault with its file.")
    parser.add_dataset_arguments()
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there as well")
    parser.add_argument("--workers", type=int, metavar="N", help="threads; one per core when not given")
    return run(parser, argv, _main)


def _main(arguments: argparse.Namespace) -> int:
    from segdet.data.formats.detect import check_output, dataset_from

    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: must be 1 or more")
    check_output("--json", arguments.json)
    dataset = dataset_from(arguments)
    readers: dict[str, Reader] = {}
    unreadable: list[Fault] = []
    for split in dataset.splits:
        try:
            readers[split] = dataset.open(split)
        except BadSample as error:
            unreadable.append(_fatal(error))
    report = check_splits(
        readers, dataset.task, arguments.workers, dataset.all_splits and len(readers) == len(dataset.splits)
    )
    report.faults[:0] = unreadable
    if dataset.format == "voc" and dataset.task == "segmentation":
        report.faults += list(_named_to_ignore(dataset.root, readers))
    for fault in report.faults:
        sys.stdout.write(f"{fault}\n")
    sys.stdout.write(f"{dataset.root} ({dataset.format}, {dataset.task}): {report.summary()}\n")
    if arguments.json:
        record = {
            "root": str(dataset.root),
            "format": dataset.format,
            "task": dataset.task,
            "images": report.images,
            "empty": report.empty,
            "fatal": report.count("fatal"),
            "warnings": report.count("warning"),
            "faults": [
                {**asdict(fault), "path": str(fault.path), "severity": fault.severity}
                for fault in report.faults
            ],
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if report.count("fatal") else 0
