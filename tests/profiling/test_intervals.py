"""Intervals of quantiles: ranks by hand, coverage in a simulation, and missing bounds."""

import numpy as np
import pytest

from segdet.profiling.intervals import estimate_quantile, invert
from segdet.profiling.result import Estimate


def test_ranks_of_the_median_equal_the_table_of_the_sign_test() -> None:
    # n = 10: ranks 2 and 9 have a coverage of 97.9%, ranks 3 and 8 only of 89.1%.
    estimate = estimate_quantile([float(value) for value in range(1, 11)], 0.5)
    assert estimate == Estimate(5.5, 2.0, 9.0)


def test_too_few_values_have_no_bound() -> None:
    assert estimate_quantile([1.0, 2.0, 3.0], 0.5) == Estimate(2.0, None, None)
    high = estimate_quantile([float(value) for value in range(100)], 0.99)
    assert high.low is not None and high.high is None


@pytest.mark.parametrize(("share", "count"), [(0.5, 40), (0.9, 150), (0.99, 600)])
def test_intervals_cover_the_quantile_of_a_skewed_distribution(share: float, count: int) -> None:
    random = np.random.default_rng(0)
    true = -np.log(1 - share)
    covered = 0
    for _ in range(2000):
        estimate = estimate_quantile(random.exponential(size=count).tolist(), share)
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= true <= estimate.high
    assert 0.945 <= covered / 2000 <= 0.985  # at least 95%, because ranks are whole numbers


def test_a_rate_has_the_bounds_of_the_time_in_reverse() -> None:
    assert invert(Estimate(0.5, 0.4, None), 8) == Estimate(16.0, None, 20.0)
