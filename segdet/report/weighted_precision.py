"""Average precision of datasets that hold each image any number of times, for many such datasets at once.

A bootstrap needs the AP of a thousand resamples of the same images. Matching and sorting are the same for all of them:
only the multiplicity of each image changes. The detections are therefore sorted once; a resample then takes one
cumulative sum of multiplicities per class, and one step per correct detection and IoU.

Sources: the definitions are those of `segdet.metrics.average_precision`: COCO (Lin et al., 2014) at 101 recalls, VOC
(Everingham et al., 2010, section 4.2) at eleven recalls and as an area.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segdet.runs.evidence import CORRECT, IGNORED
from segdet.util.cores import usable_cores
from segdet.util.numba_compile import compiled

_EPSILON = float(np.spacing(1))
"""pycocotools adds this number to the denominators of precisions."""

_CHUNK = 16
"""The number of resamples that a thread handles at a time."""


@dataclass(frozen=True)
class RankedMatches:
    """The matches of all detections of a dataset, in the order in which AP counts them.

    Attributes:
        label: int64 ``[N]``, 1..K, ascending.
        score: float ``[N]``, descending within a class.
        image: int32 ``[N]``, the index of the image; at equal scores of a class, ascending.
        match: uint8 ``[T, N]``, one row for each rule of matching.
    """

    label: np.ndarray
    score: np.ndarray
    image: np.ndarray
    match: np.ndarray


@dataclass(frozen=True)
class _Runs:
    """Detections grouped into runs: those of a class with the same image and the same score. Most have one detection.

    Copies of an image follow each other, so that a run's detections d1, d2 become d1, d2, d1, d2 for two copies.
    """

    first: np.ndarray  # int64 [K + 1]: the runs of class k are first[k]..first[k + 1]
    image: np.ndarray  # int32 [R]
    length: np.ndarray  # int32 [R]
    # Runs with a correct detection, by rule of matching and class:
    hit_first: np.ndarray  # int64 [T, K + 1]
    hit_run: np.ndarray  # int64 [H]
    hit_counted: np.ndarray  # int32 [H]: the number of detections that are not ignored
    place_first: np.ndarray  # int64 [H + 1]
    place: np.ndarray  # int32 [P]: for each correct detection, the number of counted ones up to it, from 1
    # Runs with an ignored detection, in the same way:
    ignored_first: np.ndarray  # int64 [T, K + 1]
    ignored_run: np.ndarray  # int64 [G]
    ignored_count: np.ndarray  # int32 [G]


def _runs_of(ranked: RankedMatches, classes: int) -> _Runs:
    """Group the detections into runs."""
    label, image, match = ranked.label, ranked.image, ranked.match
    starts = np.ones(len(label), bool)
    starts[1:] = (np.diff(label) != 0) | (np.diff(image) != 0) | (np.diff(ranked.score) != 0)
    start = np.flatnonzero(starts)
    run = np.cumsum(starts) - 1
    run_label = label[start]
    first = np.searchsorted(run_label, np.arange(1, classes + 2))
    rules, runs = len(match), len(start)

    def by_class(chosen: list[np.ndarray]) -> np.ndarray:
        """Return where the runs of each rule and class start in the concatenated arrays."""
        offsets = np.cumsum([0, *map(len, chosen)])[:-1]
        edges = [np.searchsorted(rows, first) + offset for rows, offset in zip(chosen, offsets, strict=True)]
        return np.array(edges, np.int64).reshape(rules, classes + 1)

    hits, hit_counted, places, place_counts, ignored, ignored_count = [], [], [], [], [], []
    for row in match:
        correct, counted = row == CORRECT, row != IGNORED
        corrects = np.bincount(run[correct], minlength=runs)
        counts = np.bincount(run[counted], minlength=runs)
        total = np.cumsum(counted)
        before = total[start] - counted[start]
        hits.append(np.flatnonzero(corrects))
        hit_counted.append(counts[hits[-1]])
        places.append((total - before[run])[correct])
        place_counts.append(corrects[hits[-1]])
        ignores = np.bincount(run[~counted], minlength=runs)
        ignored.append(np.flatnonzero(ignores))
        ignored_count.append(ignores[ignored[-1]])
    return _Runs(
        first=first.astype(np.int64),
        image=image[start].astype(np.int32),
        length=np.diff(start, append=len(label)).astype(np.int32),
        hit_first=by_class(hits),
        hit_run=np.concatenate(hits).astype(np.int64),
        hit_counted=np.concatenate(hit_counted).astype(np.int32),
        place_first=np.cumsum(np.concatenate([[0], *place_counts])).astype(np.int64),
        place=np.concatenate(places).astype(np.int32),
        ignored_first=by_class(ignored),
        ignored_run=np.concatenate(ignored).astype(np.int64),
        ignored_count=np.concatenate(ignored_count).astype(np.int32),
    )


@compiled
def _sums(  # pragma: no cover (compiled)
    multiplicity, cumulated, first, run_image, run_length,
    hit_from, hit_to, hit_run, hit_counted, place_first, place,
    ignored_from, ignored_to, ignored_run, ignored_count,
    needed, epsilon,
):  # fmt: skip
    """Return the sum of the interpolated precisions at the recalls, and at the correct detections, of one class.

    The detections are visited from the last to the first, so that the largest precision so far is the interpolated
    one.
    """
    correct = 0
    for hit in range(hit_from, hit_to):
        correct += multiplicity[run_image[hit_run[hit]]] * (place_first[hit + 1] - place_first[hit])
    ignored = 0
    for index in range(ignored_from, ignored_to):
        ignored += multiplicity[run_image[ignored_run[index]]] * ignored_count[index]
    at = len(needed) - 1
    while at > 0 and needed[at] > correct:
        at -= 1
    best, at_recalls, at_hits = 0.0, 0.0, 0.0
    next_ignored = ignored_to - 1
    for hit in range(hit_to - 1, hit_from - 1, -1):
        run = hit_run[hit]
        copies = multiplicity[run_image[run]]
        if copies == 0:
            continue
        while next_ignored >= ignored_from and ignored_run[next_ignored] >= run:
            ignored -= multiplicity[run_image[ignored_run[next_ignored]]] * ignored_count[next_ignored]
            next_ignored -= 1
        counted = hit_counted[hit]
        # Detections of previous runs that are not ignored.
        before = cumulated[run - first] - copies * run_length[run] - ignored
        hits = place_first[hit + 1] - place_first[hit]
        if hits == counted:
            # All copies are correct. The precision rises along them, so the last one has the largest.
            best = max(best, correct / (before + copies * counted + epsilon))
            correct -= copies * hits
            at_hits += copies * hits * best
            while at > 0 and needed[at] > correct:
                at_recalls += best
                at -= 1
            continue
        for copy in range(copies - 1, -1, -1):
            for index in range(place_first[hit + 1] - 1, place_first[hit] - 1, -1):
                best = max(best, correct / (before + copy * counted + place[index] + epsilon))
                correct -= 1
                at_hits += best
                while at > 0 and needed[at] > correct:
                    at_recalls += best
                    at -= 1
    return at_recalls + best, at_hits  # the recall 0 is reached by the first detection


@compiled
def _accumulate(  # pragma: no cover (compiled)
    multiplicities, objects, recalls, first, run_image, run_length,
    hit_first, hit_run, hit_counted, place_first, place, ignored_first, ignored_run, ignored_count,
    coco_rules, longest, at_recalls, at_hits,
):  # fmt: skip
    """Fill ``at_recalls`` and ``at_hits``, float64 ``[B, K, T]``, for the classes with objects."""
    rules = len(hit_first)
    cumulated = np.zeros(longest + 1, np.int64)
    needed = np.zeros(len(recalls), np.int64)
    needed11 = np.zeros(11, np.int64)
    for resample in range(len(multiplicities)):
        multiplicity = multiplicities[resample]
        for label in range(len(first) - 1):
            count = objects[resample, label]
            if count == 0:
                continue
            total = 0
            for run in range(first[label], first[label + 1]):
                total += multiplicity[run_image[run]] * run_length[run]
                cumulated[run - first[label]] = total
            # The smallest number of correct detections that reaches each recall, with the rounding of the metric.
            for at in range(len(recalls)):
                number = int(recalls[at] * count)
                while number / count < recalls[at]:
                    number += 1
                while number > 0 and (number - 1) / count >= recalls[at]:
                    number -= 1
                needed[at] = number
            for at in range(11):
                needed11[at] = (at * count + 9) // 10
            for rule in range(rules):
                is_coco = rule < coco_rules
                recall_sum, hit_sum = _sums(
                    multiplicity, cumulated, first[label], run_image, run_length,
                    hit_first[rule, label], hit_first[rule, label + 1], hit_run, hit_counted, place_first, place,
                    ignored_first[rule, label], ignored_first[rule, label + 1], ignored_run, ignored_count,
                    needed if is_coco else needed11, _EPSILON if is_coco else 0.0,
                )  # fmt: skip
                at_recalls[resample, label, rule] = recall_sum
                at_hits[resample, label, rule] = hit_sum


def weighted_precision(
    ranked: RankedMatches, objects: np.ndarray, weights: np.ndarray, voc_rules: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the average precision of each class, for each multiplicity of the images and rule of matching.

    The result equals that of a dataset that holds each image as often as its multiplicity, with the copies of an
    image directly after it.

    Args:
        ranked: The detections and their matches. The last ``voc_rules`` rules are VOC's, the others COCO's.
        objects: int64 ``[B, K]``, the number of objects of each class that are not ignored.
        weights: int32 ``[B, I]``, the multiplicity of each image.
        voc_rules: The number of VOC's rules.

    Returns:
        float64 ``[B, K, T - voc_rules]``, COCO's AP; float64 ``[B, K, voc_rules]``, VOC's AP at eleven recalls; and
        VOC's AP as an area. NaN for classes without an object.
    """
    classes, rules = objects.shape[1], len(ranked.match)
    coco_rules = rules - voc_rules
    recalls = np.linspace(0.0, 1.0, 101)
    runs = _runs_of(ranked, classes)
    arrays = (
        runs.first, runs.image, runs.length, runs.hit_first, runs.hit_run, runs.hit_counted, runs.place_first,
        runs.place, runs.ignored_first, runs.ignored_run, runs.ignored_count,
    )  # fmt: skip
    longest = int(np.diff(runs.first).max(initial=0))
    at_recalls = np.full((len(weights), classes, rules), np.nan)
    at_hits = at_recalls.copy()
    weights = np.ascontiguousarray(weights, np.int32)

    def fill(start: int) -> None:
        rows = slice(start, start + _CHUNK)
        _accumulate(
            weights[rows],
            objects[rows],
            recalls,
            *arrays,
            coco_rules,
            longest,
            at_recalls[rows],
            at_hits[rows],
        )

    with ThreadPoolExecutor(usable_cores()) as pool:  # the compiled function releases the GIL
        list(pool.map(fill, range(0, len(weights), _CHUNK)))
    area = at_hits[..., coco_rules:] / np.maximum(objects, 1)[..., None]
    return at_recalls[..., :coco_rules] / len(recalls), at_recalls[..., coco_rules:] / 11, area
