"""Selective Search (Uijlings, van de Sande, Gevers, Smeulders, IJCV 2013).

An image is segmented and its regions grouped in several ways, each of which may succeed where another
fails: colour spaces, similarities, and scales of the segmentation (section 3.2). The boxes of all
hierarchies are ranked by their place in the hierarchy times a random number (section 4) and joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from segdet.proposals.base import Proposer, check_image, distinct
from segdet.util.errors import UserError

Strategy = Literal["single", "fast", "quality"]

STRATEGIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]] = {
    "single": (("HSV",), ("CTSF",), (100,)),
    "fast": (("HSV", "Lab"), ("CTSF", "TSF"), (50, 100)),
    "quality": (("HSV", "Lab", "rgI", "H", "I"), ("CTSF", "TSF", "F", "S"), (50, 100, 150, 300)),
}
"""Colour spaces, similarities and values of k of the paper's table 5, of which all combinations are run."""


@dataclass(frozen=True)
class SelectiveSearch(Proposer):
    """Regions that grow together, from superpixels to the whole image.

    Attributes:
        strategy: ``single`` runs once, ``fast`` 8 times, ``quality`` 80 times.
        sigma: The Gaussian that smooths the image before it is segmented, in pixels.
        min_width: Boxes that are narrower or lower, in pixels, are left out.
        seed: Of the random numbers in the ranking.
    """

    strategy: Strategy = "fast"
    sigma: float = 0.8
    min_width: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UserError(f"strategy {self.strategy}: there is no such one; choose {', '.join(STRATEGIES)}")
        for name, value in (("sigma", self.sigma), ("min_width", self.min_width), ("seed", self.seed)):
            if value < 0:
                raise UserError(f"{name} {value}: must be at least 0")

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_image(image)
        if max(image.shape) > 65535:
            raise ValueError(f"an image of {image.shape[1]}x{image.shape[0]} is too large; 65535 is the most")
        hierarchies = self.hierarchies(image)
        boxes = np.concatenate(hierarchies)
        # 1 for the whole image, which was joined last.
        places = np.concatenate([np.arange(len(h), 0, -1) for h in hierarchies])
        rank = np.random.default_rng(self.seed).random(len(boxes)) * places
        large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= self.min_width).all(1))
        order = large[np.argsort(rank[large], kind="stable")]
        order = order[distinct(boxes[order])]
        return boxes[order].astype(np.float32), (1 / (1 + rank[order])).astype(np.float32)

    def hierarchies(self, image: np.ndarray) -> list[np.ndarray]:
        """The boxes of each run, int32 ``[2 R - 1, 4]``, from the smallest regions to the whole image."""
        # Numba takes a third of a second to load, which `segdet fit --help` need not wait for.
        from segdet.proposals.graph import edges_of, segment
        from segdet.proposals.grouping import Measures, bins_of, group, regions_of

        spaces, similarities, scales = STRATEGIES[self.strategy]
        found = []
        for space in spaces:
            pixels = to_colour_space(image, space)
            edges = edges_of(pixels, self.sigma)
            bins = bins_of(pixels)
            for k in scales:
                regions = regions_of(*segment(edges, k, k), bins)
                for letters in similarities:
                    found.append(group(regions, Measures(*(letter in letters for letter in "CTSF"))))
        return found


def to_colour_space(image: np.ndarray, space: str) -> np.ndarray:
    """An RGB image uint8 ``[H, W, 3]`` in one of the paper's colour spaces, uint8 ``[H, W, C]`` over 0..255.

    ``HSV``; ``Lab``; ``rgI``, the normalized red and green with the intensity; ``H``, the hue of HSV; ``I``.
    """
    if space == "HSV":
        return cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    if space == "H":
        return np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)[..., :1])
    if space == "Lab":
        return cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if space == "I":
        return grey[..., None]
    # Where the sum is 0 there is no colour: the shares of grey.
    total = image.astype(np.float32) @ np.ones(3, np.float32)
    shares = np.full((*grey.shape, 2), 255 / 3, np.float32)
    np.divide(image[..., :2] * np.float32(255), total[..., None], out=shares, where=total[..., None] > 0)
    return np.dstack([shares.round().astype(np.uint8), grey])
