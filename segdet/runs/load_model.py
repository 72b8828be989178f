"""The trained model of a run."""

from pathlib import Path

from segdet.task import Task
from segdet.util.errors import UserError


def load_model(path: str | Path) -> Task:
    """Return the trained model of a run or of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: The run's folder, of which the best checkpoint is taken (the last one, if there was no validation), or a
            checkpoint's file.

    Raises:
        UserError: If there is no checkpoint, or it cannot be loaded.
    """
    path = Path(path)
    if not path.is_dir():
        return Task.load_from_checkpoint(path)
    files = [path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    existing = [file for file in files if file.is_file()]
    if not existing:
        raise UserError(
            f"{path}: no checkpoints/best.ckpt in it; give the folder of a trained run, or a checkpoint"
        )
    return Task.load_from_checkpoint(existing[0])
