"""What the parser finds wrong with the command line or a configuration file, in one readable line."""

import dataclasses
import inspect
import re
import typing
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import import_object

from segdet.training.optim import Optimization
from segdet.util.suggest import closest, did_you_mean


class ParseFault(Exception):
    """The parser's own message, which may have many lines."""


def readable(message: str, parser: ArgumentParser, command: str) -> str:
    """One line that names the key, the fault and the remedy.

    Args:
        message: What jsonargparse says.
        parser: The subcommand's parser, whose options are suggested.
        command: The subcommand's name.
    """
    if match := re.match(r"unrecognized arguments: (.+)", message, re.S):
        return _unrecognized(match[1], parser, command)
    if match := re.search(r"Group '([^']+)' does not accept option '([^']+)'", message):
        # Optimization is the one group of options that lies inside of a class.
        if match[1] != "optim":
            key = f"{match[1]}.{match[2]}"
            return f"{key}: no such key{_suggestion(key, _keys(parser))}"
        known = [field.name for field in dataclasses.fields(Optimization)]
        return f"{'.'.join([*_path(message), match[1], match[2]])}: no such key{_suggestion(match[2], known)}"
    if match := re.search(r"does not accept option '([^']+)'", message):
        known = _keys(parser)
        section = match[1].split(".")[0]
        key = match[1] if section in known else section  # of a section unknown as a whole, the section
        return f"{key}: no such key{_suggestion(key, known)}"
    if match := re.search(r"the following arguments are required: (.+)", message):
        key = ".".join(_path(message))
        missing = [name.strip().removeprefix(command + ".") for name in match[1].splitlines()[0].split(",")]
        options = ", ".join(f"--{key}.{name}" if key else f"--{name}" for name in missing)
        kind = _class_in(message)
        return f"{options}: missing{f', {kind} needs it' if kind else ''}; give it here or in --config"
    # The second is how an option of a group of a class's options, such as optim, is refused on the command line.
    if match := re.search(
        r"Option '([^']+)' is not accepted|given class_path '[^']+':\s+unrecognized arguments: --([\w.+-]+)",
        message,
    ):
        name = match[1] or match[2]
        if not _path(message):  # a section of a configuration file
            section = name.split(".")[0]
            key = name if section in _keys(parser) else section
            return f"{key}: no such key{_suggestion(key, _keys(parser))}"
        key = ".".join([*_path(message), name])
        kind = _class_in(message)
        remedy = (
            _suggestion(name, _argument_names(message))
            or f"; see segdet {command} --{_path(message)[0]}.help {kind}"
        )
        return f"--{key}: {kind or 'the class'} has no argument '{name}'{remedy}"
    if match := re.search(
        r"Expected a dot import path string: (\S+)|Expected a path but (\S+) either", message
    ):
        return _unknown_class(match[1] or match[2], ".".join(_path(message)), parser)
    if match := re.search(r"File does not exist: '?([^'\n]+)'?", message):
        return f"--config {match[1]}: no such file; mend the path"
    if "Problems parsing config" in message:
        return "--config: no valid YAML: " + _joined(message.split(":", 1)[1])
    return _wrong_value(message)


def _unrecognized(text: str, parser: ArgumentParser, command: str) -> str:
    tokens = text.split()
    option = next((token for token in tokens if token.startswith("-")), None)
    if option is None:
        return f"{tokens[0]}: belongs to no option; see segdet {command} --help"
    name = option.lstrip("-").split("=", 1)[0]
    return f"--{name}: no such option{_suggestion(name, _keys(parser), '--')}; see segdet {command} --help"


def _keys(parser: ArgumentParser) -> list[str]:
    options = getattr(parser, "_option_string_actions", {})
    names = [option[2:] for option in options if option.startswith("--")]
    sections = {name.rsplit(".", 1)[0] for name in names if "." in name}
    return sorted({*names, *sections, "model", "data"})


def _suggestion(name: str, known: list[str], prefix: str = "") -> str:
    near = closest(name, known)
    if not near and "." not in name:  # the last part may be right and its section missing
        near = next((key for key in known if key.rsplit(".", 1)[-1] == name), None)
    return f"; did you mean {prefix}{near}?" if near else ""


def _path(message: str) -> list[str]:
    """The key at fault, from the outside to the inside."""
    parts = re.findall(r"Parser key \"([^\"]+)\"", message)
    seen: list[str] = []
    for part in parts:
        if not seen or part != seen[-1]:
            seen.append(part)
    return seen


def _class_path_in(message: str) -> str | None:
    found = re.findall(r"Problem with given class_path '([^']+)'", message)
    return found[-1] if found else None


def _class_in(message: str) -> str | None:
    path = _class_path_in(message)
    return path.rsplit(".", 1)[-1] if path else None


def _argument_names(message: str) -> list[str]:
    """The arguments of the class that ``message`` is about, those of its dataclasses with their prefix."""
    path = _class_path_in(message)
    if path is None:
        return []
    try:
        cls = import_object(path)
    except Exception:  # whatever keeps it from being imported, there is nothing to suggest
        return []
    names: list[str] = []
    for parent in inspect.getmro(cls):
        init = vars(parent).get("__init__")
        if init is None or parent is object:
            continue
        try:
            hints = typing.get_type_hints(init)
        except Exception:  # a name that only a type checker knows
            hints = {}
        for name, parameter in inspect.signature(init).parameters.items():
            if name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            names.append(name)
            names += [f"{name}.{field}" for field in _fields(hints.get(name))]
    return list(dict.fromkeys(names))


def _fields(hint: Any) -> list[str]:
    options = [hint, *typing.get_args(hint)]
    return [
        f.name for option in options if dataclasses.is_dataclass(option) for f in dataclasses.fields(option)
    ]


def _unknown_class(name: str, key: str, parser: ArgumentParser) -> str:
    from segdet.data.datamodule import DataModule
    from segdet.task import Task

    bases: dict[str, type] = {"model": Task, "data": DataModule}
    known = sorted(_subclass_names(bases[key])) if key in bases else []
    kind = {"model": "model", "data": "data module"}.get(key, "class")
    remedy = did_you_mean(name, known, cutoff=0.5) if known else "fix the name"
    return f"--{key} {name}: no such {kind}; {remedy}"


def _subclass_names(base: Any) -> set[str]:
    names: set[str] = set()
    for child in base.__subclasses__():
        if not inspect.isabstract(child):
            names.add(child.__name__)
        names |= _subclass_names(child)
    return names


def _wrong_value(message: str) -> str:
    """A value of the wrong type: the innermost key and what it expects."""
    key = ".".join(_path(message))
    given = re.findall(r"Got value: (.+)", message) or re.findall(r"Given value: (.+)", message)
    nested = re.search(r"NestedArg\(key='([^']+)', val=(.+?)\)\s*$", message)
    if nested and not key.endswith(nested[1]):
        key = f"{key}.{nested[1]}"
    expected = [
        _type_name(text)
        for text in re.findall(r"Expected a ((?:<class )?[^\n]+?)(?:\. Got value|\n|$)", message)
    ]
    expected = [text for text in dict.fromkeys(expected) if text not in ("null",)] or expected
    if key and expected:
        value = nested[2].strip("'\"") if nested else (given[0].strip() if given else "")
        return f"--{key}: expected {' or '.join(expected)}, got {value}"
    return (f"--{key}: " if key else "") + _joined(re.sub(r"Parser key \"[^\"]+\":?", "", message))


def _type_name(text: str) -> str:
    names = {
        "int": "a whole number",
        "float": "a number",
        "str": "a text",
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
