from pathlib import Path

import numpy as np
import pytest
from proposal_images import make_voc, noisy_scene


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a separate cache folder for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEGDET_CACHE", str(folder))
    return folder


@pytest.fixture
def scene() -> np.ndarray:
    return noisy_scene()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("shapes") / "voc")
