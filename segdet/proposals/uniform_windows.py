"""Windows that do not depend on the image's content: the baseline for every proposer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdet.proposals.base import Proposer, check_image
from segdet.util.errors import check_range


@dataclass(frozen=True)
class UniformWindows(Proposer):
    """Evenly spaced windows of several scales and aspect ratios, in random order.

    Attributes:
        scales: The sizes of the windows: the square root of the ratio of window area to image area.
        aspects: The aspect ratios of the windows, width over height.
        overlap: The IoU of a window with the next one of its row or column, of the same scale and aspect ratio.
        seed: The seed of the random order. The first N windows are a uniform sample of all.
    """

    scales: tuple[float, ...] = (0.08, 0.12, 0.18, 0.27, 0.4, 0.6, 0.85)
    aspects: tuple[float, ...] = (0.5, 1.0, 2.0)
    overlap: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("scales", self.scales, above=0)
        check_range("aspects", self.aspects, above=0)
        check_range("overlap", self.overlap, least=0, below=1)
        check_range("seed", self.seed, least=0)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_image(image)
        height, width = image.shape[:2]
        # The IoU of two windows of width w at distance s is (w - s) / (w + s).
        step = (1 - self.overlap) / (1 + self.overlap)
        pieces = []
        for scale in self.scales:
            for aspect in self.aspects:
                side = scale * (width * height) ** 0.5
                w, h = min(width, side * aspect**0.5), min(height, side / aspect**0.5)
                x = np.linspace(0, width - w, 1 + int(np.ceil((width - w) / (step * w))))
                y = np.linspace(0, height - h, 1 + int(np.ceil((height - h) / (step * h))))
                corner = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
                pieces.append(np.concatenate([corner, corner + np.array([w, h])], 1))
        boxes = np.unique(np.concatenate(pieces).astype(np.float32), axis=0)
        order = np.random.default_rng(self.seed).permutation(len(boxes))
        return boxes[order], np.linspace(1, 0, len(boxes), endpoint=False, dtype=np.float32)
