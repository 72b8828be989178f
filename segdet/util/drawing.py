"""Draw boxes, masks, legends, image sheets and confusion matrices.

All functions take and return RGB images, uint8 ``[H, W, 3]``. The same input gives the same pixels.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdet.util.background import has_background
from segdet.util.colours import Colour, class_colour, mask_colours

_INK = (34, 38, 46)
_FAINT = (112, 118, 130)
_PAPER = (255, 255, 255)


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # ships the DejaVu fonts, so text is the same on every machine

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _text_on(colour: Colour) -> Colour:
    red, green, blue = colour
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else _PAPER


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Replace the middle of ``text`` by an ellipsis if it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 1, -1):
        shorter = text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]
        if font.getlength(shorter) <= width:
            return shorter
    return "…"


def _scaled(image: np.ndarray, factor: float) -> np.ndarray:
    """Return a copy of ``image`` with its sides multiplied by ``factor``."""
    if factor == 1:
        return image.copy(order="C")
    size = [max(1, round(side * factor)) for side in (image.shape[1], image.shape[0])]
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=how)


def _stripes(height: int, width: int, period: int, thickness: int) -> np.ndarray:
    """Return a diagonal stripe pattern: bool ``[height, width]``."""
    return (np.arange(height)[:, None] + np.arange(width)[None]) % period < thickness


def _blend(image: np.ndarray, where: np.ndarray, colour: Colour | np.ndarray, alpha: float) -> None:
    """Blend ``colour`` into the pixels of ``image`` where ``where`` (bool ``[H, W]``) is true, in place."""
    image[where] = np.round((1 - alpha) * image[where] + alpha * np.asarray(colour)[None]).astype(np.uint8)


def _frame(image: np.ndarray, box: np.ndarray, colour: Colour, thickness: int, dashed: bool) -> None:
    """Draw one box in place, with a thin dark rim that keeps it visible on any background."""
    height, width = image.shape[:2]
    x0, y0 = (int(v) for v in np.clip(np.round(box[:2]), 0, (width - 1, height - 1)))
    x1, y1 = (int(v) for v in np.clip(np.round(box[2:]) - 1, (x0, y0), (width - 1, height - 1)))
    if dashed:
        inside = np.s_[y0 : y1 + 1, x0 : x1 + 1]
        _blend(image[inside], _stripes(y1 - y0 + 1, x1 - x0 + 1, 10, 2), colour, 0.55)
        line = np.zeros(image.shape[:2], np.uint8)
        cv2.rectangle(line, (x0, y0), (x1, y1), 255, thickness)
        dash = 4 + 4 * thickness
        # x - y gives dashes of equal length on horizontal and vertical edges.
        along = (np.arange(width)[None] - np.arange(height)[:, None]) % (2 * dash) < dash
        image[(line > 0) & along] = colour
        image[(line > 0) & ~along] = _INK
        return
    overlay = image.copy()
    cv2.rectangle(overlay, (x0, y0), (x1, y1), _INK, thickness + 2)
    cv2.addWeighted(overlay, 0.45, image, 0.55, 0, dst=image)
    cv2.rectangle(image, (x0, y0), (x1, y1), colour, thickness)


def _place_tag(
    box: np.ndarray, tag: tuple[int, int], size: tuple[int, int], taken: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Return a free place (xyxy) for a tag of (width, height) above, in or below its box; None if there is none."""
    height, width = size
    tag_width, tag_height = tag
    if tag_width > width or tag_height > height:
        return None
    x0, y0, x1, y1 = (int(v) for v in np.round(box))
    right, above = x1 - tag_width, y0 - tag_height
    for x, y in ((x0, above), (x0, y0), (right, above), (x0, y1), (right, y1)):
        x = min(max(x, 0), width - tag_width)
        if y < 0 or y + tag_height > height:
            continue
        spot = (x, y, x + tag_width, y + tag_height)
        if all(spot[2] <= a or c <= spot[0] or spot[3] <= b or d <= spot[1] for a, b, c, d in taken):
            return spot
    return None


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
    crowd: np.ndarray | None = None,
    *,
    longest: int | None = None,
    tags: bool | None = None,
    colours: Sequence[Colour] | None = None,
) -> np.ndarray:
    """Draw boxes on an image, one colour per class.

    Args:
        image: uint8 ``[H, W, 3]`` RGB; not changed.
        boxes: ``[N, 4]`` xyxy in the pixels of ``image``.
        labels: ``[N]``, 1..K.
        names: Class names, label 1 first.
        scores: ``[N]``, written after the class name.
        crowd: bool ``[N]``, True for boxes to draw dashed and hatched.
        longest: Length in pixels to which the longer side of the image is resized first. Text on small images is
            legible only after enlarging them.
        tags: Whether to write the class name at each box; by default only for up to 40 boxes. A tag without a free
            place at its box is left out.
        colours: One colour per box, instead of one per class.

    Returns:
        uint8 ``[H', W', 3]`` RGB, of the image's size unless ``longest`` is given.
    """
    factor = longest / max(image.shape[:2]) if longest else 1.0
    picture = _scaled(image, factor)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * factor
    labels = np.asarray(labels).reshape(-1)
    drawable = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    crowds = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # Crowds are drawn below single objects and large boxes below small ones, so that none is hidden.
    order = drawable[np.lexsort((-areas[drawable], ~crowds[drawable]))]
    size = picture.shape[0], picture.shape[1]
    thickness = 1 if max(size) < 260 else 2 if max(size) < 1100 else 3
    if colours is None:
        colours = [class_colour(int(label)) for label in labels]
    for index in order:
        _frame(picture, boxes[index], colours[index], thickness, bool(crowds[index]))
    if tags is False or (tags is None and len(order) > 40):
        return picture

    font = _font(int(np.clip(max(size) / 32, 10, 22)))
    ascent, descent = font.getmetrics()
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    taken: list[tuple[int, int, int, int]] = []
    by_score = order if scores is None else order[np.argsort(-np.asarray(scores)[order], kind="stable")]
    for index in by_score:
        label = int(labels[index])
        text = names[label - 1] if 1 <= label <= len(names) else f"class {label}"
        if crowds[index]:
            text += " (crowd)"
        if scores is not None:
            text += f" {float(scores[index]):.2f}"
        text = _shorten(text, font, size[1] - 6)
        tag = (int(font.getlength(text)) + 7, ascent + descent)
        spot = _place_tag(boxes[index], tag, size, taken)
        if spot is None:
            continue
        taken.append(spot)
        colour = colours[index]
        pen.rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), fill=colour)
        pen.text((spot[0] + 3, spot[1]), text, fill=_text_on(colour), font=font)
    return np.array(canvas)


def draw_mask(
    image: np.ndarray,
    mask: np.ndarray,
    names: Sequence[str],
    alpha: float = 0.5,
    ignore: int = 255,
    *,
    longest: int | None = None,
    legend: bool = True,
) -> np.ndarray:
    """Tint each pixel of an image by its class, outline the regions and add a legend below.

    Args:
        image: uint8 ``[H, W, 3]`` RGB; not changed.
        mask: Integers ``[H, W]``, 0..C-1 and ``ignore``. Ignored pixels are hatched in white.
        names: Names of the mask values. Value 0 is not tinted if its name is ``background``.
        alpha: Opacity of the tint, 0 to 1.
        ignore: Mask value of ignored pixels.
        longest: See `draw_boxes`.
        legend: Whether to append a legend of the classes in the mask, which makes the picture higher.

    Returns:
        uint8 ``[H', W, 3]`` RGB.
    """
    picture = _scaled(image, longest / max(image.shape[:2]) if longest else 1.0)
    values = np.asarray(mask)
    if values.shape != image.shape[:2]:
        raise ValueError(f"mask of {values.shape} on an image of {image.shape[:2]}")
    values = np.where((values < 0) | (values > 255), 255, values).astype(np.uint8)
    values = cv2.resize(values, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    colours = mask_colours(names)
    ignored = values == ignore
    tinted = ~ignored & (values != 0) if has_background(names) else ~ignored
    _blend(picture, tinted, colours[values[tinted]][None] if tinted.any() else (0, 0, 0), alpha)
    height, width = values.shape
    # Darken ignored pixels first: white stripes would be invisible on a white image.
    _blend(picture, ignored, (110, 110, 110), 0.35)
    _blend(picture, ignored & _stripes(height, width, 8, 3), _PAPER, 0.75)
    edge = np.zeros(values.shape, bool)
    edge[:, 1:] = values[:, 1:] != values[:, :-1]
    edge[1:] |= values[1:] != values[:-1]
    # An outline lies between two pixels; take the class of the one that is tinted.
    owner = values.copy()
    owner[:, 1:] = np.where(tinted[:, 1:], owner[:, 1:], values[:, :-1])
    outline = edge & (owner != ignore)
    bright = np.clip(colours.astype(int) + 70, 0, 255).astype(np.uint8)
    picture[outline] = bright[owner[outline]]
    if not legend:
        return picture
    strip = draw_legend(mask_legend(values, names, ignore), picture.shape[1])
    return np.concatenate([picture, strip])


def mask_legend(mask: np.ndarray, names: Sequence[str], ignore: int = 255) -> list[tuple[str, Colour | None]]:
    """Return name and colour of the classes in ``mask``, largest first; the colour None stands for hatching."""
    colours = mask_colours(names)
    counts = np.bincount(np.asarray(mask, np.uint8).ravel(), minlength=256)
    entries: list[tuple[str, Colour | None]] = []
    for value in np.argsort(-counts, kind="stable"):
        if not counts[value] or value == ignore or (value == 0 and has_background(names)):
            continue
        name = names[value] if value < len(names) else f"value {value}"
        red, green, blue = colours[value].tolist()
        entries.append((name, (red, green, blue)))
    if ignore < 256 and counts[ignore]:
        entries.append(("ignored", None))
    return entries


def draw_legend(entries: Sequence[tuple[str, Colour | None]], width: int) -> np.ndarray:
    """Draw names and their colours, wrapped to ``width`` pixels: uint8 ``[h, width, 3]``."""
    if not entries:
        return np.zeros((0, width, 3), np.uint8)
    swatch = int(np.clip(width / 36, 10, 15))
    font, line, margin = _font(swatch), swatch + 9, 6
    spots: list[tuple[int, int, str, Colour | None]] = []
    x, y = margin, margin
    for name, colour in entries:
        text = _shorten(name, font, width - 2 * margin - swatch - 5)
        wide = swatch + 5 + int(font.getlength(text)) + 12
        if x > margin and x + wide - 12 > width - margin:
            x, y = margin, y + line
        spots.append((x, y, text, colour))
        x += wide
    hatch = np.where(_stripes(swatch, swatch, 6, 3), 255, 160).astype(np.uint8)
    canvas = Image.new("RGB", (width, y + line + 2), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for left, top, text, colour in spots:
        patch = Image.fromarray(hatch).convert("RGB") if colour is None else colour
        canvas.paste(patch, (left, top + 2, left + swatch, top + 2 + swatch))
        pen.text((left + swatch + 5, top + 2 + swatch // 2), text, fill=_INK, font=font, anchor="lm")
    return np.array(canvas)


def draw_sheet(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int | None = None,
    cell: int = 320,
    *,
    heading: str = "",
    legend: Sequence[tuple[str, Colour | None]] = (),
) -> np.ndarray:
    """Arrange pictures with their titles on one white page.

    Args:
        images: uint8 ``[H, W, 3]`` each, of any size; scaled to a width of at most ``cell`` pixels.
        titles: One line per image; long titles are shortened in the middle.
        columns: Pictures in a row; by default 3 or 4, depending on their number.
        cell: Width of a cell in pixels.
        heading: Line at the top of the page.
        legend: Names and colours at the bottom of the page.

    Returns:
        uint8 ``[H, W, 3]`` RGB.
    """
    if len(images) != len(titles):
        raise ValueError(f"{len(images)} images with {len(titles)} titles")
    if columns is None:
        columns = 3 if len(images) in (3, 5, 6, 9) else min(4, max(1, len(images)))
    gap, font, big = 14, _font(13), _font(19)
    title_height = 24
    fitted = []
    for image in images:
        height, width = image.shape[:2]
        factor = min(cell / width, 1.5 * cell / height)
        fitted.append(_scaled(image, 1.0 if factor > 1 and max(height, width) >= cell else factor))
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    page_width = gap + columns * (cell + gap)
    footer = draw_legend(legend, page_width - 2 * gap)
    tops = [gap + (32 if heading else 0)]
    for row in rows:
        tops.append(tops[-1] + title_height + max(fitted[i].shape[0] for i in row) + gap)
    canvas = Image.new("RGB", (page_width, tops[-1] + footer.shape[0]), _PAPER)
    pen = ImageDraw.Draw(canvas)
    if heading:
        pen.text((gap, gap), _shorten(heading, big, page_width - 2 * gap), fill=_INK, font=big)
    for row, top in zip(rows, tops, strict=False):
        for column, index in enumerate(row):
            left, image = gap + column * (cell + gap), fitted[index]
            canvas.paste(Image.fromarray(image), (left + (cell - image.shape[1]) // 2, top + title_height))
            place = (left + cell // 2, top + title_height // 2)
            pen.text(place, _shorten(titles[index], font, cell), fill=_FAINT, font=font, anchor="mm")
    if footer.size:
        canvas.paste(Image.fromarray(footer), (gap, tops[-1]))
    return np.array(canvas)


def draw_matrix(
    counts: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    heading: str = "",
    of_rows: str = "annotated",
    of_columns: str = "predicted",
) -> np.ndarray:
    """Draw a confusion matrix. The colour of a cell shows its share of the row: blue on the diagonal, red elsewhere.

    Class names are written for up to about 100 classes, counts for up to about 30.

    Args:
        counts: Integers ``[N, M]``, 0 or more.
        rows, columns: N and M class names.
        heading: Line above the matrix.
        of_rows, of_columns: Labels of the axes.

    Returns:
        uint8 ``[H, W, 3]`` RGB.
    """
    counts = np.asarray(counts)
    if counts.shape != (len(rows), len(columns)):
        raise ValueError(f"a matrix of {counts.shape} with {len(rows)} and {len(columns)} names")
    cell = int(np.clip(1500 // max(1, *counts.shape), 2, 58))
    named = cell >= 12
    font, big = _font(int(np.clip(cell * 0.6, 9, 14))), _font(17)
    names = [[_shorten(name, font, 190) for name in side] if named else [] for side in (rows, columns)]
    left, above = (int(max(map(font.getlength, side), default=0)) + (12 if named else 6) for side in names)
    gap, line = 14, sum(font.getmetrics()) + 8
    x0, y0 = gap + line + left, gap + (30 if heading else 0) + line + above
    wide = int(max(x0 + counts.shape[1] * cell + gap, 2 * gap + big.getlength(heading)))

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    diagonal = np.eye(*counts.shape, dtype=bool)[:, :, None]
    inks = np.where(diagonal, np.array([28, 92, 172]), np.array([206, 52, 44]))
    # The square root makes shares of a few per cent visible.
    paper = np.array([246, 247, 249])
    colours = np.round(paper + np.sqrt(shares)[:, :, None] * (inks - paper)).astype(np.uint8)
    body = colours.repeat(cell, 0).repeat(cell, 1)
    if cell >= 8:
        body[::cell] = body[:, ::cell] = 255

    canvas = Image.new("RGB", (wide, y0 + body.shape[0] + gap), _PAPER)
    canvas.paste(Image.fromarray(body), (x0, y0))
    pen = ImageDraw.Draw(canvas)
    if heading:
        pen.text((gap, gap), heading, fill=_INK, font=big)
    upright = Image.new("RGB", (int(font.getlength(of_rows)) + 2, line), _PAPER)
    ImageDraw.Draw(upright).text((1, 0), of_rows, fill=_FAINT, font=font)
    canvas.paste(upright.rotate(90, expand=True), (gap, max(0, y0 + (body.shape[0] - upright.width) // 2)))
    pen.text((x0 + body.shape[1] // 2, y0 - above - line), of_columns, fill=_FAINT, font=font, anchor="ma")
    for row, name in enumerate(names[0]):
        pen.text((x0 - 6, y0 + row * cell + cell // 2), name, fill=_INK, font=font, anchor="rm")
    for column, name in enumerate(names[1]):
        upright = Image.new("RGB", (above - 6, cell), _PAPER)
        ImageDraw.Draw(upright).text((0, cell // 2), name, fill=_INK, font=font, anchor="lm")
        canvas.paste(upright.rotate(90, expand=True), (x0 + column * cell, y0 - above))
    if cell >= 40:
        for row, column in np.argwhere(counts > 0).tolist():
            text = _short_count(int(counts[row, column]))
            red, green, blue = colours[row, column].tolist()
            centre = (x0 + column * cell + cell // 2, y0 + row * cell + cell // 2)
            pen.text(centre, text, fill=_text_on((red, green, blue)), font=font, anchor="mm")
    return np.array(canvas)


def _short_count(number: int) -> str:
    """Format ``number`` in at most five characters: 9999, 12.3k, 456k, 1.2M."""
    if number < 10_000:
        return str(number)
    for size, letter in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        if number < 999.5 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number / 1e12:.3g}T"
