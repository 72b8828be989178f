"""Work that the processes of one run do together."""

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from segdet.util.errors import UserError

PATIENCE = timedelta(days=7)
"""How long processes wait for each other's work."""


def together(work: Callable[[], None]) -> None:
    """Does ``work`` in every process of the run, and waits for all; where one fails, all do.

    Whoever is done waits in a group of its own, for as long as it takes: what waits in the run's own group, which is
    meant for the gradients of a step, ends with an error after that group's timeout, half an hour as a rule.

    Raises:
        Exception: What ``work`` raises here.
        UserError: If it failed in another process only.
    """
    failure: Exception | None = None
    group: dist.ProcessGroup | None = None
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        group = dist.new_group(backend="gloo", timeout=PATIENCE)  # type: ignore[assignment]  # all are in it
    try:
        work()
    except Exception as error:
        failure = error
    done = torch.tensor(int(failure is None))
    if group is not None:
        dist.all_reduce(done, dist.ReduceOp.MIN, group=group)
        dist.destroy_process_group(group)
    if not done:
        raise failure or UserError("another process failed, and says why; mend that and go on with the run")
