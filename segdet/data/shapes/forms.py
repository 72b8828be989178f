"""Outlines of the shapes and distractors, and their rasterization, in integer arithmetic.

Integers give the same pixels on every platform: vertices are rounded to 1/16 px, angles are in 1/1024 of a turn, sines
are fixed-point numbers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TURN = 1024
"""Angle units of a full turn."""

ONE = 4096
"""The number 1 in the fixed-point format of sines, with 12 bits. Rounding hides differences between math libraries."""

COS = np.array([round(ONE * math.cos(2 * math.pi * k / TURN)) for k in range(TURN)], np.int64)
SIN = np.array([round(ONE * math.sin(2 * math.pi * k / TURN)) for k in range(TURN)], np.int64)

_PAD = 4  # margin in pixels: for the shadow, and for the background that must contrast with the shape

Polygons = list[np.ndarray]
"""Outlines of one shape, int64 ``[V, 2]`` xy in 1/16 px each, filled by the even-odd rule."""


class Layer(NamedTuple):
    """A rasterized shape: the corner of its window, coverage 0..16 ``[h, w]``, and its area in pixels."""

    x: int
    y: int
    coverage: np.ndarray
    area: int


def _ray(radius: int | np.ndarray, angle: int | np.ndarray) -> np.ndarray:
    """Return points at ``radius`` (1/16 px) and ``angle`` (1/1024 turn) around the origin: int64 ``[V, 2]``."""
    angle = np.asarray(angle) % TURN
    return np.stack([radius * COS[angle] // ONE, radius * SIN[angle] // ONE], axis=-1)


def _arc(radius: int, start: int, stop: int) -> np.ndarray:
    count = max(5, min(40, radius // 8) * abs(stop - start) // TURN)
    return _ray(radius, start + (stop - start) * np.arange(count + 1) // count)


def _round(radius: int) -> np.ndarray:
    count = max(16, min(40, radius // 8))
    return _ray(radius, TURN * np.arange(count) // count)


def _points(*xy: tuple[int, int]) -> np.ndarray:
    return np.array(xy, np.int64)


def _squeezed(rng: np.random.Generator, points: np.ndarray, least: int) -> np.ndarray:
    """Scale the height of ``points`` by a random factor between ``least`` and 100 percent."""
    return points * np.array([100, rng.integers(least, 101)]) // 100


def _circle(rng: np.random.Generator, r: int) -> Polygons:
    return [_squeezed(rng, _round(r), 78)]


def _square(rng: np.random.Generator, r: int) -> Polygons:
    side = r * 13 // 16
    return [_squeezed(rng, _points((-side, -side), (side, -side), (side, side), (-side, side)), 65)]


def _triangle(rng: np.random.Generator, r: int) -> Polygons:
    lean = int(rng.integers(-60, 61))
    return [_ray(r, np.array([0, TURN // 3 + lean, 2 * TURN // 3 + lean // 2]))]


def _star(rng: np.random.Generator, r: int) -> Polygons:
    radius = np.tile([r, r * int(rng.integers(40, 53)) // 100], 5)
    return [_ray(radius, TURN * np.arange(10) // 10)]


def _cross(rng: np.random.Generator, r: int) -> Polygons:
    arm = r * int(rng.integers(28, 39)) // 100
    quarter = _points((r, -arm), (r, arm), (arm, arm))
    turns = [quarter, quarter[:, ::-1] * [-1, 1], -quarter, quarter[:, ::-1] * [1, -1]]
    return [np.concatenate(turns)]


def _ring(rng: np.random.Generator, r: int) -> Polygons:
    outline = _squeezed(rng, _round(r), 82)
    return [outline, outline * int(rng.integers(46, 63)) // 100]


def _moon(rng: np.random.Generator, r: int) -> Polygons:
    near = _arc(r, -TURN // 4, TURN // 4)
    bend = int(rng.integers(-10, 60))
    return [np.concatenate([near, near[::-1] * [bend, 100] // 100])]


def _ring_part(rng: np.random.Generator, r: int) -> Polygons:
    span = int(rng.integers(TURN // 4, TURN * 5 // 8))
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
    c = 2 * a - b
    return [_points((-b, -b), (b, -b), (b, c), (a, c), (a, b), (-a, b), (-a, c), (-b, c))]


def _pentagon(rng: np.random.Generator, r: int) -> Polygons:
    count = int(rng.integers(5, 7))
    return [_squeezed(rng, _ray(r, TURN * np.arange(count) // count + rng.integers(-30, 31, count)), 75)]


def _blob(rng: np.random.Generator, r: int) -> Polygons:
    knots = rng.integers(75, 101, 7)
    dent = int(rng.integers(0, 7))
    knots[[dent, (dent + 3) % 7]] = rng.integers(30, 56, 2)  # dents distinguish the blob from a circle
    angle = np.arange(35)
    low, part = angle // 5, angle % 5
    ease = np.array([0, 10, 35, 65, 90])[part]
    radius = knots[low] * (100 - ease) + knots[(low + 1) % 7] * ease
    return [_ray(r * radius // 10_000, TURN * angle // 35)]


def _chevron(rng: np.random.Generator, r: int) -> Polygons:
    notch, top, bottom = r * int(rng.integers(35, 60)) // 100 - r // 2, -r * 3 // 4, r * 3 // 4
    return [_points((-r, top), (0, top), (r, 0), (0, bottom), (-r, bottom), (notch, 0))]


Form = Callable[[np.random.Generator, int], Polygons]
FORMS: list[Form] = [_circle, _square, _triangle, _star, _cross, _ring]
DISTRACTORS: list[Form] = [_moon, _ring_part, _stroke, _corner, _tee, _pentagon, _blob, _chevron]


def rotate_and_move(polygons: Polygons, angle: int, x: int, y: int) -> Polygons:
    """Rotate ``polygons`` by ``angle`` (1/1024 turn) and move them to ``x, y`` (1/16 px)."""
    matrix = np.array([[COS[angle], SIN[angle]], [-SIN[angle], COS[angle]]])
    return [points @ matrix // ONE + np.array([x, y]) for points in polygons]


def rasterize(polygons: Polygons) -> Layer:
    """Compute the coverage of each pixel by ``polygons``, from 4 x 4 samples and the even-odd rule.

    Outlines cross scan lines at integer positions; the parity of the number of crossings fills the interior.
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
    return Layer(int(x), int(y), coverage, int((coverage >= 8).sum()))
