"""What tests of two processes on one machine share."""

import multiprocessing
import warnings
from collections.abc import Callable, Iterator
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


@contextmanager
def other_process(work: Callable[[Path], None], folder: Path, seconds: float) -> Iterator[None]:
    """Another process does ``work`` in ``folder`` meanwhile, and is waited for so long at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
        other = multiprocessing.get_context("fork").Process(target=_alone, args=(work, folder))
        other.start()
    try:
        yield
        other.join(seconds)
    finally:
        other.kill()


def _alone(work: Callable[[Path], None], folder: Path) -> None:
    torch.set_num_threads(1)  # a fork does not take the threads along that this one has worked with
    work(folder)
