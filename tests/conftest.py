"""Settings and fixtures of all tests: no network, no W&B account, one thread per process, real data if present."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def _real_data_root() -> Path:
    named = os.environ.get("SEGDET_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a new cache folder, so that no test reads or changes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGDET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real datasets ``camvid``, ``bccd`` and ``tiny_coco``; SEGDET_DATA overrides its path."""
    root = _real_data_root()
    if not (root / "bccd").is_dir():
        pytest.skip(
            f"no real data at {root}; set SEGDET_DATA to the folder that contains bccd/, camvid/ and tiny_coco/"
        )
    return root
