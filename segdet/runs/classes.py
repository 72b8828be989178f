"""The classes of a run: those of its checkpoint, compared with those of the data."""

import pkgutil
import sys
from collections.abc import Sequence

from segdet.data.base import Classes, DataModule, Subset
from segdet.runs.checkpoint_file import Checkpoint
from segdet.util.distributed import rank
from segdet.util.errors import UserError
from segdet.util.nouns import counted

SUBSETS: dict[str, Subset] = {"fit": "train", "validate": "val", "test": "test", "predict": "test"}
"""The subset of each subcommand that must have the classes of the checkpoint."""


def model_classes(data: DataModule, command: str, checkpoint: Checkpoint | None) -> Classes:
    """Return the classes of the checkpoint if it has any and ``command`` is not fit, else the classes of the data."""
    if command != "fit" and checkpoint is not None and checkpoint.classes.names:
        data.known_classes = checkpoint.classes
    return data.classes


def check_classes(data: DataModule, command: str, checkpoint: Checkpoint | None) -> None:
    """Compare the classes of a checkpoint with those of the data that it is used on; report harmless differences.

    Raises:
        UserError: If the classes differ in number or order.
    """
    if checkpoint is None or not checkpoint.classes.names:
        return
    subset = SUBSETS[command]
    found, known = Classes.of(data.reader(subset), data.task), checkpoint.classes
    if len(known.names) != len(found.names) or (
        known.names != found.names and set(known.names) == set(found.names)
    ):
        raise UserError(
            f"{checkpoint.path}: was trained on {counted(len(known.names), 'class', 'classes')} "
            f"({_listed(known.names)}), the data has {len(found.names)} ({_listed(found.names)}); give data with the "
            "same classes in the same order"
        )
    if rank() > 0:
        return
    if known.names != found.names:
        sys.stderr.write(
            f"segdet: the classes are named {_listed(known.names)} in the checkpoint and {_listed(found.names)} in "
            "the data\n"
        )
    elif (
        data.reader(subset).states_classes
        and data.task != "segmentation"
        and known.category_ids not in ([], found.category_ids)
    ):
        sys.stderr.write(
            "segdet: the category ids of the data differ from those of the checkpoint; results are written with the "
            "data's ids\n"
        )


def written_classes(data: DataModule, command: str, checkpoint: Checkpoint | None) -> Classes:
    """Return the classes that define the numbers in prediction files: the data's own if any, else the model's."""
    subset = SUBSETS[command]
    if checkpoint is None or data.reader(subset).states_classes:
        return Classes.of(data.reader(subset), data.task)
    return checkpoint.classes


def is_same_class(one: str | None, other: str | None) -> bool:
    """Return whether two import paths name the same class. A package may export a class under a second path."""
    if one is None or other is None or one == other:
        return one == other
    try:
        return pkgutil.resolve_name(one) is pkgutil.resolve_name(other)
    except (AttributeError, ImportError, ValueError):  # a class of an earlier version
        return False


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
