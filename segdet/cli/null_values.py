"""The check of options that are given as null.

jsonargparse accepts null for every argument of a class that is itself an option, such as ``--model.width null``.
"""

import types
import typing
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import import_object

from segdet.util.errors import UserError


def check_nulls(config: Namespace, given: Mapping[str, Any]) -> None:
    """Check that null is given only where the argument's type includes None.

    Args:
        config: The complete configuration.
        given: The given values by dotted name, without ``init_args``.

    Raises:
        UserError: If an argument does not accept null.
    """
    for option, value in given.items():
        if value is not None:
            continue
        *sections, name = option.split(".")
        owner = _class_at(config, sections)
        if owner is not None and not _accepts_none(_argument_types(owner).get(name, Any)):
            raise UserError(
                f"--{option} null: {owner.__name__} needs a value; give one, or leave the option out for the default"
            )


def _class_at(config: Namespace, sections: list[str]) -> type | None:
    """Return the class whose arguments are the options of a section; None if the section is not a class."""
    owner: type | None = None
    node: Any = config
    for section in sections:
        node = node.get(section) if isinstance(node, Namespace) else None
        owner = None
        if isinstance(node, Namespace) and "class_path" in node:
            owner = import_object(node.class_path)
            node = node.get("init_args")
    return owner


def _argument_types(owner: type) -> dict[str, Any]:
    """Return the types of the arguments of a class and of its bases, to which it may pass keyword arguments."""
    found: dict[str, Any] = {}
    for each in reversed(owner.__mro__):
        if "__init__" in vars(each) and each is not object:
            found |= typing.get_type_hints(each.__init__)  # type: ignore[misc]
    return found


def _accepts_none(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_accepts_none(part) for part in typing.get_args(hint))
    return hint in (None, type(None), Any, object) or (
        typing.get_origin(hint) is typing.Literal and None in typing.get_args(hint)
    )
