"""The command of a trial, expanded from the macros of a sweep file as the agent of Weights & Biases does it."""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segdet.util.suggest import did_you_mean

DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")

EXAMPLE = 'command: ["${env}", segdet, fit, --config, configs/shapes/fcn.yaml, "${args}"]'

MACROS = (
    "env", "interpreter", "program", "args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags",
    "args_json", "args_json_file", "args_append_hydra", "args_override_hydra",
)  # fmt: skip

_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")

OWN_OPTIONS = ("run_dir", "resume", "ckpt_path", "overwrite")
"""The options of ``segdet fit`` that the sweep sets for each trial."""


def check_command(command: Sequence[Any]) -> str | None:
    """Return the fault of a sweep's command and its fix, or None."""
    words = [str(word) for word in command]
    for word in words:
        for name in re.findall(r"\$\{(.*?)\}", word):
            if name.startswith("envvar:"):
                variable = name.removeprefix("envvar:")
                if not _VARIABLE.fullmatch(f"${{{name}}}"):
                    return f"has {word}, but W&B expands capitals, digits and '_' only; rename the variable"
                if variable not in os.environ:
                    return f"has {word}, but the environment variable {variable} is not set; set it"
            elif name not in MACROS:
                return f"has the unknown macro ${{{name}}}; {did_you_mean(name, [*MACROS, 'envvar:NAME'])}"
            elif word != f"${{{name}}}":
                return (
                    f"has {word}, but W&B expands ${{{name}}} only as a whole word; make it a separate word"
                )
    if not any(word.startswith("${args") for word in words):
        return "has no ${args}, so that all trials would be equal; add it"
    return None


def expand(
    command: Sequence[Any], program: str | None, arguments: Mapping[str, Any], json_file: Path
) -> list[str]:
    """Return the command line of a trial.

    Args:
        command: The command in the sweep file.
        program: The program in the sweep file.
        arguments: The parameters of the trial by name.
        json_file: The path for the macro ``${args_json_file}``.
    """
    flags = {name: f"{name}={value}" for name, value in arguments.items()}
    no_boolean_flags = [
        f"--{name}" if value is True else f"--{flags[name]}"
        for name, value in arguments.items()
        if value is not False
    ]
    macros = {
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
        "program": [program or ""],
        "args": [f"--{flag}" for flag in flags.values()],
        "args_no_equals": [word for name, value in arguments.items() for word in (f"--{name}", str(value))],
        "args_no_hyphens": list(flags.values()),
        "args_no_boolean_flags": no_boolean_flags,
        "args_json": [json.dumps(arguments)],
        "args_json_file": [str(json_file)],
        "args_append_hydra": [f"+{flag}" for flag in flags.values()],
        "args_override_hydra": [f"++{flag}" for flag in flags.values()],
    }
    by_word = {f"${{{name}}}": words for name, words in macros.items()}
    words = [_VARIABLE.sub(lambda match: os.environ.get(match[1], match[1]), str(word)) for word in command]
    return [each for word in words for each in by_word.get(word, [word])]


def fit_arguments(words: Sequence[str]) -> tuple[str, ...] | None:
    """Return the arguments after ``segdet`` of a command line that trains a run, or None for another command."""
    rest = list(words)
    if rest[:1] == ["/usr/bin/env"]:
        del rest[0]
    if re.fullmatch(r"(.*/)?python[\d.]*", rest[0] if rest else "") and rest[1:3] == ["-m", "segdet"]:
        rest = rest[2:]
    if not rest or Path(rest[0]).name != "segdet" or rest[1:2] != ["fit"]:
        return None
    return tuple(rest[1:])


def config_files(words: Sequence[str]) -> list[Path]:
    """Return the existing files that a command gives as ``--config``."""
    named = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    named += [name for option, name in itertools.pairwise(words) if option in ("-c", "--config")]
    return [Path(name) for name in named if Path(name).is_file()]
