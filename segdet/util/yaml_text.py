"""YAML as all options, configurations and experiment files use it.

It differs from PyYAML's YAML 1.1 in three ways: ``None`` is null, as in Python and in the commands of W&B sweeps;
``1e-5`` is a number; dates stay strings.
"""

import json
import re
from enum import Enum
from typing import Any

import yaml

_NULL, _FLOAT, _TIME = (f"tag:yaml.org,2002:{name}" for name in ("null", "float", "timestamp"))
_EXPONENT = re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$")
_NONE = re.compile("^None$")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != _TIME]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes the strings that `_Loader` would not read as strings."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789."))
    _each.add_implicit_resolver(_NULL, _NONE, ["N"])
_Dumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


def load_yaml(text: str) -> Any:
    """Return the value of a YAML text in plain Python types.

    Text in braces without values, such as ``{epoch}``, and a single word with a colon are strings.

    Raises:
        yaml.YAMLError: If the text is not YAML.
    """
    value = yaml.load(text, Loader=_Loader)
    if isinstance(value, dict) and value and all(part is None for part in value.values()):
        words = text.strip(" {}\n").replace(" ", "").split(",")
        if set(words) == set(value) or text.strip() in {f"{key}:" for key in value}:
            return text
    return value


def dump_yaml(value: Any) -> str:
    """Return a value of plain Python types as YAML, such that `load_yaml` returns an equal value."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


def as_argument(key: str, value: Any) -> str:
    """Return the argument ``--key=value``: strings unchanged, other values as JSON, which is valid YAML."""
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
