"""segdet: segmentation and detection, from the sliding window to the single shot, measured and compared.

Importing the package imports neither torch nor Lightning, so that the command starts quickly.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segdet.task import Task

# albumentations checks for a newer release over the network when it is imported; a benchmark must not.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
__all__ = ["load"]


def load(path: str | Path) -> Task:
    """Return the trained model of a run or of a checkpoint, on the CPU and in evaluation mode.

    Its ``class_names`` are the classes, and ``predict_image`` predicts an image as in the evaluation of the run.

    Args:
        path: The folder of a run of ``segdet fit``, or a checkpoint file of the command or of a plain Trainer. The best
            checkpoint of a run is loaded, or the last one if there was no validation.

    Raises:
        UserError: If there is no checkpoint, or it cannot be loaded.
    """
    from segdet.task import Task
    from segdet.util.errors import UserError

    path = Path(path)
    if not path.is_dir():
        return Task.load_from_checkpoint(path)
    for name in ("best", "last"):
        file = path / "checkpoints" / f"{name}.ckpt"
        if file.is_file():
            return Task.load_from_checkpoint(file)
    raise UserError(
        f"{path}: no checkpoints/best.ckpt in it; give the folder of a trained run, or a checkpoint"
    )
