"""Official scores of each task, as torchmetrics metrics.

``update`` takes a batch; ``compute`` returns ``{name: float tensor}`` for the whole dataset. Logs and reports use the
same names after ``val/`` or ``test/``. The scores are the same for any number of processes.
"""

from segdet.metrics.boundary import BoundaryScores
from segdet.metrics.confusion import SegmentationScores, classes_of
from segdet.metrics.detection import DetectionScores
from segdet.metrics.localization import LocalizationScores

__all__ = [
    "BoundaryScores",
    "DetectionScores",
    "LocalizationScores",
    "SegmentationScores",
    "classes_of",
]
