"""Two processes of one run, on one machine."""

import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch


@contextmanager
def process_of_two(rank: int, folder: Path, seconds: float) -> Iterator[None]:
    """Make this process ``rank`` of two with a rendezvous in ``folder`` and a timeout of ``seconds``."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=seconds),
    )
    try:
        yield
    finally:  # so that later tests in this process are single processes again
        torch.distributed.destroy_process_group()


@contextmanager
def other_process(work: Callable[[Path], None], folder: Path, seconds: float) -> Iterator[None]:
    """Run ``work`` on ``folder`` in another process; at the end, wait up to ``seconds`` for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about fork in a process with threads
        other = multiprocessing.get_context("fork").Process(target=_alone, args=(work, folder))
        other.start()
    try:
        yield
        other.join(seconds)
    finally:
        other.kill()


def _alone(work: Callable[[Path], None], folder: Path) -> None:
    torch.set_num_threads(1)  # a fork does not copy the threads of its parent
    work(folder)
