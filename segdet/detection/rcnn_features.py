"""Features of region proposals on disk, between two stages of R-CNN's training.

Each image has one ``.npz`` file. Files are written atomically, and an interrupted run resumes with the files that
exist. All files of a folder come from the same weights and settings; files of other weights or settings are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segdet.data.dataset import TaskDataset
from segdet.util.errors import BadSample, UserError
from segdet.util.files import unwritable, write_atomically
from segdet.util.nouns import counted

_HEADER_BYTES = 2500
"""The approximate size in bytes of the names and shapes in a file."""

_SAMPLE = 50
"""The number of images from which the disk space is estimated."""

_FIX = "free disk space, then resume the run"


@dataclass
class ImageFeatures:
    """The features of one image: R regions, first the objects and then the proposals.

    Without SVMs, the arrays with one row per region are empty. Without box regression, the arrays of pairs are empty.
    """

    features: np.ndarray  # float16 [R, D], fc7 features
    overlaps: np.ndarray  # float16 [R, K], the maximum IoU with an object of each class
    labels: np.ndarray  # int64 [G], the labels 1..K of the objects; these are the first G regions
    pairs: np.ndarray  # int64 [M], the indices of the regions for box regression
    pair_features: np.ndarray  # float16 [M, P], their pool5 features
    pair_labels: np.ndarray  # int64 [M], the class of the object of highest IoU
    pair_offsets: np.ndarray  # float32 [M, 4], the offsets of that object from the region


class FeatureFolder:
    """The feature files of images of a dataset.

    Args:
        folder: The folder of all features of the run.
        key: A digest of the weights and settings, see `key_of_network`.
        positions: The positions of the images in the dataset.
    """

    def __init__(self, folder: Path, key: str, positions: Sequence[int]) -> None:
        self.folder = folder / key
        self.positions = list(positions)

    def prepare(self) -> None:
        """Create the folder, and remove the features of other weights or settings."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for other in self.folder.parent.iterdir():
                if other != self.folder and other.is_dir():
                    shutil.rmtree(other, ignore_errors=True)  # another process may remove it at the same time
        except OSError as error:
            raise unwritable(self.folder, error, _FIX) from error

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Return the positions in the share of one process that have no file.

        The shares do not depend on which files exist, so that no two processes write the same file.
        """
        return [each for each in self.positions[rank::world_size] if not self._file(each).exists()]

    def present(self) -> list[int]:
        """Return the positions that have a file."""
        return [position for position in self.positions if self._file(position).exists()]

    def check_space(self, expected: int, images: int) -> None:
        """Print the expected size of the features of ``images`` images.

        Raises:
            UserError: If the free disk space does not suffice.
        """
        free = shutil.disk_usage(self.folder).free
        line = f"the features of {counted(images, 'image')} take up to about {expected / 1e6:,.1f} MB in {self.folder}"
        if expected > free:
            raise UserError(
                f"{line}, where {free / 1e6:,.0f} MB are free; free disk space, or give a smaller --model.svm_images "
                "or --data.max_proposals, or --model.classifier softmax"
            )
        sys.stderr.write(f"segdet: {line}\n")

    def size(self) -> int:
        """Return the size of the files in bytes."""
        return sum(file.stat().st_size for file in self.folder.glob("*/*.npz"))

    def write(self, position: int, image: ImageFeatures) -> None:
        """Write the file of an image atomically."""
        file = self._file(position)
        with (
            write_atomically(file, _FIX, parents=True, sync=False) as temporary,
            temporary.open("wb") as stream,
        ):
            np.savez(stream, **{each.name: getattr(image, each.name) for each in fields(image)})

    def read(self, *names: str) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the named arrays of each image, in the order of the positions.

        Raises:
            UserError: If a file is corrupt.
        """
        for position in self.positions:
            file = self._file(position)
            try:
                with np.load(file, allow_pickle=False) as arrays:
                    values = tuple(arrays[name] for name in names)
            except FileNotFoundError:
                continue  # the image could not be read
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise UserError(f"{file}: the file is corrupt; remove it, then resume the run") from error
            yield values

    def pairs(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ``pair_features`` and ``pair_offsets`` of one class, for all images.

        The features are read class by class, because those of all classes may exceed the memory.
        """
        features, offsets = [], []
        for position, (labels,) in zip(self.present(), self.read("pair_labels"), strict=True):
            if (of_class := labels == label).any():
                with np.load(self._file(position), allow_pickle=False) as arrays:
                    features.append(arrays["pair_features"][of_class])
                    offsets.append(arrays["pair_offsets"][of_class])
        if not features:
            return np.zeros((0, 0), np.float16), np.zeros((0, 4), np.float32)
        return np.concatenate(features), np.concatenate(offsets)

    def _file(self, position: int) -> Path:
        return self.folder / f"{position // 1000:04d}" / f"{position:07d}.npz"


def file_bytes(
    regions: np.ndarray, pairs: np.ndarray, width: int, classes: int, pair_width: int
) -> np.ndarray:
    """Return the size in bytes of the files of N images, int64 ``[N]``; see `ImageFeatures`.

    ``regions`` and ``pairs`` are R and M of each image, int64 ``[N]``; ``width``, ``classes`` and ``pair_width`` are
    D, K and P. Labels are counted as if each region were an object.
    """
    return _HEADER_BYTES + regions * (2 * width + 2 * classes + 8) + pairs * (2 * pair_width + 32)


def region_counts(dataset: TaskDataset) -> np.ndarray:
    """Return the number of regions (objects and proposals) in each of N evenly spaced images: int64 ``[N]``."""
    assert dataset.proposals is not None
    counts = []
    sample = np.linspace(0, len(dataset) - 1, min(len(dataset), _SAMPLE)).round().astype(int)
    for place in np.unique(sample):
        index = int(dataset.indices[place])
        with contextlib.suppress(BadSample):  # reported or skipped when the image is read
            proposals = min(len(dataset.proposals.boxes(index)), dataset.max_proposals)
            counts.append(len(dataset.reader.objects(index)) + proposals)
    return np.array(counts or [0])


def key_of_network(modules: Sequence[nn.Module], settings: str) -> str:
    """Return a digest of the weights of modules and of settings: 16 hexadecimal digits."""
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
