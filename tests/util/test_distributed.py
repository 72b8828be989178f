"""The rank of a process, and functions that run on all processes."""

import time
from pathlib import Path

import pytest
import torch
from two_processes import other_process, process_of_two

from segdet.util.distributed import (
    is_launched,
    rank,
    run_on_all_ranks,
    run_on_rank_0,
    under_torchrun,
    world_size,
)
from segdet.util.errors import UserError

TIMEOUT = 3.0
"""Timeout of the process group in seconds."""


def _work(rank: int, folder: Path) -> list[str]:
    """Return the events in process ``rank`` of two. Rank 0 is slow in the first call; then each process fails once."""
    seen: list[str] = []

    def wait() -> None:
        if rank == 0:
            time.sleep(2.5 * TIMEOUT)
        seen.append("done")

    def fail(failing: int) -> None:
        if rank == failing:
            raise ValueError(f"rank {rank} failed")

    with process_of_two(rank, folder, seconds=TIMEOUT):
        start = time.monotonic()
        run_on_all_ranks(wait)
        assert time.monotonic() - start > 2 * TIMEOUT
        for failing in (0, 1):
            try:
                run_on_all_ranks(lambda failing=failing: fail(failing))  # type: ignore[misc]
            except (ValueError, UserError) as error:
                seen.append(f"{type(error).__name__} {error}")
        run_on_all_ranks(lambda: seen.append("continued"))

        def compute() -> str:
            time.sleep(1.5 * TIMEOUT)
            return f"value of rank {rank}"

        seen.append(run_on_rank_0(compute))
        try:
            run_on_rank_0(lambda: fail(0))
        except (ValueError, UserError) as error:
            seen.append(f"{type(error).__name__} {error}")
        sum_ = torch.ones(1)
        torch.distributed.all_reduce(sum_)  # the default process group still works
        seen.append(f"{sum_.item():.0f}")
    return seen


def _other(folder: Path) -> None:
    (folder / "other.txt").write_text("\n".join(_work(1, folder)))


def test_a_rank_may_be_slower_than_the_timeout_of_the_group(tmp_path: Path) -> None:
    with other_process(_other, tmp_path, 60):
        first = _work(0, tmp_path)
    message = "UserError another process failed; fix the error that it reports and resume the run"
    value = "value of rank 0"
    assert first == [
        "done", "ValueError rank 0 failed", message, "continued", value, "ValueError rank 0 failed", "2",
    ]  # fmt: skip
    assert (tmp_path / "other.txt").read_text().splitlines() == [
        "done", message, "ValueError rank 1 failed", "continued", value, message, "2",
    ]  # fmt: skip


def test_a_single_process_needs_no_process_group() -> None:
    finished: list[int] = []
    run_on_all_ranks(lambda: finished.append(1))
    assert finished == [1]
    assert run_on_rank_0(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        run_on_all_ranks(lambda: finished.append(1 // 0))


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove the variables of launchers from the environment."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_without_a_launcher_is_rank_0_of_1(launcher: pytest.MonkeyPatch) -> None:
    assert (rank(), world_size(), is_launched(), under_torchrun()) == (0, 1, False, False)


def test_the_rank_is_read_from_the_variables_of_the_launcher(launcher: pytest.MonkeyPatch) -> None:
    launcher.setenv("LOCAL_RANK", "1")
    assert rank() == 1
    assert is_launched()
    launcher.setenv("SLURM_PROCID", "5")
    assert rank() == 5
    launcher.setenv("RANK", "3")
    launcher.setenv("WORLD_SIZE", "8")
    launcher.setenv("TORCHELASTIC_RUN_ID", "none")
    assert (rank(), world_size(), under_torchrun()) == (3, 8, True)


def test_a_slurm_job_of_one_task_is_not_distributed(launcher: pytest.MonkeyPatch) -> None:
    launcher.setenv("SLURM_PROCID", "0")
    launcher.setenv("SLURM_NTASKS", "1")
    assert not is_launched()
    launcher.setenv("SLURM_NTASKS", "2")
    assert is_launched()
    assert world_size() == 2


def test_an_initialized_process_group_overrides_the_variables(
    tmp_path: Path, launcher: pytest.MonkeyPatch
) -> None:
    launcher.setenv("RANK", "7")
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", world_size=1, rank=0)
    try:
        assert (rank(), world_size()) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
