import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from segdet.data.images import image_info, image_size, read_image, read_mask, read_png16
from segdet.util.errors import BadSample

SIZE = (40, 56)


@pytest.fixture
def photo() -> Image.Image:
    """A smooth image, which JPEG preserves, with four different quarters."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(small, SIZE[::-1], interpolation=cv2.INTER_CUBIC))


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def with_orientation(image: Image.Image, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, path, exif=exif, quality=95)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_pil(photo, tmp_path, mode, progressive):
    path = saved(photo.convert(mode), tmp_path / "a.jpg", quality=95, progressive=progressive)
    image = read_image(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert image.dtype == np.uint8 and image.shape == (*SIZE, 3) and image.flags.c_contiguous
    assert np.abs(image.astype(int) - expected).max() <= 2
    assert np.abs(image.astype(int) - np.asarray(photo.convert(mode).convert("RGB"))).mean() < 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_equals_pil(photo, tmp_path, mode):
    source = photo.convert(mode)
    if mode in ("RGBA", "LA"):
        source.putalpha(40)  # dropped, not blended with black
    path = saved(source, tmp_path / "a.png")
    assert np.array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("suffix", ["bmp", "tiff", "webp", "ppm"])
def test_other_formats(photo, tmp_path, suffix):
    path = saved(photo, tmp_path / f"a.{suffix}")
    assert np.array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_scaled_to_8(tmp_path, suffix):
    gray = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), gray)
    image = read_image(path)
    assert np.array_equal(image, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))
    assert image_info(path).bits == 16
    if suffix == "png":
        colours = np.stack([gray, gray[::-1], gray.T], axis=2)
        cv2.imwrite(str(path), colours)
        assert np.array_equal(read_image(path), (colours >> 8)[..., ::-1])
        assert image_info(path).bits == 16


def test_the_content_determines_the_format(photo, tmp_path):
    path = tmp_path / "really_a_png.jpg"
    photo.save(path, format="PNG")
    assert np.array_equal(read_image(path), np.asarray(photo))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(photo, tmp_path, orientation):
    path = with_orientation(photo, tmp_path / "a.jpg", orientation)
    stored = np.asarray(Image.open(path).convert("RGB"))
    turned = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert np.array_equal(read_image(path), stored)
    assert np.array_equal(read_image(path, declared_size=SIZE), stored)
    upright = read_image(path, upright=True)
    assert np.array_equal(upright, turned) and upright.flags.c_contiguous
    # The declared size is the rotated one only if the rotation swaps the sides.
    assert np.array_equal(read_image(path, declared_size=SIZE[::-1]), turned if orientation >= 5 else stored)
    assert image_info(path).orientation == orientation


def test_jpeg_with_stray_bytes_between_its_markers_is_read(photo, tmp_path):
    path = saved(photo, tmp_path / "a.jpg")
    expected = read_image(path)
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"stray" + data[-2:])
    assert np.array_equal(read_image(path), expected)


def test_a_square_image_is_not_rotated_for_its_declared_size(photo, tmp_path):
    path = with_orientation(photo.resize((40, 40)), tmp_path / "a.jpg", 6)
    assert np.array_equal(read_image(path, declared_size=(40, 40)), np.asarray(Image.open(path)))


def test_info_and_size_come_from_the_header(photo, tmp_path):
    path = saved(photo.convert("CMYK"), tmp_path / "a.jpg")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert image_size(path) == SIZE
    info = image_info(path)
    assert (info.size, info.mode, info.bits, info.orientation, info.format) == (SIZE, "CMYK", 8, 1, "JPEG")
    assert image_info(saved(photo.convert("1"), tmp_path / "a.png")).bits == 1


def expect_one_line(path: Path, fault: str, read=read_image) -> None:
    with pytest.raises(BadSample) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert fault in message.removeprefix(f"{path}: ")
    assert ".cpp" not in message


@pytest.mark.parametrize("read", [read_image, read_mask, image_size, image_info])
def test_missing_empty_and_other_files(tmp_path, read):
    expect_one_line(tmp_path / "none.jpg", "no such file", read)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    expect_one_line(empty, "empty (0 bytes)", read)
    page = tmp_path / "page.jpg"
    page.write_text("<html>404 not found</html>")
    expect_one_line(page, "not an image", read)
    (tmp_path / "folder.jpg").mkdir()
    expect_one_line(tmp_path / "folder.jpg", "cannot be read", read)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("fraction", [0.03, 0.5, 0.9, 0.999])
def test_truncated_jpeg(photo, tmp_path, fraction, progressive):
    whole = saved(
        photo.resize((560, 400)), tmp_path / "a.jpg", quality=95, progressive=progressive
    ).read_bytes()
    path = tmp_path / "truncated.jpg"
    path.write_bytes(whole[: int(len(whole) * fraction)])
    expect_one_line(path, "truncated JPEG")


def test_jpeg_without_its_end_marker_is_truncated(photo, tmp_path):
    whole = saved(photo, tmp_path / "a.jpg").read_bytes()
    path = tmp_path / "truncated.jpg"
    path.write_bytes(whole[:-2])
    expect_one_line(path, "truncated JPEG: the end of the image is missing")
    half = len(whole) * 3 // 4
    path.write_bytes(whole[:half] + bytes(len(whole) - half))
    expect_one_line(path, "truncated JPEG: the end of the image is missing")


def test_truncated_jpeg_with_a_complete_thumbnail(photo, tmp_path):
    thumbnail = io.BytesIO()
    photo.resize((28, 20)).save(thumbnail, "JPEG")
    body = saved(photo, tmp_path / "a.jpg").read_bytes()
    inside = b"\xff\xe5" + (len(thumbnail.getvalue()) + 2).to_bytes(2, "big") + thumbnail.getvalue()
    whole = body[:2] + inside + body[2:]
    path = tmp_path / "b.jpg"
    path.write_bytes(whole)
    assert np.array_equal(read_image(path), read_image(tmp_path / "a.jpg"))
    path.write_bytes(whole[:-40])
    expect_one_line(path, "truncated JPEG: the end of the image is missing")
    path.write_bytes(whole[: len(inside) + 2])
    expect_one_line(path, "truncated JPEG")


@pytest.mark.parametrize("tail", [b"\0", b"\n", b"trailer" * 3000])
def test_trailing_bytes_are_ignored(photo, tmp_path, tail):
    for name in ("a.jpg", "a.png"):
        path = saved(photo, tmp_path / name)
        expected = read_image(path)
        path.write_bytes(path.read_bytes() + tail)
        assert np.array_equal(read_image(path), expected)


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_truncated_png(photo, tmp_path, read, mode):
    whole = saved(photo.convert(mode), tmp_path / "a.png").read_bytes()
    path = tmp_path / "truncated.png"
    for length in (20, 60, len(whole) // 2, len(whole) - 13):
        path.write_bytes(whole[:length])
        expect_one_line(path, "truncated PNG" if length > 26 or read is read_image else "", read)


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_png_with_a_wrong_byte_is_refused(photo, tmp_path, read, mode):
    path = saved(photo.convert(mode), tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + len(data) // 4] ^= 255
    path.write_bytes(data)
    expect_one_line(path, "corrupt PNG", read)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["P", "L"])
def test_mask_values_are_the_stored_indices(tmp_path, bits, kind):
    values = np.random.default_rng(1).integers(0, 2**bits, (9, 13), dtype=np.uint8)
    if kind == "P":
        image = Image.frombytes("P", (13, 9), values.tobytes())
        image.putpalette([255 - i // 3 for i in range(3 * 2**bits)])
        path = saved(image, tmp_path / "m.png", bits=bits)
    else:
        path = tmp_path / "m.png"
        write_gray_png(path, values, bits)
    assert np.array_equal(read_mask(path), values)
    assert read_mask(path).dtype == np.uint8


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray_masks_in_another_pixel_format_are_read(tmp_path, mode, suffix):
    values = np.array([[0, 1, 255], [7, 0, 2]], np.uint8)
    gray = Image.fromarray(values)
    image = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else gray.convert(mode)
    assert image.mode == mode
    assert np.array_equal(read_mask(saved(image, tmp_path / f"m.{suffix}")), values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_masks_are_read_by_their_colours(tmp_path, mode):
    colours = {(0, 0, 0): 0, (48, 112, 32): 1, (176, 112, 32): 2}
    values = np.array([[2, 2, 0], [1, 0, 1]], np.uint8)
    table = np.array(list(colours), np.uint8)
    image = Image.fromarray(table[values]).convert(mode if mode != "P" else "RGB")
    if mode == "P":  # the index differs from the value
        image = Image.frombytes("P", (3, 2), (values + 5).tobytes())
        image.putpalette([0] * 15 + table.ravel().tolist())
    path = saved(image, tmp_path / "m.png")
    assert np.array_equal(read_mask(path, colours=colours), values)
    del colours[176, 112, 32]
    if mode == "P":  # its indices have a meaning of their own
        assert np.array_equal(read_mask(path, colours=colours), values + 5)
    else:
        expect_one_line(
            path, "the colour 176,112,32 has no class", lambda file: read_mask(file, colours=colours)
        )


def write_gray_png(path: Path, values: np.ndarray, bits: int) -> None:
    """Write a grayscale PNG of fewer than 8 bits, which PIL cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    each = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(len(values), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(each, axis=1))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_masks_without_indices_are_refused(photo, tmp_path):
    for mode in ("RGB", "RGBA", "LA"):
        image = photo.convert(mode)
        if mode == "LA":
            image.putpixel((0, 0), (1, 254))
        path = saved(image, tmp_path / f"{mode}.png")
        expect_one_line(path, "a mask must hold class indices", read_mask)
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), np.full((4, 5), 300, np.uint16))
    expect_one_line(deep, "value 300 of a mask is not in 0..255", read_mask)
    cv2.imwrite(str(tmp_path / "deep_rgb.png"), np.full((4, 5, 3), 300, np.uint16))
    expect_one_line(tmp_path / "deep_rgb.png", "16-bit RGB", read_mask)
    expect_one_line(saved(photo.convert("L"), tmp_path / "m.jpg"), "JPEG changes values", read_mask)
    expect_one_line(saved(photo, tmp_path / "m.bmp"), "this one has the colours", read_mask)
    expect_one_line(saved(photo.convert("CMYK"), tmp_path / "m.tif"), "mode CMYK", read_mask)
    assert np.array_equal(read_png16(deep), np.full((4, 5), 300))
    with pytest.raises(BadSample, match="not a grayscale PNG"):
        read_png16(tmp_path / "RGB.png")


def test_real_photos_are_equal_to_pil(real_data):
    for path in sorted((real_data / "tiny_coco" / "val2017").glob("*.jpg"))[:12]:
        difference = np.abs(read_image(path).astype(int) - np.asarray(Image.open(path).convert("RGB")))
        assert difference.max() <= 1


def bomb(path: Path, width: int, height: int, colours: int = 2) -> Path:
    """Write the start and the end of a PNG whose header states a size, without its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("reader", [read_image, read_mask, read_png16])
def test_a_decompression_bomb_is_reported_in_one_line(tmp_path, reader):
    path = bomb(tmp_path / "a.png", 40_000, 30_000, colours=2 if reader is read_image else 0)
    with pytest.raises(BadSample) as caught:
        reader(path)
    assert str(caught.value) == (
        f"{path}: is 40000x30000, which is more than 178,956,970 pixels; "
        "scale it down, or give a larger --data.max_pixels (segdet data: --max_pixels)"
    )
    assert image_size(path) == (30_000, 40_000)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_the_limit_of_pixels_applies_to_every_format(photo, tmp_path, suffix):
    path = saved(photo, tmp_path / f"a.{suffix}")
    pixels = SIZE[0] * SIZE[1]
    with pytest.raises(BadSample, match=r"is 56x40, which is more than 2,239 pixels"):
        read_image(path, max_pixels=pixels - 1)
    for limit in (pixels, None):
        assert read_image(path, max_pixels=limit).shape == (*SIZE, 3)


def test_png_that_opencv_refuses_is_reported_in_one_line(tmp_path):
    path = bomb(tmp_path / "a.png", 40_000, 30_000)
    with pytest.raises(BadSample, match="corrupt PNG: its data cannot be decoded"):
        read_image(path, max_pixels=None)
