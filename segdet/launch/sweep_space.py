"""The search space of a sweep: the distributions of Weights & Biases, and the values that they give.

Every distribution maps a number between 0 and 1 to a value by its inverse cumulative distribution function. Random
trials use numbers that follow from the seed, the trial's number and the parameter's name, so that every machine
computes the same trials. If Optuna has the same distribution, it searches the values themselves, and otherwise
the numbers.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Point = dict[str, Any]
"""The value of each searched or constant parameter by its dotted name."""

_EDGE = 1e-6
"""The smallest distance of Optuna's numbers from 0 and 1, because a normal distribution is infinite there."""


class Distribution:
    """The distribution of one parameter."""

    def at(self, quantile: float) -> Any:
        """Return the value at a quantile in [0, 1]."""
        return self.value(self.pick(quantile))

    def grid(self) -> list[Any] | None:
        """Return all values, or None for a continuous distribution."""
        return None

    def ends(self) -> list[Any]:
        """Return values that cover the distribution: all of a choice, otherwise both ends."""
        return [self.at(_EDGE), self.at(1 - _EDGE)]

    def searched(self) -> "BaseDistribution | None":
        """Return Optuna's distribution, or None for a constant."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(_EDGE, 1 - _EDGE)

    def pick(self, quantile: float) -> Any:
        """Return the value of Optuna's distribution at a quantile in [0, 1]."""
        return min(1 - _EDGE, max(_EDGE, quantile))

    def value(self, picked: Any) -> Any:
        """Return the parameter's value for a value of Optuna's distribution."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Distribution):
    """A single value."""

    constant: Any

    def value(self, picked: Any) -> Any:
        return self.constant

    def grid(self) -> list[Any]:
        return [self.constant]

    def ends(self) -> list[Any]:
        return [self.constant]

    def searched(self) -> None:
        return None


@dataclass(frozen=True)
class Categorical(Distribution):
    """A choice of values, with equal probabilities by default. Optuna searches their positions."""

    values: Sequence[Any]
    probabilities: Sequence[float] | None = None

    def pick(self, quantile: float) -> int:
        weights = self.probabilities or [1 / len(self.values)] * len(self.values)
        bounds = list(itertools.accumulate(weights))
        below = (position for position, bound in enumerate(bounds) if quantile < bound)
        # Rounding may leave the last bound below 1. The quantiles above it select the last value that is possible.
        last = max(position for position, weight in enumerate(weights) if weight > 0)
        return next(below, last)

    def grid(self) -> list[Any]:
        return list(self.values)

    def ends(self) -> list[Any]:
        return list(self.values)

    def searched(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(list(range(len(self.values))))

    def value(self, picked: Any) -> Any:
        return self.values[picked]


@dataclass(frozen=True)
class IntUniform(Distribution):
    """The integers from ``low`` to ``high``, both included."""

    low: int
    high: int

    def pick(self, quantile: float) -> int:
        return min(self.high, self.low + int(quantile * (self.high - self.low + 1)))

    def grid(self) -> list[Any]:
        return list(range(self.low, self.high + 1))

    def ends(self) -> list[Any]:
        return [self.low, self.high]

    def searched(self) -> "BaseDistribution":
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high)

    def value(self, picked: Any) -> int:
        return int(picked)


@dataclass(frozen=True)
class Continuous(Distribution):
    """A continuous distribution. With ``q``, its values are rounded to multiples of ``q``."""

    q: float | None

    def rounded(self, value: float) -> float:
        """Return ``value``, rounded to a multiple of ``q`` if it is given."""
        return value if self.q is None else round(value / self.q) * self.q  # an integer if q is an integer


@dataclass(frozen=True)
class Uniform(Continuous):
    """Uniform between ``low`` and ``high``."""

    low: float
    high: float

    def pick(self, quantile: float) -> float:
        return min(self.high, self.low + quantile * (self.high - self.low))

    def grid(self) -> list[Any] | None:
        """Return the multiples of ``q`` from ``low``, without ``high``, as W&B does."""
        if self.q is None:
            return None
        return [self.low + step * self.q for step in range(math.ceil((self.high - self.low) / self.q))]

    def ends(self) -> list[Any]:
        return [self.rounded(self.low), self.rounded(self.high)]

    def searched(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high)

    def value(self, picked: Any) -> float:
        return self.rounded(picked)


@dataclass(frozen=True)
class LogUniform(Uniform):
    """Log-uniform between the positive values ``low`` and ``high``."""

    def pick(self, quantile: float) -> float:
        return min(self.high, max(self.low, self.low * (self.high / self.low) ** quantile))

    def grid(self) -> None:
        return None

    def searched(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=True)


@dataclass(frozen=True)
class Normal(Continuous):
    """Normal, or with ``log`` the exponential of a normal distribution."""

    mu: float
    sigma: float
    log: bool

    def value(self, picked: Any) -> float:
        value = NormalDist(self.mu, self.sigma).inv_cdf(picked)
        return self.rounded(math.exp(value) if self.log else value)


@dataclass(frozen=True)
class Beta(Continuous):
    """Beta on [0, 1]."""

    a: float
    b: float

    def value(self, picked: Any) -> float:
        from scipy.special import betaincinv

        return self.rounded(float(betaincinv(self.a, self.b, picked)))


@dataclass(frozen=True)
class Choice:
    """The parameters of a trial.

    Attributes:
        point: The value of each parameter by its dotted name.
        picked: The values of Optuna's distributions, without constants.
    """

    point: Point
    picked: dict[str, Any]


@dataclass(frozen=True)
class Space:
    """The parameters of a sweep.

    Attributes:
        leaves: The distribution of each parameter by its path, in alphabetical order as in W&B. The path of a parameter
            has several names if it is nested: ``("model.optim", "lr")``.
    """

    leaves: Mapping[tuple[str, ...], Distribution]

    def named(self) -> dict[str, Distribution]:
        """Return the distributions by dotted name."""
        return {".".join(path): leaf for path, leaf in self.leaves.items()}

    def arguments(self, point: Point, without: str | None = None) -> dict[str, Any]:
        """Return the arguments of a trial by name: the values of a point, with nested parameters as mappings."""
        arguments: dict[str, Any] = {}
        for path in self.leaves:
            if ".".join(path) == without:
                continue
            target = arguments
            for name in path[:-1]:
                target = target.setdefault(name, {})
            target[path[-1]] = point[".".join(path)]
        return arguments

    def random(self, seed: int, number: int) -> "Choice":
        """Return the random choice of a trial. It depends on the seed, the trial's number and the names."""
        return self.choice(
            {
                name: leaf.pick(random.Random(f"{seed}/{number}/{name}").random())
                for name, leaf in self.named().items()
            }
        )

    def choice(self, picked: Mapping[str, Any]) -> "Choice":
        """Return the choice for values of Optuna's distributions."""
        point = {name: leaf.value(picked.get(name)) for name, leaf in self.named().items()}
        return Choice(point, {name: picked[name] for name in self.searched()})

    def grid_size(self) -> int:
        """Return the number of points of the grid. All distributions must be discrete."""
        return math.prod(len(leaf.grid() or ()) for leaf in self.leaves.values())

    def grid(self, seed: int, number: int) -> "Choice":
        """Return a point of the grid. The seed determines the order, which contains every point once."""
        position = _permuted(number, self.grid_size(), seed)
        named = self.named()
        choice = Choice({}, {})
        for name, leaf in reversed(named.items()):
            values = leaf.grid() or []
            position, index = divmod(position, len(values))
            choice.point[name] = values[index]
            if leaf.searched() is not None:
                choice.picked[name] = index if isinstance(leaf, Categorical) else values[index]
        return Choice({name: choice.point[name] for name in named}, choice.picked)

    def covering_points(self) -> Iterator[Point]:
        """Yield points that together contain every value of each choice and both ends of each range."""
        ends = {name: leaf.ends() for name, leaf in self.named().items()}
        for number in range(max(map(len, ends.values()))):
            yield {name: values[min(number, len(values) - 1)] for name, values in ends.items()}

    def searched(self) -> "dict[str, BaseDistribution]":
        """Return Optuna's distributions of the parameters that are not constant."""
        found = {name: leaf.searched() for name, leaf in self.named().items()}
        return {name: each for name, each in found.items() if each is not None}


def _permuted(number: int, size: int, seed: int) -> int:
    """Return the element at position ``number`` of a permutation of ``range(size)`` that follows from the seed.

    A grid may have billions of points. An affine permutation needs no list of them.
    """
    source = random.Random(f"{seed}/{size}")
    offset, factor = int(source.random() * size), 1 + int(source.random() * size)
    while math.gcd(factor, size) != 1:
        factor += 1
    return (factor * number + offset) % size
