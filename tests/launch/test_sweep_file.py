"""Sweep files: the content of valid files, and the line number and the fix in the message about each fault."""

from pathlib import Path
from typing import Any

import pytest

from segdet.launch.sweep_file import KEYS, notes, read_sweep
from segdet.launch.sweep_space import Beta, Categorical, Constant, IntUniform, LogUniform, Normal, Uniform
from segdet.util.errors import UserError

FILE = """\
method: METHOD
metric: {name: val/miou, goal: maximize}
run_cap: 5
parameters:
  trainer.max_epochs: {value: 1}
  model.width: {values: [8, 16]}
  x: PARAMETER
command: ["${env}", segdet, fit, --config, fcn.yaml, "${args}"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def parameter(folder: Path, text: str, method: str = "random") -> Any:
    file = FILE.replace("METHOD", method).replace("PARAMETER", text)
    return read_sweep(write(folder, file)).space.named()["x"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{value: sgd}", Constant("sgd")),
        ("{distribution: constant, value: null}", Constant(None)),
        ("{values: [1, two, null]}", Categorical([1, "two", None])),
        ("{values: [a, b], probabilities: [0.25, 0.75]}", Categorical(["a", "b"], [0.25, 0.75])),
        ("{min: 1, max: 3}", IntUniform(1, 3)),
        ("{min: 1.0, max: 3}", Uniform(None, 1.0, 3)),
        ("{distribution: uniform, min: 1, max: 3}", Uniform(None, 1, 3)),
        ("{distribution: q_uniform, min: 1, max: 3}", Uniform(1, 1, 3)),
        ("{distribution: log_uniform, min: 0, max: 1}", LogUniform(None, 1.0, pytest.approx(2.718281828))),
        ("{distribution: log_uniform_values, min: 0.1, max: 1}", LogUniform(None, 0.1, 1)),
        ("{distribution: q_log_uniform_values, min: 8, max: 64, q: 8}", LogUniform(8, 8, 64)),
        ("{distribution: inv_log_uniform, min: -1, max: 0}", LogUniform(None, 1.0, pytest.approx(2.7182818))),
        ("{distribution: inv_log_uniform_values, min: 0.1, max: 1}", LogUniform(None, 0.1, 1)),
        ("{distribution: normal}", Normal(None, 0.0, 1.0, log=False)),
        ("{distribution: q_log_normal, mu: 2, sigma: 0.5, q: 0.1}", Normal(0.1, 2, 0.5, log=True)),
        ("{distribution: beta, a: 2, b: 5}", Beta(None, 2, 5)),
        ("{distribution: q_beta, q: 0.25}", Beta(0.25, 1.0, 1.0)),
    ],
)
def test_a_parameter_is_read(tmp_path: Path, text: str, expected: object) -> None:
    assert parameter(tmp_path, text) == expected


def test_all_distributions_of_wandb_are_known() -> None:
    quantized = ("uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta")
    assert set(KEYS) == {
        *("constant", "categorical", "categorical_w_probabilities", "int_uniform"),
        *("inv_log_uniform", "inv_log_uniform_values"),
        *quantized,
        *(f"q_{name}" for name in quantized),
    }


def test_nested_parameters_become_one_argument(tmp_path: Path) -> None:
    text = FILE.replace("METHOD", "grid").replace(
        "PARAMETER", "{parameters: {lr: {values: [0.1]}, b: {parameters: {c: {value: null}}}}}"
    )
    sweep = read_sweep(write(tmp_path, text))
    assert list(sweep.space.named()) == ["model.width", "trainer.max_epochs", "x.b.c", "x.lr"]
    line = sweep.command_line(sweep.space.grid(0, 0).point, Path("a.json"))
    assert line[-1] == "--x={'b': {'c': None}, 'lr': 0.1}"


@pytest.mark.parametrize(
    ("text", "method", "message"),
    [
        ("{mim: 0.1, max: 1.0}", "random", "line 7: x has the unknown key 'mim'; did you mean min?"),
        ("{min: 0.1, maks: 1.0}", "random", "line 7: x has the unknown key 'maks'; did you mean max?"),
        ("{min: 0.1}", "random", "line 7: x has 'min' but no 'max'; add it"),
        (
            "{}",
            "random",
            "line 7: x has neither value, values, min and max, nor a distribution; add one of them",
        ),
        (
            "{min: 0.1, max: 0.01}",
            "bayes",
            "line 7: x has min 0.1, which is not below max 0.01; exchange or change them",
        ),
        (
            "{min: 0.1, max: 1.0}",
            "grid",
            "line 7: x has the continuous distribution uniform in a grid; give values, or use method random or bayes",
        ),
        (
            "{distribution: uniorm, min: 0, max: 1}",
            "random",
            "line 7: x has the unknown distribution 'uniorm'; did you mean uniform?",
        ),
        (
            "{distribution: normal, min: 0, sigma: 1}",
            "random",
            "line 7: x has the unknown key 'min' for normal; choose from mu",
        ),
        (
            "{distribution: log_uniform_values, min: 0, max: 1}",
            "random",
            "line 7: x has min 0, but log_uniform_values needs a positive min; increase it",
        ),
        (
            "{distribution: log_uniform, min: 16, max: 2048}",
            "random",
            "line 7: x has limits 16 and 2048, which are exponents for log_uniform; write log_uniform_values",
        ),
        (
            "{distribution: int_uniform, min: 0.5, max: 2}",
            "random",
            "line 7: x has the min 0.5, but int_uniform needs whole numbers; write uniform",
        ),
        (
            "{min: 1e-5, max: 0.1}",
            "random",
            "line 7: parameters.x.min is 1e-5, which W&B reads as a str; write 1.0e-5",
        ),
        (
            "{value: None}",
            "random",
            "line 7: parameters.x.value is None, which W&B reads as a str; write null",
        ),
        (
            "{min: '0.1', max: 1.0}",
            "random",
            "line 7: x has the min '0.1' and needs a number",
        ),
        (
            "{values: 3, 4}",
            "random",
            "line 7: x has the key 4 without a value; write lists in brackets: [1, 2]",
        ),
        ("{values: 3}", "random", "line 7: x has the values 3 and needs a list of at least one"),
        ("{values: []}", "random", "line 7: x has the values [] and needs a list of at least one"),
        ("{values: [1, 2, 1]}", "grid", "line 7: x has the value 1 twice in a grid; remove one"),
        ("0.1", "random", "line 7: x is 0.1 and should be a mapping; write {value: 0.1}"),
        ("[1, 2]", "random", "line 7: x is [1, 2] and should be a mapping; write {values: [1, 2]}"),
        (
            "{values: [1, 2], probabilities: [0.5, 0.6]}",
            "random",
            "line 7: x has probabilities with the sum 1.1; make it 1",
        ),
        (
            "{values: [1, 2], probabilities: [1.0]}",
            "random",
            "line 7: x has 2 values and 1 probabilities; give one for each value",
        ),
        (
            "{values: [1, 2], probabilities: [0.5, 0.5]}",
            "bayes",
            "line 7: x has probabilities, which only method random uses; remove them or use it instead of bayes",
        ),
        (
            "{distribution: q_uniform, min: 0, max: 1, q: 0}",
            "random",
            "line 7: x has the q 0, which must be positive; increase it",
        ),
        (
            "\n    parameters:\n      lr: {value: 1}\n      b: {mn: 1}",
            "random",
            "line 10: x.b has the unknown key 'mn'; did you mean min?",
        ),
        (
            "{parameters: {lr: {value: 1}}, value: 2}",
            "random",
            "line 7: x has 'value' beside nested parameters; remove it",
        ),
        (
            "\n  run_dir: {value: a}",
            "random",
            "line 8: run_dir is set by the sweep for each trial; remove it",
        ),
    ],
)
def test_the_fault_of_a_parameter_has_its_line_and_a_fix(
    tmp_path: Path, text: str, method: str, message: str
) -> None:
    if text.startswith("\n  run_dir"):
        text = "{value: 1}" + text
    with pytest.raises(UserError) as caught:
        parameter(tmp_path, text, method)
    assert str(caught.value) == f"{tmp_path / 'sweep.yaml'}, {message}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: random", "methods: random", "line 1: has the unknown key 'methods'; did you mean method?"),
        (
            "method: random",
            "method: baies",
            "line 1: method is 'baies' and should be one of 'grid', 'random' or",
        ),
        ("goal: maximize", "goal: max", "line 2: metric.goal is 'max' and should be one of 'minimize' or"),
        ("metric: {name: val/miou, goal: maximize}\n", "", "line 1: method bayes needs a metric; add metric"),
        ("run_cap: 5", "run_cap: 0", "line 3: run_cap is 0 and should be at least 1"),
        ("run_cap: 5", "job: a", "line 3: has the key 'job', but segdet sweep starts commands"),
        ("goal: maximize", "impute: best", "line 2: has the key 'metric.impute', but Optuna leaves failed"),
        (
            "run_cap: 5",
            "early_terminate: {type: hyperband}",
            "line 3: early_terminate needs either min_iter, or",
        ),
        (
            "run_cap: 5",
            "early_terminate: {type: hyperband, max_iter: 9}",
            "line 3: early_terminate has max_iter but no s",
        ),
        (
            "run_cap: 5",
            "early_terminate: {type: hyperband, max_iter: 2, s: 2}",
            "line 3: early_terminate compares no trials, because max_iter 2 is below eta 3",
        ),
        (
            "run_cap: 5",
            "early_terminate: {type: hyperband, min_iter: 1, eta: 1}",
            "line 3: early_terminate.eta is 1 and should be at least 2",
        ),
        ("{values: [8, 16]}", "{value: 8}", "line 4: all parameters are constants; give one of them several"),
        ('"${args}"]', '"${arg}"]', "line 8: command has the unknown macro ${arg}; did you mean args?"),
        (
            '"${args}"]',
            '"-${args}"]',
            "line 8: command has -${args}, but W&B expands ${args} only as a whole word",
        ),
        (', "${args}"]', "]", "line 8: command has no ${args}, so that all trials would be equal; add it"),
        (
            'fcn.yaml, "${args}"]',
            '"${envvar:SEGDET_NONE}", "${args}"]',
            "the environment variable SEGDET_NONE is",
        ),
        ("segdet, fit", "python, train.py", "line 8: its command does not start with segdet fit"),
        ("segdet, fit", "segdet, test", "line 8: its command does not start with segdet fit"),
        (
            "segdet, fit",
            "segdet, fit, --run_dir=a",
            "line 8: command has --run_dir=a, which the sweep sets for each",
        ),
        (
            "segdet, fit",
            '"${program}", fit',
            "line 8: command needs the key 'program'; write program: segdet",
        ),
    ],
)
def test_the_fault_of_a_file_has_its_line_and_a_fix(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = FILE.replace("METHOD", "bayes" if "bayes" in message else "random").replace(
        "PARAMETER", "{value: 1}"
    )
    assert old in text
    with pytest.raises(UserError) as caught:
        read_sweep(write(tmp_path, text.replace(old, new)))
    assert message in str(caught.value) and str(tmp_path / "sweep.yaml") in str(caught.value)


def test_exponents_that_may_be_meant_as_values_are_noted(tmp_path: Path) -> None:
    text = FILE.replace("METHOD", "random").replace(
        "PARAMETER", "{distribution: log_uniform, min: 0.0001, max: 0.1}"
    )
    (note,) = notes(read_sweep(write(tmp_path, text)))
    assert "line 7: log_uniform has exponents as limits: values are between 1 and 1.105" in note


@pytest.mark.parametrize(
    ("stop", "rungs"),
    [
        ("{type: hyperband, min_iter: 2, eta: 2}", [2, 4, 8]),
        ("{type: hyperband, min_iter: 1}", [1, 3, 9]),
        ("{type: hyperband, max_iter: 27, s: 2}", [3, 9]),
        ("{type: hyperband, max_iter: 10, s: 5, eta: 2}", [1, 2, 4]),
    ],
)
def test_trials_are_compared_after_the_same_numbers_of_values_as_in_wandb(
    tmp_path: Path, stop: str, rungs: list[int]
) -> None:
    text = FILE.replace("METHOD", "random").replace("PARAMETER", "{value: 1}")
    sweep = read_sweep(write(tmp_path, text.replace("run_cap: 5", f"early_terminate: {stop}")))
    assert sweep.early_terminate is not None
    assert sweep.early_terminate.rungs[: len(rungs)] == rungs
    if "max_iter" in stop:
        assert len(sweep.early_terminate.rungs) == len(rungs)


def test_the_number_of_trials_is_the_smaller_one_of_grid_and_run_cap(tmp_path: Path) -> None:
    grid = FILE.replace("METHOD", "grid").replace("PARAMETER", "{min: 1, max: 3}")
    assert read_sweep(write(tmp_path, grid)).size == 5
    assert read_sweep(write(tmp_path, grid.replace("run_cap: 5\n", ""))).size == 6
    endless = FILE.replace("METHOD", "random").replace("PARAMETER", "{value: 1}").replace("run_cap: 5\n", "")
    assert read_sweep(write(tmp_path, endless)).size is None
