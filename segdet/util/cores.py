"""How many cores there are to work with."""

import os

from segdet.util.errors import UserError

SHARE = "SEGDET_CORES"
"""The environment variable that leaves a process fewer cores than it may run on: its share, beside other processes."""


def usable_cores() -> int:
    """The cores that this process has: those that SLURM, taskset or a container leave it, or its share of them.

    Raises:
        UserError: If the environment's share is no number of cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get(SHARE)
    if not share:
        return cores
    if not share.isdecimal() or int(share) < 1:
        raise UserError(
            f"{SHARE} {share}: must be a whole number from 1 on; mend it in the environment, or unset it"
        )
    return min(cores, int(share))
