"""Colours of object classes and of mask values."""

from collections.abc import Sequence

import cv2
import numpy as np

from segdet.util.background import has_background

Colour = tuple[int, int, int]

_OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip

# The colours differ from each other and from skin, sky and foliage, and are legible on dark and bright images.
_BOX_COLOURS: tuple[Colour, ...] = (
    (255, 64, 80), (48, 162, 255), (255, 196, 32), (64, 210, 110), (196, 92, 255), (255, 132, 36),
    (40, 220, 220), (255, 110, 196), (168, 220, 48), (120, 124, 255), (206, 140, 90), (0, 168, 140),
)  # fmt: skip


def voc_palette() -> np.ndarray:
    """Return Pascal VOC's colours of the mask values: uint8 ``[256, 3]`` RGB, 0 is black and 255 cream.

    The bits of a value are assigned to red, green and blue in turn. The lowest bits of the value become the highest
    bits of the colours.
    """
    values = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = (values >> (3 * place + channel)) & 1
            colours[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colours


def class_colour(label: int) -> Colour:
    """Return the RGB colour of object class ``label`` (1..K): twelve fixed colours, then computed ones."""
    position = max(int(label), 1) - 1
    if position < len(_BOX_COLOURS):
        return _BOX_COLOURS[position]
    # Golden-angle steps never repeat a hue.
    hue = (position * 0.61803399) % 1.0
    saturation, value = ((200, 255), (130, 235), (235, 200))[position % 3]
    pixel = np.array([[[round(hue * 180) % 180, saturation, value]]], np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def distinct_colours(count: int) -> np.ndarray:
    """Return ``count`` colours, uint8 ``[count, 3]`` RGB: those of Okabe and Ito, then `class_colour`.

    Source: Okabe and Ito, Color Universal Design (2008). All common forms of colour blindness distinguish the first 7.
    """
    colours = [*_OKABE_ITO[:count], *(class_colour(label) for label in range(1, count - len(_OKABE_ITO) + 1))]
    return np.array(colours, np.uint8).reshape(-1, 3)


def mask_colours(names: Sequence[str]) -> np.ndarray:
    """Return the colours of mask values: VOC's, uint8 ``[256, 3]``.

    Without a background class they are shifted by one value, because a class drawn in black would look like background.
    """
    return voc_palette() if has_background(names) else np.roll(voc_palette(), -1, axis=0)
