"""Region proposals as a dataset sees them: boxes for each image, wherever they come from.

Like `segdet.data.formats.reader.Reader` this is an interface only; `segdet.proposals` has what stands behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from segdet.data.formats.reader import Reader
    from segdet.util.errors import BadSample


class ImageProposals(ABC):
    """The proposals of the images of one split.

    Attributes:
        bad: The images that have none because they cannot be read, an error each.
    """

    bad: list[BadSample]

    @abstractmethod
    def boxes(self, index: int) -> np.ndarray:
        """The proposals of image ``index`` of the reader: float32 ``[N, 4]``, xyxy in its pixels, best first.

        Raises:
            BadSample: If the image cannot be read.
        """

    def files(self) -> Collection[Path]:
        """The files that the proposals of the images that were asked for are kept in, if they were made for them."""
        return ()


class ProposalSource(ABC):
    """Where proposals come from: an algorithm or a file."""

    @abstractmethod
    def open(
        self, reader: Reader, indices: Sequence[int] | np.ndarray, workers: int | None = None
    ) -> ImageProposals:
        """The proposals of some images of a reader, computed now where they are not there yet.

        Args:
            reader: The split.
            indices: The images of it that will be asked for.
            workers: Processes that compute; one a core when null.

        Raises:
            UserError: If they cannot be had.
        """
