"""Quantiles of measured times with distribution-free confidence intervals."""

from collections.abc import Sequence

from scipy.stats import binom

from segdet.profiling.result import Estimate, quantile

CONFIDENCE = 0.95
"""The probability that an interval covers the quantile of the population."""


def estimate_quantile(values: Sequence[float], share: float) -> Estimate:
    """Return the quantile at ``share`` with its confidence interval from order statistics.

    The number of values below the true quantile is binomial. The bounds are therefore two of the sorted values, and the
    interval holds for any distribution (Conover, Practical Nonparametric Statistics, section 3.2). Each side has half
    of the error probability. A bound is None if too few values were measured for it.

    Args:
        values: Independent measurements, at least one.
        share: The quantile, between 0 and 1.
    """
    ordered, count = sorted(values), len(values)
    tail = (1 - CONFIDENCE) / 2
    # P(X < k) <= tail for the lower rank k, and P(X >= k) <= tail for the upper rank, with X binomial.
    low = int(binom.ppf(tail, count, share))
    high = int(binom.isf(tail, count, share)) + 1
    return Estimate(
        quantile(ordered, share),
        ordered[low - 1] if low >= 1 else None,
        ordered[high - 1] if high <= count else None,
    )


def invert(time: Estimate, amount: float) -> Estimate:
    """Convert the time for ``amount`` to a rate, such as images per second."""
    return Estimate(
        amount / time.value,
        None if time.high is None else amount / time.high,
        None if time.low is None else amount / time.low,
    )
