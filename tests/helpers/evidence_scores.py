"""The scores of evidence, computed in the plainest way, as a reference."""

from itertools import pairwise

import numpy as np

from segdet.runs.evidence import (
    CORRECT,
    IGNORED,
    DetectionEvidence,
    Evidence,
    LocalizationEvidence,
    SegmentationEvidence,
)


def scores_of(evidence: Evidence) -> dict[str, float]:
    """Return the scores of all images, by the names of the metrics; NaN where undefined."""
    with np.errstate(invalid="ignore"):
        if isinstance(evidence, DetectionEvidence):
            return _detection(evidence)
        if isinstance(evidence, SegmentationEvidence):
            return _segmentation(evidence)
        return _localization(evidence)


def _defined_mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _detection(evidence: DetectionEvidence) -> dict[str, float]:
    counted = ~(evidence.object_crowd | evidence.object_difficult)
    ranking = np.argsort(-evidence.score.astype(float), kind="stable")
    scores = {}
    kinds = {"": evidence.match} | ({} if evidence.mask_match is None else {"mask_": evidence.mask_match})
    for prefix, match in kinds.items():
        by_class = np.full((len(evidence.class_names), 10), np.nan)
        for index in range(len(evidence.class_names)):
            objects = (counted & (evidence.object_label == index + 1)).sum()
            if objects:
                codes = match[ranking[evidence.label[ranking] == index + 1]]
                by_class[index] = [_coco_ap(each[each != IGNORED] == CORRECT, objects) for each in codes.T]
        scores |= {
            f"{prefix}map": _defined_mean(by_class),
            f"{prefix}map_50": _defined_mean(by_class[:, 0]),
            f"{prefix}map_75": _defined_mean(by_class[:, 5]),
            **{
                f"{prefix}ap/{name}": row.mean()
                for name, row in zip(evidence.class_names, by_class, strict=True)
            },
        }
    voc = []
    for index in range(len(evidence.class_names)):
        objects = (counted & (evidence.object_label == index + 1)).sum()
        if objects:
            codes = evidence.voc_match[ranking[evidence.label[ranking] == index + 1]]
            voc.append(_voc_aps(codes[codes != IGNORED] == CORRECT, objects))
    scores["map_voc07"], scores["map_voc12"] = np.mean(voc, 0) if voc else (np.nan, np.nan)
    return scores


def _coco_ap(correct: np.ndarray, objects: int) -> float:
    hits = np.cumsum(correct)
    recall, precision = hits / objects, hits / np.arange(1, len(hits) + 1)
    reached = [recall >= threshold for threshold in np.linspace(0, 1, 101)]
    return float(np.mean([precision[each].max() if each.any() else 0 for each in reached]))


def _voc_aps(correct: np.ndarray, objects: int) -> tuple[float, float]:
    hits = np.cumsum(correct)
    precision = hits / np.arange(1, len(hits) + 1)
    eleven = [
        max(precision[10 * hits >= tenths * objects], default=0.0) for tenths in range(11)
    ]  # in integers, because 3 / 10 < .3
    area = sum(
        precision[index:].max() * (after - before) / objects
        for index, (before, after) in enumerate(pairwise([0, *hits]))
    )
    return float(np.mean(eleven)), float(area)


def _segmentation(evidence: SegmentationEvidence) -> dict[str, float]:
    classes = len(evidence.class_names)
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (evidence.truth, evidence.predicted), evidence.pixels)
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    scores = {
        "miou": _defined_mean(iou),
        "pixel_acc": hits.sum() / confusion.sum(),
        "class_acc": _defined_mean(hits / confusion.sum(1)),
        **{f"iou/{name}": value for name, value in zip(evidence.class_names, iou, strict=True)},
    }
    if evidence.boundary_f1 is not None and evidence.boundary_bands is not None:
        defined = ~np.isnan(evidence.boundary_f1)
        of_images = [
            row[use].mean() for row, use in zip(evidence.boundary_f1, defined, strict=True) if use.any()
        ]
        bands = evidence.boundary_bands.sum(0)
        boundary_iou = bands[0] / bands[1]
        scores |= {"bf": _defined_mean(np.array(of_images)), "boundary_iou": _defined_mean(boundary_iou)}
        for index, name in enumerate(evidence.class_names):
            values = evidence.boundary_f1[defined[:, index], index]
            scores[f"bf/{name}"] = values.mean() if len(values) else np.nan
            scores[f"boundary_iou/{name}"] = boundary_iou[index]
    return scores


def _localization(evidence: LocalizationEvidence) -> dict[str, float]:
    correct = evidence.predicted[:, 0] == evidence.label
    return {
        "top1": correct.mean(),
        "loc_acc": (correct & (evidence.iou >= 0.5)).mean(),
        "loc_error_top5": 1 - evidence.located_top5.mean(),
        "box_iou": evidence.iou.mean(),
    }
