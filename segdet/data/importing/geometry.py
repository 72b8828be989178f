"""Objects from the shapes that annotation tools draw: polygons, rectangles, circles, ellipses and masks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from segdet.data.formats.outlines import Outline, outline_of
from segdet.data.writers.record import AnnotatedObject

_DEVIATION = 0.05  # largest distance in pixels between an ellipse and its polygon


class NoArea(ValueError):
    """A shape without area, such as a box of width 0."""


def box_object(name: str, corners: Sequence[Sequence[float]], **flags: Any) -> AnnotatedObject:
    """Return an object with the box around points ``[N, 2]``.

    Raises:
        ValueError: If the points are too few or not finite.
        NoArea: If the box has no area.
    """
    points = _points(corners, 2)
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    if x1 <= x0 or y1 <= y0:
        raise NoArea("the box has no area")
    return AnnotatedObject(name, (x0, y0, x1, y1), **flags)


def polygon_object(name: str, corners: Sequence[Sequence[float]], **flags: Any) -> AnnotatedObject:
    """Return an object with a polygon ``[N, 2]`` as outline; for errors see `box_object`."""
    points = _points(corners, 3)
    made = box_object(name, points.tolist(), **flags)
    made.outline, made.area = [points.ravel().tolist()], _area(points)
    return made


def ellipse_object(
    name: str, centre: Sequence[float], radii: tuple[float, float], degrees: float = 0.0, **flags: Any
) -> AnnotatedObject:
    """Return an object with an ellipse, rotated clockwise by ``degrees``, as outline; for errors see `box_object`."""
    largest = max(radii)
    if not (math.isfinite(largest) and min(radii) > 0):
        raise NoArea("the ellipse has no area")
    count = min(720, max(16, math.ceil(math.pi / math.acos(1 - min(0.5, _DEVIATION / largest)))))
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    along, across = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    angle = math.radians(degrees)
    x = centre[0] + along * math.cos(angle) - across * math.sin(angle)
    y = centre[1] + along * math.sin(angle) + across * math.cos(angle)
    return polygon_object(name, np.stack([x, y], 1).round(3).tolist(), **flags)


def rotated_box_object(
    name: str, box: tuple[float, float, float, float], degrees: float, **flags: Any
) -> AnnotatedObject:
    """Return an object with a box, rotated clockwise about its centre by ``degrees``, as outline."""
    x0, y0, x1, y1 = box
    centre, angle = np.array([(x0 + x1) / 2, (y0 + y1) / 2]), math.radians(degrees)
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) - centre
    turned = corners @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return polygon_object(name, (turned + centre).tolist(), **flags)


def mask_object(
    name: str, part: np.ndarray, left: int, top: int, size: tuple[int, int], **flags: Any
) -> AnnotatedObject:
    """Return an object with a mask as outline.

    Args:
        name: Name of the class.
        part: bool ``[h, w]``, a part of the image.
        left: x of the part's first column.
        top: y of the part's first row.
        size: ``(height, width)`` of the image.
        flags: Attributes of the object.

    Raises:
        ValueError: If no pixel of the part is in the image.
    """
    mask = np.zeros(size, bool)
    y0, x0 = max(0, top), max(0, left)
    inside = part[y0 - top : max(0, size[0] - top), x0 - left : max(0, size[1] - left)]
    mask[y0 : y0 + inside.shape[0], x0 : x0 + inside.shape[1]] = inside
    if not mask.any():
        raise ValueError("the mask has no pixel in the image")
    y, x = np.nonzero(mask)
    box = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
    return AnnotatedObject(name, box, outline_of(mask, False), float(mask.sum()), **flags)


def rectangle_outline(box: Sequence[float]) -> Outline:
    """Return the outline of a box."""
    x0, y0, x1, y1 = box
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def merged(objects: Sequence[AnnotatedObject]) -> AnnotatedObject:
    """Merge objects of one class into one object with several polygons."""
    boxes = np.array([each.box for each in objects])
    x0, y0 = boxes[:, :2].min(0).tolist()
    x1, y1 = boxes[:, 2:].max(0).tolist()
    outlines = [each.outline for each in objects]
    parts = [polygon for outline in outlines if isinstance(outline, list) for polygon in outline]
    first = objects[0]
    return AnnotatedObject(
        first.name, (x0, y0, x1, y1), parts or None, sum(each.area or 0 for each in objects) or None
    )


def _points(corners: Sequence[Sequence[float]], least: int) -> np.ndarray:
    try:
        points = np.asarray(corners, np.float64)
    except (TypeError, ValueError):
        raise ValueError("the points are not pairs of numbers") from None
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < least:
        raise ValueError(f"fewer than {least} points")
    if not np.isfinite(points).all() or np.abs(points).max() > 1e6:
        raise ValueError("a coordinate is not finite or is far outside the image")
    return points


def _area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2
