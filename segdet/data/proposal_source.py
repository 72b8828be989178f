"""The interface between datasets and sources of region proposals; `segdet.proposals` implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from segdet.util.errors import BadSample, UserError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from segdet.data.formats.reader import Reader


class ImageProposals(ABC):
    """The proposals of the images of one split.

    Attributes:
        bad: One error per image that cannot be read and therefore has no proposals.
    """

    bad: list[BadSample]

    @abstractmethod
    def boxes(self, index: int) -> np.ndarray:
        """Return the proposals of image ``index`` of the reader: float32 ``[N, 4]``, xyxy in its pixels, best first.

        Raises:
            BadSample: If the image cannot be read.
        """

    def files(self) -> Collection[Path]:
        """Return the cache files of the proposals; none for proposals that the user gave as a file."""
        return ()


class ProposalSource(ABC):
    """A source of proposals: an algorithm or a file."""

    @abstractmethod
    def open(
        self, reader: Reader, indices: Sequence[int] | np.ndarray, workers: int | None = None
    ) -> ImageProposals:
        """Return the proposals of some images of a reader, and compute those that are not cached.

        Args:
            reader: The reader of a split.
            indices: The images for which proposals are needed.
            workers: Processes; default: one per core.

        Raises:
            UserError: If the proposals cannot be computed or read.
        """

    def propose(self, image: np.ndarray) -> np.ndarray:
        """Return the proposals of an image in memory, such as a frame of a video: float32 ``[N, 4]``, best first.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.

        Raises:
            UserError: If the source has only the proposals of image files.
        """
        raise UserError(
            "--data.proposals: a file of proposals has none for the frames of a video; give a proposer, such as "
            "SelectiveSearch"
        )
