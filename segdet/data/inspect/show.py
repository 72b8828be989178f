"""Pictures of annotations and predictions: boxes and masks over images, contact sheets, ``segdet data show``.

Everything here takes and gives RGB, uint8 ``[H, W, 3]``, and draws the same picture from the same input.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from segdet.data.cleaning import clean_objects
from segdet.util.errors import BadSample, UserError

if TYPE_CHECKING:
    from segdet.data.formats.reader import Reader
    from segdet.data.sample import Objects, Task

Colour = tuple[int, int, int]

# Far apart from each other, from skin, sky and foliage, and legible on dark and on bright images.
_BOX_COLOURS: tuple[Colour, ...] = (
    (255, 64, 80),
    (48, 162, 255),
    (255, 196, 32),
    (64, 210, 110),
    (196, 92, 255),
    (255, 132, 36),
    (40, 220, 220),
    (255, 110, 196),
    (168, 220, 48),
    (120, 124, 255),
    (206, 140, 90),
    (0, 168, 140),
)
_INK = (34, 38, 46)
_FAINT = (112, 118, 130)
_PAPER = (255, 255, 255)
_FAULTS_TOLD = 5
_BACKGROUND_NAMES = ("background", "__background__", "_background_")


def palette() -> np.ndarray:
    """Pascal VOC's colours of the mask values: uint8 ``[256, 3]`` RGB, 0 black and 255 cream.

    The bits of the value are dealt out to red, green and blue in turn, the lowest bits to the highest
    places, so that neighbouring values differ strongly.
    """
    values = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = (values >> (3 * place + channel)) & 1
            colours[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colours


def colour_of(label: int) -> Colour:
    """The RGB colour of object class ``label`` (1..K); the first twelve are chosen, the others computed."""
    position = max(int(label), 1) - 1
    if position < len(_BOX_COLOURS):
        return _BOX_COLOURS[position]
    # Steps of the golden angle never come back to a hue already used.
    hue = (position * 0.61803399) % 1.0
    saturation, value = ((200, 255), (130, 235), (235, 200))[position % 3]
    pixel = np.array([[[round(hue * 180) % 180, saturation, value]]], np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def mask_colours(names: Sequence[str]) -> np.ndarray:
    """The colours of mask values 0..C-1 in pictures: uint8 ``[256, 3]``.

    They are VOC's. Where value 0 is a class like any other, each class takes the next value's colour,
    since a black sky would look like no class at all.
    """
    return palette() if has_background(names) else np.roll(palette(), -1, axis=0)


def has_background(names: Sequence[str]) -> bool:
    """Whether mask value 0 is the background, which pictures leave untinted."""
    return bool(names) and names[0].lower() in _BACKGROUND_NAMES


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # brings the DejaVu fonts along, the same ones on every machine

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _text_on(colour: Colour) -> Colour:
    red, green, blue = colour
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else _PAPER


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """``text``, with its middle left out where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 1, -1):
        shorter = text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]
        if font.getlength(shorter) <= width:
            return shorter
    return "…"


def _resized(image: np.ndarray, longest: int | None) -> tuple[np.ndarray, float]:
    """``image`` (copied) with its longer side at ``longest`` pixels, and the factor this took."""
    height, width = image.shape[:2]
    if longest is None or max(height, width) == longest:
        return np.ascontiguousarray(image).copy(), 1.0
    factor = longest / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=how), factor


def _stripes(height: int, width: int, period: int, thickness: int) -> np.ndarray:
    """Diagonal stripes: bool ``[height, width]``."""
    return (np.arange(height)[:, None] + np.arange(width)[None]) % period < thickness


def _blend(image: np.ndarray, where: np.ndarray, colour: Colour | np.ndarray, alpha: float) -> None:
    """Mix ``colour`` into the pixels ``where`` (bool ``[H, W]``) of ``image``, in place."""
    image[where] = np.round((1 - alpha) * image[where] + alpha * np.asarray(colour)[None]).astype(np.uint8)


def _frame(image: np.ndarray, box: np.ndarray, colour: Colour, thickness: int, dashed: bool) -> None:
    """One box with a thin dark rim, which keeps it visible on any ground."""
    height, width = image.shape[:2]
    x0, y0 = (int(v) for v in np.clip(np.round(box[:2]), 0, (width - 1, height - 1)))
    x1, y1 = (int(v) for v in np.clip(np.round(box[2:]) - 1, (x0, y0), (width - 1, height - 1)))
    if dashed:
        inside = np.s_[y0 : y1 + 1, x0 : x1 + 1]
        region = image[inside]
        _blend(region, _stripes(region.shape[0], region.shape[1], 10, 2), colour, 0.55)
        line = np.zeros(image.shape[:2], np.uint8)
        cv2.rectangle(line, (x0, y0), (x1, y1), 255, thickness)
        dash = 4 + 4 * thickness
        # Counting along x - y makes dashes of equal length on horizontal and vertical edges.
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
    """Where a tag of (width, height) goes: above its box, in it, or below; None where all is taken."""
    height, width = size
    tag_width, tag_height = tag
    if tag_width > width or tag_height > height:
        return None
    x0, y0, x1, y1 = (int(v) for v in np.round(box))
    for x, y in (
        (x0, y0 - tag_height),
        (x0, y0),
        (x1 - tag_width, y0 - tag_height),
        (x0, y1),
        (x1 - tag_width, y1),
    ):
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
    """An image with boxes drawn over it, a colour per class.

    Args:
        image: uint8 ``[H, W, 3]`` RGB; not changed.
        boxes: ``[N, 4]`` xyxy in the pixels of ``image``.
        labels: ``[N]``, 1..K.
        names: The classes' names, label 1 first.
        scores: ``[N]``, written behind the name.
        crowd: bool ``[N]``: these boxes are dashed and hatched.
        longest: Resize the image first, so that its longer side has this many pixels: on small images text
            is legible only then.
        tags: Write the class at each box. By default up to 40 boxes have tags; a tag that finds no
            free place at its box is left out.
        colours: One a box instead of its class's.

    Returns:
        uint8 ``[H', W', 3]`` RGB, of the image's size unless ``longest`` is given.
    """
    picture, factor = _resized(image, longest)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * factor
    labels = np.asarray(labels).reshape(-1)
    drawable = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    crowds = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # Crowds lie under single objects and large boxes under small ones, so that none is hidden.
    order = drawable[np.lexsort((-areas[drawable], ~crowds[drawable]))]
    size = picture.shape[0], picture.shape[1]
    thickness = 1 if max(size) < 260 else 2 if max(size) < 1100 else 3
    if colours is None:
        colours = [colour_of(int(label)) for label in labels]
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
    return np.asarray(canvas).copy()


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
    """An image tinted by the class of each pixel, with outlines, and a legend of the classes below it.

    Args:
        image: uint8 ``[H, W, 3]`` RGB; not changed.
        mask: Integers ``[H, W]``, 0..C-1 and ``ignore``, which is hatched in white.
        names: The names of the mask values; a first one called ``background`` is left untinted.
        alpha: How much of the colour goes in, 0 to 1.
        ignore: The value that means no class.
        longest: Resize first, so that the longer side has this many pixels.
        legend: Put the names of the classes seen below the image, which makes the picture higher.

    Returns:
        uint8 ``[H', W, 3]`` RGB.
    """
    picture, factor = _resized(image, longest)
    values = np.asarray(mask)
    if values.shape != image.shape[:2]:
        raise ValueError(f"mask of {values.shape} on an image of {image.shape[:2]}")
    values = np.where((values < 0) | (values > 255), 255, values).astype(np.uint8)
    if factor != 1.0:
        shape = picture.shape[1], picture.shape[0]
        values = cv2.resize(values, shape, interpolation=cv2.INTER_NEAREST)
    colours = mask_colours(names)
    ignored = values == ignore
    tinted = ~ignored
    if has_background(names):
        tinted &= values != 0
    _blend(picture, tinted, colours[values[tinted]][None] if tinted.any() else (0, 0, 0), alpha)
    height, width = values.shape
    # A grey veil keeps the stripes visible where the image itself is white.
    _blend(picture, ignored, (110, 110, 110), 0.35)
    _blend(picture, ignored & _stripes(height, width, 8, 3), _PAPER, 0.75)
    edge = np.zeros(values.shape, bool)
    edge[:, 1:] |= values[:, 1:] != values[:, :-1]
    edge[1:] |= values[1:] != values[:-1]
    # Each side of an outline is known by one of its two pixels: take the one that is a class.
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
    """The classes seen in ``mask``, the largest first, as name and colour; None stands for the hatching."""
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
    """Names with their colours in as many lines as ``width`` needs: uint8 ``[h, width, 3]``."""
    size = int(np.clip(width / 36, 10, 15))
    font = _font(size)
    line, swatch, margin = size + 9, size, 6
    spots: list[tuple[int, int, str, Colour | None]] = []
    x, y = margin, margin
    for name, colour in entries:
        text = _shorten(name, font, width - 2 * margin - swatch - 5)
        wide = swatch + 5 + int(font.getlength(text)) + 12
        if x > margin and x + wide - 12 > width - margin:
            x, y = margin, y + line
        spots.append((x, y, text, colour))
        x += wide
    picture = np.full(((y + line + 2) if entries else 0, width, 3), 255, np.uint8)
    for left, top, _, colour in spots:
        patch = picture[top + 2 : top + 2 + swatch, left : left + swatch]
        if colour is None:
            patch[:] = 160
            patch[_stripes(patch.shape[0], patch.shape[1], 6, 3)] = 255
        else:
            patch[:] = colour
    if not entries:
        return picture
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    for left, top, text, _ in spots:
        pen.text((left + swatch + 5, top + 2 + swatch // 2), text, fill=_INK, font=font, anchor="lm")
    return np.asarray(canvas).copy()


def sheet(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int | None = None,
    cell: int = 320,
    *,
    heading: str = "",
    legend: Sequence[tuple[str, Colour | None]] = (),
) -> np.ndarray:
    """Several pictures with their titles on one white page.

    Args:
        images: uint8 ``[H, W, 3]`` each, of any sizes; scaled to fit ``cell`` pixels of width.
        titles: One line each, shortened in the middle where it is too long.
        columns: By default four, or as many as make the last row full.
        cell: The width of a picture's place.
        heading: A line above everything.
        legend: Names and colours below everything.

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
        if factor > 1 and max(height, width) >= cell:
            factor = 1.0
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        fitted.append(image if factor == 1 else cv2.resize(image, size, interpolation=how))
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    heights = [title_height + max(fitted[i].shape[0] for i in row) + gap for row in rows]
    page_width = gap + columns * (cell + gap)
    top = gap + (32 if heading else 0)
    footer = draw_legend(legend, page_width - 2 * gap)
    tops = [top, *(top + sum(heights[: i + 1]) for i in range(len(rows)))]
    page = np.full((tops[-1] + footer.shape[0], page_width, 3), 255, np.uint8)
    for row, (start, _) in zip(rows, pairwise(tops), strict=True):
        for column, index in enumerate(row):
            image = fitted[index]
            y = start + title_height
            x = gap + column * (cell + gap) + (cell - image.shape[1]) // 2
            page[y : y + image.shape[0], x : x + image.shape[1]] = image
    if footer.size:
        page[tops[-1] :, gap : gap + footer.shape[1]] = footer
    canvas = Image.fromarray(page)
    pen = ImageDraw.Draw(canvas)
    if heading:
        pen.text((gap, gap), _shorten(heading, big, page_width - 2 * gap), fill=_INK, font=big)
    for row, (start, _) in zip(rows, pairwise(tops), strict=True):
        for column, index in enumerate(row):
            text = _shorten(titles[index], font, cell)
            place = (gap + column * (cell + gap) + cell // 2, start + title_height // 2)
            pen.text(place, text, fill=_FAINT, font=font, anchor="mm")
    return np.asarray(canvas).copy()


def draw_matrix(
    counts: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    heading: str = "",
    of_rows: str = "annotated",
    of_columns: str = "predicted",
) -> np.ndarray:
    """A confusion matrix: each cell coloured by its share of its row, blue on the diagonal and red beside it.

    Up to some hundred classes are named; up to some thirty have their counts written into the cells.

    Args:
        counts: Integers ``[N, M]``, 0 or more.
        rows: The names of the rows, N.
        columns: The names of the columns, M.
        heading: A line above everything.
        of_rows: What the rows are.
        of_columns: What the columns are.

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
    right = x0 + counts.shape[1] * cell + gap
    wide = int(max(right, 2 * gap + big.getlength(heading)))
    page = np.full((y0 + counts.shape[0] * cell + gap, wide, 3), 255, np.uint8)

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    diagonal = np.eye(*counts.shape, dtype=bool)[:, :, None]
    inks = np.where(diagonal, np.array([28, 92, 172]), np.array([206, 52, 44]))
    # The root lets a few per cent be seen.
    paper = np.array([246, 247, 249])
    colours = np.round(paper + np.sqrt(shares)[:, :, None] * (inks - paper)).astype(np.uint8)
    body = colours.repeat(cell, 0).repeat(cell, 1)
    if cell >= 8:
        body[::cell] = body[:, ::cell] = 255
    page[y0 : y0 + body.shape[0], x0 : x0 + body.shape[1]] = body

    canvas = Image.fromarray(page)
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
            text = _count(int(counts[row, column]))
            red, green, blue = colours[row, column].tolist()
            centre = (x0 + column * cell + cell // 2, y0 + row * cell + cell // 2)
            pen.text(centre, text, fill=_text_on((red, green, blue)), font=font, anchor="mm")
    return np.asarray(canvas).copy()


def _count(number: int) -> str:
    """``number`` in at most five characters: 9999, 12.3k, 456k, 1.2M."""
    if number < 10_000:
        return str(number)
    for size, letter in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        if number < 999.5 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number / 1e12:.3g}T"


def picture_of(reader: "Reader", task: "Task", index: int, longest: int | None = None) -> np.ndarray:
    """Image ``index`` of a reader with its annotation drawn over it.

    Raises:
        BadSample: If the image or its annotation cannot be read.
    """
    from segdet.data.images import read_image

    path = reader.image_path(index)
    image = read_image(path, reader.declared_size(index))
    if task == "segmentation":
        mask = reader.mask(index)
        if mask.shape != image.shape[:2]:
            file = next(iter(reader.annotation_paths(index, task)), path)
            size, of_image = (f"{shape[1]}x{shape[0]}" for shape in (mask.shape, image.shape))
            raise BadSample(file, f"the mask is {size} but its image {path.name} {of_image}")
        return draw_mask(image, mask, reader.mask_names, longest=longest, legend=False)
    objects = _objects_to_draw(reader, task, index, (image.shape[0], image.shape[1]))
    return draw_boxes(
        image, objects.boxes, objects.labels, reader.class_names, crowd=objects.iscrowd, longest=longest
    )


def _objects_to_draw(reader: "Reader", task: "Task", index: int, size: tuple[int, int]) -> "Objects":
    """The objects that the task is about, clipped to the image of ``size``."""
    objects, _ = clean_objects(reader.objects(index), size, reader.class_names)
    if task == "localization":
        from segdet.data.dataset import dominant_object

        dominant = dominant_object(objects)
        objects = objects.select(np.array([] if dominant is None else [dominant], np.int64))
    return objects


def main(argv: Sequence[str] | None = None) -> int:
    """``segdet data show ROOT``: returns the exit status."""
    from segdet.data.formats.detect import CommandParser, run

    parser = CommandParser("segdet data show", "Draw annotated samples of a dataset on one sheet.")
    parser.add_dataset_arguments()
    parser.add_argument("--count", type=int, default=12, help="how many, taken at random (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default 0)")
    parser.add_argument(
        "--index", type=int, nargs="+", metavar="I", help="these samples of the first split, from 0"
    )
    parser.add_argument("--cell", type=int, default=400, help="pixels a picture is wide (default 400)")
    parser.add_argument("--columns", type=int, help="pictures in a row")
    parser.add_argument("--output", type=Path, default=Path("sheet.png"), help="(default sheet.png)")
    return run(parser, argv, _show)


def _show(arguments: argparse.Namespace) -> int:
    from segdet.data.formats.detect import check_output, dataset_from

    for option, least in (("count", 1), ("cell", 64), ("columns", 1)):
        value = getattr(arguments, option)
        if value is not None and value < least:
            raise UserError(f"--{option} {value}: must be {least} or more")
    check_output("--output", arguments.output, (".png", ".jpg", ".jpeg"))
    dataset = dataset_from(arguments)
    readers = {split: dataset.open(split) for split in dataset.splits}
    candidates = _candidates(readers, arguments.index, arguments.seed)
    wanted = min(len(candidates), arguments.count) if arguments.index is None else len(candidates)
    drawn: dict[tuple[str, int], np.ndarray] = {}
    faults: list[BadSample] = []
    with tqdm(total=wanted, desc="drawing", unit=" images", delay=2.0) as bar:
        for split, index in candidates:
            try:
                drawn[split, index] = picture_of(readers[split], dataset.task, index, arguments.cell)
            except BadSample as error:
                faults.append(error)
                if arguments.index is not None:
                    raise
                continue
            bar.update()
            if len(drawn) == wanted:
                break
    if not drawn:
        raise faults[0]
    for fault in faults[:_FAULTS_TOLD]:
        sys.stderr.write(f"segdet: left out: {fault}\n")
    if len(faults) > _FAULTS_TOLD:
        more = f"and {len(faults) - _FAULTS_TOLD:,} more; `segdet data check {arguments.root}` lists all"
        sys.stderr.write(f"segdet: {more}\n")
    chosen = list(drawn)
    if arguments.index is None:
        chosen.sort(key=lambda sample: (list(readers).index(sample[0]), sample[1]))
    pictures = [drawn[sample] for sample in chosen]
    titles = [f"{split} {index}: {readers[split].image_path(index).name}" for split, index in chosen]
    legend = _sheet_legend(readers, chosen, dataset.task)
    total = sum(len(reader) for reader in readers.values())
    heading = f"{dataset.root.name}: {len(chosen)} of {total:,} images ({dataset.task})"
    page = sheet(pictures, titles, arguments.columns, arguments.cell, heading=heading, legend=legend)
    Image.fromarray(page).save(arguments.output)
    sys.stdout.write(f"{arguments.output}\n")
    return 0


def _candidates(
    readers: "Mapping[str, Reader]", indices: Sequence[int] | None, seed: int
) -> list[tuple[str, int]]:
    """The samples to draw: those asked for, or all of them in an order at random, of which the first are taken."""
    if indices is not None:
        split, reader = next(iter(readers.items()))
        for index in indices:
            if not 0 <= index < len(reader):
                raise UserError(f"--index {index}: the split {split} has the samples 0 to {len(reader) - 1}")
        return [(split, index) for index in indices]
    everything = [(split, index) for split, reader in readers.items() for index in range(len(reader))]
    if not everything:
        raise UserError(f"the split {', '.join(readers)} holds no image; choose another --split")
    return [everything[place] for place in np.random.default_rng(seed).permutation(len(everything))]


def _sheet_legend(
    readers: "Mapping[str, Reader]", chosen: Sequence[tuple[str, int]], task: "Task"
) -> list[tuple[str, Colour | None]]:
    """The classes seen on a sheet: those of masks with the hatching, or of boxes."""
    reader = next(iter(readers.values()))
    if task == "segmentation":
        seen = np.concatenate([np.unique(readers[split].mask(index)) for split, index in chosen])
        legend = mask_legend(np.unique(seen), reader.mask_names)
        names = [*reader.mask_names, "ignored"]
        return sorted(legend, key=lambda entry: names.index(entry[0]) if entry[0] in names else -1)
    anywhere = (1 << 30, 1 << 30)
    drawn = [_objects_to_draw(readers[split], task, index, anywhere).labels for split, index in chosen]
    labels = np.unique(np.concatenate(drawn)).tolist()
    return [(reader.class_names[label - 1], colour_of(label)) for label in labels]
