"""What tests of two processes on one machine share."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch


@contextmanager
def process_of_two(rank: int, folder: Path, seconds: float) -> Iterator[None]:
    """This process is ``rank`` of two that meet in ``folder`` and wait for each other so long."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=seconds),
    )
    try:
        yield
    finally:  # or the tests that follow in this process would be one of two as well
        torch.distributed.destroy_process_group()
