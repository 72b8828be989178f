"""The base class of proposers: image in, ranked boxes out, with settings that identify a cache."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from segdet.data.proposal_source import ImageProposals, ProposalSource
from segdet.proposals.cache import CachedProposals

if TYPE_CHECKING:
    from segdet.data.formats.reader import Reader


class Proposer(ProposalSource):
    """An algorithm that proposes boxes for an image, ranked from best to worst.

    A proposer is a frozen dataclass, and its fields are its settings. Equal settings and equal pixels must give equal
    boxes, because boxes are cached. The seed of random numbers is therefore a setting.

    Attributes:
        version: The version of the algorithm. Increase it when the boxes change, so that older boxes in a cache are
            not used.
    """

    version: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Propose boxes for one image.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.

        Returns:
            Boxes float32 ``[N, 4]``, xyxy in pixels, without duplicates and within the image, and their scores
            float32 ``[N]``, best first. Scores of different images are not comparable.
        """

    def open(
        self, reader: Reader, indices: Sequence[int] | np.ndarray, workers: int | None = None
    ) -> ImageProposals:
        proposals = CachedProposals(self, reader)
        proposals.compute(indices, workers)
        return proposals

    def propose(self, image: np.ndarray) -> np.ndarray:
        return self(image)[0]

    @property
    def arguments(self) -> dict[str, Any]:
        """The fields by name, from which an equal proposer can be constructed."""
        return asdict(self)  # type: ignore[call-overload]

    @property
    def settings(self) -> dict[str, Any]:
        """The values that identify the boxes: the arguments, unless a subclass replaces some by their content."""
        return self.arguments

    @property
    def key(self) -> str:
        """A digest of class, version and settings."""
        content = json.dumps([type(self).__name__, self.version, self.settings], sort_keys=True, default=str)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def check_image(image: np.ndarray) -> None:
    """Raise `ValueError` unless ``image`` is uint8 ``[H, W, 3]`` and not empty."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"proposals need images of uint8 [H, W, 3], not {image.dtype} {image.shape}")
