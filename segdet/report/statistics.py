"""Uncertainty of test scores: intervals over images, paired differences between runs, and variation over seeds.

Two sources of variation are kept apart. *Images*: the test set is a sample, and another one would give another score.
It is measured by resampling images, with the networks as they are. *Seeds*: another training of the same
configuration would give another network. It is measured by the standard deviation over seeds, on the same images.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (chapter 6: the bootstrap; section 14.3:
bias-corrected intervals); Holm, A simple sequentially rejective multiple test procedure, 1979; Welch, The
generalization of Student's problem, 1947 (degrees of freedom); Zou and Donner, Construction of confidence limits about
effect measures, 2008 (an interval for a sum from the intervals of its terms). This module does not import torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit

from segdet.report.bootstrap import resample_weights, scores_of
from segdet.runs.evidence import Evidence
from segdet.util.errors import UserError

LEVEL = 0.95
"""The coverage of intervals."""

RESAMPLES = 1000
"""The default number of resamples."""

LOWER_IS_BETTER = ("loc_error_top5",)
"""The scores of which a smaller value is better."""

_FEWEST = 100
"""The smallest number of resamples with a defined score from which an interval is computed."""


_FAR = float(ndtri(0.99))
"""The number of standard deviations beyond which the tail of a thousand resamples is too coarse."""


@dataclass(frozen=True)
class Interval:
    """An interval of a score or of a difference; both ends are NaN if it is undefined."""

    low: float
    high: float

    @property
    def is_defined(self) -> bool:
        """Whether the interval could be computed."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """The scores of one test and of its resamples.

    Attributes:
        values: The scores of the test, by name; NaN where undefined.
        resampled: float64 ``[B]`` by name, the scores of the resamples.
        image_ids: int64 ``[I]``, the images.
        file_names: The files of the images.
    """

    values: dict[str, float]
    resampled: dict[str, np.ndarray]
    image_ids: np.ndarray
    file_names: list[str]

    def has_images_of(self, other: "Bootstrap") -> bool:
        """Return whether both tests were made on the same images, so that resamples correspond."""
        return np.array_equal(self.image_ids, other.image_ids) and self.file_names == other.file_names


def bootstrap(evidence: Evidence, resamples: int = RESAMPLES, seed: int = 0) -> Bootstrap:
    """Return the scores of a test and of resamples of its images.

    Tests on the same images have the same resamples, which makes their differences paired. The resamples of a single
    image are all equal and have no information about other images: their scores are NaN.

    Args:
        evidence: The evidence of the test, with at least one image.
        resamples: The number of resamples.
        seed: The seed of the resamples.
    """
    images = len(evidence)
    ones = np.ones((1, images), np.int32)
    scores = scores_of(evidence, np.concatenate([ones, resample_weights(images, resamples, seed)]))
    return Bootstrap(
        values={name: float(values[0]) for name, values in scores.items()},
        resampled={
            name: values[1:] if images > 1 else values[1:] * np.nan for name, values in scores.items()
        },
        image_ids=evidence.image_ids,
        file_names=evidence.file_names,
    )


def interval(value: float, resampled: np.ndarray, level: float = LEVEL) -> Interval:
    """Return the bias-corrected bootstrap interval (Efron and Tibshirani 1993, section 14.3, with acceleration 0).

    The ends are percentiles of the resamples' scores. Plain percentiles cover too little for average precision, which
    is larger on small test sets than on large ones: a resample's score exceeds the test's about as much as the test's
    score exceeds the population's. The correction shifts the percentiles by twice the share of resamples below the
    test's score. The acceleration of BCa changed the coverage by less than .01 in simulations and needs as many more
    resamples as there are images.

    Args:
        value: The score of the test.
        resampled: float64 ``[B]``, the scores of the resamples. NaN values, for example of resamples without an object,
            are left out.
        level: The coverage.

    Returns:
        The interval; undefined if the score is, or if fewer than 100 resamples have one.
    """
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(value) or len(resampled) < _FEWEST:
        return Interval(float("nan"), float("nan"))
    shift = 2 * _bias(value, resampled)
    ends = ndtr(shift + ndtri([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(resampled, ends)
    return Interval(float(low), float(high))


def _share_below(threshold: float, resampled: np.ndarray) -> float:
    """Return the share of resamples below ``threshold``, in (0, 1); those equal to it count half."""
    below = (resampled < threshold).sum() + (resampled == threshold).sum() / 2
    return float((below + 0.5) / (len(resampled) + 1))


def _bias(value: float, resampled: np.ndarray) -> float:
    """Return the bias of the resamples' median in standard deviations (z_0 in the book)."""
    return float(ndtri(_share_below(value, resampled)))


@dataclass(frozen=True, eq=False)
class _Seeds:
    """The scores of the seeds of a run.

    Attributes:
        values: float64 ``[S]``, the score of each seed.
        resampled: float64 ``[S, B]``, the scores of the resamples.
    """

    values: np.ndarray
    resampled: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[Bootstrap], score: str) -> "_Seeds":
        """Return the scores of ``runs``."""
        return cls(
            np.array([run.values[score] for run in runs]), np.stack([run.resampled[score] for run in runs])
        )

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(self.values.mean())

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over the seeds; None for one seed."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else None

    @cached_property
    def mean_resampled(self) -> np.ndarray:
        """The mean over the seeds of each resample, float64 ``[B]``."""
        return self.resampled.mean(0)

    @property
    def seed_variance(self) -> float:
        """The variance of the mean that is due to seeds alone; at least two seeds.

        The variance of the seeds' scores has a second part: each seed happens to suit some images of this test set
        better than others. The resamples measure this part, and it is subtracted.
        """
        return max(0.0, self.variance_of_mean - self.luck)

    @property
    def variance_of_mean(self) -> float:
        """The variance of the mean of the seeds, luck included; at least two seeds."""
        return float(self.values.var(ddof=1)) / len(self.values)

    @property
    def luck(self) -> float:
        """The variance of the mean that is due to the seeds' different luck with the images; at least two seeds."""
        deviations = (self.resampled - self.mean_resampled)[:, ~np.isnan(self.mean_resampled)]
        return float(deviations.var(1, ddof=1).mean()) / (len(self.values) - 1)


@dataclass(frozen=True)
class Estimate:
    """A score of a run with its uncertainty.

    Attributes:
        mean: The mean over the seeds; NaN if undefined.
        images: The interval over images, of the mean over these seeds.
        images_deviation: The standard deviation of the mean from images alone.
        seeds: The number of seeds.
        seeds_deviation: The standard deviation over seeds on this test set; None for one seed.
        combined: The interval over images and seeds; None for one seed.
        undefined: The number of resamples without the score.
    """

    mean: float
    images: Interval
    images_deviation: float
    seeds: int
    seeds_deviation: float | None
    combined: Interval | None
    undefined: int


def estimate(runs: Sequence[Bootstrap], score: str) -> Estimate:
    """Return a score of a run, averaged over its seeds, with its uncertainty.

    The interval over images resamples the images for all seeds alike and averages over the seeds. The combined
    interval adds the squares of two distances: the normal one for the variation over images that all seeds share, and
    Student's for the variation between seeds. One Student distribution for the sum of both variances would cover too
    little with few seeds.

    Args:
        runs: The bootstrap of each seed, on the same images.
        score: The name of the score.

    Raises:
        UserError: If the seeds were tested on different images.
    """
    _check_images(runs)
    seeds = _Seeds.of(runs, score)
    total = _total(seeds.mean, seeds.mean_resampled, [seeds])
    return Estimate(
        mean=seeds.mean,
        images=interval(seeds.mean, seeds.mean_resampled),
        images_deviation=_deviation(seeds.mean_resampled),
        seeds=len(runs),
        seeds_deviation=seeds.deviation,
        combined=None if total is None else total.interval,
        undefined=int(np.isnan(seeds.mean_resampled).sum()),
    )


@dataclass(frozen=True)
class Difference:
    """The difference of a score between two runs on the same images.

    Attributes:
        score: The name of the score.
        mean: The mean over the seeds of the first run minus that of the second; NaN if undefined.
        images: The interval over images.
        combined: The interval over images and seeds; None if a run has only one seed.
        p_better: The probability that the first run is better: one minus the one-sided P-value of the hypothesis
            that it is not. It includes seeds if ``combined`` does.
        p_value: The two-sided P-value of the hypothesis that both are equal; NaN if undefined.
        images_deviation: The standard deviation of the difference from images alone.
        seeds_deviation: The standard deviation of the difference from seeds alone; None if a run has one seed.
        seeds: The number of seeds of both runs.
        undefined: The number of resamples without the score.
    """

    score: str
    mean: float
    images: Interval
    combined: Interval | None
    p_better: float
    p_value: float
    images_deviation: float
    seeds_deviation: float | None
    seeds: tuple[int, int]
    undefined: int

    @property
    def interval(self) -> Interval:
        """The interval over images and seeds where it is known, otherwise that over images."""
        return self.images if self.combined is None else self.combined


def paired_difference(a: Sequence[Bootstrap], b: Sequence[Bootstrap], score: str) -> Difference:
    """Return the difference of a score, ``a`` minus ``b``, by a paired bootstrap over images.

    Each resample scores both runs on the same images, so that images that are hard for both cancel out. With several
    seeds, each resample averages over the seeds. If both runs have at least two seeds, the combined interval is as in
    `estimate`, with Welch's degrees of freedom for the seeds of both runs. Seeds of different runs are independent,
    even if their numbers are equal.

    Args:
        a: The bootstrap of each seed of the first run.
        b: The bootstrap of each seed of the second run.
        score: The name of the score.

    Raises:
        UserError: If the tests were made on different images.
    """
    _check_images([*a, *b])
    first, second = _Seeds.of(a, score), _Seeds.of(b, score)
    mean = first.mean - second.mean
    resampled = first.mean_resampled - second.mean_resampled
    images = interval(mean, resampled)
    total = _total(mean, resampled, [first, second])
    below = float("nan")
    if images.is_defined:
        below = _bias_corrected_share(0.0, mean, resampled) if total is None else total.share_below(0.0)
    return Difference(
        score=score,
        mean=mean,
        images=images,
        combined=None if total is None else total.interval,
        p_better=below if score in LOWER_IS_BETTER else 1 - below,
        p_value=2 * min(below, 1 - below),
        images_deviation=_deviation(resampled),
        seeds_deviation=None if total is None else total.seeds_deviation,
        seeds=(len(a), len(b)),
        undefined=int(np.isnan(resampled).sum()),
    )


def _check_images(runs: Sequence[Bootstrap]) -> None:
    """Check that all tests were made on the same images.

    Raises:
        UserError: If not.
    """
    if not all(run.has_images_of(runs[0]) for run in runs):
        counts = " and ".join(str(len(run.image_ids)) for run in runs)
        raise UserError(f"tests of different images ({counts}) cannot be compared; test on the same images")


def _deviation(resampled: np.ndarray) -> float:
    resampled = resampled[~np.isnan(resampled)]
    return float(resampled.std(ddof=1)) if len(resampled) > 1 else float("nan")


def _bias_corrected_share(threshold: float, value: float, resampled: np.ndarray) -> float:
    """Return the level at which `interval` ends at ``threshold``.

    Beyond the last percent or the last resample, shares of resamples are too coarse. The tail is then that of a normal
    distribution with the bias and the deviation of the resamples, if this is further away.
    """
    resampled = resampled[~np.isnan(resampled)]
    level = float(ndtri(_share_below(threshold, resampled))) - 2 * _bias(value, resampled)
    below, above = (resampled < threshold).sum(), (resampled > threshold).sum()
    deviation = float(resampled.std(ddof=1))
    if deviation > 0 and (abs(level) > _FAR or 0 in (below, above)):
        normal = (threshold - 2 * value + float(resampled.mean())) / deviation
        level = min(level, normal) if below < above else max(level, normal)
    return float(ndtr(level))


@dataclass(frozen=True)
class _Total:
    """The variation of a score or a difference from images and from seeds.

    Attributes:
        centre: The score or the difference.
        images_deviation: The standard deviation from images, with the luck of the seeds.
        shared_deviation: The standard deviation from images that is common to all seeds.
        trainings_deviation: The standard deviation of the mean over seeds, with their luck, estimated from few seeds.
        freedom: The degrees of freedom of the latter.
        seeds_deviation: The standard deviation from seeds without luck.
    """

    centre: float
    images_deviation: float
    shared_deviation: float
    trainings_deviation: float
    freedom: float
    seeds_deviation: float

    def reach(self, tail: float) -> float:
        """Return the distance from the centre to both ends of the interval that leaves out ``tail`` on each side.

        The common variation is normal, and that between trainings is Student's. The interval is not narrower than that
        over images.
        """
        normal, student = float(ndtri(1 - tail)), float(stdtrit(self.freedom, 1 - tail))
        both = math.hypot(normal * self.shared_deviation, student * self.trainings_deviation)
        return max(both, normal * self.images_deviation)

    def share_below(self, threshold: float) -> float:
        """Return the level at which the interval ends at ``threshold``: the probability of values below it."""
        distance = abs(threshold - self.centre)
        if max(self.images_deviation, self.trainings_deviation) == 0 or distance == 0:
            return 0.5 if distance == 0 else float(self.centre < threshold)
        smallest = 1e-12
        tail = smallest
        if self.reach(smallest) > distance:
            tail = brentq(lambda each: self.reach(each) - distance, smallest, 0.5)
        return tail if threshold < self.centre else 1 - tail

    @property
    def interval(self) -> Interval:
        """The central interval."""
        reach = self.reach((1 - LEVEL) / 2)
        return Interval(self.centre - reach, self.centre + reach)


def _total(value: float, resampled: np.ndarray, seeds: Sequence[_Seeds]) -> _Total | None:
    """Return the variation from images and seeds; None if it is undefined or a run has one seed."""
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(value) or len(resampled) < _FEWEST or min(len(each.values) for each in seeds) < 2:
        return None
    of_mean = np.array([each.variance_of_mean for each in seeds])
    terms = of_mean**2 / [len(each.values) - 1 for each in seeds]
    from_images = float(resampled.var(ddof=1))
    bias = float(resampled.mean()) - value
    return _Total(
        centre=value - bias,
        images_deviation=from_images**0.5,
        shared_deviation=max(0.0, from_images - sum(each.luck for each in seeds)) ** 0.5,
        trainings_deviation=float(of_mean.sum()) ** 0.5,
        freedom=float(of_mean.sum() ** 2 / terms.sum()) if terms.sum() else 1e6,
        seeds_deviation=sum(each.seed_variance for each in seeds) ** 0.5,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return P-values adjusted for the number of comparisons (Holm 1979).

    If all hypotheses with an adjusted value of at most .05 are rejected, the probability that any true hypothesis is
    rejected is at most .05, for any dependence between them. Undefined P-values (NaN) stay undefined and are not
    counted.
    """
    values = np.asarray(p_values, float)
    adjusted = np.full(len(values), np.nan)
    order = np.argsort(values)
    order = order[~np.isnan(values[order])]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return adjusted.tolist()
