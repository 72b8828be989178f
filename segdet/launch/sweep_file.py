"""Sweep files in the format of Weights & Biases.

An example file::

    # A description, the command, and the expected time and score.
    method: bayes                     # or grid, random
    metric: {name: val/miou, goal: maximize}
    run_cap: 20
    early_terminate: {type: hyperband, min_iter: 2, eta: 2}
    parameters:
      trainer.max_epochs: {value: 8}
      model.width: {values: [32, 64]}
      model.optim.lr: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-1}
    program: segdet
    command: ["${env}", segdet, fit, --config, configs/shapes/fcn.yaml, "${args}"]

Nested ``parameters`` become one argument with a mapping, as in W&B. Faults are reported with their line.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PrivateAttr, StrictBool, StrictInt, StrictStr

from segdet.launch.config_digest import config_digest
from segdet.launch.sweep_command import (
    DEFAULT_COMMAND,
    EXAMPLE,
    OWN_OPTIONS,
    check_command,
    config_files,
    expand,
    fit_arguments,
)
from segdet.launch.sweep_space import (
    Beta,
    Categorical,
    Constant,
    Distribution,
    IntUniform,
    LogUniform,
    Normal,
    Point,
    Space,
    Uniform,
)
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean
from segdet.util.validation import FileModel, Key, YamlFile

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]

UNSUPPORTED = {
    "controller": "segdet sweep replaces the controller",
    "job": "segdet sweep starts commands, not jobs of W&B Launch",
    "image_uri": "segdet sweep starts commands, not container images",
    "scheduler": "segdet sweep is the scheduler",
    "metrics": "segdet sweep optimizes one metric, with the key 'metric'",
    "metric.impute": "Optuna leaves failed trials out",
    "metric.impute_while_running": "Optuna uses the values of running trials with early_terminate",
}
"""Keys of W&B that cannot have an effect here, and the reasons."""


class Metric(FileModel):
    """The metric to optimize.

    Attributes:
        name: The name under which it is logged, such as ``val/miou``.
        goal: Whether small or large values are better.
        target: A value that ends the sweep: no trial starts after a trial has reached it.
    """

    name: StrictStr
    goal: Literal["minimize", "maximize"] = "minimize"
    target: Number | None = None


class Hyperband(FileModel):
    """Early termination: trials are compared after certain numbers of values, and the best 1/eta of them continue.

    Attributes:
        type: Always ``hyperband``.
        min_iter: The number of values at the first comparison. Each further one has eta times as many.
        max_iter: The number of values of a complete trial. The comparisons are at ``max_iter`` / eta, / eta² ...
        s: The number of comparisons before ``max_iter``.
        eta: See above. W&B also accepts fractions.
        strict: Whether to compare the value at this point instead of the best value up to it.
    """

    type: Literal["hyperband"]
    min_iter: Annotated[StrictInt, Field(ge=1)] | None = None
    max_iter: Annotated[StrictInt, Field(ge=1)] | None = None
    s: Annotated[StrictInt, Field(ge=1)] | None = None
    eta: Annotated[int, Field(ge=2)] = 3
    strict: StrictBool = False

    @property
    def rungs(self) -> list[int]:
        """The numbers of values at which trials are compared.

        W&B divides ``max_iter`` by eta. Here, the first number is rounded down, and the others are multiples of it.
        """
        first, count = self.min_iter or 1, 20
        if self.max_iter is not None:
            count = sum(self.max_iter >= self.eta**step for step in range(1, (self.s or 0) + 1))
            first = self.max_iter // self.eta**count
        return [first * self.eta**step for step in range(count)]


class Sweep(FileModel):
    """The content of a sweep file.

    Attributes:
        name: The name of the sweep. The default is the file's name.
        method: The search: every point of a grid, random points, or points that a model of the results proposes.
        parameters: The parameters as in the file; see `space`.
        metric: The metric to optimize.
        early_terminate: The early termination of bad trials.
        run_cap: The number of trials in total.
        program: The program for the macro ``${program}``.
        command: The words of the command, with macros.
        description: A description for W&B.
        project: The W&B project.
        entity: The W&B entity.
        apiVersion: The version of the format.
        kind: Always ``sweep``.
    """

    name: StrictStr
    method: Literal["grid", "random", "bayes"]
    parameters: Annotated[dict[StrictStr, Any], Field(min_length=1)]
    metric: Metric | None = None
    early_terminate: Hyperband | None = None
    run_cap: Annotated[StrictInt, Field(ge=1)] | None = None
    program: StrictStr | None = None
    command: Annotated[list[Any], Field(min_length=1)] = list(DEFAULT_COMMAND)
    description: StrictStr | None = None
    project: StrictStr | None = None
    entity: StrictStr | None = None
    apiVersion: StrictStr | None = None
    kind: Literal["sweep"] | None = None
    _file: YamlFile = PrivateAttr()
    _space: Space = PrivateAttr()

    @property
    def path(self) -> Path:
        """The sweep file."""
        return self._file.path

    @property
    def space(self) -> Space:
        """The search space."""
        return self._space

    @property
    def folder_name(self) -> str:
        """The name of the sweep's folder: the sweep's name, with '-' for all but letters, digits, '.' and '_'."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.name).strip("-.") or "sweep"

    @property
    def size(self) -> int | None:
        """The number of trials in total, or None if it is not limited."""
        limits = [] if self.run_cap is None else [self.run_cap]
        if self.method == "grid":
            limits.append(self.space.grid_size())
        return min(limits, default=None)

    def command_line(self, point: Point, json_file: Path, without: str | None = None) -> list[str]:
        """Return the command line that the W&B agent starts for a point.

        Args:
            point: The point.
            json_file: The path for the macro ``${args_json_file}``.
            without: The name of a parameter to leave out.
        """
        return expand(self.command, self.program, self.space.arguments(point, without), json_file)

    def error(self, key: Key, message: str) -> UserError:
        """Return an error about the value of ``key``, with the file and the line."""
        return self._file.error(key, message)

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the trials, in JSON types.

        The keys are those of the sweep file. Configs have descriptions as keys.
        """
        described = self.model_dump(mode="json", include={"method", "metric", "early_terminate", "program"})
        described["command"] = [str(word) for word in self.command]
        for config in config_files(described["command"]):
            described[f"the content of {config}"] = config_digest(config)
        described |= {
            ".".join(map(str, key)): values
            for key, values in _parameter_mappings(("parameters",), self.parameters)
        }
        plain: dict[str, Any] = json.loads(json.dumps(described, default=str))
        return {key: value for key, value in plain.items() if value is not None}


def read_sweep(path: Path | str) -> Sweep:
    """Read the sweep file ``path``.

    Raises:
        UserError: If the file cannot be read, has an unknown key or a wrong value, or W&B reads it differently.
    """
    file = YamlFile.read(path)
    if not isinstance(file.values, dict):
        raise UserError(f"{file.path}: is not a mapping; write a sweep file with method and parameters")
    for unsupported, reason in UNSUPPORTED.items():
        section, _, name = unsupported.rpartition(".")
        values = file.values.get(section) if section else file.values
        if isinstance(values, dict) and name in values:
            at = tuple(unsupported.split("."))
            raise file.error(at, f"has the key '{unsupported}', but {reason}; remove it")
    by_wandb = yaml.safe_load(file.path.read_text(encoding="utf-8"))
    for key, message in _read_differently((), by_wandb, file.values):
        raise file.error(key, message)
    file.values.setdefault("name", file.path.stem)
    sweep = file.parse(Sweep)
    sweep._file = file
    for key, message in _conflicts(sweep):
        raise file.error(key, message)
    leaves = dict(sorted(_leaves(file, sweep.method, ("parameters",), sweep.parameters)))
    names: dict[str, Key] = {}
    for leaf in leaves:
        if ".".join(leaf) in names:
            raise file.error(_key_of(leaf), f"'{'.'.join(leaf)}' is given twice; remove one")
        names[".".join(leaf)] = leaf
    sweep._space = Space(leaves)
    if not any(
        isinstance(leaf, Categorical | IntUniform | Uniform | Normal | Beta) for leaf in leaves.values()
    ):
        raise file.error(("parameters",), "all parameters are constants; give one of them several values")
    words = sweep.command_line(next(sweep.space.covering_points()), Path("arguments.json"))
    if fit_arguments(words) is None:
        raise file.error(
            ("command",),
            f"its command does not start with segdet fit ({' '.join(words[:4])} ...); write {EXAMPLE}",
        )
    for word in map(str, sweep.command):
        if word.partition("=")[0].removeprefix("--") in OWN_OPTIONS:
            raise file.error(
                ("command",), f"command has {word}, which the sweep sets for each trial; remove it"
            )
    return sweep


def notes(sweep: Sweep) -> Iterator[str]:
    """Yield notes about values that are valid but probably not intended."""
    for key, values in _parameter_mappings(("parameters",), sweep.parameters):
        if values.get("distribution") in ("log_uniform", "q_log_uniform") and values["min"] > 0:
            low, high = math.exp(values["min"]), math.exp(values["max"])
            yield str(
                sweep.error(
                    key,
                    f"{values['distribution']} has exponents as limits: values are between {low:.4g} and "
                    f"{high:.4g}; for values between {values['min']} and {values['max']} write "
                    f"{values['distribution']}_values",
                )
            )


def _key_of(leaf: tuple[str, ...]) -> Key:
    """Return the key in the file of a parameter's path."""
    return tuple(part for name in leaf for part in ("parameters", name))


def _read_differently(key: Key, by_wandb: Any, here: Any) -> Iterator[tuple[Key, str]]:
    """Yield the values that W&B, which reads YAML 1.1, reads differently from segdet's options."""
    if isinstance(here, dict) and isinstance(by_wandb, dict):
        for name, value in here.items():
            yield from _read_differently((*key, name), by_wandb.get(name), value)
    elif isinstance(here, list) and isinstance(by_wandb, list):
        for position, pair in enumerate(zip(by_wandb, here, strict=True)):
            yield from _read_differently((*key, position), *pair)
    elif type(here) is not type(by_wandb):
        name = ".".join(map(str, key))
        fix = f"put it in quotes: '{here}'"
        if here is None:
            fix = "write null"
        elif isinstance(here, float):
            mantissa, _, exponent = str(by_wandb).partition("e")
            fix = f"write {float(mantissa)}e{int(exponent):+d}" if exponent else f"write {here}"
        yield key, f"{name} is {by_wandb}, which W&B reads as a {type(by_wandb).__name__}; {fix}"


def _conflicts(sweep: Sweep) -> Iterator[tuple[Key, str]]:
    """Yield the errors of the whole file that involve more than one value."""
    if not sweep.name.strip():
        yield ("name",), "name is empty; give the sweep a name, or remove the key"
    if sweep.metric is None and (sweep.method == "bayes" or sweep.early_terminate is not None):
        reason = "method bayes" if sweep.method == "bayes" else "early_terminate"
        key: Key = ("method",) if sweep.method == "bayes" else ("early_terminate",)
        yield key, f"{reason} needs a metric; add metric: {{name: val/miou, goal: maximize}}"
    stop = sweep.early_terminate
    if stop is not None:
        if (stop.min_iter is None) == (stop.max_iter is None):
            yield (
                ("early_terminate",),
                "early_terminate needs either min_iter, or max_iter and s; give one of them",
            )
        elif stop.max_iter is not None and stop.s is None:
            yield (
                ("early_terminate",),
                "early_terminate has max_iter but no s, the number of comparisons; add s",
            )
        elif stop.min_iter is not None and stop.s is not None:
            yield ("early_terminate", "s"), "early_terminate.s belongs to max_iter; remove it"
        elif not stop.rungs:
            yield (
                ("early_terminate",),
                f"early_terminate compares no trials, because max_iter {stop.max_iter} is below eta {stop.eta:g}; "
                "increase max_iter",
            )
    if fault := check_command(sweep.command):
        yield ("command",), f"command {fault}"
    if sweep.program is None and "${program}" in sweep.command:
        yield ("command",), f"command needs the key 'program'; write program: segdet and {EXAMPLE}"


def _parameter_mappings(key: Key, parameters: Mapping[str, Any]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the key and the mapping of each parameter, nested ones included."""
    for name, values in parameters.items():
        if isinstance(values, dict) and isinstance(values.get("parameters"), dict):
            yield from _parameter_mappings((*key, name, "parameters"), values["parameters"])
        elif isinstance(values, dict):
            yield (*key, name), values


def _leaves(
    file: YamlFile, method: str, key: Key, parameters: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], Distribution]]:
    """Yield the path and the distribution of each parameter."""
    for name, values in parameters.items():
        here = (*key, name)
        shown = ".".join(str(part) for part in here if part != "parameters")
        path = tuple(str(part) for part in here if part != "parameters")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
            raise file.error(here, f"{shown!r} is not the name of a parameter; write it as model.optim.lr")
        if path[0].split(".")[0] in OWN_OPTIONS:
            raise file.error(here, f"{shown} is set by the sweep for each trial; remove it")
        if not isinstance(values, dict):
            fix = "values: " if isinstance(values, list) else "value: "
            raise file.error(
                here, f"{shown} is {values!r} and should be a mapping; write {{{fix}{values!r}}}"
            )
        if "parameters" in values:
            others = values.keys() - {"parameters"}
            if others:
                other = sorted(others)[0]
                raise file.error((*here, other), f"{shown} has '{other}' beside nested parameters; remove it")
            if not isinstance(values["parameters"], dict) or not values["parameters"]:
                raise file.error(
                    (*here, "parameters"), f"{shown}.parameters should be a mapping of parameters"
                )
            yield from _leaves(file, method, (*here, "parameters"), values["parameters"])
            continue
        try:
            yield path, _distribution(values, method)
        except _ParameterFault as fault:
            at = here if fault.name is None else (*here, fault.name)
            raise file.error(at, f"{shown} {fault.message}") from None


class _ParameterFault(Exception):
    """A fault of a parameter, at the key ``name`` or at the whole parameter."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.name = name


_LIMITS = ("min", "max")
_NORMAL = ("mu", "sigma")
_BETA = ("a", "b")
_QUANTIZED = {
    "uniform": _LIMITS,
    "log_uniform": _LIMITS,
    "log_uniform_values": _LIMITS,
    "normal": _NORMAL,
    "log_normal": _NORMAL,
    "beta": _BETA,
}
KEYS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": _LIMITS,
    "inv_log_uniform": _LIMITS,
    "inv_log_uniform_values": _LIMITS,
    **_QUANTIZED,
    **{f"q_{name}": (*keys, "q") for name, keys in _QUANTIZED.items()},
}
"""The keys of each distribution of W&B."""

_DEFAULTS = {"mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0, "q": 1}


def _distribution(values: Mapping[str, Any], method: str) -> Distribution:
    """Return the distribution of a parameter.

    Raises:
        _ParameterFault: If a key or a value is wrong, or the method cannot use the distribution.
    """
    name = _name(values)
    allowed = ("distribution", *KEYS[name])
    for key in values:
        if key not in allowed:
            if values[key] is None and "values" in values:  # {values: 64, 128}
                raise _ParameterFault(
                    f"has the key {key!r} without a value; write lists in brackets: [1, 2]", key
                )
            hint = did_you_mean(str(key), [each for each in allowed if each not in values] or allowed)
            raise _ParameterFault(f"has the unknown key '{key}' for {name}; {hint}", key)
    for key in KEYS[name]:
        if key not in values and key not in _DEFAULTS:
            raise _ParameterFault(f"has no '{key}', which {name} needs; add it")
    build: Callable[[str, Mapping[str, Any]], Distribution] = _range
    if name in ("constant", "categorical", "categorical_w_probabilities"):
        build = _choice
    distribution = build(name, values)
    if method == "grid" and distribution.grid() is None:
        raise _ParameterFault(
            f"has the continuous distribution {name} in a grid; give values, or use method random or bayes"
        )
    if method != "random" and name == "categorical_w_probabilities":
        raise _ParameterFault(
            f"has probabilities, which only method random uses; remove them or use it instead of {method}",
            "probabilities",
        )
    if method == "grid" and isinstance(distribution, Categorical):
        for position, value in enumerate(distribution.values):
            if any(_same(value, other) for other in distribution.values[:position]):
                raise _ParameterFault(f"has the value {value!r} twice in a grid; remove one", "values")
    return distribution


def _same(first: Any, second: Any) -> bool:
    return type(first) is type(second) and bool(first == second)


def _name(values: Mapping[str, Any]) -> str:
    """Return the name of the distribution, which follows from the other keys if it is not given."""
    given = values.get("distribution")
    if given is not None:
        if given not in KEYS:
            raise _ParameterFault(
                f"has the unknown distribution {given!r}; {did_you_mean(str(given), KEYS)}", "distribution"
            )
        if given == "categorical" and "probabilities" in values:
            return "categorical_w_probabilities"
        return str(given)
    if "value" in values:
        return "constant"
    if "values" in values:
        return "categorical_w_probabilities" if "probabilities" in values else "categorical"
    known = sorted({key for keys in KEYS.values() for key in keys} | {"distribution", "parameters"})
    for key in values:
        if key not in known:
            raise _ParameterFault(
                f"has the unknown key '{key}'; {did_you_mean(str(key), known, cutoff=0.5)}", key
            )
    for key, other in (_LIMITS, _LIMITS[::-1]):
        if key in values and other not in values:
            raise _ParameterFault(f"has '{key}' but no '{other}'; add it")
    if "min" not in values:
        raise _ParameterFault("has neither value, values, min and max, nor a distribution; add one of them")
    both = (values["min"], values["max"])
    return "int_uniform" if all(type(limit) is int for limit in both) else "uniform"


def _choice(name: str, values: Mapping[str, Any]) -> Distribution:
    if name == "constant":
        return Constant(values["value"])
    choices = values["values"]
    if not isinstance(choices, list) or not choices:
        raise _ParameterFault(f"has the values {choices!r} and needs a list of at least one", "values")
    weights = values.get("probabilities")
    if weights is None:
        return Categorical(choices)
    if not isinstance(weights, list) or not all(_is_number(each) and each >= 0 for each in weights):
        raise _ParameterFault(
            f"has the probabilities {weights!r} and needs a list of numbers", "probabilities"
        )
    if len(weights) != len(choices):
        raise _ParameterFault(
            f"has {len(choices)} values and {len(weights)} probabilities; give one for each value",
            "probabilities",
        )
    if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise _ParameterFault(f"has probabilities with the sum {sum(weights):g}; make it 1", "probabilities")
    return Categorical(choices, weights)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _range(name: str, values: Mapping[str, Any]) -> Distribution:
    numbers = {key: values.get(key, _DEFAULTS.get(key)) for key in KEYS[name]}
    for key, number in numbers.items():
        if not _is_number(number):
            raise _ParameterFault(f"has the {key} {number!r} and needs a number", key)
    q = numbers.get("q")
    if q is not None and q <= 0:
        raise _ParameterFault(f"has the q {q}, which must be positive; increase it", "q")
    for key in ("sigma", "a", "b"):
        if key in numbers and numbers[key] <= 0:
            raise _ParameterFault(f"has the {key} {numbers[key]}, which must be positive; increase it", key)
    kind = name.removeprefix("q_")
    if kind in ("normal", "log_normal"):
        return Normal(q, numbers["mu"], numbers["sigma"], log=kind == "log_normal")
    if kind == "beta":
        return Beta(q, numbers["a"], numbers["b"])
    low, high = numbers["min"], numbers["max"]
    if low >= high:
        raise _ParameterFault(f"has min {low}, which is not below max {high}; exchange or change them", "min")
    if name == "int_uniform":
        for key in _LIMITS:
            if type(numbers[key]) is not int:
                raise _ParameterFault(
                    f"has the {key} {numbers[key]}, but int_uniform needs whole numbers; write uniform", key
                )
        return IntUniform(low, high)
    if kind == "uniform":
        return Uniform(q, low, high)
    if kind.endswith("_values"):
        if low <= 0:
            raise _ParameterFault(f"has min {low}, but {name} needs a positive min; increase it", "min")
        return LogUniform(q, low, high)
    if max(abs(low), abs(high)) > 700:
        raise _ParameterFault(
            f"has limits {low} and {high}, which are exponents for {name}; write {name}_values", "max"
        )
    # The limits of log_uniform are natural logarithms. inv_log_uniform limits log(1/x).
    exponents = (low, high) if kind == "log_uniform" else (-high, -low)
    return LogUniform(q, math.exp(exponents[0]), math.exp(exponents[1]))
