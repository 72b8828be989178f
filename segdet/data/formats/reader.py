"""The interface between dataset formats and tasks.

A reader hides the format of a dataset from `segdet.data.dataset.TaskDataset`, which makes the samples of a task.
"""

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from segdet.data.cleaning import describe_box
from segdet.data.faults import Fault
from segdet.data.images import MAX_PIXELS, read_image
from segdet.data.sample import Objects, TaskName
from segdet.util.cores import usable_cores


class KnownClasses(NamedTuple):
    """Known classes. A reader matches its own classes to them by name.

    Attributes:
        ids: The category id of each name, label 1 first.
        origin: Their origin for messages, such as an annotation file.
    """

    ids: dict[str, int]
    origin: str


class Reader(ABC):
    """The annotated images of one split of a dataset.

    Attributes:
        class_names: Names of the object classes, label 1 first.
        mask_names: Names of the mask values 0..C-1, with ``background`` first if the format has one (Cityscapes has
            none).
        category_ids: The format's own id of each object class, as written to results files.
        annotated: False for images without annotations, which are for prediction only.
        states_classes: Whether class names and ids come from the dataset. If not, the model's are used.
        palette_masks: Whether the format's mask files have VOC's palette; if not, they are plain grayscale.
        states_masks: Whether the dataset itself states the classes of its masks. If so, each class should occur in a
            mask.
        max_pixels: The largest number of pixels of an image or mask that is decoded.
    """

    annotated: bool = True
    states_classes: bool = True
    palette_masks: bool = True
    states_masks: bool = False
    max_pixels: int = MAX_PIXELS

    class_names: list[str]
    mask_names: list[str]
    category_ids: list[int]

    @property
    def mask_values(self) -> list[int]:
        """The value of each of `mask_names` in the format's mask files."""
        return list(range(len(self.mask_names)))

    @property
    def mask_encoding(self) -> list[Any]:
        """The settings that determine the class of each value in a mask file, as plain values for cache keys."""
        return [self.mask_names, self.mask_values]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images, including those without objects."""

    @abstractmethod
    def image_path(self, index: int) -> Path:
        """Return the file of image ``index``."""

    def image(self, index: int) -> np.ndarray:
        """Read image ``index``: uint8 ``[H, W, 3]`` RGB; see `segdet.data.images.read_image`.

        Raises:
            BadSample: If the file is missing, corrupt, not an image or larger than `max_pixels`.
        """
        path, size = self.image_path(index), self.declared_size(index)
        return read_image(path, size, self.upright(index), self.max_pixels)

    def upright(self, index: int) -> bool:
        """Return whether to apply the EXIF rotation unconditionally, because no annotation states the image size."""
        return False

    def image_id(self, index: int) -> int:
        """Return the id of image ``index`` in results files: ``index + 1``, unless the format has its own ids."""
        return index + 1

    @abstractmethod
    def declared_size(self, index: int) -> tuple[int, int] | None:
        """Return the ``(height, width)`` that the annotation states, or None."""

    @abstractmethod
    def objects(self, index: int) -> Objects:
        """Return the objects of image ``index``, as annotated.

        Raises:
            BadSample: If the annotation is missing or cannot be read.
        """

    @abstractmethod
    def mask(self, index: int) -> np.ndarray:
        """Return the class of each pixel of image ``index``: uint8 ``[H, W]``, 0..C-1, 255 = ignore.

        Raises:
            BadSample: If the mask is missing, corrupt, or has a value that is not a class.
        """

    @abstractmethod
    def annotation_paths(self, index: int, task: TaskName) -> list[Path]:
        """Return the annotation files that ``task`` reads for image ``index``, for fingerprints and messages."""

    def describe_object(self, index: int, row: int) -> str:
        """Describe object ``row`` of image ``index`` for a message, with its class and its box as written."""
        image = self.image_path(index)
        annotation = next(iter(self.annotation_paths(index, "detection")), image)
        where = "" if annotation.stem == image.stem else f"image {image.name}: "
        objects = self.objects(index)
        return where + describe_box(objects.boxes[row], int(objects.labels[row]), self.class_names)

    def file_faults(self) -> list[Fault]:
        """Return the faults of files that several samples share, and assumptions about the dataset."""
        return []

    def unused_class_remedy(self, unused: Sequence[int]) -> str:
        """Return advice for masks with ignored pixels in which the classes ``unused`` have no pixels, or ''."""
        return ""

    def faults(self, index: int, task: TaskName) -> Iterator[Fault]:
        """Yield all faults of the annotation of sample ``index`` that only a reader of this format can detect."""
        return iter(())


Result = TypeVar("Result")


def for_each_sample(
    reader: Reader,
    function: Callable[[Reader, int], Result],
    description: str,
    workers: int | None = None,
    indices: Sequence[int] | None = None,
    delay: float = 0.5,
) -> list[Result]:
    """Call ``function(reader, index)`` for the samples of a reader in several threads, with a progress bar.

    Args:
        reader: The reader. Each thread uses its own copy, because a reader may cache the file it read last.
        function: The function to call.
        description: Label of the progress bar.
        workers: Threads; by default one per core, at most 16.
        indices: The samples; all by default.
        delay: Seconds before the progress bar appears.

    Returns:
        The results in the order of the samples.
    """
    chosen = range(len(reader)) if indices is None else indices
    local = threading.local()

    def call(index: int) -> Result:
        if not hasattr(local, "reader"):
            local.reader = copy.copy(reader)
        return function(local.reader, index)

    with ThreadPoolExecutor(workers or min(16, usable_cores())) as pool:
        results = pool.map(call, chosen)
        return list(tqdm(results, description, len(chosen), unit=" images", delay=delay))
