"""Class frequencies in the masks of a training set, counted once and cached."""

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
    """Pixel counts of a set of masks, as stored on disk.

    Attributes:
        pixels: int64 ``[C]``, pixels per class.
        pixels_where: int64 ``[C]``, pixels (including ignored ones) of all images that contain the class.
    """

    pixels: np.ndarray
    pixels_where: np.ndarray


def class_frequency(dataset: TaskDataset) -> ClassFrequency:
    """Count the pixels of each class in a segmentation dataset, or read the counts of the same files from the cache.

    Raises:
        BadSample: If a mask is missing, corrupt or has a value that is not a class, unless the dataset skips bad
            samples.
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
            return np.zeros(IGNORE + 1, np.int64)  # reported when it is read in training

    def compute() -> dict[str, np.ndarray]:
        found = for_each_sample(reader, count, "counting classes", indices=indices, delay=2.0)
        counts = np.stack(found).astype(np.int64)
        pixels = counts[:, :classes]
        return {"pixels": pixels.sum(0), "pixels_where": (pixels > 0).T.astype(np.int64) @ counts.sum(1)}

    key = files_key(
        (path for index in indices for path in reader.annotation_paths(index, "segmentation")),
        type(reader).__name__,
        # Images may share one annotation file, and `indices` may select some of them.
        [reader.image_path(index).name for index in indices],
        reader.mask_encoding,
        skip,
    )
    return ClassFrequency(**cached(KIND, key, compute))
