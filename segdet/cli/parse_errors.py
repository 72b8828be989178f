"""Turn jsonargparse's messages about wrong options into one line that names the option, the fault and the fix.

jsonargparse reports errors only as text, so all matching of its text is in this module.
"""

import ast
import contextlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from jsonargparse import ArgumentParser
from jsonargparse.typing import import_object
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler

from segdet.cli.error_messages import one_line, subclasses
from segdet.data.base import DataModule
from segdet.data.proposal_source import ProposalSource
from segdet.data.transforms import Recipe
from segdet.task import Task
from segdet.util.suggest import closest, did_you_mean

_CLASSES: dict[str, tuple[str, type]] = {
    "model": ("model", Task),
    "data": ("data module", DataModule),
    "data.recipe": ("recipe", Recipe),
    "data.proposals": ("source of proposals", ProposalSource),
    "trainer.callbacks": ("callback", Callback),
    "trainer.logger": ("logger", Logger),
    "trainer.profiler": ("profiler", Profiler),
}
"""The options that are classes, each with its name for messages and its base class."""

_CLASS_OPTIONS = ("model.optim.lr", "data.root", "data.batch_size", "data.num_workers")
"""Options of models and data modules that users often give without the section."""


class ParseFault(Exception):
    """An error of the parser, with jsonargparse's message, which may have many lines."""


@dataclass(frozen=True)
class _Fault:
    """A message of jsonargparse, with its parser, subcommand and arguments."""

    message: str
    parser: ArgumentParser
    command: str
    arguments: Sequence[str]

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
        return sorted({*names, *sections, "model", "data", *_CLASS_OPTIONS})


def readable(message: str, parser: ArgumentParser, command: str, arguments: Sequence[str] = ()) -> str:
    """Turn a message of jsonargparse into one line that names the option, the fault and the fix.

    For a misspelled option, the closest one is suggested.

    Args:
        message: The message.
        parser: The parser of the subcommand.
        command: The subcommand.
        arguments: The arguments of the subcommand.
    """
    fault = _Fault(message, parser, command, arguments)
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


def _without_value(fault: _Fault, match: re.Match[str]) -> str:
    """Describe an option without a value. argparse names only the section, as in ``data`` for ``--data.root``."""
    section = match[1]
    following = [*fault.arguments[1:], "--"]
    option = next(
        (
            token
            for token, after in zip(fault.arguments, following, strict=False)
            if (token == f"--{section}" or token.startswith(f"--{section}."))
            and "=" not in token
            and after.startswith("-")
        ),
        f"--{section}",
    )
    return f"{option}: has no value; give one, as in {option} VALUE"


def _unknown_argument(fault: _Fault, match: re.Match[str]) -> str:
    """Describe an unknown argument of a class, or an unknown key at the top level of a configuration file."""
    name = ".".join(part for part in match.groups() if part)
    if not fault.path:
        section = name.split(".")[0]
        key = name if section in fault.keys else section
        return f"{key}: no such key{_suggestion(key, fault.keys)}"
    if name == "class_path":
        return _beside_class_path(fault.option, "arguments")
    if closest(name.split(".")[0], ["init_args"]):
        return f"--{fault.option}: no such key '{name.split('.')[0]}'; did you mean init_args?"
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
    name = name.strip("[]{},'\"")
    if option not in _CLASSES and section not in _CLASSES:
        return f"--{option} {name}: no such class; fix the name"
    kind, base = _CLASSES.get(section) or _CLASSES[option]
    known = _known_classes(base)
    return f"--{option} {name}: no such {kind}; {did_you_mean(name, known, cutoff=0.5)}"


def _known_classes(base: type) -> list[str]:
    """Return the names of the classes that can be given for ``base``.

    Callbacks that segdet derives from Lightning's are left out, because every run adds them itself.
    """
    own = base.__module__.startswith("segdet.")
    return sorted(
        cls.__name__
        for cls in set(subclasses(base)) - {base}
        if not inspect.isabstract(cls)
        and not cls.__name__.startswith("_")
        and (own or not cls.__module__.startswith("segdet."))
    )


def _abstract_class(fault: _Fault, match: re.Match[str]) -> str:
    """Describe an argument of a class that is not given, such as ``--data.recipe.size`` without ``--data.recipe``."""
    option = fault.option
    base = _CLASSES.get(option)
    example = did_you_mean("", _known_classes(base[1])) if base else "see --help"
    nested = re.search(r"NestedArg\(key='([^']+)'", fault.message)
    shown = f"{option}.{nested[1]}" if nested else option
    return f"--{shown}: --{option} is not given; give its class first: {example}"


def _no_mapping(fault: _Fault, match: re.Match[str]) -> str:
    option = fault.option
    return (
        f"--{option} {match[1]}: expected options of {option}; give single ones, as in --{option}.NAME VALUE"
    )


def _beside_class_path(option: str, keys: str) -> str:
    example = "{class_path: NAME, init_args: {...}}"
    return f"--{option}: {keys} beside class_path; put them into init_args, as in {example}"


def _extra_keys(fault: _Fault, match: re.Match[str]) -> str:
    """Describe a mapping of a class with other keys than ``class_path`` and ``init_args``."""
    try:
        keys = list(ast.literal_eval(match[1]))
    except (ValueError, SyntaxError):
        keys = []
    extra = [str(key) for key in keys if key not in ("class_path", "init_args", "dict_kwargs")]
    if "class_path" in keys and extra:
        return _beside_class_path(fault.option, ", ".join(extra))
    return _wrong_value(fault)


_PATTERNS: dict[str, Callable[[_Fault, re.Match[str]], str]] = {
    r"(?s)^unrecognized arguments: (.+)": _unrecognized,
    r"the following arguments are required: (.+)": _missing,
    r"Option '([^']+)' is not accepted": _unknown_argument,
    r"Group '([^']+)' does not accept option '([^']+)'": _unknown_argument,
    # This is the message for an unknown option of a group within a class, such as optim.
    r"given class_path '[^']+':\s+unrecognized arguments: --([\w.+-]+)": _unknown_argument,
    r"Expected a dot import path string: (\S+)|Expected a path but (\S+) either": _unknown_class,
    r"Expected an instantiatable class, but \S+ is abstract": _abstract_class,
    r"Unable to load config '([^'\n]*)'": _no_mapping,
    r"(?s)Not a valid subclass of.*Given value: (\{[^\n]*\})": _extra_keys,
    r"argument (?:-\w/)?--([\w.]+): expected one argument": _without_value,
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
    if nested:
        option = f"{fault.path[0]}.{nested[1]}"
    types = re.findall(r"(?m)(?:Expected a|Not of type) (.+?)(?:\. Got value|: |$)", message)
    expected = list(dict.fromkeys(_type_name(text) for text in types))
    expected = [text for text in expected if text != "null"] or expected
    if option and expected:
        value = nested[2].strip("'\"") if nested else (given[0].strip() if given else "")
        value = value or "an empty value"
        return f"--{option}: expected {' or '.join(expected)}, got {value}{_form_to_write(value, expected)}"
    return (f"--{option}: " if option else "") + one_line(re.sub(r"Parser key \"[^\"]+\":?", "", message))


def _form_to_write(value: str, expected: list[str]) -> str:
    """Return "; write VALUE" for one value in place of a list, or for a list of one value in place of a string."""
    if expected == ["a list"] and re.fullmatch(r"[\w./,-]+", value):
        return f"; write [{value}]"
    if expected == ["a string"] and (single := re.fullmatch(r"\['?([\w./-]+)'?\]", value)):
        return f"; write {single[1]}"
    return ""


def _type_name(text: str) -> str:
    names = {
        "int": "a whole number",
        "PositiveInt": "a whole number above 0",
        "float": "a number",
        "str": "a string",
        "bool": "true or false",
        "NoneType": "null",
        "list": "a list",
        "tuple": "a list",
        "Iterable": "a list",
        "dict": "a mapping",
    }
    if match := re.match(r"typing\.Literal\[(.+)\]", text):
        return "one of " + match[1].replace("'", "")
    if match := re.match(r"<class '([^']+)'>", text):
        text = match[1].rsplit(".", 1)[-1]
    return names.get(text, text.replace("typing.", ""))
