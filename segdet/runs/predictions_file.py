"""Scores of a file of predictions in COCO's results format, which any tool may have written.

The ground truth is a COCO annotation file or a split of a folder that segdet reads. Scores are those of
`segdet.metrics.average_precision.Evaluation`, in float64: COCO's twelve numbers equal pycocotools'.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from segdet.data.formats.coco import COCOReader, NoImageFolder, find_image_folder
from segdet.data.formats.detect import find_dataset
from segdet.data.formats.reader import Reader, for_each_sample
from segdet.data.images import image_size
from segdet.data.sample import Objects as ImageObjects
from segdet.metrics.average_precision import Detections, Evaluation, MaskOverlaps, Objects
from segdet.metrics.detection import mask_areas
from segdet.runs.evidence import EVIDENCE_NAME, write_evidence
from segdet.runs.evidence_from_scores import ImageFile, detection_evidence
from segdet.runs.predictions import relative_path
from segdet.runs.record import RECORD_NAME, Record
from segdet.util.errors import UserError

_UNKNOWN_IMAGE, _UNKNOWN_CATEGORY = "unknown image_id", "unknown category_id"

_DELAY = 2.0
"""The number of seconds before a progress bar appears."""

_LISTED = 10
"""The number of unknown ids that a line lists."""


@dataclass(frozen=True)
class GroundTruth:
    """The images and objects of a COCO annotation file or of a split of a folder.

    Attributes:
        path: The file or the folder.
        image_ids: The ids as in the evidence of a test: int64 ``[I]``, ascending. Positions if ids are texts.
        images: The image files by the position of the image, in the order of the ids. Names are relative to the root
            of the dataset, if the images are there.
        positions: The position of each image by its id.
        class_names: The names of the categories, in the order of the ids.
        labels: The label of each category by its id, from 1.
        objects: The annotations; images are given by position.
        segmentations: The segmentation of each object, or None.
        orphans: The number of annotations of images that are not listed. They are not in ``objects``.
    """

    path: Path
    image_ids: np.ndarray
    images: list[ImageFile]
    positions: dict[Any, int]
    class_names: list[str]
    labels: dict[Any, int]
    objects: Objects
    segmentations: list[Any]
    orphans: int = 0


@dataclass(frozen=True)
class Predictions:
    """The entries of a results file.

    Attributes:
        path: The file.
        detections: The entries that can be scored; images are given by position.
        segmentations: The segmentation of each detection, or None if an entry has none.
        left_out: The number of entries that are not scored, by reason.
        unknown: The unknown ids of these entries by reason, each once.
    """

    path: Path
    detections: Detections
    segmentations: list[Any] | None
    left_out: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, list[Any]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return a line for each reason: the number of entries, and the first unknown ids."""
        lines = []
        for reason, count in self.left_out.items():
            ids = self.unknown.get(reason, [])
            more = f" ... ({len(ids):,})" if len(ids) > _LISTED else ""
            listed = f" ({', '.join(map(str, ids[:_LISTED]))}{more})" if ids else ""
            lines.append(f"{reason}: {count} left out{listed}")
        return lines


def read_ground_truth(path: Path) -> GroundTruth:
    """Read a COCO annotation file.

    Raises:
        UserError: If the file is missing or corrupt, or is not a COCO annotation file.
    """
    content = _read_json(path)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise UserError(
            f"{path}: not a COCO annotation file (lists {', '.join(keys)}); give ANNOTATIONS second"
        )
    try:
        images = {image["id"]: image for image in content["images"]}
        categories = {category["id"]: str(category["name"]) for category in content["categories"]}
        image_ids, category_ids = _ordered(images), _ordered(categories)
        positions = {each: position for position, each in enumerate(image_ids)}
        labels = {each: label for label, each in enumerate(category_ids, 1)}
        used = [each for each in content["annotations"] if each["image_id"] in positions]
        boxes = _boxes([annotation["bbox"] for annotation in used])
        objects = Objects(
            images=np.array([positions[annotation["image_id"]] for annotation in used], np.int64),
            boxes=boxes,
            labels=np.array([labels[annotation["category_id"]] for annotation in used], np.int64),
            iscrowd=np.array([bool(annotation.get("iscrowd", 0)) for annotation in used], bool),
            difficult=np.array([bool(annotation.get("difficult", 0)) for annotation in used], bool),
            areas=np.array(
                [annotation.get("area", math.prod(annotation["bbox"][2:])) for annotation in used], float
            ),
            box_areas=_areas([annotation["bbox"] for annotation in used]),
        )
        names = _names_in_root(path, [str(images[each].get("file_name", each)) for each in image_ids])
        files = [
            ImageFile(name, (images[each]["height"], images[each]["width"]))
            for name, each in zip(names, image_ids, strict=True)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: an entry is not valid ({_reason(error)}); run segdet data check") from None
    return GroundTruth(
        path=path,
        image_ids=np.array(
            image_ids if all(type(each) is int for each in image_ids) else range(len(files)), np.int64
        ),
        images=files,
        positions=positions,
        class_names=_unique(categories, category_ids),
        labels=labels,
        objects=objects,
        segmentations=[annotation.get("segmentation") for annotation in used],
        orphans=len(content["annotations"]) - len(used),
    )


def read_folder(root: Path, split: str | None = None, class_names: list[str] | None = None) -> GroundTruth:
    """Read a split of a dataset folder. COCO's annotations are read by `read_ground_truth`.

    In the predictions of other formats, ``image_id`` is the position of the image in the split, from 1. The
    ``category_id`` of VOC is the position of the class, from 1; that of Cityscapes is the label id. `segdet predict`
    writes the same numbers.

    Args:
        root: The folder.
        split: The split; may be None if there is only one.
        class_names: The classes of a VOC folder; None to find them.

    Raises:
        UserError: If the folder has no split of this name, or no known format.
        BadSample: If an annotation cannot be used.
    """
    dataset = find_dataset(root, None, "detection", None if split is None else [split], class_names)
    if len(dataset.splits) > 1:
        raise UserError(
            f"{root}: has the splits {', '.join(dataset.splits)}; choose one, such as --split {dataset.splits[-1]}"
        )
    reader = dataset.open(dataset.splits[0])
    if isinstance(reader, COCOReader):
        return read_ground_truth(reader.annotation_file)
    samples = for_each_sample(reader, _image_and_objects, f"reading {root.name}", delay=_DELAY)
    ids = [reader.image_id(index) for index in range(len(reader))]
    found = [ImageObjects(), *(each for _, _, each in samples)]  # the first one gives the arrays their types
    return GroundTruth(
        path=root,
        image_ids=np.array(ids, np.int64),
        images=[ImageFile(relative_path(path, dataset.root).as_posix(), size) for path, size, _ in samples],
        positions={each: position for position, each in enumerate(ids)},
        class_names=list(reader.class_names),
        labels={each: label for label, each in enumerate(reader.category_ids, 1)},
        objects=Objects(
            images=np.repeat(np.arange(len(samples)), [len(each) for each in found[1:]]),
            boxes=np.concatenate([each.boxes for each in found]).astype(np.float64),
            labels=np.concatenate([each.labels for each in found]),
            iscrowd=np.concatenate([each.iscrowd for each in found]),
            difficult=np.concatenate([each.difficult for each in found]),
            areas=np.concatenate([each.area for each in found]).astype(np.float64),
        ),
        segmentations=[None] * sum(map(len, found)),
    )


def _image_and_objects(reader: Reader, index: int) -> tuple[Path, tuple[int, int], ImageObjects]:
    path = reader.image_path(index)
    return path, reader.declared_size(index) or image_size(path), reader.objects(index)


def read_predictions(path: Path, truth: GroundTruth) -> Predictions:
    """Read a file of predictions for the images of ``truth``.

    Entries without a valid box and score, and entries of unknown images or categories, are left out and counted.

    Raises:
        UserError: If the file is missing or corrupt, or is not a list of results.
    """
    content = _read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise UserError(
            f"{path}: not a COCO results file (a list of image_id, category_id, bbox, score); give PREDICTIONS first"
        )
    left_out: Counter[str] = Counter()
    unknown: dict[str, dict[Any, None]] = {}
    keys = {_UNKNOWN_IMAGE: "image_id", _UNKNOWN_CATEGORY: "category_id"}
    kept: list[dict[str, Any]] = []
    for entry in tqdm(content, f"checking {path.name}", unit=" entries", delay=_DELAY, leave=False):
        reason = _fault(entry, truth)
        if reason is None:
            kept.append(entry)
        else:
            left_out[reason] += 1
            if reason in keys:
                unknown.setdefault(reason, {})[entry[keys[reason]]] = None
    boxes = [_box_of(entry) for entry in kept]
    detections = Detections(
        images=np.array([truth.positions[entry["image_id"]] for entry in kept], np.int64),
        boxes=_boxes(boxes),
        labels=np.array([truth.labels[entry["category_id"]] for entry in kept], np.int64),
        scores=np.array([entry["score"] for entry in kept], float),
        box_areas=_areas(boxes),
    )
    segmentations = [entry.get("segmentation") for entry in kept]
    listed = {reason: _ordered(ids) for reason, ids in unknown.items()}
    return Predictions(
        path, detections, None if not kept or None in segmentations else segmentations, left_out, listed
    )


def score_predictions(predictions: Predictions, truth: GroundTruth) -> tuple[dict[str, float], Evaluation]:
    """Return the scores by name, as `segdet.metrics.DetectionScores` has them, and the evaluation of the boxes.

    Scores of masks (``mask_...``) are included if all predictions and all objects have a segmentation.
    """
    by_box = Evaluation(truth.class_names, predictions.detections, truth.objects)
    scores = by_box.coco() | by_box.voc()
    overlaps = _mask_overlaps(predictions, truth)
    if overlaps is not None:
        by_mask = Evaluation(truth.class_names, predictions.detections, truth.objects, overlaps)
        scores |= {f"mask_{name}": value for name, value in by_mask.coco().items()}
    return scores, by_box


def write_scores(
    folder: Path, predictions: Predictions, truth: GroundTruth, scores: Mapping[str, float], evaluation: Evaluation,
    command: str,
) -> None:  # fmt: skip
    """Write a record and evidence into ``folder``, so that `segdet report` compares these predictions with runs.

    Raises:
        UserError: If ``folder`` holds a run, or a file cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; give a new folder")
    positions = np.arange(len(truth.images))
    evidence = detection_evidence(positions, dict(enumerate(truth.images)), evaluation)
    write_evidence(folder / EVIDENCE_NAME, replace(evidence, image_ids=truth.image_ids))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    Record(
        name=folder.name,
        task="detection",
        model=predictions.path.stem,
        data=truth.path.name,
        seed=0,
        status="finished",
        metrics={f"test/{name}": value for name, value in scores.items()},
        command=command,
        started=now,
        finished=now,
        per_image=EVIDENCE_NAME,
    ).write(folder / RECORD_NAME)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a readable file") from None
    except ValueError as error:
        raise UserError(f"{path}: corrupt, or not JSON ({error})") from None


def _names_in_root(annotations: Path, names: list[str]) -> list[str]:
    """Return file names relative to the root of the dataset, as in tests; unchanged if there are no images."""
    folder = annotations.absolute().parent
    root = folder.parent if folder.name == "annotations" else folder
    split = annotations.stem.removeprefix("instances_")
    try:
        images = find_image_folder(root, annotations.absolute(), names[0] if names else "", split)
    except NoImageFolder:
        return names
    return [relative_path(images / name, root).as_posix() for name in names]


def _unique(names: Mapping[Any, str], ids: list[Any]) -> list[str]:
    """Return the names in the order of ``ids``; names of several categories with the id."""
    counts = Counter(names.values())
    return [names[each] if counts[names[each]] == 1 else f"{names[each]} ({each})" for each in ids]


def _ordered(ids: Iterable[Any]) -> list[Any]:
    """Return ids in ascending order, numbers before texts."""
    return sorted(ids, key=lambda each: (isinstance(each, str), each))


def _boxes(boxes: list[Any]) -> np.ndarray:
    """Convert ``x, y, width, height`` to xyxy, float64 ``[N, 4]``."""
    values = np.array(boxes, float).reshape(-1, 4)
    return np.concatenate([values[:, :2], values[:, :2] + values[:, 2:]], 1)


def _areas(boxes: list[Any]) -> np.ndarray:
    """Return width times height as in the file, float64 ``[N]``.

    Rounding can change the width of an xyxy box, so that a box at a limit of areas or of IoU would cross it.
    """
    return np.asarray(np.array(boxes, float).reshape(-1, 4)[:, 2:].prod(1))


def _box_of(entry: Mapping[str, Any]) -> Any:
    """Return the box of an entry; the box around its segmentation if it has no other."""
    return entry["bbox"] if "bbox" in entry else rle.toBbox(_encoded(entry["segmentation"], None)).tolist()


def _fault(entry: Mapping[str, Any], truth: GroundTruth) -> str | None:
    """Return the reason for which an entry cannot be scored, or None."""
    try:
        if entry["image_id"] not in truth.positions:
            return _UNKNOWN_IMAGE
        if entry["category_id"] not in truth.labels:
            return _UNKNOWN_CATEGORY
        box = np.array(_box_of(entry), float)
        return (
            None
            if box.shape == (4,) and np.isfinite([*box, entry["score"]]).all()
            else "invalid box or score"
        )
    except KeyError as error:
        return f"no {error.args[0]}"
    except (TypeError, ValueError, OverflowError):
        return "invalid box or score"


def _encoded(segmentation: Any, size: tuple[int, int] | None) -> Any:
    """Return a segmentation as a compressed run-length code. Polygons need the ``size`` of the image."""
    if isinstance(segmentation, list):
        if size is None:
            raise ValueError("a polygon without an image")
        return rle.merge(rle.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def _mask_overlaps(predictions: Predictions, truth: GroundTruth) -> MaskOverlaps | None:
    """Return the overlaps of the masks, or None if a detection or an object has none."""
    if predictions.segmentations is None or not all(truth.segmentations):
        return None
    found, objects = predictions.detections, truth.objects
    codes = [
        _encoded(each, truth.images[image].size)
        for each, image in zip(predictions.segmentations, found.images.tolist(), strict=True)
    ]
    pairs: list[np.ndarray] = []
    detections_of, objects_of = (_groups(each.images, each.labels) for each in (found, objects))
    shared = sorted(detections_of.keys() & objects_of.keys())
    for group in tqdm(shared, "comparing masks", delay=_DELAY, leave=False):
        rows, others = detections_of[group], objects_of[group]
        size = truth.images[group[0]].size
        targets = [_encoded(truth.segmentations[other], size) for other in others]
        crowd = (objects.iscrowd | objects.difficult)[others].astype(np.uint8)
        overlaps = np.asarray(rle.iou([codes[row] for row in rows], targets, crowd.tolist()))
        near = np.argwhere(overlaps >= 0.5)
        pairs.append(
            np.column_stack([rows[near[:, 0]], others[near[:, 1]], overlaps[near[:, 0], near[:, 1]]])
        )
    table = np.concatenate([np.zeros((0, 3)), *pairs])
    indices = table[:, :2].astype(np.int64)
    return MaskOverlaps(mask_areas(codes), indices[:, 0], indices[:, 1], table[:, 2])


def _groups(images: np.ndarray, labels: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Return the rows of each image and label."""
    order = np.lexsort((labels, images))
    keys = np.column_stack([images, labels])[order]
    starts = (
        np.flatnonzero(np.r_[True, (np.diff(keys, axis=0) != 0).any(1)]) if len(keys) else np.zeros(0, int)
    )
    return {
        (int(keys[start, 0]), int(keys[start, 1])): order[start:end]
        for start, end in pairwise([*starts.tolist(), len(keys)])
    }


def _reason(error: Exception) -> str:
    return f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
