"""Search spaces: the values of each distribution, and the order of grid and random trials."""

import math
import random
import statistics

import pytest

from segdet.launch.sweep_space import (
    Beta,
    Categorical,
    Constant,
    Distribution,
    IntUniform,
    LogUniform,
    Normal,
    Space,
    Uniform,
)

DISTRIBUTIONS = [
    Categorical(["a", None, 3]),
    Categorical(["a", "b"], [0.25, 0.75]),
    IntUniform(-1, 2),
    Uniform(None, 1.0, 3.0),
    Uniform(2, 1, 9),
    LogUniform(None, 1e-4, 1e-1),
    LogUniform(8, 8, 64),
    Normal(None, 1.0, 2.0, log=False),
    Normal(None, 0.0, 0.5, log=True),
    Normal(0.5, 0.0, 1.0, log=False),
    Beta(None, 2.0, 5.0),
]


def test_values_follow_the_distribution() -> None:
    source = random.Random(0)
    numbers = [source.random() for _ in range(20000)]

    def values(distribution: Distribution) -> list[float]:
        return [distribution.at(number) for number in numbers]

    assert statistics.fmean(values(Uniform(None, 1.0, 3.0))) == pytest.approx(2.0, abs=0.02)
    assert statistics.median(values(LogUniform(None, 1e-4, 1e-2))) == pytest.approx(1e-3, rel=0.1)
    normal = values(Normal(None, 1.0, 2.0, log=False))
    assert statistics.fmean(normal) == pytest.approx(1.0, abs=0.05)
    assert statistics.stdev(normal) == pytest.approx(2.0, rel=0.03)
    assert statistics.median(values(Normal(None, 1.0, 2.0, log=True))) == pytest.approx(math.e, rel=0.05)
    assert statistics.fmean(values(Beta(None, 2.0, 5.0))) == pytest.approx(2 / 7, abs=0.01)
    assert values(Categorical(["a", "b"], [0.25, 0.75])).count("a") == pytest.approx(5000, rel=0.05)
    integers = values(IntUniform(-1, 2))
    assert all(integers.count(each) == pytest.approx(5000, rel=0.06) for each in (-1, 0, 1, 2))
    assert set(values(Uniform(2, 1, 9))) == {2, 4, 6, 8}
    assert set(values(LogUniform(8, 8, 64))) == {8, 16, 24, 32, 40, 48, 56, 64}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_extreme_quantiles_and_the_ends_of_optunas_range_are_valid(distribution: Distribution) -> None:
    from optuna.distributions import CategoricalDistribution

    searched = distribution.searched()
    assert searched is not None
    found = [distribution.at(0.0), distribution.at(1 - 2**-53), *distribution.ends()]
    if isinstance(searched, CategoricalDistribution):
        found += [distribution.value(choice) for choice in searched.choices]
    else:
        found += [distribution.value(searched.low), distribution.value(searched.high)]
    if isinstance(distribution, Categorical):
        assert {str(each) for each in found} == {str(each) for each in distribution.values}
    elif isinstance(distribution, IntUniform | LogUniform):
        assert min(found) == distribution.low and max(found) == distribution.high
    assert distribution.at(0.3) == distribution.value(distribution.pick(0.3))
    assert all(each is None or isinstance(each, str) or math.isfinite(each) for each in found)


SPACE = Space(
    {
        ("a",): Categorical(["x", "y", "z"]),
        ("b", "c"): IntUniform(1, 4),
        ("b", "d"): Constant(None),
        ("e",): Uniform(0.5, 0.0, 2.0),
    }
)


@pytest.mark.parametrize("seed", range(5))
def test_a_grid_contains_every_point_once_in_an_order_of_the_seed(seed: int) -> None:
    size = SPACE.grid_size()
    points = [str(SPACE.grid(seed, number).point) for number in range(size)]
    assert size == 48 and len(set(points)) == 48
    assert points == [str(SPACE.grid(seed, number).point) for number in range(size)]
    assert points != [str(SPACE.grid(seed + 1, number).point) for number in range(size)]


def test_random_points_depend_on_seed_number_and_name_only() -> None:
    first = SPACE.random(0, 7).point
    assert first == SPACE.random(0, 7).point
    assert first != SPACE.random(0, 8).point and first != SPACE.random(1, 7).point
    larger = Space({**SPACE.leaves, ("zz",): Normal(None, 0.0, 1.0, log=False)})
    assert {name: larger.random(0, 7).point[name] for name in first} == first
    # The same on every machine and in every version.
    assert Space({("lr",): Uniform(None, 0.0, 1.0)}).random(0, 0).point == {"lr": 0.3989582531343857}


def test_nested_values_are_one_argument() -> None:
    point = {"a": "x", "b.c": 2, "b.d": None, "e": 0.5}
    assert SPACE.arguments(point) == {"a": "x", "b": {"c": 2, "d": None}, "e": 0.5}


def test_covering_points_contain_each_choice_and_both_ends() -> None:
    points = list(SPACE.covering_points())
    assert {point["a"] for point in points} == {"x", "y", "z"}
    assert {point["b.c"] for point in points} == {1, 4} and {point["e"] for point in points} == {0.0, 2.0}


def test_optuna_searches_all_parameters_but_constants() -> None:
    searched = SPACE.searched()
    assert list(searched) == ["a", "b.c", "e"]
    assert SPACE.choice({"a": 1, "b.c": 3, "e": 0.7}).point == {"a": "y", "b.c": 3, "b.d": None, "e": 0.5}
