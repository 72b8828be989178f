"""Convert images in memory, and image files, to arrays."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segdet.data.images import image_as_rgb, read_image
from segdet.util.errors import UserError

ImageLike = Path | str | Image.Image | np.ndarray | Tensor
"""An image in memory, or the path of an image file."""


def as_rgb(image: ImageLike) -> np.ndarray:
    """Return the pixels of an image: uint8 ``[H, W, 3]``, RGB.

    Args:
        image: A path or a PIL image (an EXIF rotation is applied), an array uint8 ``[H, W, 3]``, or a tensor uint8
            ``[3, H, W]``.

    Raises:
        BadSample: If the file cannot be read.
        UserError: If the image has another type or shape, or is empty.
    """
    pixels = _as_rgb(image)
    if not pixels.size:
        raise UserError(f"image: {pixels.shape[1]}x{pixels.shape[0]} pixels; give an image that is not empty")
    return pixels


def _as_rgb(image: ImageLike) -> np.ndarray:
    if isinstance(image, Path | str):
        return read_image(image, upright=True)
    if isinstance(image, Image.Image):
        return image_as_rgb(image)
    if isinstance(image, Tensor):
        if image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
            return image.permute(1, 2, 0).contiguous().cpu().numpy()
        raise UserError(f"image: a tensor {image.dtype} {list(image.shape)}; give uint8 [3, height, width]")
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"image: an object of type {type(image).__name__}; give a path, a PIL image, an array or a tensor"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"image: an array {image.dtype} {list(image.shape)}; give uint8 [height, width, 3], RGB"
        )
    return np.ascontiguousarray(image)
