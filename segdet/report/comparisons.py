"""Intervals of the scores of runs, and paired differences between them, for the tables of a report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Literal

from tqdm import tqdm

from segdet.report.run_data import SCORES, RunData, RunGroup
from segdet.report.statistics import (
    Bootstrap,
    Difference,
    Estimate,
    Interval,
    estimate,
    holm,
    paired_difference,
)
from segdet.runs.evidence import DetectionEvidence
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean
from segdet.util.tables import markdown_table

Pairs = Literal["neighbours", "all", "none"]
"""The runs that are compared: neighbours in the table, all pairs, or none."""

_TOLERANCE = 1e-4
"""The largest accepted difference of a score between the record, which may be rounded to float32, and the evidence."""


@dataclass(frozen=True)
class Pair:
    """Two runs that are compared.

    Attributes:
        first: A run.
        second: The run that is subtracted from it.
        difference: The difference, or None if the runs cannot be compared.
        adjusted: The P-value after Holm's correction; NaN if it is undefined.
        reason: Why the runs cannot be compared.
    """

    first: RunGroup
    second: RunGroup
    difference: Difference | None
    adjusted: float = math.nan
    reason: str = ""

    @property
    def title(self) -> str:
        """``fast_rcnn minus rcnn``."""
        return f"{self.first.name} minus {self.second.name}"


def differences_table(pairs: Sequence[Pair]) -> str:
    """Return a Markdown table of the differences of one score; empty if no pair could be compared.

    The columns of Holm's P-values and of seeds are left out if no pair has them.
    """
    rows = [(pair, pair.difference) for pair in pairs if pair.difference is not None]
    if not rows:
        return ""
    cells: dict[str, list[str]] = {
        "difference": [pair.title for pair, _ in rows],
        rows[0][1].score: [f"{each.mean:+.3f}" for _, each in rows],
        "95% interval": [_signed(each.interval) for _, each in rows],
        "P(better)": [probability(each.p_better) for _, each in rows],
        "P (Holm)": [_p_value(pair.adjusted) for pair, _ in rows],
        "sd of images": [_or_dash(each.images_deviation) for _, each in rows],
        "sd of seeds": [_or_dash(each.seeds_deviation) for _, each in rows],
    }
    shown = {title: column for title, column in cells.items() if set(column) != {"-"}}
    return markdown_table([[*shown], *(list(row) for row in zip(*shown.values(), strict=True))])


def _signed(interval: Interval) -> str:
    return f"[{interval.low:+.3f}, {interval.high:+.3f}]" if interval.is_defined else "-"


def _or_dash(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def probability(value: float) -> str:
    """Return a probability with two decimals; a bound if it rounds to 0 or 1, a dash for NaN."""
    if math.isnan(value):
        return "-"
    if value < 0.005:
        return "< 0.01"
    return "> 0.99" if value > 0.995 else f"{value:.2f}"


def _p_value(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.0005 else f"{value:.3f}" if value < 0.0995 else f"{value:.2f}"


class Comparisons:
    """The uncertainty of the test scores of some runs.

    The first use of a run's evidence resamples its images, which takes seconds for large test sets. A progress bar
    appears after two seconds.

    Args:
        groups: The runs.
        score: The score to compare, such as ``map_50`` or ``ap/cat``; None for the main score of each task. Tasks
            that do not have it are compared by their main score.
        pairs: The runs that are compared.

    Raises:
        UserError: If no run has the score.
    """

    def __init__(
        self, groups: Sequence[RunGroup], score: str | None = None, pairs: Pairs = "neighbours"
    ) -> None:
        self.groups, self.score, self.pairs = groups, score, pairs
        runs = [run for group in groups for run in group.runs if run.record.per_image is not None]
        with tqdm(runs, "resampling", unit="run", leave=False, delay=2) as bar:
            tests = [test for run in bar if (test := run.bootstrap) is not None]
        known = sorted({name for test in tests for name in test.values})
        if score is not None and known and score not in known:
            raise UserError(f"--score: no run has '{score}'; {did_you_mean(score, known)}")
        if score is not None and not known:
            raise UserError("--score: no run has evidence of a test to compare; run segdet test to write it")

    def score_of(self, task: str) -> str:
        """Return the score by which the runs of a task are compared."""
        has_score = any(
            self.score in test.values
            for group in self.groups
            if group.task == task
            for run in group.runs
            if (test := run.bootstrap) is not None
        )
        return self.score if self.score is not None and has_score else SCORES[task][0]

    def estimate(self, group: RunGroup, score: str) -> Estimate | None:
        """Return a test score of a run with its uncertainty; None if it is unknown, see `reason`."""
        tests, _ = usable_tests(group)
        if not tests or any(score not in test.values for test in tests):
            return None
        return estimate(tests, score)

    def reason(self, group: RunGroup) -> str:
        """Return why the intervals of a run are unknown, or an empty string."""
        return usable_tests(group)[1]

    def compare(self, groups: Sequence[RunGroup], task: str) -> list[Pair]:
        """Return the paired differences between runs of a task: each minus an earlier one.

        If there are two or more, their P-values are adjusted for the number of comparisons.

        Args:
            groups: The runs in the order of the table. Those that `reason` excludes are left out.
            task: The task.
        """
        if self.pairs == "none":
            return []
        tested = [group for group in groups if not self.reason(group)]
        chosen = [*(pairwise(tested) if self.pairs == "neighbours" else combinations(tested, 2))]
        score = self.score_of(task)
        pairs = [compare_runs(after, before, score) for before, after in chosen]
        p_values = [math.nan if pair.difference is None else pair.difference.p_value for pair in pairs]
        if sum(not math.isnan(value) for value in p_values) < 2:
            return pairs
        return [replace(pair, adjusted=value) for pair, value in zip(pairs, holm(p_values), strict=True)]


def usable_tests(group: RunGroup) -> tuple[list[Bootstrap], str]:
    """Return the resampled test of each tested seed; or an empty list, and why they cannot be used."""
    runs = [run for run in group.runs if run.record.is_tested]
    if not runs:
        return [], "not tested"
    tests = [run.bootstrap for run in runs]
    if None in tests:
        return [], "no evidence of the test; run segdet test to write it"
    found = [test for test in tests if test is not None]
    if _read_different_data(runs):
        return [], "the seeds read different data"
    if not all(test.has_images_of(found[0]) for test in found):
        return [], "the seeds were tested on different images"
    if not all(_agrees(run, test) for run, test in zip(runs, found, strict=True)):
        return [], "evidence and scores are from different tests; run segdet test again"
    return found, ""


def _read_different_data(runs: list[RunData]) -> bool:
    """Return whether tested runs read different data.

    Scored predictions of other programs have no fingerprint. Their evidence must have the objects of the other runs.
    """
    if len({run.record.fingerprint for run in runs if run.record.fingerprint}) > 1:
        return True
    tests = [run.evidence for run in runs]
    if all(run.record.fingerprint for run in runs) or not all(
        isinstance(each, DetectionEvidence) for each in tests
    ):
        return len({run.record.fingerprint for run in runs}) > 1
    found = [each for each in tests if isinstance(each, DetectionEvidence)]
    return not all(each.has_objects_of(found[0]) for each in found)


def _agrees(run: RunData, test: Bootstrap) -> bool:
    """Return whether the record has the scores of the evidence."""
    measured = {name: run.record.metrics.get(f"test/{name}") for name in SCORES[run.task]}
    return all(
        abs(value - test.values[name]) <= _TOLERANCE
        for name, value in measured.items()
        if value is not None and name in test.values
    )


def compare_runs(first: RunGroup, second: RunGroup, score: str) -> Pair:
    """Return the paired difference ``first`` minus ``second``, or the reason why there is none."""
    own, other = usable_tests(first), usable_tests(second)
    for group, (_, reason) in zip((first, second), (own, other), strict=True):
        if reason:
            return Pair(first, second, None, reason=f"{group.name}: {reason}")
    if any(score not in test.values for test in (*own[0], *other[0])):
        return Pair(first, second, None, reason=f"one of them has no {score}")
    if _read_different_data([run for run in (*first.runs, *second.runs) if run.record.is_tested]):
        return Pair(first, second, None, reason="they read different data")
    try:
        return Pair(first, second, paired_difference(own[0], other[0], score))
    except UserError as error:  # different images
        return Pair(first, second, None, reason=str(error))
