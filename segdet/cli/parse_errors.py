"""jsonargparse's messages about wrong options, turned into one line that names the option, the fault and the fix.

jsonargparse reports errors only as text, so all matching of its text is in this module.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable
from functools import cached_property
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import import_object

from segdet.data.base import DataModule
from segdet.task import Task
from segdet.training.optim import Optimization
from segdet.util.suggest import closest, did_you_mean


class ParseFault(Exception):
    """An error of the parser, with jsonargparse's message, which may have many lines."""


@dataclasses.dataclass(frozen=True)
class _Fault:
    """A message of jsonargparse, and where it comes from."""

    message: str
    parser: ArgumentParser
    command: str

    @cached_property
    def path(self) -> list[str]:
        """The names of the option at fault, from the outermost section to the innermost."""
        parts = re.findall(r"Parser key \"([^\"]+)\"", self.message)
        return [part for index, part in enumerate(parts) if index == 0 or part != parts[index - 1]]

    @property
    def option(self) -> str:
        """The dotted name of the option at fault; empty for the top level."""
        return ".".join(self.path)

    @cached_property
    def class_path(self) -> str | None:
        """The import path of the class whose arguments are at fault."""
        found = re.findall(r"Problem with given class_path '([^']+)'", self.message)
        return found[-1] if found else None

    @property
    def class_name(self) -> str:
        """The name of that class; empty if there is none."""
        return (self.class_path or "").rsplit(".", 1)[-1]

    @cached_property
    def keys(self) -> list[str]:
        """All options of the parser and all sections."""
        options = getattr(self.parser, "_option_string_actions", {})
        names = [option[2:] for option in options if option.startswith("--")]
        sections = {name.rsplit(".", 1)[0] for name in names if "." in name}
        return sorted({*names, *sections, "model", "data"})


def readable(message: str, parser: ArgumentParser, command: str) -> str:
    """Return one line that names the option, the fault and the fix.

    Args:
        message: The message of jsonargparse.
        parser: The subcommand's parser, whose options are suggested.
        command: The subcommand's name.
    """
    fault = _Fault(message, parser, command)
    for pattern, describe in _PATTERNS:
        if match := re.search(pattern, message):
            return describe(fault, match)
    return _wrong_value(fault)


def _unrecognized(fault: _Fault, match: re.Match[str]) -> str:
    tokens = match[1].split()
    option = next((token for token in tokens if token.startswith("-")), None)
    usage = f"see segdet {fault.command} --help"
    if option is None:
        return f"{tokens[0]}: a value without an option; {usage}"
    name = option.lstrip("-").split("=", 1)[0]
    return f"--{name}: no such option{_suggestion(name, fault.keys, '--')}; {usage}"


def _unknown_key_of_group(fault: _Fault, match: re.Match[str]) -> str:
    group, key = match[1], match[2]
    if group != "optim":  # a section of a configuration file
        return _unknown_key(fault, f"{group}.{key}")
    known = [field.name for field in dataclasses.fields(Optimization)]
    return f"{'.'.join([*fault.path, group, key])}: no such key{_suggestion(key, known)}"


def _unknown_section(fault: _Fault, match: re.Match[str]) -> str:
    return _unknown_key(fault, match[1])


def _unknown_key(fault: _Fault, key: str) -> str:
    section = key.split(".")[0]
    if section not in fault.keys:
        key = section
    return f"{key}: no such key{_suggestion(key, fault.keys)}"


def _unknown_argument(fault: _Fault, match: re.Match[str]) -> str:
    name = match[1] or match[2]
    if not fault.path:
        return _unknown_key(fault, name)
    fix = _suggestion(name, _argument_names(fault.class_path))
    if not fix:
        fix = f"; see segdet {fault.command} --{fault.path[0]}.help {fault.class_name}"
    return f"--{fault.option}.{name}: {fault.class_name or 'the class'} has no argument '{name}'{fix}"


def _missing(fault: _Fault, match: re.Match[str]) -> str:
    names = [name.strip() for name in match[1].splitlines()[0].split(",")]
    options = ", ".join(f"--{fault.option}.{name}" if fault.path else f"--{name}" for name in names)
    needed = f", {fault.class_name} needs it" if fault.class_path else ""
    return f"{options}: missing{needed}; give it here or in --config"


def _unknown_class(fault: _Fault, match: re.Match[str]) -> str:
    bases: dict[str, type] = {"model": Task, "data": DataModule}
    base = bases.get(fault.option)
    known = sorted(_subclass_names(base)) if base is not None else []
    kind = {"model": "model", "data": "data module"}.get(fault.option, "class")
    name = match[1] or match[2]
    fix = did_you_mean(name, known, cutoff=0.5) if known else "fix the name"
    return f"--{fault.option} {name}: no such {kind}; {fix}"


def _missing_file(fault: _Fault, match: re.Match[str]) -> str:
    return f"--config {match[1]}: no such file; fix the path"


def _invalid_yaml(fault: _Fault, match: re.Match[str]) -> str:
    return "--config: not valid YAML: " + _joined(match[1])


_PATTERNS: list[tuple[str, Callable[[_Fault, re.Match[str]], str]]] = [
    (r"(?s)^unrecognized arguments: (.+)", _unrecognized),
    (r"Group '([^']+)' does not accept option '([^']+)'", _unknown_key_of_group),
    (r"does not accept option '([^']+)'", _unknown_section),
    (r"the following arguments are required: (.+)", _missing),
    # The second alternative reports an unknown option of a group within a class, such as optim.
    (
        r"Option '([^']+)' is not accepted|given class_path '[^']+':\s+unrecognized arguments: --([\w.+-]+)",
        _unknown_argument,
    ),
    (r"Expected a dot import path string: (\S+)|Expected a path but (\S+) either", _unknown_class),
    (r"File does not exist: '?([^'\n]+)'?", _missing_file),
    (r"(?s)Problems parsing config[^:]*:(.+)", _invalid_yaml),
]
"""Patterns of jsonargparse's messages, the most specific first."""


def _suggestion(name: str, known: list[str], prefix: str = "") -> str:
    near = closest(name, known)
    if not near and "." not in name:  # the user may have left out the section
        near = next((key for key in known if key.rsplit(".", 1)[-1] == name), None)
    return f"; did you mean {prefix}{near}?" if near else ""


def _argument_names(class_path: str | None) -> list[str]:
    """Return the arguments of a class and of its bases, with the fields of dataclasses as ``argument.field``."""
    if class_path is None:
        return []
    try:
        cls = import_object(class_path)
    except Exception:  # a class that cannot be imported has no arguments to suggest
        return []
    names: list[str] = []
    for parent in inspect.getmro(cls):
        init = vars(parent).get("__init__")
        if init is None or parent is object:
            continue
        try:
            hints = typing.get_type_hints(init)
        except Exception:  # an annotation that is imported for type checkers only
            hints = {}
        for name, parameter in inspect.signature(init).parameters.items():
            if name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            names.append(name)
            names += [f"{name}.{field}" for field in _dataclass_fields(hints.get(name))]
    return list(dict.fromkeys(names))


def _dataclass_fields(hint: Any) -> list[str]:
    options = [hint, *typing.get_args(hint)]
    return [
        field.name
        for option in options
        if dataclasses.is_dataclass(option)
        for field in dataclasses.fields(option)
    ]


def _subclass_names(base: Any) -> set[str]:
    names: set[str] = set()
    for child in base.__subclasses__():
        if not inspect.isabstract(child):
            names.add(child.__name__)
        names |= _subclass_names(child)
    return names


def _wrong_value(fault: _Fault) -> str:
    """Describe a value of the wrong type: the innermost option and the expected types."""
    message, option = fault.message, fault.option
    given = re.findall(r"Got value: (.+)", message) or re.findall(r"Given value: (.+)", message)
    nested = re.search(r"NestedArg\(key='([^']+)', val=(.+?)\)\s*$", message)
    if nested and not option.endswith(nested[1]):
        option = f"{option}.{nested[1]}"
    expected = [
        _type_name(text)
        for text in re.findall(r"Expected a ((?:<class )?[^\n]+?)(?:\. Got value|\n|$)", message)
    ]
    expected = [text for text in dict.fromkeys(expected) if text != "null"] or expected
    if option and expected:
        value = nested[2].strip("'\"") if nested else (given[0].strip() if given else "")
        return f"--{option}: expected {' or '.join(expected)}, got {value}"
    return (f"--{option}: " if option else "") + _joined(re.sub(r"Parser key \"[^\"]+\":?", "", message))


def _type_name(text: str) -> str:
    names = {
        "int": "a whole number",
        "float": "a number",
        "str": "a string",
        "bool": "true or false",
        "NoneType": "null",
    }
    if match := re.match(r"<class '([^']+)'>", text):
        return names.get(match[1], match[1].rsplit(".", 1)[-1])
    if match := re.match(r"typing\.Literal\[(.+)\]", text):
        return "one of " + match[1].replace("'", "")
    return text.replace("typing.", "")


def _joined(text: str, most: int = 240) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."
