"""Fine-tuning: start a training from the checkpoint of another one, whose classes may differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from segdet.nn.weights import DESCRIPTION, checkpoint_of, is_restoring, listed, report, restoring
from segdet.util.errors import UserError

_ENOUGH = 0.5
"""The share of the network's parameters that a checkpoint must fill if it does not fill the whole backbone."""


_SQUARE = 0
"""A value in place of the number of rows. It marks layers whose columns also depend on the classes.

An example is a deconvolution of scores.
"""


@dataclass(frozen=True)
class ClassRows:
    """The position of the classes among the rows of a weight or bias, along its first axis.

    The rows form one or more groups. Each group has ``per_class`` consecutive rows for each class, and may have rows
    that belong to no class, such as those of the background or of boxes. The number of groups and the number of rows
    without a class follow from the shapes.

    Attributes:
        per_class: The number of consecutive rows per class.
        classes_first: Whether the classes precede the other rows of a group.
    """

    per_class: int = 1
    classes_first: bool = False


class FineTunable(nn.Module):
    """A model that may start from a checkpoint of segdet.

    The checkpoint cannot be loaded by the constructor of the base class, because the family's layers do not exist yet.
    It is loaded when the model is first used: by a trainer, by a prediction, or when its state is read or written.
    """

    _start: tuple[Path, dict[str, Any]] | None = None
    _normalization_note: str | None = None

    def load_start(self) -> None:
        """Load the checkpoint to start from. Later calls do nothing."""
        start, self._start = self._start, None
        if start is not None:
            start_from(self, start)  # type: ignore[arg-type]

    def prepare_start(self) -> None:
        """Load the checkpoint to start from, and report the normalization that the weights decided, once."""
        self.load_start()
        note, self._normalization_note = self._normalization_note, None
        if note is not None:
            report(note)

    def normalize(self, images: Tensor, sizes: list[tuple[int, int]] | None = None) -> Tensor:
        """Normalize images, see `segdet.task.Model.normalize`."""
        self.prepare_start()
        return super().normalize(images, sizes)  # type: ignore[misc]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state, with the weights of the checkpoint to start from."""
        self.load_start()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state. It replaces the weights of the checkpoint to start from."""
        self.load_start()
        return super().load_state_dict(*args, **kwargs)


@dataclass
class _Matches:
    """The values of a checkpoint that fit a network, and the names of the parameters that do not fit.

    Attributes:
        values: The new values by parameter name.
        new: The names of parameters that keep their initial values.
        unused: The names of the checkpoint's parameters that are not used.
    """

    values: dict[str, Tensor]
    new: list[str]
    unused: list[str]


def find_start(
    family: str, arguments: Mapping[str, Any], weights: bool | str | None
) -> tuple[Path, dict[str, Any]] | None:
    """Return the path and content of the segdet checkpoint to start from; None for other weights or no weights.

    Args:
        family: The name of the model's class.
        arguments: The model's constructor arguments.
        weights: The argument ``weights`` of the base class. A family without a pretrained network has no argument of
            this name itself.

    Raises:
        UserError: If the checkpoint is missing or corrupt, is given as weights of the backbone alone, or ``weights`` is
            not a segdet checkpoint.
    """
    backbone = arguments.get("weights_backbone")
    if checkpoint_of(backbone) is not None:
        raise UserError(
            f"--model.weights_backbone {backbone}: a checkpoint of segdet; give it as --model.weights"
        )
    start = checkpoint_of(arguments.get("weights"))
    if weights and start is None and not is_restoring():
        raise UserError(
            f"--model.weights {weights}: {family} has no pretrained network; give a run or checkpoint of segdet, or "
            "null"
        )
    return start


def start_from(model: pl.LightningModule, start: tuple[Path, Mapping[str, Any]]) -> None:
    """Load the parameters of a segdet checkpoint that fit ``model``, and report them in a few lines on stderr.

    Parameters are matched by name and shape. Rows of layers that depend on the classes are matched by class name;
    rows of new classes keep their initial values. Such layers are found by building the model with one more class.
    If a moving average of the weights was trained, the average is used, as in tests.

    Args:
        model: A `segdet.task.Task`, complete, with random or pretrained weights.
        start: The path of the checkpoint, for messages, and its content.

    Raises:
        UserError: If the checkpoint fits neither the backbone nor half of the network.
    """
    path, checkpoint = start
    description = checkpoint[DESCRIPTION]
    old_names = [str(name) for name in description.get("class_names", [])]
    names: list[str] = model.class_names  # type: ignore[assignment]
    same_task = description.get("task") == model.task
    rows = _rows_per_class(model)
    layouts: dict[str, ClassRows] = model.class_rows  # type: ignore[assignment]
    own, theirs = model.state_dict(), checkpoint["state_dict"]
    matches = _Matches({}, [], [])
    for key, value in own.items():
        found = theirs.get(key)
        fitted: Tensor | None = None
        if found is None:
            pass
        elif rows.get(key) == _SQUARE:
            fitted = _match_square(value, found, names, old_names) if same_task else None
        elif found.shape[1:] != value.shape[1:]:
            pass
        elif key in rows:
            if same_task:
                layout = next((each for end, each in layouts.items() if end in key), ClassRows())
                fitted = _match_rows(value, found, rows[key], layout, names, old_names)
        elif found.shape == value.shape:
            fitted = found
        if fitted is None:
            matches.new.append(key)
        else:
            matches.values[key] = fitted
    matches.unused = [key for key in theirs if key not in matches.values]
    _check_enough(model, own, matches, rows, path)
    model.load_state_dict(matches.values, strict=False)
    class_path = str(description.get("class_path", "")).rpartition(".")[2]
    averaged = ", moving average" if "current_model_state" in checkpoint else ""
    report(
        f"starts from {path} ({class_path}, step {checkpoint.get('global_step', 0)}{averaged}): "
        f"{len(matches.values)} of {len(own)} weights fit"
    )
    _report_lists({"new": matches.new, "not used": matches.unused})
    if same_task and names != old_names:
        kept = [name for name in names if name in old_names]
        added = [name for name in names if name not in old_names]
        dropped = [name for name in old_names if name not in names]
        _report_lists({"classes kept": kept, "classes added": added, "classes left out": dropped})


def _report_lists(lists: Mapping[str, list[str]]) -> None:
    """Print the lists that are not empty in one line."""
    parts = [f"{title}: {listed(names)}" for title, names in lists.items() if names]
    if parts:
        report("; ".join(parts))


def _rows_per_class(model: pl.LightningModule) -> dict[str, int]:
    """Return the number of rows that one more class adds to each parameter that depends on the classes, by name.

    It is `_SQUARE` if one more class adds columns as well.
    """
    arguments = dict(model.hparams)
    arguments["class_names"] = [*arguments["class_names"], " "]
    if arguments.get("category_ids"):
        arguments["category_ids"] = [*arguments["category_ids"], max(arguments["category_ids"]) + 1]
    with torch.random.fork_rng(devices=[]), restoring(model.state_dict()):
        try:
            with torch.device("meta"):
                larger = type(model)(**arguments)
        except (NotImplementedError, RuntimeError):  # the constructor reads values of its tensors
            larger = type(model)(**arguments)
    own = model.state_dict()
    return {
        key: len(value) - len(own[key]) if value.shape[1:] == own[key].shape[1:] else _SQUARE
        for key, value in larger.state_dict().items()
        if key in own and value.shape != own[key].shape
    }


def _match_rows(
    value: Tensor, found: Tensor, added: int, layout: ClassRows, names: list[str], old_names: list[str]
) -> Tensor | None:
    """Return ``value`` with rows of ``found``: those of classes with the same name, and those that belong to no class.

    Args:
        value: A parameter of the network, whose rows are for ``names``.
        found: The checkpoint's parameter, whose rows are for ``old_names``.
        added: The number of rows of each class.
        layout: The position of the classes among the rows.
        names: The network's classes.
        old_names: The checkpoint's classes.

    Returns:
        A new tensor; None if the numbers of rows do not fit, or nothing is common.
    """
    others = len(value) - added * len(names)  # of all groups
    if others + added * len(old_names) != len(found) or others % added or added % layout.per_class:
        return None
    common = [name for name in names if name in old_names]
    if not common and not others:
        return None
    groups, width = added // layout.per_class, others // added
    start = 0 if layout.classes_first else width
    result = value.clone()
    target = result.unflatten(0, (groups, width + len(names), layout.per_class))
    source = found.unflatten(0, (groups, width + len(old_names), layout.per_class)).to(target)
    for name in common:
        target[:, start + names.index(name)] = source[:, start + old_names.index(name)]
    rest = slice(len(names), None) if layout.classes_first else slice(0, width)
    old_rest = slice(len(old_names), None) if layout.classes_first else slice(0, width)
    target[:, rest] = source[:, old_rest]
    return result


def _match_square(value: Tensor, found: Tensor, names: list[str], old_names: list[str]) -> Tensor | None:
    """Return ``value`` with the rows and columns of ``found`` for classes of the same name; see `_match_rows`."""
    shape = (len(names), len(names), *value.shape[2:])
    if value.shape != shape or found.shape != (len(old_names), len(old_names), *value.shape[2:]):
        return None
    common = [name for name in names if name in old_names]
    if not common:
        return None
    place, old_place = (torch.tensor([each.index(name) for name in common]) for each in (names, old_names))
    result = value.clone()
    result[place[:, None], place] = found[old_place[:, None], old_place].to(result)
    return result


def _check_enough(
    model: pl.LightningModule,
    own: Mapping[str, Tensor],
    matches: _Matches,
    rows: Mapping[str, int],
    path: Path,
) -> None:
    """Raise `UserError` if neither the whole backbone nor half of the network has new values."""
    body: nn.Module = model.pass_module  # type: ignore[assignment]
    parts = {id(value) for value in body.state_dict(keep_vars=True).values()}
    whole = model.state_dict(keep_vars=True)
    backbone = [key for key, value in whole.items() if id(value) in parts and key not in rows]
    if backbone and all(key in matches.values for key in backbone):
        return
    size = sum(own[key].numel() for key in matches.values)
    if size < _ENOUGH * sum(value.numel() for value in own.values()):
        missing = next((key for key in backbone if key not in matches.values), next(iter(matches.new), ""))
        raise UserError(
            f"{path}: only {len(matches.values)} of {len(own)} weights fit this {type(model).__name__}; {missing}, for "
            "example, does not fit; give the same backbone and options as in that run"
        )
