"""The symbols that all pictures of the ladder share, as SVG text.

Grey marks the input and the computation: the image with its two objects, feature maps as stacked plates, the network as
a trapezoid. Blue marks positions: windows, regions, anchors, cells. Orange and green mark predictions: boxes, classes,
masks. Lines and text have the colour of the surrounding text, so that the pictures suit light pages, dark pages and
print.

Coordinates are in units of the picture, x to the right and y down. Unless stated otherwise, ``(x, y)`` is the upper
left corner.
"""

from collections.abc import Iterable, Sequence
from html import escape

WIDTH, HEIGHT = 160, 100
"""The size of a picture in units."""

INK = "currentColor"
"""The colour of the surrounding text."""

BLUE, ORANGE, GREEN = "#2f81d4", "#e07b16", "#1f9e78"
"""Three colours that are legible on white and on black, and distinct for colour-blind readers."""

SIDE = 44.0
"""The side of an image."""

# Two objects, relative to the image: a disc (centre, radius) and a triangle (top, right and left corner).
_DISC = (0.34, 0.64, 0.22)
_TRIANGLE = ((0.70, 0.12), (0.90, 0.46), (0.50, 0.46))
BOXES = ((0.12, 0.42, 0.44, 0.44), (0.50, 0.12, 0.40, 0.34))
"""The boxes of the two objects relative to the image: x, y, width, height."""


def svg(content: str, title: str) -> str:
    """Return a complete picture with a title for screen readers."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="picture">'
        f"<title>{escape(title)}</title>{content}</svg>"
    )


def _element(name: str, **attributes: str | float) -> str:
    pairs = (
        f'{key.replace("_", "-")}="{_number(value) if isinstance(value, int | float) else value}"'
        for key, value in attributes.items()
        if value != ""
    )
    return f"<{name} {' '.join(pairs)}/>"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _pairs(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


# Lines and areas.


def frame(
    x: float, y: float, width: float, height: float, colour: str = INK, thick: float = 1, dashed: bool = False
) -> str:
    """Return the border of a rectangle."""
    return _element(
        "rect", x=x, y=y, width=width, height=height, rx=1, fill="none", stroke=colour, stroke_width=thick,
        stroke_dasharray="2.5 2" if dashed else "",
    )  # fmt: skip


def area(x: float, y: float, width: float, height: float, colour: str = INK, opacity: float = 1) -> str:
    """Return a filled rectangle."""
    return _element("rect", x=x, y=y, width=width, height=height, fill=colour, fill_opacity=opacity)


def polygon(points: Iterable[tuple[float, float]], colour: str = INK, opacity: float = 1) -> str:
    """Return a filled polygon."""
    return _element("polygon", points=_pairs(points), fill=colour, fill_opacity=opacity)


def dot(x: float, y: float, radius: float = 1.5, colour: str = BLUE, opacity: float = 1) -> str:
    """Return a disc around ``(x, y)``."""
    return _element("circle", cx=x, cy=y, r=radius, fill=colour, fill_opacity=opacity)


def line(*points: tuple[float, float], colour: str = INK, thick: float = 1, dashed: bool = False) -> str:
    """Return straight lines from point to point."""
    return _element(
        "polyline", points=_pairs(points), fill="none", stroke=colour, stroke_width=thick,
        stroke_dasharray="2 2" if dashed else "",
    )  # fmt: skip


def arrow(*points: tuple[float, float], colour: str = INK, dashed: bool = False) -> str:
    """Return straight lines from point to point with a tip at the last one."""
    (x0, y0), (x1, y1) = points[-2:]
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    u, v = (x1 - x0) / length, (y1 - y0) / length
    x, y = x1 - 4 * u, y1 - 4 * v
    tip = [(x1, y1), (x - 2.2 * v, y + 2.2 * u), (x + 2.2 * v, y - 2.2 * u)]
    return line(*points[:-1], (x, y), colour=colour, dashed=dashed) + polygon(tip, colour)


def arc(x0: float, y0: float, x1: float, y1: float, rise: float, colour: str = BLUE) -> str:
    """Return a dashed curve between two points that rises by ``rise`` units."""
    top = rise * 4 / 3  # a cubic curve reaches three quarters of its control points
    path = f"M{x0:g} {y0:g}C{x0:g} {y0 - top:g} {x1:g} {y1 - top:g} {x1:g} {y1:g}"
    return _element("path", d=path, fill="none", stroke=colour, stroke_width=1, stroke_dasharray="2.5 1.5")


def text(x: float, y: float, content: str, size: float = 7.5, colour: str = INK) -> str:
    """Return text centred at ``x`` on the base line ``y``."""
    return (
        f'<text x="{_number(x)}" y="{_number(y)}" font-size="{size:g}" fill="{colour}" text-anchor="middle" '
        f'font-family="system-ui,sans-serif">{escape(content)}</text>'
    )


# Images and predictions.


def image(x: float, y: float, width: float = SIDE, height: float | None = None) -> str:
    """Return the grey image with its two objects."""
    height = width if height is None else height
    return (
        frame(x, y, width, height)
        + area(x, y, width, height, opacity=0.06)
        + _objects(x, y, width, height, (INK, INK), 0.4)
    )


def mask(x: float, y: float, side: float = SIDE, cells: int = 0, known: int | None = None) -> str:
    """Return a predicted mask.

    Args:
        x: The left side.
        y: The upper side.
        side: The side in units.
        cells: Draw square pixels, this many per side. 0 draws smooth objects.
        known: The number of pixels that are predicted so far, row by row. None means all.
    """
    outline = frame(x, y, side, side)
    if not cells:
        return area(x, y, side, side, opacity=0.06) + _objects(x, y, side, side, (ORANGE, GREEN), 1) + outline
    step = side / cells
    pixels = []
    for index in range(cells * cells if known is None else known):
        row, column = divmod(index, cells)
        colour = _class_at((column + 0.5) / cells, (row + 0.5) / cells)
        opacity = 0.1 if colour is None else 1
        pixels.append(area(x + column * step, y + row * step, step, step, colour or INK, opacity))
    return "".join(pixels) + outline


def _objects(
    x: float, y: float, width: float, height: float, colours: tuple[str, str], opacity: float
) -> str:
    u, v, radius = _DISC
    disc = _element(
        "ellipse", cx=x + u * width, cy=y + v * height, rx=radius * width, ry=radius * height, fill=colours[0],
        fill_opacity=opacity,
    )  # fmt: skip
    return disc + polygon([(x + u * width, y + v * height) for u, v in _TRIANGLE], colours[1], opacity)


def _class_at(u: float, v: float) -> str | None:
    """Return the colour of the object at a relative position, or None for background."""
    centre_x, centre_y, radius = _DISC
    if (u - centre_x) ** 2 + (v - centre_y) ** 2 <= radius**2:
        return ORANGE
    (top_x, top_y), (right_x, bottom), _ = _TRIANGLE
    half_width = (right_x - top_x) * (v - top_y) / (bottom - top_y)
    return GREEN if top_y <= v <= bottom and abs(u - top_x) <= half_width else None


def object_box(
    x: float, y: float, index: int, side: float = SIDE, colour: str | None = None, thick: float = 1.8
) -> str:
    """Return the box of object ``index`` (0 or 1) of an image at ``(x, y)``."""
    u, v, width, height = BOXES[index]
    colour = (ORANGE, GREEN)[index] if colour is None else colour
    return frame(x + u * side, y + v * side, width * side, height * side, colour, thick)


def detections(x: float, y: float, side: float = SIDE) -> str:
    """Return the image with the predicted boxes of both objects."""
    return image(x, y, side) + object_box(x, y, 0, side) + object_box(x, y, 1, side)


def classes(x: float, y: float, colour: str = ORANGE, width: float = 16) -> str:
    """Return a distribution over three classes as bars. ``(x, y)`` is the middle of the left side."""
    return (
        area(x, y - 7, width * 0.4, 3.5, opacity=0.3)
        + area(x, y - 2, width, 3.5, colour)
        + area(x, y + 3, width * 0.25, 3.5, opacity=0.3)
        + line((x, y - 8), (x, y + 7.5))
    )


# Regions.


def crop(x: float, y: float, side: float, index: int) -> str:
    """Return the pixels of a region around object ``index`` (0 or 1), resized to a square."""
    if index == 0:
        content = dot(x + side / 2, y + side / 2, side * 0.36, INK, 0.4)
    else:
        corners = [(0.5, 0.16), (0.86, 0.8), (0.14, 0.8)]
        content = polygon([(x + u * side, y + v * side) for u, v in corners], opacity=0.4)
    return content + region(x, y, side)


def region(x: float, y: float, width: float, height: float | None = None) -> str:
    """Return the current window or region."""
    height = width if height is None else height
    return area(x, y, width, height, BLUE, 0.16) + frame(x, y, width, height, BLUE, 1.6)


def ghost(x: float, y: float, width: float, height: float | None = None) -> str:
    """Return one of the other windows or regions."""
    return frame(x, y, width, width if height is None else height, BLUE, 0.9, dashed=True)


def grid(x: float, y: float, side: float, cells: int, colour: str = INK, marked: Iterable[int] = ()) -> str:
    """Return a square of cells. The cells ``marked``, numbered row by row, are blue."""
    step = side / cells
    parts = [area(x + step * (i % cells), y + step * (i // cells), step, step, BLUE, 0.45) for i in marked]
    for index in range(1, cells):
        parts.append(line((x + index * step, y), (x + index * step, y + side), colour=colour, thick=0.6))
        parts.append(line((x, y + index * step), (x + side, y + index * step), colour=colour, thick=0.6))
    return "".join(parts) + frame(x, y, side, side, colour)


def kernel(x: float, y: float, step: float, colour: str = BLUE) -> str:
    """Return the nine samples of a 3x3 convolution, ``step`` units apart, around ``(x, y)``."""
    return "".join(dot(x + step * i, y + step * j, 1.4, colour) for j in (-1, 0, 1) for i in (-1, 0, 1))


# Networks and feature maps.


def network(x: float, y: float, width: float = 14, left: float = 34, right: float = 18) -> str:
    """Return a network that reduces the resolution. ``(x, y)`` is the middle of the left side."""
    return polygon(
        [(x, y - left / 2), (x + width, y - right / 2), (x + width, y + right / 2), (x, y + left / 2)],
        opacity=0.32,
    )


def plates(x: float, y: float, width: float, height: float | None = None, count: int = 3) -> str:
    """Return a feature map: stacked plates. ``(x, y)`` is the corner of the front plate."""
    height = width if height is None else height
    offsets = [2.5 * step for step in reversed(range(count))]
    return "".join(
        area(x + o, y - o, width, height, opacity=0.13) + frame(x + o, y - o, width, height, thick=0.8)
        for o in offsets
    )


def maps(x: float, heights: Sequence[float], y: float = 50, width: float = 5, gap: float = 4) -> str:
    """Return feature maps seen from the side, from left to right, centred at the height ``y``."""
    return "".join(
        area(x + i * (width + gap), y - height / 2, width, height, opacity=0.2)
        + frame(x + i * (width + gap), y - height / 2, width, height, thick=0.8)
        for i, height in enumerate(heights)
    )
