"""Compare the speed of segdet with common alternatives on this machine.

::

    python experiments/speed.py                  # all parts, some minutes
    python experiments/speed.py miou decode      # some parts
    python experiments/speed.py --rounds 20
    python experiments/speed.py decode --images photos/
    python experiments/speed.py dense_windows_8 dense_windows_1 --images photos/

``experiments/step_time.py`` measures the training loop.

Both sides take turns, so that other load on the machine affects both. The ratio is the median over neighbouring
turns. Ratios are comparable between machines, milliseconds are not.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean
from segdet.util.tables import markdown_row


@dataclass(frozen=True)
class Part:
    """A part of segdet, and a peer with the same function.

    Attributes:
        title: A short description.
        unit: The unit of work that is timed: an update, an image ...
        ours: A function that runs our side and returns the seconds per unit.
        peer: The name of the peer.
        theirs: A function that runs the peer and returns the seconds per unit; None without a peer.
        speedup: The target ratio, if our side should be faster.
        compare: A function that describes the difference between the results of both sides, if they should be equal.
    """

    title: str
    unit: str
    ours: Callable[[], float]
    peer: str = ""
    theirs: Callable[[], float] | None = None
    speedup: float | None = None
    compare: Callable[[], str] | None = None


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds of a part.

    Attributes:
        ours_ms: Our milliseconds per unit.
        peer_ms: The peer's milliseconds per unit, or None.
        ratio: The peer's time divided by ours, over neighbouring turns, or None.
    """

    ours_ms: float
    peer_ms: float | None = None
    ratio: float | None = None


def measure(part: Part, rounds: int, name: str = "") -> Measured:
    """Measure a part: one warm-up turn of each side, then ``rounds`` turns of each, alternately."""
    sides = [part.ours] if part.theirs is None else [part.ours, part.theirs]
    for side in sides:
        side()
    turns = [[1000 * side() for side in sides] for _ in tqdm(range(rounds), name, leave=False)]
    ours = statistics.median(turn[0] for turn in turns)
    if part.theirs is None:
        return Measured(ours)
    return Measured(
        ours,
        statistics.median(turn[1] for turn in turns),
        statistics.median(turn[1] / turn[0] for turn in turns),
    )


def _timed(work: Callable[[], object], units: float = 1) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) / units

    return turn


# The parts. Each creates its data, yields a `Part` and cleans up. ``small`` selects tiny sizes for tests.


@contextmanager
def coco_map(small: bool) -> Iterator[Part]:
    """Compute the detection scores of a whole validation set from tensors."""
    from torchmetrics.detection import MeanAveragePrecision

    from segdet.metrics import DetectionScores

    images, boxes, classes = (8, 5, 4) if small else (1000, 100, 80)
    generator = torch.Generator().manual_seed(0)
    predictions: list[Any] = []
    targets: list[Any] = []
    for _ in range(images):
        corner = torch.rand(boxes, 2, generator=generator) * 500
        size = 4 + torch.rand(boxes, 2, generator=generator) * 100
        truth = torch.cat([corner, corner + size], 1)
        labels = torch.randint(1, classes + 1, (boxes,), generator=generator)
        found = truth + torch.randn(boxes, 4, generator=generator) * 4
        targets.append({"boxes": truth, "labels": labels})
        scores = torch.rand(boxes, generator=generator)
        predictions.append({"boxes": found, "scores": scores, "labels": labels})
    batches = [slice(start, start + 8) for start in range(0, images, 8)]
    names = [str(label) for label in range(classes)]

    def ours() -> object:
        metric = DetectionScores(names)
        for batch in batches:
            metric.update(predictions[batch], targets[batch], range(images)[batch])
        return metric.compute()

    def theirs() -> object:
        metric = MeanAveragePrecision()
        for batch in batches:
            metric.update(predictions[batch], targets[batch])
        return metric.compute()

    yield Part(
        f"COCO and VOC scores, {images:,} images x {boxes} boxes x {classes} classes",
        "evaluation",
        _timed(ours),
        "torchmetrics MeanAveragePrecision (COCO's only)",
        _timed(theirs),
        speedup=5,
    )


@contextmanager
def miou(small: bool) -> Iterator[Part]:
    """Update the segmentation scores once, from logits."""
    from torchmetrics import JaccardIndex

    from segdet.metrics import SegmentationScores, classes_of

    batch, classes, height, width = (2, 11, 24, 32) if small else (8, 11, 360, 480)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, height, width, generator=generator)
    target = torch.randint(0, classes, (batch, height, width), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.05] = 255
    metric = SegmentationScores([str(label) for label in range(classes)])
    peer = JaccardIndex(task="multiclass", num_classes=classes, ignore_index=255)
    yield Part(
        f"mIoU update, logits {batch}x{classes}x{height}x{width}",
        "update",
        _timed(lambda: metric.update(classes_of(logits), target)),
        "torchmetrics JaccardIndex",
        _timed(lambda: peer.update(logits, target)),
        speedup=8,
    )


def _like_a_photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return an image uint8 ``[H, W, 3]`` with detail at all scales, unlike plain noise."""
    import cv2

    image = np.full((height, width, 3), 128, np.float32)
    cell = 128
    while cell:
        noise = rng.normal(0, 1, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        # Mostly luminance, and weaker at finer scales.
        noise = 0.3 * noise + 0.7 * noise.mean(2, keepdims=True)
        image += 11 * cell**0.2 * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        cell //= 2
    return image.clip(0, 255).astype(np.uint8)


@contextmanager
def decode(small: bool, images: Path | None = None) -> Iterator[Part]:
    """Decode JPEG files, generated or from a folder, to RGB arrays.

    The possible gain depends on the files. Entropy decoding dominates for files with little compression, and both sides
    use the same code for it.
    """
    from segdet.data.images import read_image

    count, height, width = (2, 48, 64) if small else (64, 480, 640)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        if images is not None:
            paths = jpegs_in(images)[:count]
            what = f"of {images}"
        else:
            paths = [Path(folder) / f"{number}.jpg" for number in range(count)]
            for path in paths:
                Image.fromarray(_like_a_photo(rng, height, width)).save(path, quality=95)
            what = f"{width}x{height}"
        kilobytes = round(sum(path.stat().st_size for path in paths) / len(paths) / 1000)

        def ours() -> None:
            for path in paths:
                read_image(path)  # keep no result: new memory costs time, and the peer keeps none

        def theirs() -> None:
            for path in paths:
                with Image.open(path) as image:
                    np.asarray(image.convert("RGB"))

        yield Part(
            f"decode {len(paths)} JPEGs {what}, {kilobytes} kB each",
            "image",
            _timed(ours, len(paths)),
            "PIL",
            _timed(theirs, len(paths)),
            speedup=1.4,
        )


def jpegs_in(folder: Path) -> list[Path]:
    """Return the JPEG files of a folder and its subfolders, in order.

    Raises:
        UserError: If there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise UserError(f"--images {folder}: no JPEG in this folder; pass a folder of JPEGs")
    return paths


@contextmanager
def ssd_augmentation(small: bool) -> Iterator[Part]:
    """Load training images of SSD with eight objects each from JPEG files."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    from segdet.data.images import read_image
    from segdet.data.transforms import MEAN_COLOUR, SSDAugmentation

    count, height, width, side = (2, 48, 64, 32) if small else (32, 480, 640, 300)
    rng = np.random.default_rng(0)
    corners = rng.random((count, 8, 2)) * (0.8 * width, 0.8 * height)
    extents = (0.03 + 0.17 * rng.random((count, 8, 2))) * (width, height)
    boxes = np.concatenate([corners, corners + extents], 2).astype(np.float32)
    pipeline = SSDAugmentation(size=(side, side)).train()
    preset = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=list(MEAN_COLOUR)),
            v2.RandomIoUCrop(),
            v2.Resize((side, side)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    labels = torch.ones(8, dtype=torch.int64)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(count)]
        for path in paths:
            Image.fromarray(_like_a_photo(rng, height, width)).save(path, quality=95)

        def ours() -> None:
            for path, objects in zip(paths, boxes, strict=True):
                pipeline(read_image(path), {"objects": objects})

        def theirs() -> None:
            for path, objects in zip(paths, boxes, strict=True):
                given = tv_tensors.BoundingBoxes(
                    torch.from_numpy(objects), format="XYXY", canvas_size=(height, width)
                )
                with Image.open(path) as image:
                    preset(image.convert("RGB"), {"boxes": given, "labels": labels})

        yield Part(
            f"decode {count} JPEGs {width}x{height} and augment them as SSD does",
            "image",
            _timed(ours, count),
            "PIL, torchvision v2's SSD preset",
            _timed(theirs, count),
            speedup=8,
        )


@contextmanager
def shapes_make(small: bool) -> Iterator[Part]:
    """Generate Shapes on one core, including writing the files."""
    from segdet.data.shapes.make import make_shapes

    count = 2 if small else 200

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            make_shapes(Path(folder) / "shapes", train=count, val=0, test=0, workers=1, progress=False)

    yield Part(f"make and write {count} Shapes images", "image", _timed(ours, count))


@contextmanager
def dense_windows(small: bool, stride: int, speedup: float, images: Path | None = None) -> Iterator[Part]:
    """Compute the logits of a classifier for all windows of an image, in one pass and crop by crop.

    The image is noise, or the first image of a folder in its original size. The weights of the classifier and the
    statistics of its normalization are random, because the comparison does not depend on them.

    Up to 2,048 crops, spread over the image, are timed, and their time is scaled to the number of windows. At stride 8
    these are all windows. At stride 1, cropping all windows would take minutes per round. The logits of the crops are
    compared with those of the single pass. Both sides use the channels-last memory format.
    """
    from segdet.data.images import read_image
    from segdet.nn.dense_windows import DensePass
    from segdet.nn.windows import crop_windows, window_grid
    from segdet.segmentation.sliding_window import patch_classifier

    side = 24 if small else 64
    channels, kernels = ([4, 4, 4], [3, 3, 2]) if small else ([16, 32, 64], [5, 5, 3])
    torch.manual_seed(0)
    classifier = patch_classifier(side, channels, kernels, [2, 2, 2], 64, 11).eval()
    for norm in (module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    classifier.to(memory_format=torch.channels_last)
    dense = DensePass(classifier, side, stride)
    path = None if images is None else jpegs_in(images)[0]
    if path is None:
        image = torch.randn(1, 3, *((32, 36) if small else (360, 480)))
    else:
        pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None].float()
        image = (pixels - pixels.mean((2, 3), keepdim=True)) / pixels.std().clamp(min=1)
    image = image.contiguous(memory_format=torch.channels_last)
    height, width = image.shape[-2:]
    rows, columns = window_grid((height, width), side, stride)
    total = rows * columns
    if not total:
        raise UserError(
            f"{path}: {width}x{height} (width x height) is smaller than a window of {side} px; use larger images"
        )
    timed = min(total, 2048)
    number = torch.arange(timed) * total // timed
    places = [(n // columns * stride, n % columns * stride) for n in number.split(256)]

    def ours() -> None:
        with torch.inference_mode():
            dense(image, classifier)

    def crops() -> Iterator[Tensor]:
        for tops, lefts in places:
            yield classifier(crop_windows(image, torch.zeros_like(tops), tops, lefts, side))

    def theirs() -> None:
        with torch.inference_mode():
            for _ in crops():
                pass

    def compare() -> str:
        with torch.inference_mode():
            each = torch.cat(list(crops()))
            at_once = dense(image, classifier)[0].flatten(1).T[number]
        difference = (at_once - each).abs().max()
        return f"logits of up to {each.abs().max():.3g} differ by {difference:.1e} at most"

    of = "" if path is None else f" of {path}"
    yield Part(
        f"all {total:,} windows of {side} px on {width}x{height}{of}, stride {stride}",
        "image",
        _timed(ours),
        f"{timed:,} of the windows, each cropped; timed and compared",
        _timed(theirs, timed / total),
        speedup=speedup,
        compare=compare,
    )


PARTS: dict[str, Callable[[bool], AbstractContextManager[Part]]] = {
    "coco_map": coco_map,
    "miou": miou,
    "decode": decode,
    "ssd_augmentation": ssd_augmentation,
    "shapes_make": shapes_make,
    "dense_windows_8": partial(dense_windows, stride=8, speedup=60),
    "dense_windows_4": partial(dense_windows, stride=4, speedup=200),
    "dense_windows_2": partial(dense_windows, stride=2, speedup=300),
    "dense_windows_1": partial(dense_windows, stride=1, speedup=300),
}
"""The parts by their names on the command line."""

OF_IMAGES: dict[str, Callable[..., AbstractContextManager[Part]]] = {
    name: PARTS[name] for name in PARTS if name == "decode" or name.startswith("dense_windows")
}
"""The parts that accept a folder of images."""

COLUMNS = ["part", "ours", "peer", "peer's time", "ratio", "target"]


def row(part: Part, measured: Measured) -> str:
    """Return a row of the table in Markdown."""
    ours = f"{measured.ours_ms:,.2f} ms per {part.unit}"
    if part.unit[0] not in "aeiou":
        ours = ours.replace(" an ", " a ")
    peer, ratio, target = "-", "-", "-"
    if measured.peer_ms is None:
        ratio = f"{1000 / measured.ours_ms:,.0f} {part.unit}s/s"
    else:
        peer = f"{measured.peer_ms:,.2f} ms"
        ratio = f"x{measured.ratio:.1f}"
    if part.speedup is not None and measured.ratio is not None:
        target = f">= x{part.speedup:g}, {'met' if measured.ratio >= part.speedup else 'MISSED'}"
    if part.compare is not None:
        ratio = f"{ratio}; {part.compare()}"
    return markdown_row([part.title, ours, part.peer or "-", peer, ratio, target])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status, 0."""
    parser = argparse.ArgumentParser(
        prog="python experiments/speed.py",
        description="Compare the speed of segdet with common alternatives.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"parts to measure: {', '.join(PARTS)} (all)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="number of turns of each side (7)")
    parser.add_argument("--threads", type=int, help="number of torch threads (one per core)")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of JPEGs to use instead of generated images; dense_windows use the first one",
    )
    parser.add_argument("--small", action="store_true", help="use tiny sizes, to check that the script runs")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in PARTS:
            parser.error(f"no part {name}; {did_you_mean(name, PARTS)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}: give at least 1")
    if arguments.images is not None:
        try:
            jpegs_in(arguments.images)
        except UserError as error:
            parser.error(str(error))
    if arguments.threads is not None:
        if arguments.threads < 1:
            parser.error(f"--threads {arguments.threads}: give at least 1")
        torch.set_num_threads(arguments.threads)
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}; "
        f"medians of {arguments.rounds} rounds\n\n"
        f"{markdown_row(COLUMNS)}\n|{'---|' * len(COLUMNS)}\n"
    )
    parts = PARTS | {name: partial(part, images=arguments.images) for name, part in OF_IMAGES.items()}
    for name in arguments.names or parts:
        try:
            with parts[name](arguments.small) as part:
                line = row(part, measure(part, arguments.rounds, name))
        except UserError as error:
            parser.error(str(error))
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
