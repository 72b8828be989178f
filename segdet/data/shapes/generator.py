"""Shapes: scenes drawn from a seed, on which the whole progression can be learned in minutes.

Each scene shows circles, squares, triangles, stars, crosses and rings on lit and textured ground,
among distractors that are no class. Objects, distractors and ground draw their colours and textures
from one distribution, so that only a form tells a class: no threshold on colour does.

Every pixel is decided by integers (vertices rounded to 1/16 px, scan lines, fixed-point blends), so
that a seed gives the same bytes on every platform.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np

from segdet.data.shapes.writers import write_cityscapes, write_coco, write_voc
from segdet.util.cores import usable_cores
from segdet.util.errors import UserError

SHAPES_CLASSES: list[str] = ["circle", "square", "triangle", "star", "cross", "ring"]
"""The object classes, label 1 first."""

MIN_VISIBLE = 40
"""An object shows at least so many pixels, and at least a quarter of its own area."""

_VERSION = 1  # raised whenever the same seed gives other pixels, so that old folders are told apart
_FIRST_INDEX = {"train": 0, "val": 1_000_000, "test": 2_000_000}
_TURN = 1024  # angles are counted in 1/1024 of a turn
_ONE = 4096  # sines are fixed-point with 12 bits: rounding hides what platforms' libm differ in
_COS = np.array([round(_ONE * math.cos(2 * math.pi * k / _TURN)) for k in range(_TURN)], np.int64)
_SIN = np.array([round(_ONE * math.sin(2 * math.pi * k / _TURN)) for k in range(_TURN)], np.int64)
_LOG = [round(1024 * 2 ** (k / 64)) for k in range(64)]  # one octave, for log-uniform sizes
_PAD = 4  # pixels around a shape for its shadow and for the ground it must contrast with
_SMALLEST = {"circle": 16, "square": 16, "triangle": 20, "star": 22, "cross": 20, "ring": 20}

Polygons = list[np.ndarray]
"""Outlines of one shape, int64 ``[V, 2]`` xy in 1/16 px each, filled by the even-odd rule."""


@dataclass(frozen=True)
class Scene:
    """One drawn image with its exact annotation.

    Attributes:
        image: uint8 ``[H, W, 3]`` RGB.
        instances: int32 ``[H, W]``, 0 where there is no object, else n for object n - 1. A higher
            id lies in front of a lower one.
        boxes: int32 ``[N, 4]``, xyxy pixels with x1 and y1 exclusive: the tight box of the visible pixels.
        labels: int64 ``[N]``, 1..6 in the order of `SHAPES_CLASSES`.
        crowd: bool ``[N]``: True for a cluster of touching small shapes of one class, which counts
            as one region.
        truncated: bool ``[N]``: part of the object lies outside the image.
        occluded: bool ``[N]``: part of it is covered.
    """

    image: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    truncated: np.ndarray
    occluded: np.ndarray

    def mask(self) -> np.ndarray:
        """The class of every pixel: uint8 ``[H, W]``, 0 for background, else the label."""
        return np.concatenate([[0], self.labels]).astype(np.uint8)[self.instances]


class Scenes(Sequence[Scene]):
    """The scenes of a seed at ``indices``, each drawn when it is asked for."""

    def __init__(self, seed: int, indices: range, size: tuple[int, int] = (128, 128)) -> None:
        self.seed, self.indices, self.size = seed, indices, size

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> "Scenes": ...
    def __getitem__(self, index: int | slice) -> "Scene | Scenes":
        """The scene at a position, or the scenes of a slice."""
        if isinstance(index, slice):
            return Scenes(self.seed, self.indices[index], self.size)
        return draw_scene(self.seed, self.indices[index], self.size)


class _Layer(NamedTuple):
    """A rasterized shape: its window's corner, coverage 0..16 ``[h, w]`` and its whole area in pixels."""

    x: int
    y: int
    coverage: np.ndarray
    area: int


# ---------------------------------------------------------------------------------------------- forms


def _ray(radius: int | np.ndarray, angle: int | np.ndarray) -> np.ndarray:
    """Points at ``radius`` (1/16 px) and ``angle`` (1/1024 turn) around the origin, int64 ``[V, 2]``."""
    angle = np.asarray(angle) % _TURN
    return np.stack([radius * _COS[angle] // _ONE, radius * _SIN[angle] // _ONE], axis=-1)


def _arc(radius: int, start: int, stop: int) -> np.ndarray:
    count = max(5, min(40, radius // 8) * abs(stop - start) // _TURN)
    return _ray(radius, start + (stop - start) * np.arange(count + 1) // count)


def _round(radius: int) -> np.ndarray:
    count = max(16, min(40, radius // 8))
    return _ray(radius, _TURN * np.arange(count) // count)


def _points(*xy: tuple[int, int]) -> np.ndarray:
    return np.array(xy, np.int64)


def _squeezed(rng: np.random.Generator, points: np.ndarray, least: int) -> np.ndarray:
    """``points`` with their height taken down to between ``least`` and 100 percent."""
    return points * np.array([100, rng.integers(least, 101)]) // 100


def _circle(rng: np.random.Generator, r: int) -> Polygons:
    return [_squeezed(rng, _round(r), 78)]


def _square(rng: np.random.Generator, r: int) -> Polygons:
    side = r * 13 // 16
    return [_squeezed(rng, _points((-side, -side), (side, -side), (side, side), (-side, side)), 65)]


def _triangle(rng: np.random.Generator, r: int) -> Polygons:
    lean = int(rng.integers(-60, 61))
    return [_ray(r, np.array([0, _TURN // 3 + lean, 2 * _TURN // 3 + lean // 2]))]


def _star(rng: np.random.Generator, r: int) -> Polygons:
    radius = np.tile([r, r * int(rng.integers(40, 53)) // 100], 5)
    return [_ray(radius, _TURN * np.arange(10) // 10)]


def _cross(rng: np.random.Generator, r: int) -> Polygons:
    arm = r * int(rng.integers(28, 39)) // 100
    quarter = _points((r, -arm), (r, arm), (arm, arm))
    turns = [quarter, quarter[:, ::-1] * [-1, 1], -quarter, quarter[:, ::-1] * [1, -1]]
    return [np.concatenate(turns)]


def _ring(rng: np.random.Generator, r: int) -> Polygons:
    outline = _squeezed(rng, _round(r), 82)
    return [outline, outline * int(rng.integers(46, 63)) // 100]


def _moon(rng: np.random.Generator, r: int) -> Polygons:
    near = _arc(r, -_TURN // 4, _TURN // 4)
    bend = int(rng.integers(-10, 60))
    return [np.concatenate([near, near[::-1] * [bend, 100] // 100])]


def _ring_part(rng: np.random.Generator, r: int) -> Polygons:
    span = int(rng.integers(_TURN // 4, _TURN * 5 // 8))
    inner = r * int(rng.integers(50, 70)) // 100
    return [np.concatenate([_arc(r, 0, span), _arc(inner, span, 0)])]


def _stroke(rng: np.random.Generator, r: int) -> Polygons:
    wide = max(24, r * int(rng.integers(8, 20)) // 100)
    bend = r * int(rng.integers(30, 70)) // 100
    upper = _points((-r, -wide), (0, bend - wide), (r, -wide))
    return [np.concatenate([upper, upper[::-1] + np.array([0, 2 * wide])])]


def _corner(rng: np.random.Generator, r: int) -> Polygons:
    a, b = r * int(rng.integers(45, 70)) // 100, r * 3 // 4
    return [_points((-b, -b), (b, -b), (b, a - b), (a - b, a - b), (a - b, b), (-b, b))]


def _tee(rng: np.random.Generator, r: int) -> Polygons:
    a, b = r * int(rng.integers(22, 34)) // 100, r * 7 // 8
    return [
        _points(
            (-b, -b),
            (b, -b),
            (b, 2 * a - b),
            (a, 2 * a - b),
            (a, b),
            (-a, b),
            (-a, 2 * a - b),
            (-b, 2 * a - b),
        )
    ]


def _pentagon(rng: np.random.Generator, r: int) -> Polygons:
    count = int(rng.integers(5, 7))
    return [_squeezed(rng, _ray(r, _TURN * np.arange(count) // count + rng.integers(-30, 31, count)), 75)]


def _blob(rng: np.random.Generator, r: int) -> Polygons:
    knots = rng.integers(75, 101, 7)
    dent = int(rng.integers(0, 7))
    knots[[dent, (dent + 3) % 7]] = rng.integers(30, 56, 2)  # or it could pass for a circle
    angle = np.arange(35)
    low, part = angle // 5, angle % 5
    ease = np.array([0, 10, 35, 65, 90])[part]
    radius = knots[low] * (100 - ease) + knots[(low + 1) % 7] * ease
    return [_ray(r * radius // 10_000, _TURN * angle // 35)]


def _chevron(rng: np.random.Generator, r: int) -> Polygons:
    deep = r * int(rng.integers(35, 60)) // 100
    return [
        _points(
            (-r, -r * 3 // 4), (0, -r * 3 // 4), (r, 0), (0, r * 3 // 4), (-r, r * 3 // 4), (deep - r // 2, 0)
        )
    ]


_Form = Callable[[np.random.Generator, int], Polygons]
_FORMS: list[_Form] = [_circle, _square, _triangle, _star, _cross, _ring]
_DISTRACTORS: list[_Form] = [_moon, _ring_part, _stroke, _corner, _tee, _pentagon, _blob, _chevron]


def _turned(polygons: Polygons, angle: int, x: int, y: int) -> Polygons:
    """``polygons`` rotated by ``angle`` (1/1024 turn) and moved to ``x, y`` (1/16 px)."""
    matrix = np.array([[_COS[angle], _SIN[angle]], [-_SIN[angle], _COS[angle]]])
    return [points @ matrix // _ONE + np.array([x, y]) for points in polygons]


def _rasterize(polygons: Polygons) -> _Layer:
    """The share of each pixel that ``polygons`` cover, from 4 x 4 samples and the even-odd rule.

    Each outline crosses each scan line at integers; a running parity over the crossings fills it.
    """
    vertices = np.concatenate(polygons)
    x, y = vertices.min(0) // 16 - _PAD
    width, height = vertices.max(0) // 16 + _PAD + 1 - (x, y)
    start = vertices - np.array([x, y]) * 16
    stop = np.concatenate([np.roll(points, -1, axis=0) for points in polygons]) - np.array([x, y]) * 16
    rows = 4 * np.arange(4 * height) + 2
    (x0, y0), (x1, y1) = start.T[:, :, None], stop.T[:, :, None]
    edge, row = np.nonzero((np.minimum(y0, y1) <= rows) & (rows < np.maximum(y0, y1)))
    x0, y0, x1, y1 = (np.broadcast_to(side, (len(start), 1))[edge, 0] for side in (x0, y0, x1, y1))
    crossing = x0 + (rows[row] - y0) * (x1 - x0) // (y1 - y0)
    column = np.clip((crossing - 2) // 4 + 1, 0, 4 * width - 1)
    toggles = np.bincount(row * (4 * width) + column, minlength=16 * height * width).astype(np.uint8)
    inside = np.cumsum(toggles.reshape(4 * height, 4 * width), axis=1, dtype=np.uint8) & 1
    lines = inside[0::4] + inside[1::4] + inside[2::4] + inside[3::4]
    coverage = lines[:, 0::4] + lines[:, 1::4] + lines[:, 2::4] + lines[:, 3::4]
    return _Layer(int(x), int(y), coverage, int((coverage >= 8).sum()))


# ------------------------------------------------------------------------------------------- textures


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Value noise, int32 ``[H, W]`` 0..255: random knots ``cell`` pixels apart, bilinear between."""
    knots = rng.integers(0, 256, (height // cell + 2, width // cell + 2), dtype=np.uint8).astype(np.int32)
    y, x = np.arange(height), np.arange(width)
    fy, fx = (y % cell)[:, None], x % cell
    lines = (knots[y // cell] * (cell - fy) + knots[y // cell + 1] * fy) // cell
    return (lines[:, x // cell] * (cell - fx) + lines[:, x // cell + 1] * fx) // cell


def _field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A texture before it is coloured: uint8 ``[H, W]``, of a random kind, direction and grain."""
    kind, angle = (
        int(rng.integers(0, 13)),
        int(rng.integers(0, _TURN)),
    )  # more than half are plain: kinds 6 to 12
    cell = int(rng.choice([4, 6, 8, 12, 16, 24]))
    rough = _noise(rng, height, width, cell)
    if kind == 0:
        return ((rough * 3 + _noise(rng, height, width, 3)) >> 2).astype(np.uint8)
    if kind == 1:
        octaves = [_noise(rng, height, width, size) for size in (32, 16, 8, 4)]
        total = octaves[0] * 8 + octaves[1] * 4 + octaves[2] * 2 + octaves[3]
        return np.clip((total // 15 - 128) * 3 // 2 + 128, 0, 255).astype(np.uint8)
    y, x = np.arange(height)[:, None] * 16, np.arange(width) * 16
    u, v = (x * _COS[angle] + y * _SIN[angle]) // _ONE, (y * _COS[angle] - x * _SIN[angle]) // _ONE
    if kind == 2:
        low, high = int(u.min()), int(u.max())
        ramp = (u - low) * 255 // max(1, high - low)
        return ((ramp * 7 + rough) >> 3).astype(np.uint8)
    period = 16 * int(rng.integers(4, 15))
    if kind == 3:
        phase = (u + rough * period // 512) % period
        return np.clip(np.abs(phase * 2 - period) * 510 // period - 128, 0, 255).astype(np.uint8)
    if kind == 4:
        tiles = (((u // period) + (v // period)) & 1) * 200
        return (tiles + (rough * 55 >> 8)).astype(np.uint8)
    if kind == 5:
        du, dv = u % period - period // 2, v % period - period // 2
        dots = np.where(du * du + dv * dv < (period * 3 // 10) ** 2, 200, 0)
        return (dots + (rough * 55 >> 8)).astype(np.uint8)
    return (96 + (rough >> 2)).astype(np.uint8)


def _palette(rng: np.random.Generator) -> np.ndarray:
    """The colour of each field value, int32 ``[256, 3]``: from one random colour to a related one."""
    light, *chroma = rng.integers([40, -80, -80, -80], [216, 81, 81, 81]).tolist()
    grey = sum(chroma) // 3
    reach = int(rng.choice([10, 20, 45]))
    first = np.array([light + part - grey for part in chroma])
    other = first + rng.integers(-reach, reach + 1, 3) + int(rng.choice([-1, 1])) * reach // 2
    ends = np.clip([first, other], 8, 247)
    step = np.arange(256)[:, None]
    return ((ends[0] * (255 - step) + ends[1] * step) // 255).astype(np.int32)


def _contrasting(rng: np.random.Generator, counts: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """A palette whose mean over the field values ``counts`` [256] is visibly not the colour ``ground``.

    Any hue and either sign will do; after six tries the lightness is moved as far as needed.
    """
    total = max(1, int(counts.sum()))
    for _ in range(6):
        palette = _palette(rng)
        apart = counts @ palette // total - ground
        if abs(int(apart.sum())) >= 110 and int(np.abs(apart).sum()) >= 160:
            return palette
    up = int(ground.sum()) < 384
    shift = (160 - int(apart.sum())) // 3 if up else (-160 - int(apart.sum())) // 3
    return np.clip(palette + np.int32(shift), 8, 247)


# --------------------------------------------------------------------------------------------- scenes


class _Ledger:
    """Which part of the image belongs to whom, and how much of it each owner cannot do without."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.owner = np.zeros(size, np.int32)
        self.needed: list[int] = []
        self.visible: list[int] = []

    def spares(self, covered: np.ndarray) -> bool:
        """Whether pixels ``covered`` (bool ``[H, W]``) can be taken from their owners."""
        lost = np.bincount(self.owner[covered], minlength=len(self.needed) + 1)[1:]
        return all(
            gone == 0 or seen - gone >= needed
            for gone, seen, needed in zip(lost.tolist(), self.visible, self.needed, strict=True)
        )

    def take(self, covered: np.ndarray, needed: int = 0) -> None:
        """Give pixels ``covered`` to a new owner who needs some of them, or to nobody."""
        if needed:
            self.needed.append(needed)
        self.owner[covered] = len(self.needed) if needed else 0
        self.visible = np.bincount(self.owner.ravel(), minlength=len(self.needed) + 1)[1:].tolist()


class _Canvas:
    """An image under construction, with the objects and the holes of the rings in it."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.height, self.width = size
        self.image = _palette(rng)[_field(rng, *size)]
        self.objects, self.holes = _Ledger(size), _Ledger(size)
        self.light = int(rng.integers(0, _TURN))
        self.labels: list[int] = []
        self.crowd: list[bool] = []
        self.area: list[int] = []
        self.inside: list[int] = []

    def window(self, layer: _Layer) -> tuple[slice, slice, np.ndarray] | None:
        """The part of the image under ``layer`` and the coverage there, or None if it is outside."""
        height, width = layer.coverage.shape
        top, left = max(0, layer.y), max(0, layer.x)
        bottom, right = min(self.height, layer.y + height), min(self.width, layer.x + width)
        if top >= bottom or left >= right:
            return None
        part = layer.coverage[top - layer.y : bottom - layer.y, left - layer.x : right - layer.x]
        return slice(top, bottom), slice(left, right), part

    def covered(self, layers: list[_Layer]) -> np.ndarray:
        """The pixels of the image that ``layers`` take: bool ``[H, W]``."""
        covered = np.zeros((self.height, self.width), bool)
        for layer in layers:
            if (window := self.window(layer)) is not None:
                covered[window[0], window[1]] |= window[2] >= 8
        return covered

    def ground(self) -> None:
        """Give the ground beyond a line across the image, straight or bent, a texture of its own.

        A piece of ground with corners would be taken for an object.
        """
        rng = self.rng
        angle, scale = int(rng.integers(0, _TURN)), min(self.height, self.width)
        y, x = (
            np.arange(self.height)[:, None] * 16 - 8 * self.height,
            np.arange(self.width) * 16 - 8 * self.width,
        )
        u, v = (x * _COS[angle] + y * _SIN[angle]) // _ONE, (y * _COS[angle] - x * _SIN[angle]) // _ONE
        bend, away = int(rng.integers(-3, 4)), int(rng.integers(-6 * scale, 6 * scale + 1))
        u = u + v * v * bend // (96 * scale) - away
        field = _field(rng, self.height, self.width)
        everywhere = slice(None)
        self._blend(everywhere, everywhere, np.clip(u + 8, 0, 16), _palette(rng)[field])

    def _blend(self, rows: slice, columns: slice, coverage: np.ndarray, colour: np.ndarray) -> None:
        under = self.image[rows, columns]
        under += ((colour - under) * coverage[..., None].astype(np.int32)) >> 4

    def paint(self, layer: _Layer) -> None:
        """Paint ``layer`` with a texture, shaded by the light, with a rim and a shadow on the ground."""
        if (window := self.window(layer)) is None:
            return
        rng = self.rng
        rows, columns, coverage = window
        under = self.image[rows, columns]
        inside = coverage >= 8
        height, width = coverage.shape
        field = _field(rng, height, width)
        outside = coverage == 0
        ground = under[outside].sum(0) // max(1, int(outside.sum()))
        palette = _contrasting(rng, np.bincount(field[inside], minlength=256), ground)
        to_x, to_y = int(_COS[self.light]), int(_SIN[self.light])

        solid = coverage.astype(np.int32)
        shadow, rim = np.zeros_like(solid), np.zeros_like(solid)
        far = int(rng.integers(1, 4))
        dx, dy = (far * to_x + _ONE // 2) // _ONE, (far * to_y + _ONE // 2) // _ONE
        _shifted(solid, shadow, -dx, -dy)
        dx, dy = (to_x + _ONE // 2) // _ONE, (to_y + _ONE // 2) // _ONE
        _shifted(solid, rim, -dx, -dy)
        under -= under * shadow[..., None] * int(rng.integers(2, 8)) >> 8

        # Lit from one side, as the whole scene is: brighter towards the light, darker away from it.
        across = (np.arange(width) * 2 - width) * to_x + ((np.arange(height) * 2 - height) * to_y)[:, None]
        strength = int(rng.integers(8, 60))
        shade = 256 + across // (_ONE // 16) * strength // (16 * max(height, width))
        edge = np.clip(solid - rim, 0, 16) * int(rng.integers(0, 5))
        colour = (palette[field] * (shade + edge)[..., None].astype(np.int32)) >> 8
        self._blend(rows, columns, coverage, np.clip(colour, 0, 255))

    def place(
        self, layers: list[_Layer], label: int = 0, *, hole: _Layer | None = None, crowd: bool = False
    ) -> bool:
        """Add ``layers`` as one object of class ``label`` (0: a distractor) if there is room for it.

        There is room if enough of the object lies inside the image and enough of all others stays
        visible. A ring also keeps a quarter of its ``hole`` open, without which it would be a circle.
        """
        covered = self.covered(layers)
        area, inside = _union_area(layers), int(covered.sum())
        # A cluster of which little is seen is no cluster any more: it needs more than half.
        needed = max(MIN_VISIBLE, -(-area * (7 if crowd else 3) // 12)) if label else 0
        opening = self.covered([hole]) if hole else np.zeros_like(covered)
        opening_needed = -(-hole.area // 4) if hole else 0
        if inside < needed or int(opening.sum()) < opening_needed:
            return False
        if not self.objects.spares(covered) or not self.holes.spares(covered):
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
        """The finished scene: lit, sometimes soft, with the noise of a sensor."""
        rng = self.rng
        image = self.image
        if rng.integers(0, 5) == 0:
            image = _softened(image)
        y, x = np.arange(self.height)[:, None] * 2 - self.height, np.arange(self.width) * 2 - self.width
        across = (x * _COS[self.light] + y * _SIN[self.light]) // 16
        light = 256 + across * int(rng.integers(0, 80)) // (_ONE // 16 * max(self.height, self.width))
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


def _shifted(source: np.ndarray, target: np.ndarray, dx: int, dy: int) -> None:
    """Write ``source``, moved by ``dx, dy`` pixels, into ``target``."""
    height, width = source.shape
    to_y, to_x = slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
    from_y, from_x = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
    target[to_y, to_x] = source[from_y, from_x]


def _softened(image: np.ndarray) -> np.ndarray:
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) >> 4


def _union_area(layers: list[_Layer]) -> int:
    """The pixels that ``layers`` cover together, those outside the image included."""
    if len(layers) == 1:
        return layers[0].area
    left, top = min(layer.x for layer in layers), min(layer.y for layer in layers)
    right = max(layer.x + layer.coverage.shape[1] for layer in layers)
    bottom = max(layer.y + layer.coverage.shape[0] for layer in layers)
    union = np.zeros((bottom - top, right - left), bool)
    for x, y, coverage, _ in layers:
        height, width = coverage.shape
        union[y - top : y - top + height, x - left : x - left + width] |= coverage >= 8
    return int(union.sum())


def _tight_boxes(instances: np.ndarray, count: int) -> np.ndarray:
    """The half-open box of each id 1..count, int32 ``[count, 4]`` xyxy."""
    height, width = instances.shape
    y, x = np.nonzero(instances)
    at = instances[y, x] - 1
    boxes = np.tile(np.array([width, height, 0, 0], np.int32), (count, 1))
    np.minimum.at(boxes[:, 0], at, x.astype(np.int32))
    np.minimum.at(boxes[:, 1], at, y.astype(np.int32))
    np.maximum.at(boxes[:, 2], at, x.astype(np.int32) + 1)
    np.maximum.at(boxes[:, 3], at, y.astype(np.int32) + 1)
    return boxes


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """A diameter between ``low`` and ``high`` pixels, in 1/16 px, as likely per octave."""
    low, high = 16 * low, 16 * high
    for _ in range(32):
        octave, part = int(rng.integers(0, 4)), int(rng.integers(0, 64))
        size = (low << octave) * _LOG[part] // 1024
        if size <= high:
            return size
    return low


def draw_scene(seed: int, index: int, size: tuple[int, int] = (128, 128)) -> Scene:
    """Draw scene ``index`` of ``seed``: the same bytes on every platform.

    One scene in 25 is empty, one in 11 is crowded (7 to 12 objects), one in 33 holds a cluster that
    is annotated as one crowd region, two in three have an object of at least 46 px (at 128 px) beside smaller
    ones. Later objects and distractors cover earlier ones.

    Args:
        seed: Names the dataset.
        index: Names the scene in it; the splits use disjoint ranges.
        size: ``(height, width)``, at least 64 px each; large objects grow with it.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    canvas = _Canvas(rng, size)
    scale = min(size)

    for _ in range(int(rng.choice([0, 0, 0, 0, 1, 1]))):
        canvas.ground()

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
            polygons = _anywhere(canvas, _FORMS[label - 1](rng, diameter // 2), diameter)
            hole = _rasterize(polygons[1:]) if polygons[1:] else None
            if canvas.place([_rasterize(polygons)], label, hole=hole):
                break
    for _ in range(int(rng.integers(0, 2)) if chance else 0):
        _place_distractor(canvas)
    return canvas.scene()


def _anywhere(canvas: _Canvas, polygons: Polygons, diameter: int) -> Polygons:
    """``polygons`` turned and moved to a place mostly inside the image; one in six may leave it."""
    rng = canvas.rng
    margin = diameter // 8 if rng.integers(0, 6) == 0 else diameter // 2
    x, y = (
        int(rng.integers(margin, 16 * side - margin)) if 2 * margin < 16 * side else 8 * side
        for side in (canvas.width, canvas.height)
    )
    return _turned(polygons, int(rng.integers(0, _TURN)), x, y)


def _place_distractor(canvas: _Canvas) -> None:
    rng = canvas.rng
    diameter = _log_uniform(rng, 14, 64 * min(canvas.height, canvas.width) // 128)
    for _ in range(3):
        polygons = _DISTRACTORS[int(rng.integers(0, len(_DISTRACTORS)))](rng, diameter // 2)
        if canvas.place([_rasterize(_anywhere(canvas, polygons, diameter))]):
            return


def _place_cluster(canvas: _Canvas) -> None:
    """Six to nine small shapes of one class, side by side and touching, as one crowd region."""
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
        polygons = _FORMS[label - 1](rng, diameter // 2)
        layers.append(_rasterize(_turned(polygons, int(rng.integers(0, _TURN)), x, y)))
    canvas.place(layers, label, crowd=True)


# --------------------------------------------------------------------------------------------- folders

_WRITERS = {"voc": write_voc, "coco": write_coco, "cityscapes": write_cityscapes}


def make_shapes(
    root: Path | str,
    format: Literal["voc", "coco", "cityscapes"] = "voc",
    *,
    train: int = 4000,
    val: int = 400,
    test: int = 400,
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a Shapes dataset as a VOC, COCO or Cityscapes folder, once.

    The settings are kept in ``shapes.json`` in the folder. Where a folder of the same settings is
    complete, nothing is done; an interrupted one is never taken for complete.

    Args:
        root: The folder to make.
        format: Whose files to write.
        train: Number of images in this split; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: ``(height, width)`` of the images.
        seed: Another seed gives another dataset.
        workers: Processes that draw and write; None for one per core. It changes no byte.
        progress: Show a bar.

    Returns:
        ``root``.

    Raises:
        UserError: If a setting is out of range, or if ``root`` holds something else.
    """
    root = Path(root)
    if format not in _WRITERS:
        raise UserError(f"format: there is no {format!r}; choose one of {', '.join(_WRITERS)}")
    counts = {"train": train, "val": val, "test": test}
    for name, count in counts.items():
        if not 0 <= count <= 1_000_000:
            raise UserError(f"{name}: {count} images cannot be made; give a number from 0 to 1000000")
    if min(size) < 64 or max(size) > 4096:
        raise UserError(f"size: {size[0]}x{size[1]} is out of range; give a height and width from 64 to 4096")
    if seed < 0:
        raise UserError(f"seed: {seed} is negative; give 0 or more")
    settings: dict[str, object] = {
        "format": format,
        **counts,
        "size": list(size),
        "seed": seed,
        "version": _VERSION,
    }
    if _is_made(root, settings):
        return root
    splits = {
        name: Scenes(seed, range(_FIRST_INDEX[name], _FIRST_INDEX[name] + count), size)
        for name, count in counts.items()
    }
    try:
        _WRITERS[format](
            root,
            splits,
            SHAPES_CLASSES,
            workers=workers if workers is not None else usable_cores(),
            progress=progress,
            files={"shapes.json": json.dumps(settings) + "\n"},
        )
    except UserError:
        # Another process may have finished the same folder in the meantime.
        if _is_made(root, settings):
            return root
        raise
    return root


def _is_made(root: Path, settings: dict[str, object]) -> bool:
    """Whether ``root`` is complete with just these settings; a `UserError` if it is something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "shapes.json").read_text())
        differences = [
            f"{key} {found.get(key)} instead of {settings[key]}"
            for key in settings
            if found.get(key) != settings[key]
        ]
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"{root}: exists and is no Shapes folder (no readable shapes.json); name another folder, or say what it "
            "is: --data VOCDataModule, COCODataModule, CityscapesDataModule or ImageFolder"
        ) from None
    if differences:
        raise UserError(
            f"{root}: holds Shapes with {', '.join(differences)}; give its own settings (--data.num_train and the "
            "like), or another folder"
        )
    return True
