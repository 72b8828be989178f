"""What a dataset format has to say of its files: the one interface between formats and tasks.

A reader knows a format and no task; `segdet.data.dataset.TaskDataset` knows the tasks and no format.
Three readers and three tasks therefore make nine combinations without nine classes.
"""

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from segdet.data.sample import Objects, Task
from segdet.util.cores import usable_cores
from segdet.util.errors import UserError


class Reader(ABC):
    """The annotated images of one split of one dataset.

    Attributes:
        class_names: The names of the object classes, label 1 first.
        mask_names: The names of the mask values 0..C-1 (with ``background`` first where the format has
            one; Cityscapes has none).
        category_ids: The format's own id of each object class, which results files are written with.
        annotated: False for plain images, which only prediction can use.
        states_classes: Whether the classes and their ids are the dataset's own; else they are those of the network.
        palette_masks: Whether the format's own mask files have VOC's palette; plain grayscale if not.
    """

    annotated: bool = True
    states_classes: bool = True
    palette_masks: bool = True

    class_names: list[str]
    mask_names: list[str]
    category_ids: list[int]

    @property
    def mask_values(self) -> list[int]:
        """The value that the format's own mask files have for each of `mask_names`."""
        return list(range(len(self.mask_names)))

    @abstractmethod
    def __len__(self) -> int:
        """The number of images, those without any object included."""

    @abstractmethod
    def image_path(self, index: int) -> Path:
        """The file of image ``index``."""

    def upright(self, index: int) -> bool:
        """Whether the image is turned as its EXIF says in any case, since no annotation states its size."""
        return False

    def image_id(self, index: int) -> int:
        """The id of image ``index`` in results files: its position counted from 1, unless the format has ids."""
        return index + 1

    @abstractmethod
    def declared_size(self, index: int) -> tuple[int, int] | None:
        """``(height, width)`` as the annotation states it, or None where it does not."""

    @abstractmethod
    def objects(self, index: int) -> Objects:
        """The objects of image ``index``, as annotated.

        Raises:
            BadSample: If the annotation is missing or cannot be read.
        """

    @abstractmethod
    def mask(self, index: int) -> np.ndarray:
        """The class of every pixel of image ``index``: uint8 ``[H, W]``, 0..C-1 and 255 to ignore.

        Raises:
            BadSample: If the mask is missing, torn or holds a value that is no class.
        """

    @abstractmethod
    def annotation_paths(self, index: int, task: Task) -> list[Path]:
        """The annotation files that ``task`` reads for image ``index`` (for fingerprints and messages)."""

    def faults(self, index: int, task: Task) -> Iterator[tuple[Path, str, bool]]:
        """What only this format can find wrong with sample ``index``: ``(file, fault, fatal)`` each."""
        return iter(())


Found = TypeVar("Found")


def for_each_sample(
    reader: Reader,
    look: Callable[[Reader, int], Found],
    doing: str,
    workers: int | None = None,
    indices: Sequence[int] | None = None,
    delay: float = 0.5,
) -> list[Found]:
    """What ``look`` finds of every sample of a reader, in order, in parallel, with a progress bar.

    Args:
        reader: The split.
        look: Is given a reader and an index.
        doing: What the progress bar says.
        workers: Threads; by default as many as there are cores, at most 16.
        indices: The samples to look at; all by default.
        delay: Seconds after which the progress bar shows.
    """
    chosen = range(len(reader)) if indices is None else indices
    # Each thread has its own copy, since a reader may remember the file that it read last.
    own = threading.local()

    def look_at(index: int) -> Found:
        if not hasattr(own, "reader"):
            own.reader = copy.copy(reader)
        return look(own.reader, index)

    with ThreadPoolExecutor(workers or min(16, usable_cores())) as pool:
        found = pool.map(look_at, chosen)
        return list(tqdm(found, doing, len(chosen), unit=" images", delay=delay))


def names_from(file: Path | str, root: Path) -> list[str]:
    """The names in a text file, one on each line; it is looked for in ``root`` first.

    Raises:
        UserError: If the file cannot be read, names nothing, or names something twice.
    """
    inside = root / file
    path = inside if inside.is_file() else Path(file)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file of class names; give a list such as [cat, dog], or a file that is there"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as class names ({error}); save it as UTF-8 text") from None
    return checked_names([line.strip() for line in lines if line.strip()], str(path))


def checked_names(names: list[str], origin: str) -> list[str]:
    """``names`` as they are; a `UserError` that says ``origin`` where there are none, or one is there twice."""
    if not names:
        raise UserError(f"{origin}: no class is named; write one name for each class")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{origin}: the class {repeated[0]!r} is named twice; name each class once")
    return names
