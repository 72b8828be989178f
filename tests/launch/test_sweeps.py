"""W&B accepts every shipped sweep file, and segdet accepts the arguments that the W&B agent passes.

wandb cannot check sweep files offline, so these tests repeat the relevant rules. They compare the command lines with
those of the agent.
"""

import contextlib
import io
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

SWEEPS = sorted(Path(__file__).resolve().parents[2].glob("sweeps/*.yaml"))
MONITOR = {"segmentation": "val/miou", "localization": "val/loc_acc", "detection": "val/map"}

KEYS = {
    "program", "method", "metric", "parameters", "early_terminate", "command", "run_cap", "name",
    "description", "project", "entity",
}  # fmt: skip
PARAMETER_KEYS = {"value", "values", "distribution", "min", "max", "mu", "sigma", "q"}
RANGES = {"uniform", "int_uniform", "q_uniform", "log_uniform_values", "q_log_uniform_values"}
DISTRIBUTIONS = RANGES | {"constant", "categorical", "normal", "q_normal", "beta"}


def faults(sweep: dict[str, Any]) -> list[str]:
    """Return the errors of a sweep that W&B would reject or misread."""
    found = [f"unknown key {key}" for key in sweep.keys() - KEYS]
    method, metric = sweep.get("method"), sweep.get("metric")
    if method not in ("grid", "random", "bayes"):
        found.append(f"unknown method {method}")
    if metric is None and (method == "bayes" or "early_terminate" in sweep):
        found.append(f"{method} without metric")
    if metric is not None and (
        set(metric) != {"name", "goal"} or metric["goal"] not in ("maximize", "minimize")
    ):
        found.append(f"bad metric {metric}")
    for name, parameter in sweep.get("parameters", {}).items():
        found += [f"{name}: {fault}" for fault in parameter_faults(parameter, method)]
    stop = sweep.get("early_terminate", {})
    if stop and (stop.get("type") != "hyperband" or ("min_iter" in stop) == ("max_iter" in stop)):
        found.append(f"bad early_terminate {stop}")
    if "${args}" not in sweep.get("command", []):
        found.append("command without ${args}")
    return found


def parameter_faults(parameter: dict[str, Any], method: str | None) -> Iterator[str]:
    if not isinstance(parameter, dict):
        yield f"no mapping: {parameter!r}"
        return
    if "parameters" in parameter:
        yield "nested; write dotted names"
    yield from (f"unknown key {key}" for key in parameter.keys() - PARAMETER_KEYS - {"parameters"})
    distribution = parameter.get("distribution")
    if distribution is not None and distribution not in DISTRIBUTIONS:
        yield f"unknown distribution {distribution}"  # log_uniform too, whose limits are exponents
    if "values" in parameter and not (isinstance(parameter["values"], list) and parameter["values"]):
        yield "no values"
    for value in [parameter.get(key) for key in ("value", "min", "max")] + (parameter.get("values") or []):
        with contextlib.suppress(TypeError, ValueError):
            if isinstance(value, str) and float(value) is not None:
                yield f"{value!r} is a string; write 1.0e-5, not 1e-5"
    if not parameter.keys() & {"value", "values"}:
        low, high = parameter.get("min"), parameter.get("max")
        if method == "grid":
            yield "a range in a grid"
        if not all(isinstance(limit, int | float) for limit in (low, high)):
            yield "no limits"
        elif low >= high:  # type: ignore[operator]
            yield f"min {low} is not below max {high}"
        elif low <= 0 and "log" in str(distribution):  # type: ignore[operator]
            yield f"the logarithm of {low}"


def sampled(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Return points that cover both ends of every range and every value of every choice, and two random points."""
    rng = random.Random(0)
    choices = {
        name: _choices(parameter) or [parameter["min"], parameter["max"]]
        for name, parameter in sweep["parameters"].items()
    }
    length = max(map(len, choices.values()))
    points = [dict(zip(choices, point, strict=True)) for point in zip(*[
        list(itertools.islice(itertools.cycle(values), length)) for values in choices.values()
    ], strict=True)]  # fmt: skip
    for _ in range(2):
        points.append(
            {
                name: rng.choice(_choices(parameter))
                if _choices(parameter)
                else rng.uniform(parameter["min"], parameter["max"])
                for name, parameter in sweep["parameters"].items()
            }
        )
    return points


def _choices(parameter: dict[str, Any]) -> list[Any]:
    """Return the values of a choice, or nothing for a range."""
    return [parameter["value"]] if "value" in parameter else parameter.get("values", [])


def command_line(sweep: dict[str, Any], point: dict[str, Any]) -> list[str]:
    """Return the command that the agent starts for a point."""
    macros = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": ["python"],
        "${program}": [sweep.get("program", "")],
        "${args}": [f"--{name}={value}" for name, value in point.items()],
    }
    return [word for chunk in sweep["command"] for word in macros.get(chunk, [chunk])]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_is_valid_and_its_metric_is_logged(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    assert faults(sweep) == []
    assert sweep["metric"] == {"name": MONITOR[path.stem], "goal": "maximize"}
    assert len([line for line in path.read_text().splitlines() if line.startswith("# ")]) >= 3
    assert f"wandb sweep sweeps/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_hyperband_has_enough_validations_to_stop_a_run(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    stop, parameters = sweep["early_terminate"], sweep["parameters"]
    epochs = parameters["trainer.max_epochs"]["value"]
    validations = epochs // parameters["trainer.check_val_every_n_epoch"]["value"]
    # Hyperband compares runs after `min_iter` values, and after `eta` times as many.
    assert validations > stop["min_iter"] * stop["eta"]


def test_each_task_has_a_sweep() -> None:
    assert {path.stem for path in SWEEPS} == set(MONITOR)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_agent_builds_the_same_command(path: Path) -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")  # private, so it may move
    sweep = yaml.safe_load(path.read_text())
    for point in sampled(sweep):
        flags = utils.create_sweep_command_args({"args": {name: {"value": v} for name, v in point.items()}})
        expected = [
            word
            for chunk in utils.create_sweep_command(list(sweep["command"]))
            for word in ({"${args}": flags["args"], "${env}": ["/usr/bin/env"]}.get(chunk, [chunk]))
        ]
        assert command_line(sweep, point) == expected


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_command_accepts_every_point(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segdet.cli.train import main

    monkeypatch.chdir(path.parents[1])
    sweep = yaml.safe_load(path.read_text())
    for point in sampled(sweep):
        words = command_line(sweep, point)
        assert words[:3] == ["/usr/bin/env", "segdet", "fit"]
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as leaving:
            main([*words[2:], "--print_config"])
        assert leaving.value.code == 0
        config = yaml.safe_load(out.getvalue())
        for name, value in point.items():
            section, *keys = name.split(".")
            got = config[section] if section == "trainer" else config[section]["init_args"]
            for key in keys:
                got = got[key]
            assert got == value and type(got) in (type(value), float), name


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"methods": "bayes"}, "unknown key methods"),
        ({"method": "baies"}, "unknown method baies"),
        ({"metric": None}, "bayes without metric"),
        ({"metric": {"name": "val/miou", "goal": "max"}}, "bad metric"),
        ({"parameters": {"lr": {"min": 0.1, "max": 0.01}}}, "lr: min 0.1 is not below max 0.01"),
        ({"parameters": {"lr": {"mim": 0.1, "max": 1.0}}}, "lr: unknown key mim"),
        (
            {"parameters": {"lr": {"min": 0.1, "max": 1, "distribution": "log_uniform"}}},
            "unknown distribution",
        ),
        (
            {"parameters": {"lr": {"min": 0.0, "max": 1, "distribution": "log_uniform_values"}}},
            "lr: the logarithm of 0.0",
        ),
        ({"parameters": yaml.safe_load("lr: {min: 1e-5, max: 0.1}")}, "lr: '1e-5' is a string"),
        ({"parameters": {"model": {"parameters": {"lr": {"value": 1}}}}}, "model: nested"),
        ({"parameters": {"lr": 0.1}}, "lr: no mapping"),
        ({"parameters": {"lr": {"values": []}}}, "lr: no values"),
        ({"method": "grid"}, "model.optim.lr: a range in a grid"),
        ({"early_terminate": {"type": "hyperband"}}, "bad early_terminate"),
        ({"command": ["segdet", "fit"]}, "command without ${args}"),
    ],
)
def test_faults_of_sweeps_are_found(change: dict[str, Any], fault: str) -> None:
    sweep = yaml.safe_load(SWEEPS[0].read_text()) | change
    assert any(fault in found for found in faults(sweep)), faults(sweep)
