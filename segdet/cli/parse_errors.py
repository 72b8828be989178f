"""Turn jsonargparse's messages about wrong options into one line that names the option, the fault and the fix.

jsonargparse reports errors only as text, so all matching of its text is in this module.
"""

import contextlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from jsonargparse import ArgumentParser
from jsonargparse.typing import import_object

from segdet.cli.error_messages import one_line, subclasses
from segdet.data.base import DataModule
from segdet.task import Task
from segdet.util.suggest import closest, did_you_mean


class ParseFault(Exception):
    """An error of the parser, with jsonargparse's message, which may have many lines."""


@dataclass(frozen=True)
class _Fault:
    """A message of jsonargparse, with its parser and subcommand."""

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
    def class_path(self) -> str:
        """The import path of the class with the wrong arguments; empty if there is none."""
        return ["", *re.findall(r"Problem with given class_path '([^']+)'", self.message)][-1]

    @property
    def class_name(self) -> str:
        """The name of the class at `class_path`, without its module."""
        return self.class_path.rsplit(".", 1)[-1]

    @cached_property
    def keys(self) -> list[str]:
        """All options of the parser and all sections."""
        names = _option_names(self.parser)
        sections = {name.rsplit(".", 1)[0] for name in names if "." in name}
        return sorted({*names, *sections, "model", "data"})


def readable(message: str, parser: ArgumentParser, command: str) -> str:
    """Turn a message of jsonargparse into one line that names the option, the fault and the fix.

    ``parser`` is the parser of the subcommand ``command``. For a misspelled option, the closest one is suggested.
    """
    fault = _Fault(message, parser, command)
    for pattern, describe in _PATTERNS.items():
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


def _unknown_argument(fault: _Fault, match: re.Match[str]) -> str:
    """Describe an unknown argument of a class, or an unknown key at the top level of a configuration file."""
    name = ".".join(part for part in match.groups() if part)
    if not fault.path:
        section = name.split(".")[0]
        key = name if section in fault.keys else section
        return f"{key}: no such key{_suggestion(key, fault.keys)}"
    fix = _suggestion(name, _argument_names(fault.class_path))
    if not fix:
        fix = f"; see segdet {fault.command} --{fault.path[0]}.help {fault.class_name}"
    return f"--{fault.option}.{name}: {fault.class_name or 'the class'} has no argument '{name}'{fix}"


def _missing(fault: _Fault, match: re.Match[str]) -> str:
    names = match[1].split(", ")
    options = ", ".join(f"--{fault.option}.{name}" if fault.path else f"--{name}" for name in names)
    needed = f", but required by {fault.class_name}" if fault.class_path else ""
    return f"{options}: missing{needed}; give it on the command line or in --config"


def _unknown_class(fault: _Fault, match: re.Match[str]) -> str:
    name = match[1] or match[2]
    help_option = re.match(r"--((\w+)\.help):", fault.message)
    option, section = (help_option[1], help_option[2]) if help_option else (fault.option, fault.option)
    bases: dict[str, tuple[str, type]] = {"model": ("model", Task), "data": ("data module", DataModule)}
    if section not in bases:
        return f"--{option} {name}: no such class; fix the name"
    kind, base = bases[section]
    known = sorted(
        {cls.__name__ for cls in subclasses(base) if not inspect.isabstract(cls)} - {base.__name__}
    )
    return f"--{option} {name}: no such {kind}; {did_you_mean(name, known, cutoff=0.5)}"


def _missing_file(fault: _Fault, match: re.Match[str]) -> str:
    return f"--config {match[1]}: no such file; fix the path"


def _no_options(fault: _Fault, match: re.Match[str]) -> str:
    found = one_line(match[1], most=60) if match[1].strip() else "nothing"
    return f"--config: expected options, such as 'trainer: {{max_epochs: 3}}', got {found}; fix the file"


def _invalid_yaml(fault: _Fault, match: re.Match[str]) -> str:
    return f"--config: not valid YAML: {one_line(match[1])}"


_PATTERNS: dict[str, Callable[[_Fault, re.Match[str]], str]] = {
    r"(?s)^unrecognized arguments: (.+)": _unrecognized,
    r"the following arguments are required: (.+)": _missing,
    r"Option '([^']+)' is not accepted": _unknown_argument,
    r"Group '([^']+)' does not accept option '([^']+)'": _unknown_argument,
    # This is the message for an unknown option of a group within a class, such as optim.
    r"given class_path '[^']+':\s+unrecognized arguments: --([\w.+-]+)": _unknown_argument,
    r"Expected a dot import path string: (\S+)|Expected a path but (\S+) either": _unknown_class,
    r"File does not exist: '?([^'\n]+)'?": _missing_file,
    r"(?s)^Unexpected config:(.*)": _no_options,
    r"(?s)Problems parsing config[^:]*:(.+)": _invalid_yaml,
}
"""Patterns of jsonargparse's messages, the most specific first, and the functions that describe these messages."""


def _suggestion(name: str, known: list[str], prefix: str = "") -> str:
    near = closest(name, known)
    if not near and "." not in name:  # the user may have left out the section
        near = next((key for key in known if key.rsplit(".", 1)[-1] == name), None)
    return f"; did you mean {prefix}{near}?" if near else ""


def _argument_names(class_path: str) -> list[str]:
    """Return the arguments of a class and of its bases, with the fields of dataclasses as ``argument.field``."""
    parser = ArgumentParser(add_help=False)
    # A class that cannot be imported has no arguments to suggest.
    with contextlib.suppress(Exception):
        parser.add_class_arguments(import_object(class_path), fail_untyped=False)
    return _option_names(parser)


def _option_names(parser: ArgumentParser) -> list[str]:
    options = getattr(parser, "_option_string_actions", {})
    return [
        option[2:] for option in options if option.startswith("--") and not option.endswith(("+", ".help"))
    ]


def _wrong_value(fault: _Fault) -> str:
    """Describe a value of the wrong type: the innermost option and the expected types."""
    message, option = fault.message, fault.option
    given = re.findall(r"Got value: (.+)", message) or re.findall(r"Given value: (.+)", message)
    nested = re.search(r"NestedArg\(key='([^']+)', val=(.+?)\)\s*$", message)
    if nested and not option.endswith(nested[1]):
        option = f"{option}.{nested[1]}"
    types = re.findall(r"(?m)(?:Expected a|Not of type) (.+?)(?:\. Got value|: does not conform|$)", message)
    expected = list(dict.fromkeys(_type_name(text) for text in types))
    expected = [text for text in expected if text != "null"] or expected
    if option and expected:
        value = nested[2].strip("'\"") if nested else (given[0].strip() if given else "")
        return f"--{option}: expected {' or '.join(expected)}, got {value}"
    return (f"--{option}: " if option else "") + one_line(re.sub(r"Parser key \"[^\"]+\":?", "", message))


def _type_name(text: str) -> str:
    names = {
        "int": "a whole number",
        "PositiveInt": "a whole number above 0",
        "float": "a number",
        "str": "a string",
        "bool": "true or false",
        "NoneType": "null",
    }
    if match := re.match(r"typing\.Literal\[(.+)\]", text):
        return "one of " + match[1].replace("'", "")
    if match := re.match(r"<class '([^']+)'>", text):
        text = match[1].rsplit(".", 1)[-1]
    return names.get(text, text.replace("typing.", ""))
