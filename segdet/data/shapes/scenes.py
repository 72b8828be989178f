"""Shapes: synthetic scenes drawn from a seed, on which every family can be trained in minutes.

Scenes show circles, squares, triangles, stars, crosses and rings on lit and textured backgrounds, among distractors
of no class. Objects, distractors and background have colours and textures from the same distribution, so that only the
form identifies a class, not the colour.

All arithmetic uses integers (vertices rounded to 1/16 px, scan lines, fixed-point blending), so that a seed gives the
same bytes on every platform.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import cv2
import numpy as np

from segdet.data.shapes.forms import (
    COS,
    DISTRACTORS,
    FORMS,
    ONE,
    SIN,
    TURN,
    Layer,
    Polygons,
    rasterize,
    rotate_and_move,
)  # fmt: skip
from segdet.data.shapes.textures import contrasting_palette, random_palette, texture_field

SHAPES_CLASSES: list[str] = ["circle", "square", "triangle", "star", "cross", "ring"]
"""Names of the object classes, label 1 first."""

MIN_VISIBLE = 40
"""Minimum number of visible pixels of an object. At least a quarter of its area is visible as well."""

_LOG = [round(1024 * 2 ** (k / 64)) for k in range(64)]  # one octave, for log-uniform sizes
_SMALLEST = {"circle": 16, "square": 16, "triangle": 20, "star": 22, "cross": 20, "ring": 20}  # diameters, px


@dataclass(frozen=True)
class Scene:
    """An image with its exact annotation.

    Attributes:
        image: uint8 ``[H, W, 3]`` RGB.
        instances: int32 ``[H, W]``, 0 for background, n for object n - 1. Higher ids are in front of lower ones.
        boxes: int32 ``[N, 4]``, xyxy pixels with x1 and y1 exclusive, tight around the visible pixels.
        labels: int64 ``[N]``, 1..6 in the order of `SHAPES_CLASSES`.
        crowd: bool ``[N]``, True for a cluster of touching small shapes of one class, annotated as one region.
        truncated: bool ``[N]``, True if a part of the object is outside the image.
        occluded: bool ``[N]``, True if a part of the object is covered.
    """

    image: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    truncated: np.ndarray
    occluded: np.ndarray

    def mask(self) -> np.ndarray:
        """Return the class of each pixel: uint8 ``[H, W]``, 0 for background, else the label."""
        return np.concatenate([[0], self.labels]).astype(np.uint8)[self.instances]


class Scenes(Sequence[Scene]):
    """The scenes ``indices`` of a seed. A scene is drawn when it is accessed."""

    def __init__(self, seed: int, indices: range, size: tuple[int, int] = (128, 128)) -> None:
        self.seed, self.indices, self.size = seed, indices, size

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> "Scenes": ...
    def __getitem__(self, index: int | slice) -> "Scene | Scenes":
        """Return the scene at a position, or the scenes of a slice."""
        if isinstance(index, slice):
            return Scenes(self.seed, self.indices[index], self.size)
        return draw_scene(self.seed, self.indices[index], self.size)


class _Ownership:
    """The owner of each pixel, and the number of visible pixels that each owner needs."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.owner = np.zeros(size, np.int32)
        self.needed: list[int] = []
        self.visible: list[int] = []

    def can_cover(self, covered: np.ndarray) -> bool:
        """Return whether pixels ``covered`` (bool ``[H, W]``) can be covered without hiding an owner too much."""
        lost = np.bincount(self.owner[covered], minlength=len(self.needed) + 1)[1:]
        return all(
            hidden == 0 or visible - hidden >= needed
            for hidden, visible, needed in zip(lost.tolist(), self.visible, self.needed, strict=True)
        )

    def take(self, covered: np.ndarray, needed: int = 0) -> None:
        """Assign pixels ``covered`` to a new owner that needs ``needed`` of them, or to no owner if ``needed`` is 0."""
        if needed:
            self.needed.append(needed)
        self.owner[covered] = len(self.needed) if needed else 0
        self.visible = np.bincount(self.owner.ravel(), minlength=len(self.needed) + 1)[1:].tolist()


class _Canvas:
    """An image under construction, with its objects and the holes of its rings."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.height, self.width = size
        self.image = random_palette(rng)[texture_field(rng, *size)]
        self.objects, self.holes = _Ownership(size), _Ownership(size)
        self.light = int(rng.integers(0, TURN))
        self.labels: list[int] = []
        self.crowd: list[bool] = []
        self.area: list[int] = []
        self.inside: list[int] = []

    def window(self, layer: Layer) -> tuple[slice, slice, np.ndarray] | None:
        """Return the part of the image under ``layer`` and its coverage, or None if the layer is outside."""
        height, width = layer.coverage.shape
        top, left = max(0, layer.y), max(0, layer.x)
        bottom, right = min(self.height, layer.y + height), min(self.width, layer.x + width)
        if top >= bottom or left >= right:
            return None
        part = layer.coverage[top - layer.y : bottom - layer.y, left - layer.x : right - layer.x]
        return slice(top, bottom), slice(left, right), part

    def covered(self, layers: list[Layer]) -> np.ndarray:
        """Return the pixels of the image that ``layers`` cover: bool ``[H, W]``."""
        covered = np.zeros((self.height, self.width), bool)
        for layer in layers:
            if (window := self.window(layer)) is not None:
                covered[window[0], window[1]] |= window[2] >= 8
        return covered

    def divide_background(self) -> None:
        """Change the texture of the background on one side of a straight or curved line.

        A patch of background with corners would look like an object.
        """
        rng = self.rng
        angle, scale = int(rng.integers(0, TURN)), min(self.height, self.width)
        y = np.arange(self.height)[:, None] * 16 - 8 * self.height
        x = np.arange(self.width) * 16 - 8 * self.width
        u, v = (x * COS[angle] + y * SIN[angle]) // ONE, (y * COS[angle] - x * SIN[angle]) // ONE
        bend, away = int(rng.integers(-3, 4)), int(rng.integers(-6 * scale, 6 * scale + 1))
        u = u + v * v * bend // (96 * scale) - away
        field = texture_field(rng, self.height, self.width)
        _blend(self.image, np.clip(u + 8, 0, 16), random_palette(rng)[field])

    def paint(self, layer: Layer) -> None:
        """Paint ``layer`` with a texture and shading, a rim, and a shadow on the background."""
        if (window := self.window(layer)) is None:
            return
        rng = self.rng
        rows, columns, coverage = window
        under = self.image[rows, columns]
        inside = coverage >= 8
        height, width = coverage.shape
        field = texture_field(rng, height, width)
        outside = coverage == 0
        ground = under[outside].sum(0) // max(1, int(outside.sum()))
        palette = contrasting_palette(rng, np.bincount(field[inside], minlength=256), ground)
        to_x, to_y = int(COS[self.light]), int(SIN[self.light])

        solid = coverage.astype(np.int32)
        far = int(rng.integers(1, 4))
        shadow, rim = (
            _shifted(solid, -((step * to_x + ONE // 2) // ONE), -((step * to_y + ONE // 2) // ONE))
            for step in (far, 1)
        )
        under -= under * shadow[..., None] * int(rng.integers(2, 8)) >> 8

        # Like the whole scene, shapes are brighter towards the light.
        across = (np.arange(width) * 2 - width) * to_x + ((np.arange(height) * 2 - height) * to_y)[:, None]
        strength = int(rng.integers(8, 60))
        shade = 256 + across // (ONE // 16) * strength // (16 * max(height, width))
        edge = np.clip(solid - rim, 0, 16) * int(rng.integers(0, 5))
        colour = (palette[field] * (shade + edge)[..., None].astype(np.int32)) >> 8
        _blend(under, coverage, np.clip(colour, 0, 255))

    def place(
        self, layers: list[Layer], label: int = 0, *, hole: Layer | None = None, crowd: bool = False
    ) -> bool:
        """Add ``layers`` as one object of class ``label`` (0: a distractor) if there is space for it.

        There is space if enough of the object is inside the image and enough of all others stays visible. A quarter
        of the ``hole`` of a ring must stay visible too; otherwise the ring would look like a circle.
        """
        covered = self.covered(layers)
        area, inside = _union_area(layers), int(covered.sum())
        # A cluster is recognizable only if more than half of it is visible.
        needed = max(MIN_VISIBLE, -(-area * (7 if crowd else 3) // 12)) if label else 0
        opening = self.covered([hole]) if hole else np.zeros_like(covered)
        opening_needed = -(-hole.area // 4) if hole else 0
        fits = inside >= needed and int(opening.sum()) >= opening_needed
        if not (fits and self.objects.can_cover(covered) and self.holes.can_cover(covered)):
            return False
        self.objects.take(covered, needed)
        self.holes.take(covered)
        if hole:
            self.holes.take(opening, opening_needed)
        if label:
            self.labels.append(label)
            self.crowd.append(crowd)
            self.area.append(area)
            self.inside.append(inside)
        for layer in layers:
            self.paint(layer)
        return True

    def scene(self) -> Scene:
        """Return the finished scene: with lighting, sensor noise and sometimes blur."""
        rng = self.rng
        image = self.image
        if rng.integers(0, 5) == 0:
            image = _blurred(image)
        y, x = np.arange(self.height)[:, None] * 2 - self.height, np.arange(self.width) * 2 - self.width
        across = (x * COS[self.light] + y * SIN[self.light]) // 16
        light = 256 + across * int(rng.integers(0, 80)) // (ONE // 16 * max(self.height, self.width))
        image = image * light[..., None].astype(np.int32) >> 8
        grain = int(rng.integers(1, 8))
        noise = rng.integers(-grain, grain + 1, (2, *image.shape), dtype=np.int8)
        image = np.clip(image + noise[0] + noise[1], 0, 255).astype(np.uint8)
        labels = np.array(self.labels, np.int64)
        return Scene(
            image=image,
            instances=self.objects.owner,
            boxes=_tight_boxes(self.objects.owner, len(labels)),
            labels=labels,
            crowd=np.array(self.crowd, bool),
            truncated=np.array(self.inside, int) < np.array(self.area, int),
            occluded=np.array(self.objects.visible, int) < np.array(self.inside, int),
        )


def _blend(under: np.ndarray, coverage: np.ndarray, colour: np.ndarray) -> None:
    """Paint ``colour`` on ``under`` in place, with opacity ``coverage`` (0..16)."""
    under += ((colour - under) * coverage[..., None].astype(np.int32)) >> 4


def _shifted(image: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Return ``image`` shifted by up to 4 pixels, filled with zeros."""
    padded = np.pad(image, 4)
    return padded[4 - dy : 4 - dy + image.shape[0], 4 - dx : 4 - dx + image.shape[1]]


def _blurred(image: np.ndarray) -> np.ndarray:
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) >> 4


def _union_area(layers: list[Layer]) -> int:
    """Return the number of pixels that ``layers`` cover together, including those outside the image."""
    if len(layers) == 1:
        return layers[0].area
    covered = {
        (y + row, x + column)
        for x, y, coverage, _ in layers
        for row, column in np.argwhere(coverage >= 8).tolist()
    }
    return len(covered)


def _tight_boxes(instances: np.ndarray, count: int) -> np.ndarray:
    """Return the half-open box of each id 1..count: int32 ``[count, 4]`` xyxy."""
    rectangles = [cv2.boundingRect((instances == n).astype(np.uint8)) for n in range(1, count + 1)]
    boxes = np.array(rectangles, np.int32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """Return a log-uniform random diameter between ``low`` and ``high`` pixels, in 1/16 px."""
    low, high = 16 * low, 16 * high
    for _ in range(32):
        octave, part = int(rng.integers(0, 4)), int(rng.integers(0, 64))
        size = (low << octave) * _LOG[part] // 1024
        if size <= high:
            return size
    return low


def draw_scene(seed: int, index: int, size: tuple[int, int] = (128, 128)) -> Scene:
    """Draw scene ``index`` of ``seed``; the bytes are the same on every platform.

    One scene in 25 is empty, and one in 11 is crowded (7 to 12 objects). One in 33 has a cluster annotated as one crowd
    region. Two in three have an object of at least 46 px (for images of 128 px). Later objects and distractors cover
    earlier ones.

    Args:
        seed: Seed of the dataset.
        index: Index of the scene; splits use disjoint ranges.
        size: ``(height, width)``, at least 64 px each. Large objects scale with it.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    canvas = _Canvas(rng, size)
    scale = min(size)

    for _ in range(int(rng.choice([0, 0, 0, 0, 1, 1]))):
        canvas.divide_background()

    draw = int(rng.integers(0, 100))
    if draw < 4:
        count, largest = 0, 0
    elif draw < 13:
        count, largest = int(rng.integers(7, 13)), 40
    else:
        count, largest = int(rng.integers(1, 5)), 56
    sizes = [_log_uniform(rng, 16, max(18, largest * scale // 128)) for _ in range(count)]
    if count and rng.integers(0, 100) < 65:
        sizes[0] = _log_uniform(rng, max(16, 46 * scale // 128), 88 * scale // 128)
    if rng.integers(0, 4):
        sizes.sort(reverse=True)
    if count and rng.integers(0, 100) < 3:
        _place_cluster(canvas)

    chance = int(rng.choice([0, 0, 25, 40]))
    for diameter in sizes:
        if rng.integers(0, 100) < chance:
            _place_distractor(canvas)
        label = int(rng.integers(1, len(SHAPES_CLASSES) + 1))
        diameter = max(diameter, 16 * _SMALLEST[SHAPES_CLASSES[label - 1]])
        for _ in range(6):
            polygons = _placed(canvas, FORMS[label - 1](rng, diameter // 2), diameter)
            hole = rasterize(polygons[1:]) if polygons[1:] else None
            if canvas.place([rasterize(polygons)], label, hole=hole):
                break
    for _ in range(int(rng.integers(0, 2)) if chance else 0):
        _place_distractor(canvas)
    return canvas.scene()


def _placed(canvas: _Canvas, polygons: Polygons, diameter: int) -> Polygons:
    """Rotate and move ``polygons`` to a random place inside the image; one in six may extend beyond it."""
    rng = canvas.rng
    margin = diameter // 8 if rng.integers(0, 6) == 0 else diameter // 2
    x, y = (
        int(rng.integers(margin, 16 * side - margin)) if 2 * margin < 16 * side else 8 * side
        for side in (canvas.width, canvas.height)
    )
    return rotate_and_move(polygons, int(rng.integers(0, TURN)), x, y)


def _place_distractor(canvas: _Canvas) -> None:
    rng = canvas.rng
    diameter = _log_uniform(rng, 14, 64 * min(canvas.height, canvas.width) // 128)
    for _ in range(3):
        polygons = DISTRACTORS[int(rng.integers(0, len(DISTRACTORS)))](rng, diameter // 2)
        if canvas.place([rasterize(_placed(canvas, polygons, diameter))]):
            return


def _place_cluster(canvas: _Canvas) -> None:
    """Place six to nine small touching shapes of one class as one crowd region."""
    rng = canvas.rng
    label = int(rng.integers(1, len(SHAPES_CLASSES) + 1))
    diameter = 16 * int(rng.integers(13, 18))
    count = int(rng.integers(6, 10))
    x0 = int(rng.integers(diameter, max(diameter + 1, 16 * canvas.width - 3 * diameter)))
    y0 = int(rng.integers(diameter, max(diameter + 1, 16 * canvas.height - 3 * diameter)))
    layers = []
    for k in range(count):
        x = x0 + k % 3 * diameter * 13 // 16 + int(rng.integers(-16, 17))
        y = y0 + k // 3 * diameter * 13 // 16 + int(rng.integers(-16, 17))
        polygons = FORMS[label - 1](rng, diameter // 2)
        layers.append(rasterize(rotate_and_move(polygons, int(rng.integers(0, TURN)), x, y)))
    canvas.place(layers, label, crowd=True)
