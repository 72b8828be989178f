"""Scores of each class, from records and evidence."""

from dataclasses import dataclass

import numpy as np

from segdet.report.comparisons import usable_tests
from segdet.report.run_data import RunData, RunGroup
from segdet.report.statistics import estimate
from segdet.runs.evidence import LocalizationEvidence

SCORE = {"detection": "ap", "segmentation": "iou", "localization": "loc_acc"}
"""The score of a class, by task. Records contain it as ``test/<score>/<class>``, except for localization."""

TITLES = {"detection": "AP", "segmentation": "IoU", "localization": "Accuracy of class and box"}
"""The names of these scores in texts."""


@dataclass(frozen=True)
class ClassScore:
    """The score of a class of the runs of a group.

    Attributes:
        group: The runs, which differ only in their seed.
        name: The class.
        mean: The mean over the seeds.
        low, high: The 95% interval over images, and over seeds if there are several. Without evidence, the smallest and
            the largest score of a seed; they are equal for a single seed.
        is_interval: Whether they are an interval.
    """

    group: RunGroup
    name: str
    mean: float
    low: float
    high: float
    is_interval: bool = False


def class_scores(group: RunGroup, split: str) -> list[ClassScore]:
    """Return the score of each class of a group, in the order of the classes."""
    by_class: dict[str, list[float]] = {}
    for run in group.runs:
        for name, value in _scores(run, split).items():
            by_class.setdefault(name, []).append(value)
    tests = usable_tests(group)[0] if split == "test" else []
    scores = []
    for name, values in by_class.items():
        key = f"{SCORE[group.task]}/{name}"
        interval = None
        if tests and all(key in test.values for test in tests):
            found = estimate(tests, key)
            interval = found.combined or found.images
        if interval is not None and interval.is_defined:
            # Student's interval may exceed [0, 1].
            low, high = max(interval.low, 0.0), min(interval.high, 1.0)
        else:
            low, high, interval = min(values), max(values), None
        scores.append(ClassScore(group, name, float(np.mean(values)), low, high, interval is not None))
    return scores


def _scores(run: RunData, split: str) -> dict[str, float]:
    if run.task == "localization":
        return _localization(run) if split == "test" else {}
    prefix = f"{split}/{SCORE[run.task]}/"
    found = {
        name.removeprefix(prefix): v for name, v in run.record.metrics.items() if name.startswith(prefix)
    }
    return {name: value for name, value in found.items() if value is not None}


def _localization(run: RunData) -> dict[str, float]:
    evidence = run.evidence
    if not isinstance(evidence, LocalizationEvidence):
        return {}
    located = (evidence.label == evidence.predicted[:, 0]) & (evidence.iou >= 0.5)
    return {
        name: float(located[evidence.label == label].mean())
        for label, name in enumerate(evidence.class_names, 1)
        if (evidence.label == label).any()
    }
