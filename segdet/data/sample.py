"""What travels from the files to the network: samples, batches and predictions.

Coordinates are absolute pixels, boxes ``x0, y0, x1, y1`` with ``x1`` and ``y1`` exclusive, so that a
box's width is ``x1 - x0`` and the whole image is ``0, 0, W, H``. Sizes are ``(height, width)``.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

TaskName = Literal["segmentation", "localization", "detection"]

IGNORE = 255
"""The mask value that no loss and no score counts."""


@dataclass
class Objects:
    """The objects of one image as its annotation file has them, before any cleaning.

    Attributes:
        boxes: float32 ``[N, 4]``, xyxy pixels of the stored image; may leave the image or be degenerate.
        labels: int64 ``[N]``, 1..K.
        iscrowd: bool ``[N]``: a region of many objects, which evaluation neither rewards nor punishes.
        difficult: bool ``[N]``: VOC's flag, likewise left out of scores.
        area: float32 ``[N]``, the object's area in pixels (the polygon's where there is one, else the box's).
        masks: uint8 ``[N, H, W]``, 1 where the object is; None where they are not asked for.
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
        """The objects at ``keep``, a boolean mask or an index array."""
        return Objects(
            self.boxes[keep],
            self.labels[keep],
            self.iscrowd[keep],
            self.difficult[keep],
            self.area[keep],
            None if self.masks is None else self.masks[keep],
        )


class Target(TypedDict, total=False):
    """What is to be learned of one image, or what it is scored against.

    Detection has ``boxes`` float32 ``[N, 4]``, ``labels`` int64 ``[N]`` (1..K; 0 is background),
    ``iscrowd`` and ``difficult`` bool ``[N]``, ``area`` float32 ``[N]``. Localization has the same
    with N = 1. Where objects' masks are asked for, ``masks`` uint8 ``[N, H, W]`` are 1 on each.
    Segmentation has ``mask`` int64 ``[H, W]``, 0..C-1 and 255 where nothing counts.
    Where the data has region proposals, ``proposals`` float32 ``[P, 4]`` are the image's, best first, in
    training and in evaluation, also of images without annotation.
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
    """What a network says of one image: ``boxes`` float32 ``[M, 4]``, ``scores`` float32 ``[M]``,
    ``labels`` int64 ``[M]`` for boxes, best first, with ``masks`` uint8 ``[M, H, W]`` where a family finds them;
    ``mask`` int64 ``[H, W]`` for segmentation."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Source:
    """Where a sample comes from.

    Attributes:
        path: The image's file.
        image_id: Its id in the dataset (COCO's own, else its position counted from 1).
        original_size: ``(height, width)`` of the image on disk.
        duplicate: True for a sample that only fills up the last round of a multi-process evaluation
            and must not be scored again.
        notes: What was left out on the way, a line each: boxes that cannot be used, a bad sample in
            whose place this one stands.
        upright: Whether it was turned as its EXIF says in any case, see `segdet.data.images.read_image`.
    """

    path: Path
    image_id: int
    original_size: tuple[int, int]
    duplicate: bool = False
    notes: tuple[str, ...] = ()
    upright: bool = False


@dataclass
class Sample:
    """One image as a dataset yields it.

    Attributes:
        image: uint8 ``[3, H, W]`` RGB, transformed.
        target: In the pixels of ``image``.
        source: Where it comes from.
        original: In evaluation, the annotation in the pixels of the image on disk, else None.
    """

    image: Tensor
    target: Target
    source: Source
    original: Target | None = None


@dataclass
class Batch:
    """Several samples, padded at the bottom and on the right to one size.

    Attributes:
        images: uint8 ``[B, 3, H, W]``, channels last in memory.
        sizes: The valid ``(height, width)`` of each image; beyond it is padding.
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
        """The batch on ``device``; the originals, which only metrics read, go along."""
        device = torch.device(device)
        if device == self.images.device:
            return self
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            self.sizes,
            _moved(self.targets, device, non_blocking),
            self.sources,
            None if self.originals is None else _moved(self.originals, device, non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a copy to the GPU overlaps with work."""

        def pin(target: Target) -> Target:
            # What is small is gathered, and pinned, when it is moved.
            return Target(**{**target, "mask": target["mask"].pin_memory()}) if "mask" in target else target

        return Batch(
            self.images.pin_memory(),
            self.sizes,
            [pin(target) for target in self.targets],
            self.sources,
            None if self.originals is None else [pin(target) for target in self.originals],
        )


def _moved(targets: list[Target], device: torch.device, non_blocking: bool) -> list[Target]:
    """Targets on ``device``: masks one by one, and what there is of objects in one piece for all images."""
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
    """Samples of any sizes as one batch, padded at the bottom and on the right (masks with 255)."""
    sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    # Decoders write rows of RGB pixels; kept in that order (channels last), images are copied but once.
    images = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for image, sample, (h, w) in zip(images, samples, sizes, strict=True):
        image[:, :h, :w] = sample.image
    targets: list[Target] = []
    for sample, (h, w) in zip(samples, sizes, strict=True):
        target = sample.target
        if "mask" in target and (h, w) != (height, width):
            mask = torch.full((height, width), IGNORE, dtype=target["mask"].dtype)
            mask[:h, :w] = target["mask"]
            target = Target(**{**target, "mask": mask})
        if "masks" in target and (h, w) != (height, width):
            masks = torch.zeros(len(target["masks"]), height, width, dtype=target["masks"].dtype)
            masks[:, :h, :w] = target["masks"]
            target = Target(**{**target, "masks": masks})
        targets.append(target)
    originals = [sample.original for sample in samples if sample.original is not None]
    return Batch(images, sizes, targets, [sample.source for sample in samples], originals or None)
