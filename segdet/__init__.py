"""segdet: how vision went from the sliding window to the single shot, measured.

Importing the package imports neither torch nor Lightning, so that the command starts quickly.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from segdet.task import Task

# albumentations checks for a newer release over the network when it is imported; a benchmark must not.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
__all__ = ["load"]


def load(path: str | Path) -> Task:
    """Return the trained model of a run or of a checkpoint, on the CPU and in evaluation mode.

    ``class_names`` names its classes, and ``predict_image`` predicts a picture as in the evaluation of the run.

    Args:
        path: The folder of a run of ``segdet fit``, or a checkpoint's file of the command or of a plain Trainer.

    Raises:
        UserError: If there is no checkpoint, or it cannot be loaded.
    """
    from segdet.runs.load_model import load_model

    return load_model(path)
