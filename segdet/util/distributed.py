"""The processes of one run: rank, number of processes, and collective work.

Importing this module does not import torch, so that the command can report a mistake without delay.
"""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from segdet.util.errors import UserError

T = TypeVar("T")

RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
"""The variables in which launchers (torchrun, SLURM, Lightning) pass a process its rank."""

RUN_DIR_VARIABLE = "SEGDET_RUN_DIR"
"""The variable in which rank 0 passes the run's folder to the processes that it starts."""

TIMEOUT = timedelta(days=7)
"""The maximum time that processes wait for each other's work."""


def rank() -> int:
    """Return the rank of this process in its run; 0 for a single process.

    The rank comes from torch.distributed if it is initialized, else from the launcher's variables.
    """
    if _is_initialized():
        return int(sys.modules["torch"].distributed.get_rank())
    names: Sequence[str] = RANK_VARIABLES
    if os.environ.get("SLURM_NTASKS") == "1" or is_slurm_shell():
        names = (
            "RANK",
            "LOCAL_RANK",
            "SLURM_PROCID",
        )  # Lightning may have started other processes beside SLURM's task
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def world_size() -> int:
    """Return the number of processes of this run, from the same sources as `rank`."""
    if _is_initialized():
        return int(sys.modules["torch"].distributed.get_world_size())
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)


def is_launched() -> bool:
    """Return whether a launcher started this process as a member of a group, possibly as its only member."""
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        return True
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS") or 1) > 1


def under_torchrun() -> bool:
    """Return whether torchrun started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE") or 1) > 1


def is_slurm_shell() -> bool:
    """Return whether this process was started in a shell on a node of SLURM (``srun --pty bash``, ``salloc``)."""
    return os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")


def is_restarted() -> bool:
    """Return whether the launcher, SLURM or torchrun, has restarted the job of this process."""
    counts = (os.environ.get(name, "") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return any(count.isdecimal() and int(count) > 0 for count in counts)


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes of the run, in the order of their ranks. All processes must call this.

    Args:
        value: An object that can be pickled.
    """
    if world_size() == 1 or not _is_initialized():
        return [value]
    import torch.distributed as dist

    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def _is_initialized() -> bool:
    # A process that has not imported torch has no group, and importing torch takes seconds.
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def run_on_all_ranks(work: Callable[[], None]) -> None:
    """Run ``work`` in every process of the run and wait for all of them; an error in one is raised in all.

    The processes wait in a separate process group with the timeout `TIMEOUT`. The run's own group synchronizes the
    gradients of a step, and its timeout, usually half an hour, would be too short.

    Raises:
        Exception: The exception of ``work`` in this process.
        UserError: If ``work`` failed only in another process.
    """
    import torch
    import torch.distributed as dist

    failure: Exception | None = None
    group = _waiting_group()
    try:
        work()
    except Exception as error:
        failure = error
    succeeded = torch.tensor(int(failure is None))
    if group is not None:
        dist.all_reduce(succeeded, dist.ReduceOp.MIN, group=group)
        dist.destroy_process_group(group)
    if not succeeded:
        raise failure or _failed_elsewhere()


def run_on_rank_0(work: Callable[[], T]) -> T:
    """Run ``work`` in the first process of the run, and return its result in all processes, which wait for it.

    Args:
        work: The function. Its result must be picklable.

    Raises:
        Exception: The exception of ``work``, in the first process.
        UserError: If ``work`` failed, in the other processes.
    """
    import torch.distributed as dist

    group = _waiting_group()
    if group is None:
        return work()
    failure: Exception | None = None
    result: list[Any] = [False, None]
    if rank() == 0:
        try:
            result = [True, work()]
        except Exception as error:
            failure = error
    dist.broadcast_object_list(result, src=0, group=group)
    dist.destroy_process_group(group)
    succeeded, value = result
    if not succeeded:
        raise failure or _failed_elsewhere()
    return value


def _waiting_group() -> Any:
    """Return a process group of all processes with the timeout `TIMEOUT`; None for a single process."""
    import torch.distributed as dist

    if world_size() == 1 or not _is_initialized():
        return None
    return dist.new_group(backend="gloo", timeout=TIMEOUT)


def _failed_elsewhere() -> UserError:
    return UserError("another process failed; fix the error that it reports and resume the run")
