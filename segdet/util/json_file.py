"""Dataclasses in JSON files whose key ``schema`` is the version of their format. This module does not import torch."""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from segdet.util.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def read_dataclass(
    path: Path,
    kind: type[T],
    schema: int,
    name: str,
    *,
    fix: str,
    if_missing: str,
    if_foreign: str | None = None,
    if_other_schema: str | None = None,
) -> T:
    """Read the dataclass in a JSON file. Unknown keys are ignored, and values are not converted.

    Args:
        path: The file.
        kind: The dataclass.
        schema: The version of the format that can be read.
        name: What the file holds, such as ``profile``, for messages.
        fix: How to replace a file that cannot be used.
        if_missing: How to write a missing file.
        if_foreign: What to do with a file that holds something else; default: ``fix``.
        if_other_schema: What to do with a file of another version; default: ``fix``.

    Raises:
        UserError: If the file is missing or corrupt, has another schema, or holds a wrong value.
    """
    # Import pydantic here: it takes a tenth of a second, and most importers of dataclasses only write them.
    from pydantic import ValidationError

    from segdet.util.validation import explain

    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such {name}; {if_missing}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make the file readable") from error
    except ValueError as error:  # bad JSON and bad UTF-8
        raise UserError(f"{path}: corrupt, or not JSON ({error}); {fix}") from None
    if not isinstance(values, dict) or "schema" not in values:
        raise UserError(f"{path}: not a {name} (no key 'schema'); {if_foreign or fix}")
    if values["schema"] != schema:
        raise UserError(
            f"{path}: has schema {values['schema']!r}, but this version of segdet reads {schema}; "
            f"{if_other_schema or fix}"
        )
    try:
        adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]  # classes are hashable
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)[1]}; {fix}") from None


@cache
def _adapter(kind: type[Any]) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
