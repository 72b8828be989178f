"""Selective Search (Uijlings, van de Sande, Gevers, Smeulders, IJCV 2013).

An image is segmented and its regions are grouped with several colour spaces, similarities and segmentation scales,
which complement each other (section 3.2). The boxes of all hierarchies are merged. They are ranked by the product of
their position in the hierarchy and a random number (section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from segdet.proposals.base import Proposer, check_image
from segdet.util.errors import check_choice, check_range

Strategy = Literal["single", "fast", "quality"]

STRATEGIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]] = {
    "single": (("HSV",), ("CTSF",), (100,)),
    "fast": (("HSV", "Lab"), ("CTSF", "TSF"), (50, 100)),
    "quality": (("HSV", "Lab", "rgI", "H", "I"), ("CTSF", "TSF", "F", "S"), (50, 100, 150, 300)),
}
"""Colour spaces, similarities and values of k (table 5 of the paper). All combinations are run."""


@dataclass(frozen=True)
class SelectiveSearch(Proposer):
    """Boxes of regions that are merged hierarchically, from superpixels to the whole image.

    Attributes:
        strategy: ``single`` is one run, ``fast`` 8 runs, ``quality`` 80 runs.
        sigma: The standard deviation, in pixels, of the Gaussian that smooths the image before segmentation.
        min_width: The minimum width and height of a box, in pixels.
        seed: The seed of the random numbers in the ranking.
    """

    strategy: Strategy = "fast"
    sigma: float = 0.8
    min_width: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("strategy", self.strategy, STRATEGIES)
        for name, value in (("sigma", self.sigma), ("min_width", self.min_width), ("seed", self.seed)):
            check_range(name, value, least=0)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_image(image)
        if max(image.shape) > 65535:
            raise ValueError(
                f"an image of {image.shape[1]}x{image.shape[0]} is too large; the maximum side is 65535"
            )
        hierarchies = self.hierarchies(image)
        boxes = np.concatenate(hierarchies)
        # The place of the last region of a hierarchy, the whole image, is 1.
        places = np.concatenate([np.arange(len(h), 0, -1) for h in hierarchies])
        rank = np.random.default_rng(self.seed).random(len(boxes)) * places
        large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= self.min_width).all(1))
        order = large[np.argsort(rank[large], kind="stable")]
        order = order[_first_occurrences(boxes[order])]
        return boxes[order].astype(np.float32), (1 / (1 + rank[order])).astype(np.float32)

    def hierarchies(self, image: np.ndarray) -> list[np.ndarray]:
        """Return the boxes of each run, int32 ``[2 R - 1, 4]``, from the smallest regions to the whole image."""
        # Importing Numba takes a third of a second, too long for `segdet fit --help`.
        from segdet.proposals.graph import edges_of, segment
        from segdet.proposals.grouping import Measures, bins_of, group, regions_of

        spaces, similarities, scales = STRATEGIES[self.strategy]
        hierarchies = []
        for space in spaces:
            pixels = to_colour_space(image, space)
            edges = edges_of(pixels, self.sigma)
            bins = bins_of(pixels)
            for k in scales:
                regions = regions_of(*segment(edges, k, k), bins)
                for letters in similarities:
                    hierarchies.append(group(regions, Measures(*(letter in letters for letter in "CTSF"))))
        return hierarchies


def _first_occurrences(boxes: np.ndarray) -> np.ndarray:
    """Return the index of the first occurrence of each distinct box int32 ``[N, 4]`` of 0..65535, ascending."""
    codes = np.bitwise_or.reduce(boxes.astype(np.uint64) << np.array([48, 32, 16, 0], np.uint64), axis=1)
    return np.sort(np.unique(codes, return_index=True)[1])


def to_colour_space(image: np.ndarray, space: str) -> np.ndarray:
    """Convert an RGB image uint8 ``[H, W, 3]`` to a colour space of the paper, uint8 ``[H, W, C]`` over 0..255.

    The colour spaces are ``HSV``; ``Lab``; ``rgI``, normalized red and green with the intensity; ``H``, the hue of
    HSV; and ``I``, the intensity.
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
    # Black pixels have no normalized colour and get the values of grey.
    total = image.astype(np.float32) @ np.ones(3, np.float32)
    shares = np.full((*grey.shape, 2), 255 / 3, np.float32)
    np.divide(image[..., :2] * np.float32(255), total[..., None], out=shares, where=total[..., None] > 0)
    return np.dstack([shares.round().astype(np.uint8), grey])
