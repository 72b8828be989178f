"""What the processes of a run do together takes as long as it takes, and fails in all of them or in none."""

import time
from pathlib import Path

import pytest
import torch
from two_processes import other_process, process_of_two

from segdet.util.distributed import together
from segdet.util.errors import UserError

TIMEOUT = 3.0
"""Seconds that the process group allows."""


def _work(rank: int, folder: Path) -> list[str]:
    """What process ``rank`` of two sees: the first is slow, then each of them fails once."""
    seen: list[str] = []

    def learn() -> None:
        if rank == 0:
            time.sleep(2.5 * TIMEOUT)
        seen.append("learned")

    def fail(failing: int) -> None:
        if rank == failing:
            raise ValueError(f"of {rank}")

    with process_of_two(rank, folder, seconds=TIMEOUT):
        start = time.monotonic()
        together(learn)
        assert time.monotonic() - start > 2 * TIMEOUT
        for failing in (0, 1):
            try:
                together(lambda failing=failing: fail(failing))  # type: ignore[misc]
            except (ValueError, UserError) as error:
                seen.append(f"{type(error).__name__} {error}")
        together(lambda: seen.append("went on"))
        sum_ = torch.ones(1)
        torch.distributed.all_reduce(sum_)  # the run's own group is as it was
        seen.append(f"{sum_.item():.0f}")
    return seen


def _other(folder: Path) -> None:
    (folder / "other.txt").write_text("\n".join(_work(1, folder)))


def test_the_slowest_is_waited_for_beyond_the_groups_timeout(tmp_path: Path) -> None:
    with other_process(_other, tmp_path, 60):
        first = _work(0, tmp_path)
    told = "UserError another process failed, and says why; mend that and go on with the run"
    assert first == ["learned", "ValueError of 0", told, "went on", "2"]
    assert (tmp_path / "other.txt").read_text().splitlines() == [
        "learned", told, "ValueError of 1", "went on", "2",
    ]  # fmt: skip


def test_one_process_waits_for_nobody() -> None:
    done: list[int] = []
    together(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        together(lambda: done.append(1 // 0))
