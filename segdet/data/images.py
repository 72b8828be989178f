"""Read image and mask files as arrays; corrupt files raise `BadSample`.

Annotations usually refer to the pixels as stored, so the EXIF rotation is not applied. It is applied if the annotation
states the size of the rotated image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from segdet.util.errors import BadSample, MissingFile

# `MAX_PIXELS` replaces Pillow's limit, which is a warning or an error depending on the size.
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = 178_956_970
"""Default limit of the pixels of an image: the size from which Pillow assumes a decompression bomb."""

MOST_PIXELS = 1 << 30
"""The largest limit. OpenCV decodes no larger image."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
"""Suffixes of image files in a folder, in lower case."""

Colour = tuple[int, int, int]

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_END_OF_IMAGE = b"\xff\xd9"
_ORIENTATION = 0x0112
_REMEDY = "download or export it again"

# Exceptions that PIL raises for corrupt files, depending on the format.
_PIL_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError)

_GRAY = 0  # PNG's colour type, byte 25 of the file
_COLOUR_TYPES = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale with alpha", 6: "RGB with alpha"}


@dataclass(frozen=True)
class ImageInfo:
    """The header of an image file.

    Attributes:
        size: ``(height, width)`` as stored, before any EXIF rotation.
        mode: PIL's name of the pixel format: ``RGB``, ``L``, ``P``, ``CMYK``, ``RGBA``, ``I;16`` ...
        bits: Bits per channel.
        orientation: The EXIF orientation 1..8; 1 if upright or not stated.
        format: PIL's name of the file format: ``JPEG``, ``PNG`` ...
        frames: Number of frames of an animation or pages of a document, of which the first is read.
    """

    size: tuple[int, int]
    mode: str
    bits: int
    orientation: int
    format: str
    frames: int = 1


def read_image(
    path: Path | str,
    declared_size: tuple[int, int] | None = None,
    upright: bool = False,
    max_pixels: int | None = MAX_PIXELS,
) -> np.ndarray:
    """Read an image file as RGB.

    Grayscale is repeated, CMYK is converted, 16 bits are reduced to the upper 8, palettes are applied, and alpha is
    dropped.

    Args:
        path: A JPEG, PNG or any other file that PIL reads. The first bytes determine the format, not the name.
        declared_size: ``(height, width)`` stated in the annotation. If only the image after the EXIF rotation has this
            size, the annotation refers to the rotated image, and the rotation is applied.
        upright: Whether to apply the EXIF rotation unconditionally, as for photos without annotations.
        max_pixels: The largest number of pixels that is decoded; None for no limit, for files that were read before.

    Returns:
        uint8 ``[H, W, 3]``, RGB, C-contiguous.

    Raises:
        BadSample: If the file is missing, empty, corrupt, not an image or too large.
    """
    data = _read(path)
    if data.startswith(_JPEG):
        image = _decode_jpeg(path, data, max_pixels)
    elif data.startswith(_PNG):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = _decode_png(path, data, flags, max_pixels)
    else:
        image = _decode_other(path, data, max_pixels)
    stored = (image.shape[0], image.shape[1])
    rotated = declared_size is not None and declared_size != stored and declared_size == stored[::-1]
    if upright or rotated:
        orientation = _orientation(_open(path, data))
        # A rotation that gives the declared size swaps height and width. Only orientations 5 to 8 do.
        if upright or orientation >= 5:
            image = _rotated_upright(image, orientation)
    return image


def image_as_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of a PIL image as `read_image` returns those of its file: uint8 ``[H, W, 3]``, upright.

    Raises:
        BadSample: If the pixels cannot be decoded or converted.
    """
    name = getattr(image, "filename", "") or "image"
    return _rotated_upright(_as_rgb(name, image, None), _orientation(image))


def read_mask(
    path: Path | str,
    max_pixels: int | None = MAX_PIXELS,
    colours: Mapping[Colour, int] | None = None,
) -> np.ndarray:
    """Read the values of a mask file: uint8 ``[H, W]``.

    Values are the indices of a palette image, the values of grayscale of 8 or 16 bits, or the stored numbers of 1-, 2-
    and 4-bit grayscale (0 and 1 for one bit). If the channels of an opaque colour image are equal, it is read as
    grayscale.

    Args:
        path: The file.
        max_pixels: The largest number of pixels that is decoded.
        colours: The value of each RGB colour, for masks that are coded by colour. A palette image is read by colour if
            ``colours`` contains all colours that the image uses.

    Raises:
        BadSample: If the file is missing, empty, corrupt, not an image or larger than ``max_pixels``, or contains a
            colour or a value above 255 that has no meaning.
    """
    data = _read(path)
    if data.startswith(_JPEG):
        raise BadSample(path, "a mask must hold class indices but JPEG changes values", "save it as PNG")
    if data.startswith(_PNG) and len(data) >= 26:
        bits, kind = data[24], data[25]
        if kind == _GRAY and bits >= 8:
            return _in_8_bits(path, _decode_png(path, data, cv2.IMREAD_UNCHANGED, max_pixels))
        _check_png_end(path, data)
        if bits == 16:
            raise _no_indices(path, f"16-bit {_COLOUR_TYPES.get(kind, 'unknown')} values", colours)
    else:
        bits, kind = 8, -1
    image = _open(path, data)
    if image.mode in ("RGBA", "LA") and (_pixels(path, image, max_pixels)[..., -1] < 255).any():
        raise _no_indices(path, "transparent pixels", colours)
    if image.mode in ("RGB", "RGBA", "LA"):
        return _values_of_colours(path, _pixels(path, image, max_pixels, "RGB"), colours)
    if image.mode not in ("L", "P", "1", "I") and not image.mode.startswith("I;16"):
        raise _no_indices(path, f"pixels of mode {image.mode}", colours)
    values = _in_8_bits(path, _pixels(path, image, max_pixels))
    if image.mode == "P" and colours:
        return _values_of_palette(image, values, colours)
    if kind == _GRAY and bits in (2, 4):
        values = values // (255 // (2**bits - 1))  # PIL scales them to 0..255.
    return values


def _in_8_bits(path: Path | str, values: np.ndarray) -> np.ndarray:
    if values.dtype.itemsize > 1 and values.size and (values.max() > 255 or values.min() < 0):
        wrong = np.unique(values[(values > 255) | (values < 0)])
        raise BadSample(path, f"value {wrong[0]} of a mask is not in 0..255", "save it as an 8-bit PNG")
    return values.astype(np.uint8, copy=False)


def _values_of_palette(image: Image.Image, values: np.ndarray, colours: Mapping[Colour, int]) -> np.ndarray:
    palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    used = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    if used.max(initial=0) >= len(palette):
        return values
    table = np.zeros(256, np.uint8)
    for index in used:
        value = colours.get(_colour(palette[index]))
        if value is None:
            return values
        table[index] = value
    return cv2.LUT(values, table)


def _values_of_colours(
    path: Path | str, pixels: np.ndarray, colours: Mapping[Colour, int] | None
) -> np.ndarray:
    table = _colour_table(tuple((colours or {}).items()))
    values = table[pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)]
    unknown = values < 0
    if not unknown.any():
        return values.astype(np.uint8)
    if (pixels[..., :1] == pixels).all():
        return np.ascontiguousarray(pixels[..., 0])
    wrong = np.unique(pixels[unknown], axis=0)
    shown = "; ".join(",".join(map(str, colour)) for colour in wrong[:3].tolist())
    more = f" ... ({len(wrong)})" if len(wrong) > 3 else ""
    if not colours:
        raise _no_indices(path, f"the colours {shown}{more}", colours)
    raise BadSample(path, f"the colour {shown}{more} has no class", "add it to labelmap.txt as name:r,g,b::")


@lru_cache(maxsize=2)
def _colour_table(colours: tuple[tuple[Colour, int], ...]) -> np.ndarray:
    """Return the value of each 24-bit colour, -1 for none: int16 ``[2 ** 24]``."""
    table = np.full(1 << 24, -1, np.int16)
    for (red, green, blue), value in colours:
        table[red << 16 | green << 8 | blue] = value
    return table


def _colour(channels: np.ndarray) -> Colour:
    red, green, blue = channels.tolist()
    return red, green, blue


def read_png16(path: Path | str, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """Read the values of a grayscale PNG of 8 or 16 bits, unscaled: ``[H, W]``, uint8 or uint16.

    Raises:
        BadSample: If the file is missing, corrupt, not a grayscale PNG or larger than ``max_pixels``.
    """
    data = _read(path)
    head = data[:26]
    if not head.startswith(_PNG) or len(head) < 26 or head[25] != _GRAY:
        raise BadSample(path, "not a grayscale PNG")
    return _decode_png(path, data, cv2.IMREAD_UNCHANGED, max_pixels)


def image_size(path: Path | str) -> tuple[int, int]:
    """Return the stored ``(height, width)`` of an image file, from its header; for errors see `image_info`."""
    with _open(path) as image:
        return image.height, image.width


def image_info(path: Path | str) -> ImageInfo:
    """Read the header of an image file, without decoding the pixels.

    Raises:
        BadSample: If the file is missing, empty or not an image.
    """
    with _open(path) as image:
        bits = {"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if "16" in image.mode else 8)
        if image.format == "PNG":
            with Path(path).open("rb") as file:
                bits = file.read(25)[24]
        size, kind = (image.height, image.width), image.format or "unknown"
        return ImageInfo(size, image.mode, bits, _orientation(image), kind, _frames(image))


def _frames(image: Image.Image) -> int:
    # A camera's MPO file contains the photo and its previews.
    if image.format == "MPO":
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except _PIL_ERRORS:
        return 1


def _read(path: Path | str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  Path.open takes 50% longer
            data = file.read()
    except OSError as error:
        raise _unreadable(path, error) from None
    if not data:
        raise BadSample(path, "the file is empty (0 bytes)")
    return data


def other_spelling(path: Path | str) -> str:
    """Return advice if a file with another suffix or in another case is there instead of ``path``, else empty."""
    path = Path(path)
    try:
        names = sorted(other.name for other in path.parent.iterdir() if not other.name.startswith("."))
    except OSError:
        return ""
    for name in names:
        if name.lower() == path.name.lower():
            return f"{name} is there: give both the same name"
    for name in names:
        stem, _, suffix = name.rpartition(".")
        if stem.lower() == path.stem.lower():
            known = f".{suffix.lower()}" in SUFFIXES
            return f"{name} is there: " + (
                "give both the same name" if known else f"convert it to {path.suffix}"
            )
    return ""


def _unreadable(path: Path | str, error: OSError) -> BadSample:
    if isinstance(error, FileNotFoundError):
        return MissingFile(path, "no such file", other_spelling(path) or "add it or remove it from the split")
    return BadSample(path, f"cannot be read ({error.strerror or error})", "fix the path or its permissions")


def check_pixels(path: Path | str, size: tuple[int, int], limit: int | None) -> None:
    """Raise `BadSample` if an image of ``size`` (height, width) has more pixels than ``limit``."""
    if limit is not None and size[0] * size[1] > limit:
        fault = f"is {size[1]}x{size[0]}, which is more than {limit:,} pixels"
        remedy = "scale it down, or give a larger --data.max_pixels (segdet data: --max_pixels)"
        raise BadSample(path, fault, remedy)


def _decode_jpeg(path: Path | str, data: bytes, limit: int | None) -> np.ndarray:
    # The marker cannot occur in coded pixels, where 0xff is followed by 0. It may be anywhere after the header,
    # because cameras and editors append data to complete images.
    if not data.endswith(_END_OF_IMAGE) and data.find(_END_OF_IMAGE, _start_of_scan(data)) < 0:
        raise BadSample(path, "truncated JPEG: the end of the image is missing", _REMEDY)
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        check_pixels(path, (height, width), limit)
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        reason = str(error)
    # simplejpeg reports all faults as a ValueError with libjpeg's text: "Premature end of JPEG file", "Corrupt JPEG
    # data: bad Huffman code".
    if "remature" in reason or "Huffman code" in reason or _start_of_scan(data) == len(data):
        raise BadSample(path, f"truncated JPEG ({reason})", _REMEDY)
    # The other reasons are harmless faults, such as stray bytes between markers, and rare kinds of JPEG.
    return _decode_other(path, data, limit)


def _start_of_scan(content: bytes) -> int:
    """Return the position of a JPEG's coded pixels, after the header and the end marker of its thumbnail."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xDA:
            return at
        # A marker may be preceded by fill bytes 0xff; the markers 0x01 and 0xd0..0xd7 have no length.
        if marker == 0xFF:
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return min(at, len(content))


def _decode_png(path: Path | str, data: bytes, flags: int, limit: int | None) -> np.ndarray:
    # torchvision's decoder aborts the process on a bad checksum.
    _check_png_end(path, data)
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    check_pixels(path, (height, width), limit)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise BadSample(path, "corrupt PNG: its data cannot be decoded", _REMEDY)
    return image


def _check_png_end(path: Path | str, data: bytes) -> None:
    if data[-8:-4] != b"IEND" and data.rfind(b"IEND") < 0:
        raise BadSample(path, "truncated PNG: the end of the image is missing", _REMEDY)


def _decode_other(path: Path | str, data: bytes, limit: int | None) -> np.ndarray:
    return _as_rgb(path, _open(path, data), limit)


def _as_rgb(path: Path | str, image: Image.Image, limit: int | None) -> np.ndarray:
    if image.mode.startswith("I;16"):
        gray = (_pixels(path, image, limit) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise BadSample(path, "the range of 32-bit pixels is unknown", "convert it to 8 or 16 bits")
    return _pixels(path, image, limit, "RGB")


def _open(path: Path | str, data: bytes | None = None) -> Image.Image:
    if data is None and Path(path).is_file() and not Path(path).stat().st_size:
        raise BadSample(path, "the file is empty (0 bytes)")
    try:
        return Image.open(path if data is None else BytesIO(data))
    except _PIL_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise _unreadable(path, error) from None
        raise BadSample(path, "not an image (or of a format that cannot be read)") from None


def _pixels(
    path: Path | str, image: Image.Image, limit: int | None = None, mode: str | None = None
) -> np.ndarray:
    """Decode the pixels, and convert them to ``mode`` if given; raise `BadSample` if there are more than ``limit``."""
    check_pixels(path, (image.height, image.width), limit)
    try:
        return np.array(image.convert(mode) if mode else image)
    except _PIL_ERRORS as error:
        raise BadSample(path, f"corrupt {image.format} ({error})", _REMEDY) from None


def _no_indices(path: Path | str, found: str, colours: Mapping[Colour, int] | None) -> BadSample:
    fault = f"a mask must hold class indices but this one has {found}"
    fix = "save it as an 8-bit or palette PNG"
    if colours is not None:
        fix += ", or list its colours in labelmap.txt, one class per line as name:r,g,b::"
    return BadSample(path, fault, fix)


def _orientation(image: Image.Image) -> int:
    # PIL would decode the whole PNG to find EXIF data after the pixels. No camera writes EXIF data there.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _PIL_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rotated_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
