"""How often each class occurs in the masks of a training set, counted once and kept."""

from dataclasses import dataclass

import numpy as np

from segdet.data.dataset import TaskDataset
from segdet.data.formats.reader import Reader, for_each_sample
from segdet.data.sample import IGNORE
from segdet.util.disk_cache import cached, files_key
from segdet.util.errors import BadSample

KIND = "class_frequency"


@dataclass(frozen=True)
class ClassFrequency:
    """The pixels of a set of masks, as they are on disk.

    Attributes:
        pixels: int64 ``[C]``, the pixels of each class.
        pixels_where: int64 ``[C]``, all pixels, those to ignore included, of the images in which the class occurs.
    """

    pixels: np.ndarray
    pixels_where: np.ndarray


def class_frequency(dataset: TaskDataset) -> ClassFrequency:
    """Counts the masks of a segmentation dataset's images, or remembers what was counted of the same files.

    A progress bar shows when it takes more than two seconds. A mask that cannot be read stops it, unless
    the dataset skips such samples.

    Raises:
        BadSample: If a mask is missing, torn or holds a value that is no class.
    """
    reader, indices = dataset.reader, dataset.indices.tolist()
    skip = dataset.on_bad_sample == "skip"
    classes = len(reader.mask_names)

    def count(own: Reader, index: int) -> np.ndarray:
        try:
            return np.bincount(own.mask(index).ravel(), minlength=IGNORE + 1)
        except BadSample as error:
            if not skip:
                raise error.or_skip() from error
            return np.zeros(IGNORE + 1, np.int64)  # listed at the end, when its turn comes in training

    def compute() -> dict[str, np.ndarray]:
        found = for_each_sample(reader, count, "counting classes", indices=indices, delay=2.0)
        counts = np.stack(found).astype(np.int64)
        pixels = counts[:, :classes]
        return {"pixels": pixels.sum(0), "pixels_where": (pixels > 0).T.astype(np.int64) @ counts.sum(1)}

    key = files_key(
        (path for index in indices for path in reader.annotation_paths(index, "segmentation")),
        type(reader).__name__,
        # Several images may share one annotation file, of which only some were asked for.
        [reader.image_path(index).name for index in indices],
        reader.mask_names,
        getattr(reader, "ignore_index", IGNORE),
        skip,
    )
    return ClassFrequency(**cached(KIND, key, compute))
