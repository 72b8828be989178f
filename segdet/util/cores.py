"""The number of cores that this process may use."""

import os

from segdet.util.errors import UserError

SHARE = "SEGDET_CORES"
"""The environment variable that limits a process to a share of the cores; other processes use the rest."""


def usable_cores() -> int:
    """Return the number of cores that SLURM, taskset or a container assigns to this process, at most SEGDET_CORES.

    Raises:
        UserError: If SEGDET_CORES is not a positive whole number.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get(SHARE)
    if not share:
        return cores
    if not share.isdecimal() or int(share) < 1:
        raise UserError(
            f"{SHARE} {share}: must be a whole number of at least 1; fix or unset the environment variable"
        )
    return min(cores, int(share))
