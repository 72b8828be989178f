"""Images for tests of region proposals."""

from pathlib import Path

import numpy as np

from segdet.cli.data.make import main as make


def noisy_scene() -> np.ndarray:
    """Return an image of 90x120 with coloured boxes and a disc on a noisy background."""
    random = np.random.default_rng(0)
    image = random.integers(60, 90, (90, 120, 3))
    image[10:40, 15:50] += (120, 10, 0)
    image[50:85, 60:110] += (0, 100, 40)
    y, x = np.ogrid[:90, :120]
    image[(y - 25) ** 2 + (x - 90) ** 2 < 15**2] += np.array([30, 20, 120])
    return np.clip(image, 0, 255).astype(np.uint8)


def make_voc(root: Path) -> Path:
    """Make a small VOC folder: four images of 96x128 for training, two each for validation and test."""
    assert make([str(root), "--train=4", "--val=2", "--test=2", "--size=128x96", "--seed=1"]) == 0
    return root
