"""The processes that torchrun or SLURM has started for a run, compared with the trainer's devices and nodes.

They are compared before anything is written. Without the comparison, each of two processes would train alone in the
same folder.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segdet.util.distributed import is_slurm_shell
from segdet.util.errors import UserError


@dataclass(frozen=True)
class Launch:
    """The processes that a launcher has started.

    Attributes:
        launcher: torchrun or srun; sbatch if the job's script has started the command itself.
        tasks: The number of processes.
        nodes: The number of machines.
        per_node: The number of processes of each machine, or None if it differs between them.
    """

    launcher: str
    tasks: int
    nodes: int
    per_node: int | None


def launch() -> Launch | None:
    """Return the processes that a launcher started together with this one; None without a launcher."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        tasks, local = _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE")
        nodes = _number("GROUP_WORLD_SIZE", max(1, tasks // local))
        return Launch("torchrun", tasks, nodes, local if local * nodes == tasks else None)
    if "SLURM_NTASKS" not in os.environ or is_slurm_shell():
        return None
    step = "SLURM_STEP_NUM_TASKS" in os.environ
    tasks = _number("SLURM_STEP_NUM_TASKS" if step else "SLURM_NTASKS")
    nodes = _number("SLURM_STEP_NUM_NODES" if step else "SLURM_NNODES")
    per_node = tasks // nodes if tasks % nodes == 0 else None
    listed = os.environ.get("SLURM_STEP_TASKS_PER_NODE" if step else "SLURM_TASKS_PER_NODE", "")
    if "," in listed:  # such as 2,1; equal numbers are written as 2(x3)
        per_node = None
    return Launch("srun" if step else "sbatch", tasks, nodes, per_node)


def _number(variable: str, default: int = 1) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) else default


def launched_devices(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trainer's options ``devices`` and ``num_nodes`` that match the processes of the launcher.

    Options that the user has not given follow from the launcher.

    Args:
        options: The options of the trainer.

    Raises:
        UserError: If the options require another number of processes.
    """
    started = launch()
    if started is None:
        return {}
    count, nodes = _device_count(options.get("devices")), int(options.get("num_nodes") or 1)
    if started.tasks == 1:
        if nodes > 1:
            raise _mismatch(started, "num_nodes", nodes)
        if count is not None and count > 1 and started.launcher == "torchrun":
            raise _mismatch(started, "devices", count)
        return {} if count is not None else {"devices": 1}  # Lightning starts the processes of one task
    if started.launcher == "sbatch":
        raise UserError(
            f"SLURM: the job has {started.tasks} tasks, but the command was started once; start it with srun"
        )
    if started.per_node is None:
        raise UserError(
            f"{started.launcher}: the nodes have different numbers of processes; start the same number on each"
        )
    if nodes not in (1, started.nodes):
        raise _mismatch(started, "num_nodes", nodes)
    if count not in (None, started.per_node):
        raise _mismatch(started, "devices", count)
    devices = {} if count is not None else {"devices": started.per_node}
    return devices | {"num_nodes": started.nodes}


def starts_own_processes(devices: Any) -> bool:
    """Return whether Lightning has to start the other processes, because SLURM has started one task only."""
    started, count = launch(), _device_count(devices)
    return started is not None and started.launcher != "torchrun" and started.tasks == 1 and (count or 1) > 1


def _device_count(devices: Any) -> int | None:
    """Return the number of devices, or None if Lightning chooses it."""
    if isinstance(devices, list | tuple):
        return len(devices)
    text = str(devices)
    if text.isdecimal():
        return int(text)
    return len([part for part in text.split(",") if part.strip()]) if "," in text else None


def _mismatch(started: Launch, option: str, value: int | None) -> UserError:
    per_node = f" on each of {started.nodes} nodes" if started.nodes > 1 else ""
    count = started.per_node if option == "devices" else started.nodes
    what = f"{started.per_node} process{'es' * (started.per_node != 1)}{per_node}"
    if option == "num_nodes":
        what = f"processes on {started.nodes} node{'s' * (started.nodes != 1)}"
    launcher = "torchrun" if started.launcher == "torchrun" else "SLURM"
    flags = {
        ("torchrun", "devices"): f"--nproc-per-node {value}",
        ("torchrun", "num_nodes"): f"--nnodes {value}",
        ("SLURM", "devices"): f"--ntasks-per-node {value}",
        ("SLURM", "num_nodes"): f"--nodes {value}",
    }
    fix = f"give {launcher} {flags[launcher, option]}, or --trainer.{option} {count}"
    return UserError(f"--trainer.{option} {value}: {launcher} has started {what}; {fix}")


def set_tasks_per_node() -> None:
    """Set ``SLURM_NTASKS_PER_NODE``, which is missing after ``srun --ntasks``, and which Lightning requires."""
    started = launch()
    if started is not None and started.launcher == "srun" and started.per_node is not None:
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(started.per_node))
