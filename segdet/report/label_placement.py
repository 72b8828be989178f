"""Positions of labels beside the points of a scatter plot."""

from collections.abc import Sequence
from dataclasses import dataclass

CHARACTER = 6.1
"""The mean width of a character in pixels, at the font size of charts."""

LINE = 12.0
"""The height of a label in pixels."""

GAP = 8.0
"""The distance between a point and its label in pixels."""


@dataclass(frozen=True)
class Label:
    """The position of a label relative to its point.

    Attributes:
        dx: The offset to the right in pixels.
        dy: The offset downwards in pixels.
        align: The side of the text at this position: ``left``, ``right`` or ``center``.
    """

    dx: float
    dy: float
    align: str


CANDIDATES = (
    Label(GAP, 0, "left"),
    Label(-GAP, 0, "right"),
    Label(0, -GAP - 4, "center"),
    Label(0, GAP + 5, "center"),
    Label(GAP, -GAP - 2, "left"),
    Label(GAP, GAP + 3, "left"),
    Label(-GAP, -GAP - 2, "right"),
    Label(-GAP, GAP + 3, "right"),
    Label(0, -GAP - 16, "center"),
    Label(0, GAP + 17, "center"),
    Label(GAP, -GAP - 14, "left"),
    Label(GAP, GAP + 15, "left"),
)
"""The positions in order of preference."""

Box = tuple[float, float, float, float]


def place_labels(
    points: Sequence[tuple[float, float]], texts: Sequence[str], width: float, height: float
) -> list[Label | None]:
    """Place labels so that they overlap neither each other nor a point, and lie within the plot.

    Args:
        points: The positions of the points in pixels, from the top left of the plot.
        texts: The labels. An empty text is not placed.
        width: The width of the plot in pixels.
        height: The height of the plot in pixels.

    Returns:
        The positions, in the order of ``points``; None for a label that has no free place.
    """
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    places: list[Label | None] = [None] * len(points)
    for index, ((x, y), text) in enumerate(zip(points, texts, strict=True)):
        if not text:
            continue
        others = [box for at, box in enumerate(taken) if at != index]
        for label in CANDIDATES:
            box = _box(x, y, text, label)
            inside = box[0] >= -GAP and box[1] >= -LINE and box[2] <= width + 2 * GAP and box[3] <= height
            if inside and not any(_overlap(box, other) for other in others):
                places[index] = label
                taken.append(box)
                break
    return places


def _box(x: float, y: float, text: str, label: Label) -> Box:
    size = CHARACTER * len(text)
    left = x + label.dx - {"left": 0.0, "right": size, "center": size / 2}[label.align]
    middle = y + label.dy
    return left, middle - LINE / 2, left + size, middle + LINE / 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
