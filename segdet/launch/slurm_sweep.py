"""Submit the workers of a sweep to SLURM, as the tasks of a job array."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from segdet.launch.slurm import Entry, Slurm, Submission, Task
from segdet.util.errors import UserError


def worker_array(
    title: str,
    folder: Path,
    settings: Slurm,
    command: Sequence[str],
    workers: int,
    queue: Mapping[str, Entry],
) -> Submission:
    """Return the job array of the workers that are not in the queue.

    Args:
        title: The name of the sweep.
        folder: Its folder.
        settings: The resources of a worker.
        command: The arguments of the segdet command that runs one worker.
        workers: The number of workers.
        queue: The workers in the queue, by name.

    Raises:
        UserError: If a worker would get several nodes.
    """
    if settings.nodes > 1:
        raise UserError(
            f"--slurm: nodes is {settings.nodes}, but a worker of a sweep runs on one node; give nodes: 1, and more "
            "--workers"
        )
    submission = Submission(title, folder, settings)
    names = [f"worker-{number}" for number in range(1, workers + 1)]
    tasks = [Task(name, (tuple(command),), folder / f"{name}.log") for name in names if name not in queue]
    submission.add(tasks, launched=False)
    return submission
