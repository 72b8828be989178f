"""Official scores of each task, as torchmetrics metrics.

``update`` takes a batch; ``compute`` returns ``{name: float tensor}`` for the whole dataset. Logs and reports use the
same names after ``val/`` or ``test/``. The scores are the same for any number of processes.

The names below are imported on first use, so that reports compute on arrays without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segdet.metrics.boundary import BoundaryScores
    from segdet.metrics.confusion import SegmentationScores, classes_of
    from segdet.metrics.detection import DetectionScores
    from segdet.metrics.localization import LocalizationScores

_MODULES = {
    "BoundaryScores": "boundary",
    "DetectionScores": "detection",
    "LocalizationScores": "localization",
    "SegmentationScores": "confusion",
    "classes_of": "confusion",
}

__all__ = [
    "BoundaryScores",
    "DetectionScores",
    "LocalizationScores",
    "SegmentationScores",
    "classes_of",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
