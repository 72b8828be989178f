"""Samples, batches, targets and predictions.

Coordinates are absolute pixels. Boxes are ``x0, y0, x1, y1`` with ``x1`` and ``y1`` exclusive: the width of a box is
``x1 - x0``, and the whole image is ``0, 0, W, H``. Sizes are ``(height, width)``.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

TaskName = Literal["segmentation", "localization", "detection"]

IGNORE = 255
"""The mask value that losses and scores ignore."""


@dataclass
class Objects:
    """The objects of one image as annotated, before cleaning.

    Attributes:
        boxes: float32 ``[N, 4]``, xyxy pixels of the stored image; may extend beyond the image or be degenerate.
        labels: int64 ``[N]``, 1..K.
        iscrowd: bool ``[N]``, True for a region of many objects. Detections there are neither correct nor wrong.
        difficult: bool ``[N]``, VOC's flag. Difficult objects are ignored in scores as well.
        area: float32 ``[N]``, area in pixels: of the polygon if there is one, else of the box.
        masks: uint8 ``[N, H, W]``, 1 on the object; None if masks are not read.
    """

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    iscrowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    difficult: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    area: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: np.ndarray) -> "Objects":
        """Return the objects at ``keep``, a boolean mask or an index array."""
        kept: dict[str, Any] = {
            name: values[keep] for name, values in vars(self).items() if values is not None
        }
        return Objects(**kept)


class Target(TypedDict, total=False):
    """The annotation of one image, for losses and scores.

    - Detection: ``boxes`` float32 ``[N, 4]``, ``labels`` int64 ``[N]`` (1..K; 0 is background), ``iscrowd`` and
      ``difficult`` bool ``[N]``, ``area`` float32 ``[N]`` and, if read, ``masks`` uint8 ``[N, H, W]``, 1 on the object.
    - Localization: the same with N = 1.
    - Segmentation: ``mask`` int64 ``[H, W]``, 0..C-1 and 255 = ignore.
    - With region proposals: ``proposals`` float32 ``[P, 4]``, best first, in training and evaluation, also for images
      without annotations.
    """

    boxes: Tensor
    labels: Tensor
    iscrowd: Tensor
    difficult: Tensor
    area: Tensor
    mask: Tensor
    masks: Tensor
    proposals: Tensor


class Prediction(TypedDict, total=False):
    """The prediction for one image.

    - Detection and localization: ``boxes`` float32 ``[M, 4]``, ``scores`` float32 ``[M]``, ``labels`` int64 ``[M]``,
      best first, and for some families ``masks`` uint8 ``[M, H, W]``.
    - Segmentation: ``mask`` int64 ``[H, W]``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        index: The position in the video, from 0.
        seconds: The time in the video.
        pixels: uint8 ``[H, W, 3]`` RGB.
    """

    index: int
    seconds: float
    pixels: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class Source:
    """The origin of a sample.

    Attributes:
        path: The image file, or the video file of a frame.
        image_id: The id in the dataset: COCO's own, else the position counted from 1.
        original_size: ``(height, width)`` of the image on disk.
        duplicate: True for a sample that only fills the last batch of a multi-process evaluation and must not be
            scored again.
        notes: Omitted data, one line each: dropped boxes, and a bad sample that this sample replaces.
        upright: Whether the EXIF rotation was applied unconditionally, see `segdet.data.images.read_image`.
        frame: The frame, for samples of a video.
    """

    path: Path
    image_id: int
    original_size: tuple[int, int]
    duplicate: bool = False
    notes: tuple[str, ...] = ()
    upright: bool = False
    frame: Frame | None = None


@dataclass
class Sample:
    """One image with its annotation.

    Attributes:
        image: uint8 ``[3, H, W]`` RGB, transformed.
        target: The annotation in pixels of ``image``.
        source: The origin.
        original: In evaluation, the annotation in pixels of the image on disk; else None.
    """

    image: Tensor
    target: Target
    source: Source
    original: Target | None = None


@dataclass
class Batch:
    """Several samples, padded at the bottom and right to one size.

    Attributes:
        images: uint8 ``[B, 3, H, W]``, channels last in memory.
        sizes: The valid ``(height, width)`` of each image; the rest is padding.
        targets: One per image; ``mask`` is padded with 255 to ``[H, W]``, ``masks`` with 0.
        sources: One per image.
        originals: One per image in evaluation, else None.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target]
    sources: list[Source]
    originals: list[Target] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch on ``device``, including ``originals``."""
        device = torch.device(device)
        if device == self.images.device:
            return self
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            targets=_moved(self.targets, device, non_blocking),
            originals=self.originals and _moved(self.originals, device, non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory, from which copies to the GPU are asynchronous."""

        def pin(target: Target) -> Target:
            # Small tensors are concatenated and pinned in `_moved`.
            return Target(**{**target, "mask": target["mask"].pin_memory()}) if "mask" in target else target

        return replace(
            self,
            images=self.images.pin_memory(),
            targets=[pin(target) for target in self.targets],
            originals=self.originals and [pin(target) for target in self.originals],
        )


def _moved(targets: list[Target], device: torch.device, non_blocking: bool) -> list[Target]:
    """Move targets to ``device``: masks one by one, other tensors concatenated over the images."""
    moved: list[Target] = [Target() for _ in targets]
    for key in targets[0]:
        values: list[Tensor] = [target[key] for target in targets]  # type: ignore[literal-required]
        if key in ("mask", "masks"):
            parts = [value.to(device, non_blocking=non_blocking) for value in values]
        else:
            whole = torch.cat(values)
            if non_blocking and device.type == "cuda":
                whole = whole.pin_memory()
            parts = list(whole.to(device, non_blocking=non_blocking).split([len(value) for value in values]))
        for target, part in zip(moved, parts, strict=True):
            target[key] = part  # type: ignore[literal-required]
    return moved


def collate(samples: list[Sample]) -> Batch:
    """Combine samples of any sizes into a batch, padded at the bottom and right (masks with 255)."""
    sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    # Decoders write channels last; keeping that order avoids a second copy of the images.
    images = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for image, sample, (h, w) in zip(images, samples, sizes, strict=True):
        image[:, :h, :w] = sample.image
    targets: list[Target] = []
    for sample, (h, w) in zip(samples, sizes, strict=True):
        target = Target(**sample.target)
        margins = (0, width - w, 0, height - h)
        if "mask" in target and any(margins):
            target["mask"] = pad(target["mask"], margins, value=IGNORE)
        if "masks" in target and any(margins):
            target["masks"] = pad(target["masks"], margins)
        targets.append(target)
    originals = [sample.original for sample in samples if sample.original is not None]
    return Batch(images, sizes, targets, [sample.source for sample in samples], originals or None)
