"""SLURM jobs: whether a command is started again, and the folder that it had before."""

import os
from collections.abc import Sequence
from pathlib import Path

from segdet.runs.folder_layout import holds_run, recorded_commands, recorded_status, requeued_checkpoints
from segdet.util.distributed import rank
from segdet.util.errors import UserError

MOST_RUNS = 1000


def is_restarted(folder: Path, command: str, overwrite: bool) -> bool:
    """Return whether SLURM starts the command of the run in ``folder`` again.

    Args:
        folder: The run's folder.
        command: The subcommand. Only fit is resumed.
        overwrite: Whether the command may replace the run in ``folder``.
    """
    if command != "fit" or not holds_run(folder):
        return False
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    if count.isdecimal() and int(count) > 0:
        return True
    return bool(requeued_checkpoints(folder)) and not overwrite and recorded_status(folder) != "finished"


def job_id(command: str) -> str | None:
    """Return the id of the SLURM job that names the run's folder, or None for a folder named after the time.

    The processes of a job of several tasks need a common name, and a training that is started again must find its
    folder. A shell on a node (``srun --pty bash``, ``salloc``) is not restarted.
    """
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if _tasks() > 1 or (command == "fit" and not interactive):
        return os.environ.get("SLURM_JOB_ID")
    return None


def folder_of_job(name: str, command: str, command_line: str, overwrite: bool, parent: Path) -> Path:
    """Return the folder of a command in its SLURM job, the same one whenever the job is started again.

    A job of one task may run several commands, each in a folder of its own. The processes of a job of several tasks
    cannot communicate yet and would not agree on a number, so such a job has one folder.

    Args:
        name: The folder's name, which a number may follow.
        command: The subcommand.
        command_line: The whole command line, by which a restarted command finds its run.
        overwrite: See `is_restarted`.
        parent: The folder of the runs.

    Raises:
        UserError: If all folders hold other runs.
    """

    def is_available(folder: Path) -> bool:
        same_command: Sequence[str] = recorded_commands(folder)[:1]
        return not holds_run(folder) or (
            command_line in same_command and is_restarted(folder, command, overwrite)
        )

    if _tasks() > 1:
        if rank() == 0 and not is_available(parent / name):
            raise UserError(f"{parent / name}: holds another run of this job; give --run_dir")
        return parent / name
    for number in range(1, MOST_RUNS):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if is_available(folder):
            return folder
    raise UserError(f"{parent}/: more than {MOST_RUNS} runs of this job; give --run_dir")


def has_several_tasks() -> bool:
    """Return whether this process is one of several tasks of a SLURM job."""
    return "SLURM_JOB_ID" in os.environ and _tasks() > 1


def _tasks() -> int:
    return int(os.environ.get("SLURM_NTASKS") or 1)
