"""The images of the gallery with the predictions of each run.

Runs with the same task, data, classes and gallery images are shown side by side. Their images are embedded once, as
JPEG data URIs; masks are palette PNGs with a transparent background.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from segdet.metrics.detection_errors import CORRECT, KINDS
from segdet.report.detection_counts import ScoreCounts, count_by_score, detection_errors, thresholds
from segdet.report.disagreement import disagreement, image_scores
from segdet.report.run_data import SCORES, RunData
from segdet.runs.evidence import DetectionEvidence, Evidence, LocalizationEvidence, SegmentationEvidence
from segdet.runs.gallery import GALLERY_FOLDER, GalleryImage, read_gallery
from segdet.util.background import has_background
from segdet.util.colours import distinct_colours
from segdet.util.errors import UserError

MAX_RUNS = 20
"""The number of runs in the gallery of one task and dataset."""

_MAX_BOXES = 20_000
"""The number of boxes of a gallery. It limits the boxes of each image to those with the highest scores."""

_BYTES = {"image": 1_000_000, "mask": 3_500_000}
"""The bytes of all images and of all masks of a gallery. Larger pictures are made smaller."""

_IGNORED_VALUE = 255
_WRONG_COLOUR = (255, 90, 31)


@dataclass(frozen=True)
class Box:
    """A box in the pixels of the embedded image.

    Attributes:
        box: x, y, width and height.
        label: The name of the class.
        score: The score of a prediction, None for an object.
        kind: ``correct``, a kind of error from `KINDS`, ``object``, or ``ignored`` for crowds and difficult objects.
        position: The index of the largest threshold that a prediction reaches, -1 for none.
        object: The index of the detected object of a correct prediction, -1 for none.
    """

    box: tuple[float, float, float, float]
    label: str
    score: float | None = None
    kind: str = "object"
    position: int = -1
    object: int = -1


@dataclass(frozen=True)
class Panel:
    """The prediction of a run for an image.

    Attributes:
        score: The score of the image: see `segdet.report.disagreement.image_scores`.
        boxes: The predicted boxes, by descending score.
        mask: The data URI of the predicted mask, or None.
        wrong: The data URI of a mask of the wrong pixels, or None.
        left_out: The position of the highest-scoring box that is left out, -1 if all are shown.
        note: A sentence about the prediction, for tasks without a threshold.
    """

    score: float
    boxes: list[Box] = field(default_factory=list)
    mask: str | None = None
    wrong: str | None = None
    left_out: int = -1
    note: str = ""


@dataclass(frozen=True)
class ImagePanels:
    """An image with its annotation and the predictions of all runs.

    Attributes:
        index: The index of the image in the evidence.
        name: The file name.
        size: Width and height of the embedded image.
        picture: The data URI of the image.
        objects: The annotated boxes.
        mask: The data URI of the annotated mask, or None.
        panels: One for each run.
        disagreement: See `segdet.report.disagreement.disagreement`.
    """

    index: int
    name: str
    size: tuple[int, int]
    picture: str
    objects: list[Box]
    mask: str | None
    panels: list[Panel]
    disagreement: float


@dataclass(frozen=True)
class GalleryGroup:
    """The runs of a task that were tested on the same images.

    Attributes:
        id: The id of the element with their gallery.
        runs: The runs.
        evidences: The evidence of each run.
        images: The gallery images. Each run has the same pictures of them, and its own masks.
        left_out: The names of runs beyond `MAX_RUNS`.
    """

    id: str
    runs: list[RunData]
    evidences: list[Evidence]
    images: list[GalleryImage]
    left_out: list[str]

    @property
    def task(self) -> str:
        """The task."""
        return self.runs[0].task

    def rows(self, run: int) -> np.ndarray:
        """Return the indices of the gallery images in the evidence of a run: int64 ``[G]``."""
        ids = self.evidences[run].image_ids
        return np.searchsorted(ids, [image.image_id for image in self.images])

    def read(self, run: int, name: str) -> bytes:
        """Return the content of a file of the gallery of a run."""
        return (self.runs[run].folder / GALLERY_FOLDER / name).read_bytes()


def group_by_images(runs: Sequence[RunData]) -> list[GalleryGroup]:
    """Group the runs with the same task, data, classes and gallery images, in the order of the tasks.

    Other data may have images of the same names, so equal names are not enough.

    Runs without evidence or without gallery images are left out. A gallery that cannot be used is added to the faults
    of its run.
    """
    members: dict[tuple[object, ...], list[tuple[RunData, Evidence, list[GalleryImage]]]] = {}
    for run in sorted(runs, key=lambda run: [*SCORES].index(run.task)):
        if run.evidence is None:
            continue
        try:
            images = _read_images(run, run.evidence)
        except UserError as error:
            run.faults.append(str(error))
            continue
        if images:
            names = tuple(image.file_name for image in images)
            key = run.task, run.record.fingerprint, tuple(run.evidence.class_names), names
            members.setdefault(key, []).append((run, run.evidence, images))
    groups: list[GalleryGroup] = []
    for (task, *_), found in members.items():
        number = sum(group.task == task for group in groups) + 1
        identifier = f"gallery-{task}" if number == 1 else f"gallery-{task}-{number}"
        shown, evidences, images_of_runs = zip(*found[:MAX_RUNS], strict=True)
        left_out = [run.name for run, _, _ in found[MAX_RUNS:]]
        groups.append(GalleryGroup(identifier, [*shown], [*evidences], images_of_runs[0], left_out))
    return groups


def _read_images(run: RunData, evidence: Evidence) -> list[GalleryImage]:
    """Return the gallery images of a run.

    Raises:
        UserError: If the gallery is corrupt, a picture is missing, or the evidence is that of another test.
    """
    folder = run.folder / GALLERY_FOLDER
    images = read_gallery(folder)
    for image in images:
        masks = (image.truth, image.predicted) if isinstance(evidence, SegmentationEvidence) else ()
        for name in (image.picture, *masks):
            try:
                with Image.open(folder / name) as picture:
                    picture.verify()
            except (OSError, SyntaxError, ValueError) as error:
                raise UserError(f"{folder / name}: missing or corrupt; run segdet test again") from error
    if not np.isin([image.image_id for image in images], evidence.image_ids).all():
        raise UserError(f"{folder}: has images that the evidence lacks; run segdet test again")
    return images


@dataclass(frozen=True)
class Gallery:
    """The images of a group with their predictions.

    Attributes:
        group: The runs.
        images: The images, the largest disagreement first; images without objects come last.
        counts: The numbers of correct and wrong detections of each run; empty for other tasks.
        legend: The names of the classes and their colours, for masks.
    """

    group: GalleryGroup
    images: list[ImagePanels]
    counts: list[ScoreCounts]
    legend: list[tuple[str, str]]


def gallery_of(group: GalleryGroup) -> Gallery:
    """Return the pictures and predictions of a group."""
    first, images = group.evidences[0], group.images
    rows = [group.rows(run) for run in range(len(group.runs))]
    scores = [image_scores(each)[row] for each, row in zip(group.evidences, rows, strict=True)]
    spread = disagreement(scores)
    pictures = _pictures(group)
    detections = [each for each in group.evidences if isinstance(each, DetectionEvidence)]
    grid = thresholds(detections) if detections else np.zeros(0)
    limit = int(np.clip(_MAX_BOXES // max(len(group.runs) * len(images), 1), 20, 100))
    masks = _Masks(group) if isinstance(first, SegmentationEvidence) else None
    shown = []
    for at, image in enumerate(images):
        panels = []
        for run, evidence in enumerate(group.evidences):
            panel = _panel(evidence, int(rows[run][at]), image.scale, float(scores[run][at]), grid, limit)
            if masks is not None:
                panel = replace(panel, mask=masks.predicted(run, at), wrong=masks.wrong(run, at))
            panels.append(panel)
        index = int(rows[0][at])
        shown.append(
            ImagePanels(
                index=index,
                name=image.file_name,
                size=pictures[at][1],
                picture=pictures[at][0],
                objects=_objects(first, index, image.scale),
                mask=None if masks is None else masks.truth(at),
                panels=panels,
                disagreement=float(spread[at]),
            )
        )
    # The F1 of an image without objects is 0 or 1, so that its disagreement would be the largest.
    empty = {each.index: _is_empty(each, group.task) for each in shown}
    shown.sort(key=lambda each: (empty[each.index], -each.disagreement, each.name))
    counts = [count_by_score(each, grid) for each in detections]
    return Gallery(group, shown, counts, [] if masks is None else masks.legend())


def _is_empty(image: ImagePanels, task: str) -> bool:
    """Return whether the image has no object to detect."""
    return task == "detection" and not any(box.kind == "object" for box in image.objects)


def _panel(evidence: Evidence, index: int, scale: float, score: float, grid: np.ndarray, limit: int) -> Panel:
    """Return the prediction for the image with this index; masks are added by the caller."""
    if isinstance(evidence, DetectionEvidence):
        return _detections(evidence, index, scale, score, grid, limit)
    if isinstance(evidence, LocalizationEvidence):
        return _located(evidence, index, scale, score)
    return Panel(score, note=f"mean IoU {score:.2f}")


def _detections(
    evidence: DetectionEvidence, index: int, scale: float, score: float, grid: np.ndarray, limit: int
) -> Panel:
    errors = detection_errors(evidence)
    image_id = evidence.image_ids[index]
    first, last = np.searchsorted(errors.detections.images, [image_id, image_id + 1])
    rows = first + np.argsort(-errors.detections.scores[first:last], kind="stable")
    first_object = np.searchsorted(errors.objects.images, image_id)
    positions = np.searchsorted(grid, errors.detections.scores[rows], side="right") - 1
    boxes = []
    for row, position in zip(rows[:limit].tolist(), positions[:limit].tolist(), strict=True):
        correct = errors.kinds[row] == CORRECT
        boxes.append(
            Box(
                _xywh(errors.detections.boxes[row] * scale),
                evidence.class_names[errors.detections.labels[row] - 1],
                float(errors.detections.scores[row]),
                "correct" if correct else KINDS[errors.kinds[row]],
                position,
                int(errors.object_of[row] - first_object) if correct else -1,
            )
        )
    return Panel(score, boxes, left_out=int(positions[limit]) if len(rows) > limit else -1)


def _located(evidence: LocalizationEvidence, index: int, scale: float, score: float) -> Panel:
    label, iou = int(evidence.predicted[index, 0]), float(evidence.iou[index])
    right_class, right_box = label == evidence.label[index], iou >= 0.5
    kind = {
        (True, True): "correct",
        (True, False): "localization",
        (False, True): "classification",
        (False, False): "both",
    }[bool(right_class), right_box]
    box = Box(_xywh(evidence.box[index] * scale), evidence.class_names[label - 1], None, kind)
    return Panel(score, [box], note=f"box IoU {iou:.2f}")


def _objects(evidence: Evidence, index: int, scale: float) -> list[Box]:
    """Return the annotated boxes of an image, in the order that `Box.object` refers to."""
    if isinstance(evidence, DetectionEvidence):
        errors = detection_errors(evidence)
        image_id = evidence.image_ids[index]
        rows = range(*np.searchsorted(errors.objects.images, [image_id, image_id + 1]).tolist())
        names = [evidence.class_names[label - 1] for label in errors.objects.labels[rows.start : rows.stop]]
        kinds = np.where(errors.objects.ignored[rows.start : rows.stop], "ignored", "object").tolist()
        boxes = errors.objects.boxes[rows.start : rows.stop] * scale
        return [Box(_xywh(box), name, kind=kind) for box, name, kind in zip(boxes, names, kinds, strict=True)]
    if isinstance(evidence, LocalizationEvidence):
        return [
            Box(_xywh(evidence.object_box[index] * scale), evidence.class_names[evidence.label[index] - 1])
        ]
    return []


def _xywh(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (round(float(value), 1) for value in box)
    return x0, y0, round(x1 - x0, 1), round(y1 - y0, 1)


def _pictures(group: GalleryGroup) -> list[tuple[str, tuple[int, int]]]:
    """Return the data URI of each image and the width and height that its boxes refer to."""
    originals = contents = [group.read(0, image.picture) for image in group.images]
    sizes = []
    for content in contents:
        with Image.open(io.BytesIO(content)) as picture:
            sizes.append(picture.size)
    for longest in (640, 480, 400, 320, 240):
        if sum(map(len, contents)) <= _BYTES["image"]:
            break
        contents = [_smaller_picture(content, longest) for content in originals]
    return [(_uri(content, "jpeg"), size) for content, size in zip(contents, sizes, strict=True)]


def _smaller_picture(content: bytes, longest: int) -> bytes:
    with Image.open(io.BytesIO(content)) as picture:
        picture.thumbnail((longest, longest))
        stream = io.BytesIO()
        picture.convert("RGB").save(stream, "JPEG", quality=80, optimize=True)
    return stream.getvalue()


class _Masks:
    """The masks of a gallery as data URIs of palette PNGs."""

    def __init__(self, group: GalleryGroup) -> None:
        self.group = group
        self.class_names = group.evidences[0].class_names
        self.first = int(has_background(self.class_names))  # the first class with a colour
        self.colours = np.zeros((256, 3), np.uint8)
        count = len(self.class_names) - self.first
        self.colours[self.first : len(self.class_names)] = distinct_colours(count)
        self.opacity = np.zeros(256, np.uint8)
        self.opacity[self.first : len(self.class_names)] = 255
        self.longest = 0
        for self.longest in (640, 480, 320, 240, 160):
            total = sum(len(self._encode(self._values(0, image.truth))) for image in group.images)
            if total * (2 * len(group.runs) + 1) <= _BYTES["mask"]:
                break

    def truth(self, at: int) -> str:
        """Return the annotated mask of the image with this index in the gallery."""
        return _uri(self._encode(self._values(0, self.group.images[at].truth)), "png")

    def predicted(self, run: int, at: int) -> str:
        """Return the mask that a run predicted."""
        return _uri(self._encode(self._values(run, self.group.images[at].predicted)), "png")

    def wrong(self, run: int, at: int) -> str:
        """Return a mask of the pixels with a wrong class. Ignored pixels are not wrong."""
        image = self.group.images[at]
        truth, predicted = self._values(0, image.truth), self._values(run, image.predicted)
        wrong = (truth != predicted) & (truth != _IGNORED_VALUE)
        mask = Image.fromarray(wrong.astype(np.uint8), "P")
        mask.putpalette([0, 0, 0, *_WRONG_COLOUR])
        return _uri(_png(mask, bytes([0, 255])), "png")

    def legend(self) -> list[tuple[str, str]]:
        """Return the name and the colour of each class except the background."""
        return [
            (name, "#{:02x}{:02x}{:02x}".format(*self.colours[value].tolist()))
            for value, name in enumerate(self.class_names)
            if value >= self.first
        ]

    def _values(self, run: int, name: str) -> np.ndarray:
        """Return a mask of at most the length ``longest``: uint8 ``[h, w]``."""
        with Image.open(io.BytesIO(self.group.read(run, name))) as opened:
            mask = Image.fromarray(np.asarray(opened).astype(np.uint8))
        if max(mask.size) > self.longest:
            factor = self.longest / max(mask.size)
            width, height = (max(round(side * factor), 1) for side in mask.size)
            mask = mask.resize((width, height), Image.Resampling.NEAREST)
        return np.asarray(mask)

    def _encode(self, values: np.ndarray) -> bytes:
        mask = Image.fromarray(values, "P")
        mask.putpalette(self.colours.tobytes())
        return _png(mask, self.opacity.tobytes())


def _png(mask: Image.Image, opacity: bytes) -> bytes:
    stream = io.BytesIO()
    mask.save(stream, "PNG", optimize=True, transparency=opacity)
    return stream.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
