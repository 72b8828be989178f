"""The analysis of a test's errors: causes of lost AP, a confusion matrix, the worst images.

::

    errors.json       the numbers of the analysis, for detectors
    confusion.png     the confusion matrix, of objects or of pixels
    worst.png         the images with the lowest F1, with annotated and predicted boxes, for detectors
"""

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from PIL import Image

from segdet.data.base import DataModule
from segdet.metrics import DetectionScores, SegmentationScores
from segdet.metrics.base import Scores
from segdet.metrics.detection_errors import (
    BACKGROUND,
    CORRECT,
    FOREGROUND,
    IGNORED,
    KINDS,
    DetectionErrors,
    ImageErrors,
)
from segdet.metrics.region_detection import COUNTS, IOUS, ProposalRecall, RegionScores
from segdet.runs.predictions import relative_path
from segdet.runs.record import to_json
from segdet.training.callback_interfaces import ReadsScores
from segdet.util.colours import Colour
from segdet.util.drawing import draw_boxes, draw_matrix, draw_sheet
from segdet.util.errors import check_range
from segdet.util.files import unwritable, write_text
from segdet.util.write_guard import check_writable

_COLOURS: dict[int, Colour] = {
    CORRECT: (64, 210, 110),
    IGNORED: (168, 172, 180),
    **dict(
        enumerate(
            [(196, 92, 255), (48, 162, 255), (255, 110, 196), (255, 214, 32), (255, 132, 36), (255, 48, 64)]
        )
    ),
}
"""The colours of correct boxes, of ignored ones, and of `KINDS`."""

_CELL = 400


class ErrorAnalysis(pl.Callback, ReadsScores):
    """Write the analysis of a test's errors into the run's folder; log ``test/dap_...`` for detectors.

    ``test/dap_<kind>`` is the gain of ``test/map_50`` if all errors of one kind were corrected: see
    `segdet.metrics.detection_errors.DetectionErrors`.

    Args:
        enabled: Whether to analyse errors.
        min_score: The minimum score of detections in the confusion matrix and the pictures; by default the score with
            the best F1 on the test set. The AP and its gains do not depend on ``min_score``.
        worst: The number of images to draw.
    """

    def __init__(self, enabled: bool = True, min_score: float | None = None, worst: int = 12) -> None:
        check_range("--error_analysis.worst", worst, least=0)
        self.enabled = enabled
        self.min_score = min_score
        self.worst = worst
        self._errors: DetectionErrors | None = None
        self._gains: dict[str, float] = {}
        self._proposals: ProposalRecall | None = None
        self._pixels: np.ndarray | None = None

    def read_scores(self, pl_module: pl.LightningModule, stage: str, scores: Scores) -> None:
        """Gather the confusion matrix or the detections of all processes from the metrics of a test."""
        self._errors = self._pixels = self._proposals = None
        if stage != "test" or not self.enabled:
            return
        if isinstance(scores, SegmentationScores):
            with scores.sync_context():
                self._pixels = scores.confusion.cpu().numpy().copy()
        elif isinstance(scores, DetectionScores):
            self._errors = scores.errors()
            self._gains = self._errors.gains()
            if isinstance(scores, RegionScores):
                self._proposals = scores.proposal_recall()
            present = {
                f"test/dap_{name}": value for name, value in self._gains.items() if not math.isnan(value)
            }
            # All processes have computed the same numbers from the gathered states.
            pl_module.log_dict(present, sync_dist=True)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files, and report the causes of the lost AP."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        if self._pixels is not None:
            names = [str(name) for name in pl_module.class_names]  # type: ignore[union-attr]
            page = draw_matrix(self._pixels, names, names, heading="Pixels of the test set")
            _save(page, folder / "confusion.png")
        elif self._errors is not None:
            self._write(self._errors, folder, getattr(trainer, "datamodule", None))
        self._errors = self._pixels = self._proposals = None

    def _write(self, errors: DetectionErrors, folder: Path, data: Any) -> None:
        score = errors.best_score() if self.min_score is None else self.min_score
        confusion, images = errors.confusion(score), errors.of_images(score)
        names = [*errors.class_names, "background"]
        page = draw_matrix(
            confusion,
            names,
            names,
            heading=f"Objects of the test set, detections with scores of at least {score:.3g}",
        )
        _save(page, folder / "confusion.png")
        pictures = _Pictures(data) if isinstance(data, DataModule) else None
        content = {
            "iou": FOREGROUND,
            "background_iou": BACKGROUND,
            "map_50": errors.ap(),
            "dap": self._gains,
            "mistakes": errors.counts(),
            "min_score": score,
            "classes": names,
            "confusion": confusion.tolist(),
            **({} if self._proposals is None else {"proposals": _proposals(self._proposals)}),
            "images": _rows(images, pictures),
        }
        write_text(folder / "errors.json", _text(content))
        worst = images.worst()[: self.worst]
        if pictures is not None and len(worst):
            _save(_sheet(errors, images, worst, score, pictures), folder / "worst.png")
        else:
            (folder / "worst.png").unlink(missing_ok=True)  # of an earlier test
        sys.stderr.write(_summary(errors.ap(), self._gains, folder))


def _proposals(recall: ProposalRecall) -> dict[str, Any]:
    """Return the recall of proposals; the last row is that of all proposals."""
    return {
        "per_image": recall.per_image,
        "counts": [*COUNTS, None],
        "ious": list(IOUS),
        "recall": recall.recall.tolist(),
    }


class _Pictures:
    """Images of the test set by image id."""

    def __init__(self, data: DataModule) -> None:
        self.root = Path(data.root)
        self._reader = data.reader("test")
        self._indices = {self._reader.image_id(index): index for index in range(len(self._reader))}

    def path(self, image_id: int) -> Path:
        return Path(self._reader.image_path(self._indices[image_id]))

    def name(self, image_id: int) -> str:
        return relative_path(self.path(image_id), self.root).as_posix()

    def picture(self, image_id: int) -> np.ndarray:
        return self._reader.image(self._indices[image_id])


def _rows(images: ImageErrors, pictures: _Pictures | None) -> list[dict[str, Any]]:
    """Return the number of errors of each kind for every image with errors, the worst image first."""
    rows = []
    for row in images.worst().tolist():
        image_id = int(images.images[row])
        name = {} if pictures is None else {"file_name": pictures.name(image_id)}
        counts = dict(zip(KINDS, images.counts[row].tolist(), strict=True))
        f1 = round(float(images.f1[row]), 4)
        rows.append({"image_id": image_id, **name, "f1": f1, "right": int(images.correct[row]), **counts})
    return rows


def _text(content: dict[str, Any]) -> str:
    """Return JSON with one line for each number, each row of the matrix and each image; NaN becomes null."""

    parts = []
    for key, value in to_json(content).items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and not isinstance(value[0], str):
            lines = [json.dumps(item, ensure_ascii=False) for item in value]
            text = "[\n  " + ",\n  ".join(lines) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _sheet(
    errors: DetectionErrors, images: ImageErrors, worst: np.ndarray, score: float, pictures: _Pictures
) -> np.ndarray:
    """Draw the worst images, each with annotated and with predicted boxes, coloured by the kind of error."""
    states, shown = errors.object_states(score), errors.detections.scores >= score
    panels, titles, seen = [], [], set()
    for row in worst.tolist():
        image_id = int(images.images[row])
        picture = pictures.picture(image_id)
        annotated = np.flatnonzero(errors.objects.images == image_id)
        truth = errors.objects.select(annotated)
        predicted = np.flatnonzero((errors.detections.images == image_id) & shown)
        found = errors.detections.select(predicted)
        kinds = states[annotated].tolist(), errors.kinds[predicted].tolist()
        seen |= {*kinds[0], *kinds[1]}
        errors_of_image = [
            f"{count} {name}" for count, name in zip(images.counts[row], KINDS, strict=True) if count
        ]
        titles += [f"{pictures.path(image_id).name}: F1 {images.f1[row]:.2f}", ", ".join(errors_of_image)]
        colours = [[_COLOURS[kind] for kind in side] for side in kinds]
        draw = partial(draw_boxes, picture, names=errors.class_names, longest=_CELL)
        panels.append(draw(truth.boxes, truth.labels, crowd=truth.iscrowd, colours=colours[0]))
        panels.append(draw(found.boxes, found.labels, scores=found.scores, colours=colours[1]))
    names = {CORRECT: "correct", **dict(enumerate(KINDS)), IGNORED: "ignored"}
    legend = [(name, _COLOURS[kind]) for kind, name in names.items() if kind in seen]
    heading = f"The worst {len(worst)} images, annotated and predicted with scores of at least {score:.3g}"
    return draw_sheet(panels, titles, min(4, len(panels)), _CELL, heading=heading, legend=legend)


def _summary(ap: float, gains: dict[str, float], folder: Path) -> str:
    """Return the gains of AP in one line."""
    if math.isnan(ap):
        return "segdet: the test set has no objects, so its AP is undefined\n"
    order = sorted(KINDS, key=lambda kind: -gains[kind])
    parts = ", ".join(f"{kind} {gains[kind]:.3f}" for kind in order)
    return f"segdet: map_50 {ap:.4f} would gain without errors of one kind: {parts}; see {folder / 'errors.json'}\n"


def _save(page: np.ndarray, path: Path) -> None:
    check_writable(path)
    try:
        Image.fromarray(page).save(path)
    except OSError as error:
        raise unwritable(path, error) from error
