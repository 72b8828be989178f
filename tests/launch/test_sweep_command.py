"""Commands of trials: the same words as from the agent of Weights & Biases."""

from pathlib import Path
from typing import Any

import pytest

from segdet.launch.sweep_command import DEFAULT_COMMAND, expand, fit_arguments

ARGUMENTS = {
    "model": "FCN",
    "model.optim": {"lr": 1e-05, "name": "sgd", "betas": [0.9, None]},
    "model.bias": True,
    "model.top_down": False,
    "trainer.max_epochs": 3,
    "model.weights": None,
}

COMMANDS = [
    list(DEFAULT_COMMAND),
    ["${env}", "segdet", "fit", "--config", "fcn.yaml", "${args}"],
    ["segdet", "fit", "${args_no_equals}"],
    ["segdet", "fit", "${args_no_hyphens}", 3],
    ["segdet", "fit", "${args_no_boolean_flags}"],
    ["segdet", "fit", "${args_json}", "--config", "${args_json_file}"],
    ["segdet", "fit", "--data.root=${envvar:SWEEP_DATA}/voc", "${envvar:SWEEP_DATA}", "${args}"],
    ["segdet", "fit", "${args_append_hydra}", "${args_override_hydra}"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(map(str, command[2:])))
def test_the_agent_of_wandb_expands_a_command_to_the_same_words(
    command: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils", reason="a private module of W&B has moved")
    monkeypatch.setenv("SWEEP_DATA", "/data")
    # These three macros are set by the agent itself; see wandb.wandb_agent.Agent.
    macros = utils.create_sweep_command_args({"args": {name: {"value": v} for name, v in ARGUMENTS.items()}})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": ["train.py"]}
    macros["args_json_file"] = ["wandb/config.json"]
    expected: list[str] = []
    for word in map(str, utils.create_sweep_command(list(command))):
        expected += macros[word[2:-1]] if word.startswith("${") else [word]
    assert expand(command, "train.py", ARGUMENTS, Path("wandb/config.json")) == expected


def test_values_are_written_as_python_writes_them() -> None:
    words = expand(["segdet", "fit", "${args}"], None, ARGUMENTS, Path("a.json"))
    assert words[2:] == [
        "--model=FCN",
        "--model.optim={'lr': 1e-05, 'name': 'sgd', 'betas': [0.9, None]}",
        "--model.bias=True",
        "--model.top_down=False",
        "--trainer.max_epochs=3",
        "--model.weights=None",
    ]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("/usr/bin/env segdet fit --a=1", ("fit", "--a=1")),
        ("segdet fit", ("fit",)),
        (".venv/bin/segdet fit --a=1", ("fit", "--a=1")),
        ("/usr/bin/env python -m segdet fit --a=1", ("fit", "--a=1")),
        ("/usr/bin/python3.11 -m segdet fit", ("fit",)),
        ("/usr/bin/env python train.py --a=1", None),
        ("segdet test --a=1", None),
        ("python -m segdet", None),
        ("", None),
    ],
)
def test_the_arguments_of_segdet_fit_are_found_in_a_command_line(
    words: str, arguments: tuple[str, ...] | None
) -> None:
    assert fit_arguments(words.split()) == arguments
