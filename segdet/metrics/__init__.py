"""The scores of each task: official, and the same over any number of processes.

Each is a torchmetrics metric: ``update`` per batch, ``compute`` once for the whole dataset, which gives
``{name: float tensor}`` with the names that logs and reports use, without ``val/`` or ``test/``.
"""

from segdet.metrics.boundary import BoundaryScores
from segdet.metrics.confusion import SegmentationScores, classes_of
from segdet.metrics.detection import DetectionScores, coco_results
from segdet.metrics.localization import LocalizationScores

__all__ = [
    "BoundaryScores",
    "DetectionScores",
    "LocalizationScores",
    "SegmentationScores",
    "classes_of",
    "coco_results",
]
