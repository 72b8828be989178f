"""What every test stands on: no network, no account, one thread a process, real data where there is some."""

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
    """A cache of the session's own: no test finds what an earlier one left with the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGDET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets (``camvid``, ``bccd``, ``tiny_coco``); SEGDET_DATA names another one."""
    root = _real_data_root()
    if not (root / "bccd").is_dir():
        pytest.skip(f"no real data at {root}; name the folder that holds bccd/ and the rest in SEGDET_DATA")
    return root
