"""What all proposers have in common: an image in, ranked boxes out, and settings that name a cache."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from segdet.data.proposer import ImageProposals, ProposalSource

if TYPE_CHECKING:
    from segdet.data.formats.reader import Reader


class Proposer(ProposalSource):
    """Says where something may be: called with an image, it gives boxes, the most promising first.

    A proposer is a frozen dataclass whose fields are its settings. Equal settings give equal boxes of
    equal pixels, on which the cache relies: what is random comes from a seed among the settings.

    Attributes:
        version: Of the algorithm. Raised when the boxes change, so that older ones in a cache are not used.
    """

    version: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The proposals of one image.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.

        Returns:
            Boxes float32 ``[N, 4]``, xyxy in pixels, without duplicates and within the image, and their
            scores float32 ``[N]``, best first. No score compares with one of another image.
        """

    def open(
        self, reader: Reader, indices: Sequence[int] | np.ndarray, workers: int | None = None
    ) -> ImageProposals:
        from segdet.proposals.cache import CachedProposals

        proposals = CachedProposals(self, reader)
        proposals.compute(indices, workers)
        return proposals

    @property
    def settings(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)  # type: ignore[call-overload]

    @property
    def key(self) -> str:
        """A digest of class, version and settings."""
        told = json.dumps([type(self).__name__, self.version, self.settings], sort_keys=True, default=str)
        return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def check_image(image: np.ndarray) -> None:
    """Raises `ValueError` unless ``image`` is uint8 ``[H, W, 3]`` with a pixel at least."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"proposals are made of uint8 [H, W, 3] images, not {image.dtype} {image.shape}")


def distinct(boxes: np.ndarray) -> np.ndarray:
    """Where each different box occurs first, ascending: int64 ``[M]`` of int32 boxes ``[N, 4]``, 0..65535 each."""
    parts = boxes.astype(np.uint64)
    shifts = np.array([48, 32, 16, 0], np.uint64)
    codes = np.bitwise_or.reduce(parts << shifts, axis=1)
    return np.sort(np.unique(codes, return_index=True)[1])
