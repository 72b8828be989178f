"""What every test stands on: no network, no account, one thread a process, real data where there is some."""

import os
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def _real_data_root() -> Path:
    named = os.environ.get("SEGDET_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets (``camvid``, ``bccd``, ``tiny_coco``); SEGDET_DATA names another one."""
    root = _real_data_root()
    if not (root / "bccd").is_dir():
        pytest.skip(f"no real data at {root}; name the folder that holds bccd/ and the rest in SEGDET_DATA")
    return root
