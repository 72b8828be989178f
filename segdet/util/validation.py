"""Validation of hand-written files with pydantic models and one-line error messages.

`YamlFile` reads a YAML file with the loader of the command line, so that ``1e-5`` is a number in both. It keeps the
line number of each key. `explain` converts the first pydantic error to a message.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from segdet.util.errors import UserError
from segdet.util.suggest import closest, did_you_mean
from segdet.util.yaml_text import load_yaml

Key = tuple[str | int, ...]
"""The path of a value in nested mappings and lists, such as ``("runs", "fcn", "test")``."""

_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "a string",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "dataclass_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
}


class FileModel(BaseModel):
    """A mapping in a file. It is immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                context = {"key": name, "fix": did_you_mean(str(name), cls.model_fields)}
                raise PydanticCustomError("unknown_key", "has the unknown key '{key}'; {fix}", context)
        return values


Model = TypeVar("Model", bound=FileModel)


@dataclass(frozen=True)
class YamlFile:
    """The content of a YAML file.

    Attributes:
        path: The file.
        values: The content in plain Python types.
        lines: The line of each key.
    """

    path: Path
    values: Any
    lines: Mapping[Key, int]

    @classmethod
    def read(cls, path: Path | str) -> "YamlFile":
        """Read the file ``path``.

        Raises:
            UserError: If the file cannot be read, is not YAML, or has a duplicate key.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, yaml.SafeLoader)
        except FileNotFoundError:
            near = closest(path.name, [other.name for other in path.parent.glob("*.yaml")])
            hint = f"did you mean {path.parent / near}?" if near else "check the path"
            raise UserError(f"{path}: no such file; {hint}") from None
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); fix the path or its permissions"
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not a text in UTF-8 ({error.reason}); give a YAML file") from None
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UserError(f"{path}{line}: not valid YAML: {error.problem}; fix it") from None
        lines: dict[Key, int] = {}
        for key, number, fault in _walk(root, ()):
            if key in lines:
                fault = f"'{key[-1]}' is a duplicate key; remove one"
            if fault:
                raise UserError(f"{path}, line {number}: {fault}")
            lines[key] = number
        return cls(path, load_yaml(text), lines)

    def parse(self, model: type[Model]) -> Model:
        """Return the file's values as ``model``.

        Raises:
            UserError: If a value is invalid.
        """
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            key, message = explain(error)
            raise self.error(key, message) from None

    def error(self, key: Key, message: str) -> UserError:
        """Return an error with the file, the line of ``key`` or of its nearest enclosing key, and ``message``."""
        while key and key not in self.lines:
            key = key[:-1]
        line = f", line {self.lines[key]}" if key else ""
        return UserError(f"{self.path}{line}: {message}")


def _walk(node: yaml.Node | None, key: Key) -> Iterator[tuple[Key, int, str]]:
    """Yield the key, the line and, if there is one, the fault of each value below ``node``."""
    entries: list[tuple[str | int, yaml.Mark, yaml.Node]]
    if isinstance(node, yaml.MappingNode):
        entries = [(name.value, name.start_mark, value) for name, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        entries = [(number, value.start_mark, value) for number, value in enumerate(node.value)]
    else:
        return
    for name, mark, value in entries:
        fault = ""
        if isinstance(value, yaml.ScalarNode) and value.tag.endswith(":int") and ":" in value.value:
            fault = f"YAML reads {value.value} as a base-60 number; put it in quotes"
        yield (*key, name), mark.line + 1, fault
        yield from _walk(value, (*key, name))


def explain(error: ValidationError) -> tuple[Key, str]:
    """Return the key of the first invalid value, and a message about the error.

    segdet's own validators raise a ValueError. Its message describes the fix.
    """
    first = error.errors(include_url=False)[0]
    key: Key = first["loc"]
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "unknown_key":
        return (*key, context["key"]), _join(key, first["msg"])
    if kind == "missing":
        return key, _join(key[:-1], f"has no key '{key[-1]}'; add it")
    if key and key[-1] == "[key]":
        key = key[:-1]
        is_wrong = _join(key[:-1], f"has the key {value!r}")
    else:
        is_wrong = _join(key, f"is {value!r}")
    if kind == "value_error":
        return key, f"{is_wrong}; {context['error']}"
    expected = _EXPECTED.get(kind)
    if kind == "literal_error":
        expected = f"one of {context['expected']}"
    elif kind == "greater_than_equal":
        expected = f"at least {context['ge']}"
    elif kind == "too_short":
        return key, f"{is_wrong} and needs at least {context['min_length']}"
    return key, f"{is_wrong} and should be {expected}" if expected else f"{is_wrong}: {first['msg']}"


def _join(key: Key, text: str) -> str:
    return f"{'.'.join(map(str, key))} {text}".lstrip()
