"""Small copies of some test images in a run's folder, so that a report can show them without the dataset.

::

    per_image/gallery/
        0.jpg               an image, its longer side reduced to 640 pixels
        0.truth.png         the true classes, an index PNG of the same size; for segmentation
        0.predicted.png     the predicted classes
        gallery.json        the file name, id and scale of each image

All runs that are tested on the same images copy the same ones, in the same order. Reading the gallery does not import
torch.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segdet.util.colours import voc_palette
from segdet.util.errors import UserError
from segdet.util.files import create_folder_atomically, unwritable
from segdet.util.write_guard import check_writable

GALLERY_FOLDER = "per_image/gallery"
"""The path of the gallery in a run's folder."""

MOST_IMAGES = 24
"""The maximum number of images in a gallery."""

LONGEST_SIDE = 640
"""The maximum length of the longer side of a picture, in pixels."""

_INDEX = "gallery.json"
_QUALITY = 85


@dataclass(frozen=True)
class GalleryImage:
    """An image of a gallery.

    Attributes:
        index: The number of its files.
        image_id: The id of the image, as in the evidence.
        file_name: The image file, as in the evidence.
        scale: The height and width of the picture divided by those of the image on disk.
    """

    index: int
    image_id: int
    file_name: str
    scale: float

    @property
    def picture(self) -> str:
        """The file name of the picture."""
        return f"{self.index}.jpg"

    @property
    def truth(self) -> str:
        """The file name of the true classes, for segmentation."""
        return f"{self.index}.truth.png"

    @property
    def predicted(self) -> str:
        """The file name of the predicted classes, for segmentation."""
        return f"{self.index}.predicted.png"


@dataclass(frozen=True)
class Pictures:
    """The pictures of an image, all of the same size.

    Attributes:
        picture: uint8 ``[h, w, 3]`` RGB.
        truth: uint8 ``[h, w]``, the true classes, 255 where ignored; None if the task has no masks.
        predicted: uint8 ``[h, w]``, the predicted classes; None if the task has no masks.
    """

    picture: np.ndarray
    truth: np.ndarray | None = None
    predicted: np.ndarray | None = None


def gallery_order(file_name: str) -> str:
    """Return the key by which the images of a gallery are chosen: the first `MOST_IMAGES` in its order.

    It depends on nothing but the name, so that all runs choose the same images, spread over the dataset.
    """
    return hashlib.sha256(file_name.encode("utf-8", "surrogatepass")).hexdigest()


def picture_size(size: tuple[int, int]) -> tuple[tuple[int, int], float]:
    """Return the ``(height, width)`` of the picture of an image of ``size``, and its scale."""
    scale = min(1.0, LONGEST_SIDE / max(size))
    return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), scale


def write_gallery(folder: Path, images: Sequence[tuple[GalleryImage, Pictures]]) -> None:
    """Replace the gallery in ``folder``.

    Raises:
        UserError: If a file cannot be written.
    """
    check_writable(folder)
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    with create_folder_atomically(folder) as temporary:
        for image, pictures in images:
            Image.fromarray(pictures.picture).save(temporary / image.picture, quality=_QUALITY)
            for name, mask in ((image.truth, pictures.truth), (image.predicted, pictures.predicted)):
                if mask is not None:
                    indexed = Image.fromarray(mask)
                    indexed.putpalette(voc_palette().tobytes())
                    indexed.save(temporary / name)
        content = json.dumps([asdict(image) for image, _ in images], indent=1, ensure_ascii=False)
        (temporary / _INDEX).write_text(content + "\n", encoding="utf-8", errors="surrogatepass")
        check_writable(folder)


def read_gallery(folder: Path) -> list[GalleryImage]:
    """Return the images of the gallery in ``folder``; an empty list if there is none.

    Raises:
        UserError: If the index of the gallery is corrupt or cannot be read.
    """
    path = folder / _INDEX
    try:
        entries = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
        return [
            GalleryImage(
                int(each["index"]), int(each["image_id"]), str(each["file_name"]), float(each["scale"])
            )
            for each in entries
        ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); make the file readable"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: corrupt, or not a gallery ({error}); run segdet test again") from None
