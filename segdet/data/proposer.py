"""Region proposals as a dataset sees them: boxes for each image, wherever they come from.

Like `segdet.data.reader.Reader` this is an interface only; `segdet.proposals` has what stands behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from segdet.data.reader import Reader
    from segdet.errors import BadSample


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

    def size(self, indices: Sequence[int] | np.ndarray) -> int:
        """The bytes that the proposals of these images take on disk, if they were put there for them."""
        return 0


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
