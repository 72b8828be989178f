"""Read checkpoint files, and import the classes that they name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch

from segdet.nn.weights import DESCRIPTION
from segdet.util.errors import UserError

T = TypeVar("T")


def read_checkpoint(path: Path, weights_only: bool = True) -> dict[str, Any]:
    """Return the content of a checkpoint, with tensors on the CPU.

    Args:
        path: The file.
        weights_only: Whether only tensors and plain types are unpickled, as in ``torch.load``.

    Raises:
        UserError: If the file cannot be read or is not a checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; give another file") from None
    except PermissionError:
        raise UserError(f"{path}: permission denied; make the file readable") from None
    except Exception as error:  # torch raises OSError, RuntimeError, UnpicklingError and others
        raise UserError(f"{path}: the file is corrupt or is not a checkpoint; give another file") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path}: not a checkpoint of a training; give a file that a training has saved")
    if not isinstance(content.get(DESCRIPTION, {}), dict):
        raise UserError(f"{path}: the model's description in it is corrupt; give another file")
    return content


def saved_model(
    path: Path, checkpoint: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the import path of the class of a checkpoint's model, and the arguments in the checkpoint.

    Args:
        path: The file, for messages.
        checkpoint: Its content.
        given: Arguments that replace those in the checkpoint.

    Raises:
        UserError: If the class or an argument is missing.
    """
    description = checkpoint.get(DESCRIPTION) or {}
    class_path = str(description.get("class_path", ""))
    arguments = checkpoint.get("hyper_parameters")
    if not class_path or arguments is None:
        raise UserError(f"{path}: the checkpoint does not hold the model's arguments; train the model again")
    missing = [name for name in description.get("unsaved_arguments", []) if name not in given]
    if missing:
        raise UserError(
            f"{path}: {', '.join(missing)} could not be saved in the checkpoint; pass them to load_from_checkpoint"
        )
    return class_path, arguments


def import_class(class_path: str, base: type[T]) -> type[T]:
    """Import a class that a checkpoint names.

    Raises:
        UserError: If it cannot be imported or is not a subclass of ``base``.
    """
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{class_path}: cannot be imported ({error}); install the package that defines it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{class_path}: is not a subclass of {base.__name__}; load it with its own class")
    return found
