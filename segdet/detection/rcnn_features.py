"""The features of the proposals of training images, kept on disk between two stages of a training.

An image has one ``.npz`` file, which appears only when it is complete: what an interruption leaves is used by
the run that goes on. All files of a folder are of one network; those of another are removed.
"""

from __future__ import annotations

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

from segdet.util.errors import UserError
from segdet.util.files import unwritable, write_atomically

_HEADERS = 2500
"""About how many bytes of a file are names and shapes."""


@dataclass
class ImageFeatures:
    """What is kept of an image: first its objects, then its proposals, R regions in all.

    What nobody is going to read is empty: of the regions where no machines are trained, of the pairs where there is
    no box regression.

    Attributes:
        features: float16 ``[R, D]``, what the classifier sees.
        overlaps: float16 ``[R, K]``, the greatest IoU with an object of each class.
        labels: int64 ``[G]``, 1..K, of the objects, which are the first G regions.
        pairs: int64 ``[M]``, the regions that the box regression learns from, by their places among all.
        pair_features: float16 ``[M, P]``, what it sees of them.
        pair_labels: int64 ``[M]``, the class of the object that each overlaps most.
        pair_offsets: float32 ``[M, 4]``, from the region to that object.
    """

    features: np.ndarray
    overlaps: np.ndarray
    labels: np.ndarray
    pairs: np.ndarray
    pair_features: np.ndarray
    pair_labels: np.ndarray
    pair_offsets: np.ndarray


def bytes_of(
    regions: np.ndarray, pairs: np.ndarray, features: int, classes: int, pair_features: int
) -> np.ndarray:
    """The bytes of images' files.

    Args:
        regions: R of each image, int64 ``[N]``; labels are counted as if each were an object.
        pairs: M of each, int64 ``[N]``.
        features: D.
        classes: K.
        pair_features: P.

    Returns:
        int64 ``[N]``.
    """
    return _HEADERS + regions * (2 * features + 2 * classes + 8) + pairs * (2 * pair_features + 32)


_FIX = "free disk space, then resume the run"


class FeatureFolder:
    """The files of the images at some positions of a dataset.

    Args:
        folder: Where they are.
        key: Of the network and the settings that they are made by.
        positions: The images.
    """

    def __init__(self, folder: Path, key: str, positions: Sequence[int]) -> None:
        self.folder = folder / key
        self.positions = list(positions)

    def prepare(self) -> None:
        """Makes the folder, and removes what another network left beside it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for other in self.folder.parent.iterdir():
                if other != self.folder and other.is_dir():
                    shutil.rmtree(other, ignore_errors=True)  # another process may be at it, too
        except OSError as error:
            raise unwritable(self.folder, error, _FIX) from error

    def missing(self, process: int = 0, processes: int = 1) -> list[int]:
        """The positions whose files are not there, of those that are this process' to write.

        Which these are does not hang on what others have written by then: no two processes are at one file.
        """
        return [each for each in self.positions[process::processes] if not self._file(each).exists()]

    def write(self, position: int, image: ImageFeatures) -> None:
        """Writes an image's file, whole or not at all."""
        file = self._file(position)
        with (
            write_atomically(file, _FIX, parents=True, sync=False) as temporary,
            temporary.open("wb") as stream,
        ):
            np.savez(stream, **{each.name: getattr(image, each.name) for each in fields(image)})

    def read(self, *names: str) -> Iterator[tuple[np.ndarray, ...]]:
        """The arrays of these names of all images, in the order of their positions.

        Raises:
            UserError: If a file is torn.
        """
        for position in self.positions:
            file = self._file(position)
            try:
                with np.load(file, allow_pickle=False) as arrays:
                    values = tuple(arrays[name] for name in names)
            except FileNotFoundError:
                continue  # an image that could not be read
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise UserError(f"{file}: torn; remove it and go on with the run") from error
            yield values

    def pairs(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """``pair_features`` and ``pair_offsets`` of all images of a class alone.

        The features of all classes together may be more than the memory holds.
        """
        features, offsets = [], []
        for position, (labels,) in zip(self.present(), self.read("pair_labels"), strict=True):
            if (mine := labels == label).any():
                with np.load(self._file(position), allow_pickle=False) as arrays:
                    features.append(arrays["pair_features"][mine])
                    offsets.append(arrays["pair_offsets"][mine])
        if not features:
            return np.zeros((0, 0), np.float16), np.zeros((0, 4), np.float32)
        return np.concatenate(features), np.concatenate(offsets)

    def present(self) -> list[int]:
        """The positions whose files are there."""
        return [position for position in self.positions if self._file(position).exists()]

    def tell(self, expected: int, images: int) -> None:
        """Says beforehand what ``images`` images will take, and refuses where there is not so much room."""
        free = shutil.disk_usage(self.folder).free
        said = f"the features of {images:,} images take up to about {expected / 1e6:,.1f} MB in {self.folder}"
        if expected > free:
            raise UserError(
                f"{said}, where {free / 1e6:,.0f} MB are free; make room, or give a smaller --model.svm_images or "
                "--data.max_proposals, or --model.classifier softmax"
            )
        sys.stderr.write(f"segdet: {said}\n")

    def size(self) -> int:
        """The bytes that the files take."""
        return sum(file.stat().st_size for file in self.folder.glob("*/*.npz"))

    def _file(self, position: int) -> Path:
        return self.folder / f"{position // 1000:04d}" / f"{position:07d}.npz"


def key_of_network(modules: Sequence[nn.Module], settings: str) -> str:
    """A key of the weights of modules and of settings: 16 hexadecimal digits."""
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
