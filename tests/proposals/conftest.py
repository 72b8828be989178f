from pathlib import Path

import numpy as np
import pytest

from segdet.cli.data.make import main as make


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEGDET_CACHE", str(folder))
    return folder


@pytest.fixture
def scene() -> np.ndarray:
    """A picture of 90x120 with a few coloured boxes and discs on a noisy ground."""
    random = np.random.default_rng(0)
    image = random.integers(60, 90, (90, 120, 3))
    image[10:40, 15:50] += (120, 10, 0)
    image[50:85, 60:110] += (0, 100, 40)
    y, x = np.ogrid[:90, :120]
    image[(y - 25) ** 2 + (x - 90) ** 2 < 15**2] += np.array([30, 20, 120])
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VOC folder: four images of 96x128 to train on, two each to validate and test on."""
    root = tmp_path_factory.mktemp("shapes") / "voc"
    assert make([str(root), "--train=4", "--val=2", "--test=2", "--size=128x96", "--seed=1"]) == 0
    return root
