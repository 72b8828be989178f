"""Test each kind of error and its cost, all kinds against a slow reference, and edge cases."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from segdet.metrics import DetectionScores
from segdet.metrics.average_precision import Detections, Evaluation, Objects
from segdet.metrics.detection_errors import CORRECT, IGNORED, KINDS, SPECIAL, DetectionErrors

A, B, FAR = [0, 0, 100, 100], [200, 0, 300, 100], [600, 600, 700, 700]


def detections_of(rows):
    """Return `Detections` from rows (image, box, label, score)."""
    return Detections(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[2] for row in rows], np.int64),
        np.array([row[3] for row in rows], np.float64),
    )


def objects_of(rows):
    """Return `Objects` from rows (image, box, label[, "crowd" or "difficult"])."""
    boxes = np.array([row[1] for row in rows], np.float64).reshape(-1, 4)
    return Objects(
        np.array([row[0] for row in rows], np.int64),
        boxes,
        np.array([row[2] for row in rows], np.int64),
        np.array([row[3:] == ("crowd",) for row in rows], bool),
        np.array([row[3:] == ("difficult",) for row in rows], bool),
        (boxes[:, 2:] - boxes[:, :2]).prod(1),
    )


def errors_of(found, truth, classes=2):
    return DetectionErrors(
        [f"c{label}" for label in range(1, classes + 1)], detections_of(found), objects_of(truth)
    )


HALF = 51 / 101
"""The AP of a class with half of its objects detected and no other error: recalls 0, .01 ... .5."""
SECOND_WRONG = (51 + 50 * 2 / 3) / 101
"""The AP of a class with two objects and three detections: correct, wrong and correct, by descending score."""

SCENES = {
    # The only object of class 2 is detected as class 1.
    "classification": (
        [(1, A, 1, 0.9), (1, B, 1, 0.8)],
        [(1, A, 1), (1, B, 2)],
        (1 + 0) / 2,
        {"classification": 0.5, "false_negative": 0.5},
    ),
    "localization": (
        [(1, A, 1, 0.9), (1, [200, 0, 300, 30], 1, 0.8)],
        [(1, A, 1), (1, B, 1)],
        HALF,
        {"localization": 1 - HALF, "false_negative": 1 - HALF},
    ),
    # Class 1: correct, wrong, correct. The wrong one covers 30 % of an object of class 2, which is also detected.
    "both": (
        [(1, A, 1, 0.9), (1, [200, 0, 300, 30], 1, 0.8), (2, A, 1, 0.7), (1, B, 2, 0.9)],
        [(1, A, 1), (2, A, 1), (1, B, 2)],
        (SECOND_WRONG + 1) / 2,
        {"both": (1 - SECOND_WRONG) / 2, "false_positive": (1 - SECOND_WRONG) / 2},
    ),
    "duplicate": (
        [(1, A, 1, 0.9), (1, [0, 0, 100, 90], 1, 0.8), (1, B, 1, 0.7)],
        [(1, A, 1), (1, B, 1)],
        SECOND_WRONG,
        {"duplicate": 1 - SECOND_WRONG, "false_positive": 1 - SECOND_WRONG},
    ),
    "background": (
        [(1, A, 1, 0.9), (1, FAR, 1, 0.8), (1, B, 1, 0.7)],
        [(1, A, 1), (1, B, 1)],
        SECOND_WRONG,
        {"background": 1 - SECOND_WRONG, "false_positive": 1 - SECOND_WRONG},
    ),
    "missed": (
        [(1, A, 1, 0.9)],
        [(1, A, 1), (1, B, 1)],
        HALF,
        {"missed": 1 - HALF, "false_negative": 1 - HALF},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone(kind):
    found, truth, ap, gains = SCENES[kind]
    errors = errors_of(found, truth)
    assert errors.counts() == {name: int(name == kind) for name in KINDS}
    assert errors.ap() == pytest.approx(ap)
    expected = dict.fromkeys([*KINDS, *SPECIAL], 0.0) | gains
    assert errors.gains() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([0, 0, 100, 50], None),  # IoU .5 is correct
        ([0, 0, 100, 49], "localization"),
        ([0, 0, 100, 10], "localization"),
        ([0, 0, 100, 9], "background"),
    ],
)
def test_the_thresholds_within_a_class(box, kind):
    counts = errors_of([(1, box, 1, 0.9)], [(1, A, 1)]).counts()
    assert {name for name, count in counts.items() if count} == {kind} - {None} | (
        {"missed"} if kind == "background" else set()
    )


@pytest.mark.parametrize(
    ("box", "kind"),
    [([0, 0, 100, 50], "classification"), ([0, 0, 100, 49], "both"), ([0, 0, 100, 9], "background")],
)
def test_the_thresholds_across_classes(box, kind):
    counts = errors_of([(1, box, 2, 0.9)], [(1, A, 1)]).counts()
    assert counts[kind] == 1 and sum(counts.values()) == 1 + (kind != "classification")


def test_an_error_has_one_kind():
    # The IoU is .3 with an object of the same class, and higher with one of another class: a localization error.
    errors = errors_of([(1, [0, 0, 100, 30], 1, 0.9)], [(1, A, 1), (1, [0, 0, 100, 31], 2)])
    assert errors.counts() == dict.fromkeys(KINDS, 0) | {"localization": 1, "missed": 1}
    # A duplicate that also overlaps an object of another class: a classification error.
    errors = errors_of([(1, A, 1, 0.9), (1, [0, 0, 100, 90], 1, 0.8)], [(1, A, 1), (1, [0, 0, 100, 80], 2)])
    assert errors.counts() == dict.fromkeys(KINDS, 0) | {"classification": 1}


def test_the_best_of_the_fixed_detections_is_kept():
    # A localization error with a higher score than the correct detection is fixed and replaces it.
    better = [(1, [0, 0, 100, 40], 1, 0.9), (1, A, 1, 0.8), (1, FAR, 1, 0.85)]
    errors = errors_of(better, [(1, A, 1)])
    assert errors.counts() == dict.fromkeys(KINDS, 0) | {"localization": 1, "background": 1}
    assert errors.ap() == pytest.approx(1 / 3)
    assert errors.ap({"localization"}) == pytest.approx(1)  # correct at .9, then background only
    worse = [(1, [0, 0, 100, 40], 1, 0.7), (1, A, 1, 0.8), (1, FAR, 1, 0.85)]
    errors = errors_of(worse, [(1, A, 1)])
    assert errors.ap({"localization"}) == errors.ap() == pytest.approx(1 / 2)
    # Of two classification errors of one object, only the better one is fixed.
    twice = [(1, A, 2, 0.9), (1, A, 2, 0.8), (2, B, 1, 0.7)]
    errors = errors_of(twice, [(1, A, 1), (2, B, 1)])
    assert errors.counts()["classification"] == 2
    assert errors.ap({"classification"}) == pytest.approx(1)
    assert errors.object_states().tolist() == [KINDS.index("classification"), CORRECT]


def test_crowds_and_difficult_objects_are_ignored():
    for flag in ("crowd", "difficult"):
        truth = [(1, A, 1), (1, [400, 0, 600, 200], 1, flag)]
        found = [(1, A, 1, 0.5), (1, [400, 0, 500, 100], 1, 0.9), (1, [450, 50, 550, 150], 1, 0.8)]
        errors = errors_of(found, truth)
        assert sum(errors.counts().values()) == 0 and errors.ap() == pytest.approx(1)
        assert errors.confusion(0.0).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
        assert errors.object_states().tolist() == [CORRECT, IGNORED]
        # Ignored objects are not matched with detections of another class, as in the AP.
        errors = errors_of([(1, [400, 0, 500, 100], 2, 0.9)], truth)
        assert errors.counts() == dict.fromkeys(KINDS, 0) | {"background": 1, "missed": 1}


# All kinds together.


def random_set(seed, images=15, classes=4, objects=5.0, ignored=0.15, levels=None):
    """Return objects with shifted, missing, duplicate, misclassified and background detections, and equal scores."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for image in range(images):
        for _ in range(rng.poisson(objects)):
            start = rng.uniform(0, 120, 2)
            box = np.concatenate([start, start + rng.uniform(15, 70, 2)])
            label = int(rng.integers(1, classes + 1))
            flag = (("crowd",), ("difficult",))[rng.integers(2)] if rng.random() < ignored else ()
            truth.append((image, box, label, *flag))
            for _ in range(rng.choice([0, 1, 1, 2])):
                named = int(rng.integers(1, classes + 1)) if rng.random() < 0.3 else label
                found.append((image, box + rng.normal(0, rng.choice([2, 14]), 4), named, rng.random()))
        for _ in range(rng.poisson(1)):
            start = rng.uniform(0, 120, 2)
            box = np.concatenate([start, start + rng.uniform(15, 70, 2)])
            found.append((image, box, int(rng.integers(1, classes + 1)), rng.random()))
    found = [(i, np.r_[box[:2], np.maximum(box[2:], box[:2] + 1)], label, s) for i, box, label, s in found]
    if levels:
        found = [(*row[:3], round(row[3] * levels) / levels) for row in found]
    return found, truth


SETS = [
    {},
    {"classes": 1, "objects": 12.0},
    {"classes": 12, "objects": 3.0},
    {"ignored": 0.6},
    {"objects": 20.0, "images": 4},
]


def iou_of(one, other, whole=None):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    common = np.clip(high - low, 0, None).prod()
    area = (one[2:] - one[:2]).prod()
    return common / (area if whole else area + (other[2:] - other[:2]).prod() - common)


class Reference:
    """The same analysis, one detection at a time."""

    def __init__(self, found, truth, classes):
        self.classes = classes
        self.truth = [(np.asarray(row[1], float), row) for row in truth]
        self.found = sorted(found, key=lambda row: -row[3])
        self.taken = {}  # object -> detection
        self.kind, self.about = [], []
        for d, (image, box, label, _) in enumerate(self.found):
            own = [
                (iou_of(box, other, len(row) > 3), o)
                for o, (other, row) in enumerate(self.truth)
                if row[0] == image and row[2] == label
            ]
            free = [(iou, o) for iou, o in own if iou >= 0.5 and not self.ignored(o) and o not in self.taken]
            if free:
                self.taken[max(free)[1]] = d
                self.add("right", max(free)[1])
                continue
            if any(iou >= 0.5 for iou, o in own if self.ignored(o)):
                self.add("ignored", None)
                continue
            own = [pair for pair in own if not self.ignored(pair[1])]
            other = [
                (iou_of(box, it), o)
                for o, (it, row) in enumerate(self.truth)
                if row[0] == image and row[2] != label and not self.ignored(o)
            ]
            best, best_other = max(own, default=(0, None)), max(other, default=(0, None))
            if 0.1 <= best[0] < 0.5:
                self.add("localization", best[1])
            elif best_other[0] >= 0.5:
                self.add("classification", best_other[1])
            elif best[0] >= 0.5:
                self.add("duplicate", best[1])
            elif best[0] < 0.1 and best_other[0] < 0.1:
                self.add("background", None)
            else:
                self.add("both", None)
        covered = {
            o for k, o in zip(self.kind, self.about, strict=True) if k in ("localization", "classification")
        }
        self.missed = [
            o for o in range(len(truth)) if not self.ignored(o) and o not in self.taken and o not in covered
        ]

    def ignored(self, o):
        return len(self.truth[o][1]) > 3

    def add(self, kind, about):
        self.kind.append(kind)
        self.about.append(about)

    def ap(self, fixed=None):
        """Return the AP with one kind of error fixed."""
        points = {label: [] for label in range(1, self.classes + 1)}
        objects = dict.fromkeys(points, 0)
        for o, (_, row) in enumerate(self.truth):
            objects[row[2]] += not self.ignored(o)
        counted = {label for label in points if objects[label]}
        best = {}  # the rank of each object's best detection
        for d, (kind, o) in enumerate(zip(self.kind, self.about, strict=True)):
            if kind == "right" or (kind == fixed and fixed in ("localization", "classification")):
                best.setdefault(o, d)
        for d, (kind, o) in enumerate(zip(self.kind, self.about, strict=True)):
            label, score = self.found[d][2:]
            if kind == "ignored" or (fixed == "false_positive" and kind != "right"):
                continue
            if kind == "right" or (kind == fixed and fixed in ("localization", "classification")):
                if best[o] == d:
                    points[self.truth[o][1][2]].append((score, True))
            elif kind != fixed:
                points[label].append((score, False))
        if fixed == "missed":
            for o in self.missed:
                objects[self.truth[o][1][2]] -= 1
        if fixed == "false_negative":
            objects = {label: sum(hit for _, hit in points[label]) for label in points}
        values = []
        for label in counted:
            if not objects[label]:
                values.append(0.0 if points[label] else 1.0)
                continue
            hits = np.array([hit for _, hit in sorted(points[label], key=lambda p: -p[0])], float)
            tp = np.cumsum(hits)
            recall, precision = tp / objects[label], tp / np.arange(1, len(tp) + 1)
            values.append(
                np.mean([max(precision[recall >= at], default=0.0) for at in np.linspace(0, 1, 101)])
            )
        return np.mean(values)

    def confusion(self, min_score):
        last = self.classes
        table = np.zeros((last + 1, last + 1), int)
        taken, left = set(), []
        for d, (_, _, label, score) in enumerate(self.found):
            if score < min_score or self.kind[d] == "ignored":
                continue
            if self.kind[d] == "right":
                taken.add(self.about[d])
                table[label - 1, label - 1] += 1
            else:
                left.append(d)
        for d in left:
            image, box, label, _ = self.found[d]
            near = [
                (iou_of(box, other), o)
                for o, (other, row) in enumerate(self.truth)
                if row[0] == image and o not in taken and not self.ignored(o)
            ]
            iou, o = max(near, default=(0, None))
            if iou >= 0.5:
                taken.add(o)
                table[self.truth[o][1][2] - 1, label - 1] += 1
            else:
                table[last, label - 1] += 1
        for o, (_, row) in enumerate(self.truth):
            if o not in taken and not self.ignored(o):
                table[row[2] - 1, last] += 1
        return table


@pytest.mark.parametrize("options", SETS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_slow_reference(options, seed):
    found, truth = random_set(seed, **options)
    classes = options.get("classes", 4)
    reference = Reference(found, truth, classes)
    errors = errors_of(found, truth, classes)
    counts = {kind: reference.kind.count(kind) for kind in KINDS} | {"missed": len(reference.missed)}
    assert errors.counts() == counts
    if options == {}:
        assert min(counts.values()) > 0
    assert errors.ap() == pytest.approx(reference.ap())
    for kind in (*KINDS, *SPECIAL):
        assert errors.ap({kind}) == pytest.approx(reference.ap(kind)), kind
    for min_score in (0.0, 0.4, 0.8, 2.0):
        assert errors.confusion(min_score).tolist() == reference.confusion(min_score).tolist()


@pytest.mark.parametrize("levels", [None, 5, 1])
@pytest.mark.parametrize("options", SETS, ids=str)
def test_the_ap_equals_map_50_and_is_1_with_all_errors_fixed(options, levels):
    found, truth = random_set(7, levels=levels, **options)
    classes = options.get("classes", 4) + 1  # the last one does not occur
    errors = errors_of(found, truth, classes)
    names = [f"c{label}" for label in range(1, classes + 1)]
    assert errors.ap() == pytest.approx(
        Evaluation(names, detections_of(found), objects_of(truth)).coco()["map_50"]
    )
    assert errors.ap(SPECIAL) == pytest.approx(1)
    assert errors.ap(KINDS) == pytest.approx(1)
    assert all(gain > -1e-12 for gain in errors.gains().values())


def test_the_matrix_counts_every_object_and_detection_once():
    found, truth = random_set(3)
    errors = errors_of(found, truth, 4)
    table = errors.confusion(0.3)
    objects = np.bincount(errors.objects.labels[~errors.objects.ignored], minlength=5)[1:]
    assert table[:-1].sum(1).tolist() == objects.tolist()
    shown = errors.detections.scores >= 0.3
    assert (
        table[:, :-1].sum(0).tolist()
        == np.bincount(errors.detections.labels[shown], minlength=5)[1:].tolist()
    )
    assert np.trace(table) == (errors.correct & shown).sum()
    assert table[-1, -1] == 0


def test_the_entries_of_the_matrix_belong_to_the_images_that_they_are_found_in():
    found, truth = random_set(3)
    images, true, predicted = errors_of(found, truth, 4).confusion_entries(0.3)
    for image in {row[0] for row in truth}:
        alone = errors_of(
            [row for row in found if row[0] == image], [row for row in truth if row[0] == image], 4
        )
        table = np.zeros((5, 5), int)
        np.add.at(table, (true[images == image], predicted[images == image]), 1)
        assert table.tolist() == alone.confusion(0.3).tolist()


def test_errors_per_image_and_the_worst_images():
    found = [
        (1, A, 1, 0.9), (1, FAR, 1, 0.4), (1, B, 1, 0.1),
        (2, FAR, 1, 0.8),
        (4, [0, 0, 100, 40], 1, 0.7),
        (5, A, 1, 0.6),
    ]  # fmt: skip
    truth = [(1, A, 1), (1, B, 1), (3, A, 2), (3, B, 2), (4, A, 1), (5, A, 1), (6, A, 1, "crowd")]
    images = errors_of(found, truth).of_images(0.3)
    assert images.images.tolist() == [1, 2, 3, 4, 5, 6]
    assert images.correct.tolist() == [1, 0, 0, 0, 1, 0]
    rows = [dict(zip(KINDS, row, strict=True)) for row in images.counts.tolist()]
    assert [{name: n for name, n in row.items() if n} for row in rows] == [
        {"background": 1, "missed": 1}, {"background": 1}, {"missed": 2}, {"localization": 1}, {}, {},
    ]  # fmt: skip
    assert images.f1 == pytest.approx([2 / 4, 0, 0, 0, 1, math.nan], nan_ok=True)
    assert images.images[images.worst()].tolist() == [3, 2, 4, 1]


def test_the_score_of_the_best_f1():
    found = [(1, A, 1, 0.9), (2, A, 1, 0.5), (1, FAR, 1, 0.5), (2, FAR, 1, 0.2)]
    truth = [(1, A, 1), (2, A, 1)]
    assert (
        errors_of(found, truth).best_score() == 0.5
    )  # precision 2/3 and recall 2/2, compared to 1/1 and 1/2
    assert errors_of([*found, (3, FAR, 1, 0.5), (4, FAR, 1, 0.5)], truth).best_score() == 0.9
    assert errors_of([(1, FAR, 1, 0.9)], truth).best_score() == 0.3


@pytest.mark.parametrize("classes", [0, 2])
def test_without_detections_and_objects(classes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        errors = errors_of([], [], classes)
        assert math.isnan(errors.ap()) and all(math.isnan(gain) for gain in errors.gains().values())
        assert sum(errors.counts().values()) == 0
        assert errors.confusion(0.3).tolist() == [[0] * (classes + 1)] * (classes + 1)
        images = errors.of_images(errors.best_score())
    assert len(images.images) == len(images.worst()) == 0


def test_without_detections_or_without_objects():
    errors = errors_of([], [(1, A, 1), (2, A, 2)])
    assert errors.ap() == 0
    nothing = dict.fromkeys([*KINDS, *SPECIAL], 0.0)
    assert errors.gains() == nothing | {"missed": 1.0, "false_negative": 1.0}
    assert errors.confusion(0.3).tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    errors = errors_of([(1, A, 1, 0.9)], [])
    assert math.isnan(errors.ap()) and errors.counts()["background"] == 1
    assert errors.confusion(0.3).tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    # The AP of a class without correct detections stays 0 for any number of objects.
    errors = errors_of([(1, FAR, 1, 0.9)], [(1, A, 1)])
    assert errors.gains() == nothing
    assert errors.ap(SPECIAL) == 1


def test_only_a_hundred_detections_per_class_are_evaluated():
    truth = [(1, [20 * i, 0, 20 * i + 10, 10], 1) for i in range(120)]
    errors = errors_of([(*row, 1 - i / 200) for i, row in enumerate(truth)], truth)
    assert errors.counts() == dict.fromkeys(KINDS, 0) | {"missed": 20}


def test_errors_of_detection_scores():
    found, truth = random_set(5)
    scores = DetectionScores([f"c{label}" for label in range(1, 5)])
    for image in range(15):
        rows, objects = ([row for row in side if row[0] == image] for side in (found, truth))
        both = detections_of(rows), objects_of(objects)
        scores.update(
            [{name: torch.from_numpy(getattr(both[0], name)) for name in ("boxes", "scores", "labels")}],
            [
                {
                    name: torch.from_numpy(getattr(both[1], name))
                    for name in ("boxes", "labels", "iscrowd", "difficult")
                }
            ],
            [image],
        )
    errors = scores.errors()
    assert errors.gains() == pytest.approx(errors_of(found, truth, 4).gains())
    assert errors.ap() == pytest.approx(scores.compute()["map_50"].item())  # the state is preserved


def test_importing_the_analysis_does_not_import_torch():
    code = (
        "import sys, segdet.metrics.detection_errors, segdet.util.drawing; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
