"""Constructor arguments: collection, check, and conversion to types that a checkpoint can contain."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean


def constructor_arguments(instance: object) -> dict[str, Any]:
    """Return the constructor arguments of ``instance``, including defaults, while it is being constructed.

    A base class calls this at the beginning of its ``__init__``. The arguments are those of the outermost ``__init__``,
    which belongs to the instantiated class.
    """
    arguments: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None and (frame := frame.f_back) is not None:
        code, values = frame.f_code, frame.f_locals
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if code.co_name != "__init__" or not names or values.get(names[0]) is not instance:
            break
        extra = inspect.getargvalues(frame).keywords
        arguments = {name: values[name] for name in names[1:]} | (values[extra] if extra else {})
    return arguments


def check_unknown_arguments(cls: type, unknown: Mapping[str, Any]) -> None:
    """Raise a `UserError` if there is an ``unknown`` argument; the message suggests the closest one of ``cls``."""
    if not unknown:
        return
    classes = [each for each in cls.__mro__ if "__init__" in each.__dict__ and each is not object]
    known = {name for each in classes for name in inspect.signature(each.__init__).parameters}  # type: ignore[misc]
    name = next(iter(unknown))
    raise UserError(
        f"{cls.__name__}: no argument {name!r}; {did_you_mean(name, sorted(known - {'self', 'kwargs'}))}"
    )


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that `plain` converts; leave out all others."""
    converted: dict[str, Any] = {}
    for name, value in arguments.items():
        with suppress(TypeError):
            converted[name] = plain(value)
    return converted


def plain(value: Any) -> Any:
    """Convert a value to numbers, strings, None, lists, tuples and dictionaries.

    Dataclasses become dictionaries, paths strings, arrays and tensors lists.

    Raises:
        TypeError: If the value contains another type.
    """
    if hasattr(value, "tolist"):  # NumPy's numbers derive from Python's, but torch.load refuses them
        return plain(value.tolist())
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(part) for part in value)
    raise TypeError(f"{type(value).__name__} is not a plain type")
