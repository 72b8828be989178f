"""``segdet data check``: reads a whole dataset and lists every fault with its file.

A fault is fatal where training would stop on it. A warning tells of something that is handled, and how.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from segdet.data.cleaning import clean_objects, describe_box, overhang, usable
from segdet.errors import BadSample, UserError

if TYPE_CHECKING:
    from segdet.data.images import ImageInfo
    from segdet.data.reader import Reader
    from segdet.data.sample import Objects, Task

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}

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
        empty: Of them, the number without any object (or without any pixel that counts).
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
    seen: dict[str, dict[str, Path]] = {}
    digests: dict[str, dict[str, Path]] = {}
    for split, reader in readers.items():
        findings = _findings(reader, task, workers, split)
        report.images[split] = len(reader)
        report.empty[split] = sum(finding.empty for finding in findings)
        report.faults.extend(fault for finding in findings for fault in finding.faults)
        paths = [reader.image_path(index) for index in range(len(reader))]
        report.faults.extend(_repeated(paths, split))
        shared = _shared(split, paths, seen, "has the name of {other} of the split {split}")
        report.faults.extend(shared)
        seen[split] = {path.stem: path for path in paths}
        named = {fault.path for fault in shared}
        known = [
            (finding.digest, path) for finding, path in zip(findings, paths, strict=True) if finding.digest
        ]
        report.faults.extend(_same_bytes(split, known, digests, named))
        digests[split] = dict(known)
    if all_splits:
        report.faults.extend(_in_no_split(readers))
    return report


def _findings(reader: "Reader", task: "Task", workers: int | None, split: str) -> list[_Finding]:
    threads = workers or min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda index: _check_sample(reader, task, index), range(len(reader)))
        return list(tqdm(found, f"checking {split}", len(reader), unit=" images", delay=0.5))


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
        finding.faults.extend(
            Fault(file, fault, fatal, "mend the annotation" if fatal else "it is handled as said")
            for file, fault, fatal in reader.faults(index, task)
        )
        annotation = annotations[0] if annotations else path
        if task == "segmentation":
            _check_mask(reader.mask(index), annotation, path, size, finding)
        else:
            objects = reader.objects(index)
            finding.empty = not len(objects)
            limits = size or declared
            if limits is not None:
                _check_objects(objects, annotation, path, limits, reader.class_names, finding)
    except BadSample as error:
        fault = _fatal(error)
        if fault not in finding.faults:
            finding.faults.append(fault)
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
    for phrase in dropped:
        finding.faults.append(Fault(annotation, where + phrase, False, "it is dropped"))
    outside = usable(objects, size) & (overhang(objects.boxes, size) > _TOLERANCE)
    for index in np.flatnonzero(outside):
        box, label = objects.boxes[index], int(objects.labels[index])
        fault = f"{describe_box(box, label, class_names)} reaches beyond the image of {_wh(size)}"
        finding.faults.append(Fault(annotation, where + fault, False, "it is clipped"))


def _check_mask(
    mask: np.ndarray, annotation: Path, image: Path, size: tuple[int, int] | None, finding: _Finding
) -> None:
    """Note a mask that does not fit its image."""
    finding.empty = bool((mask == 255).all())
    found = mask.shape[0], mask.shape[1]
    if size is not None and found != size:
        fault = f"the mask is {_wh(found)} but its image {image.name} {_wh(size)}"
        finding.faults.append(Fault(annotation, fault, True, "mend or remove the file"))


def _repeated(paths: Sequence[Path], split: str) -> Iterable[Fault]:
    """Images that one split has twice."""
    counts: dict[Path, int] = {}
    for path in paths:
        counts[path] = counts.get(path, 0) + 1
    for path, count in counts.items():
        if count > 1:
            yield Fault(
                path, f"is {count} times in the split {split}", False, "it counts as often: name it once"
            )


def _shared(
    split: str, paths: Sequence[Path], seen: Mapping[str, Mapping[str, Path]], fault: str
) -> list[Fault]:
    """Images of ``split`` whose name an earlier split has as well."""
    found = []
    for other, stems in seen.items():
        for path in dict.fromkeys(paths):
            twin = stems.get(path.stem)
            if twin is None:
                continue
            text = f"is in the splits {other} and {split}" if twin == path else ""
            text = text or fault.format(other=twin.name, split=other)
            found.append(Fault(path, text, False, "scores on seen images mean little: take it out of one"))
    return found


def _same_bytes(
    split: str,
    known: Sequence[tuple[str, Path]],
    digests: Mapping[str, Mapping[str, Path]],
    named: set[Path],
) -> Iterable[Fault]:
    """Images of ``split`` that an earlier split has under another name."""
    for other, others in digests.items():
        for digest, path in known:
            twin = others.get(digest)
            if twin is not None and path not in named:
                yield Fault(
                    path,
                    f"in {split} is the same file as {twin.name} in {other}",
                    False,
                    "scores on seen images mean little: take it out of one",
                )


def _in_no_split(readers: "Mapping[str, Reader]") -> Iterable[Fault]:
    """Images beside those of the splits that no split names."""
    used = {reader.image_path(index) for reader in readers.values() for index in range(len(reader))}
    for folder in sorted({path.parent for path in used}):
        if not folder.is_dir():
            continue
        found = {path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES}
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
    from segdet.data.formats import CommandParser, run

    parser = CommandParser("segdet data check", "Read a whole dataset and list every fault with its file.")
    parser.add_dataset_arguments()
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there as well")
    parser.add_argument("--workers", type=int, metavar="N", help="threads; one per core when not given")
    return run(parser, argv, _main)


def _main(arguments: argparse.Namespace) -> int:
    from segdet.data.formats import dataset_from

    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: must be 1 or more")
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
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if report.count("fatal") else 0
