"""Options of a resumed training that differ from the options in its checkpoint. They are applied, or refused."""

import pkgutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from segdet.runs.checkpoint_file import Checkpoint
from segdet.runs.classes import is_same_class
from segdet.util.errors import UserError

ARCHITECTURE = "the network"
SEED = "the order of the images and all random numbers of the run"

REFUSED = {
    "seed_everything": SEED,
    "data.seed": SEED,
    "model.class_path": ARCHITECTURE,
    "model.backbone": ARCHITECTURE,
    "model.weights": "the initial weights, which are read at the start of a run",
    "model.weights_backbone": "the initial weights, which are read at the start of a run",
    "model.optim.name": "the optimizer, whose state cannot be converted",
    "model.freeze": "the trained parameters",
    "model.frozen_batch_norm": "the trained parameters",
}
"""Options that cannot change within a run, and what they define. Options nested in them cannot change either."""

IGNORED = {"run_dir", "overwrite", "config", "ckpt_path", "model.class_names", "model.category_ids"}
"""Options that apply to a single command, or that the command fills in."""

FOUND_BY: dict[type, tuple[str, ...]] = {
    LearningRateFinder: ("model", "init_args", "optim", "lr"),
    BatchSizeFinder: ("data", "init_args", "batch_size"),
}
"""The option whose value each finder of Lightning finds, by its path in the configuration."""


@dataclass(frozen=True)
class Change:
    """An option with different values in the checkpoint and in the command that resumes from it.

    Attributes:
        option: The dotted name, such as ``model.optim.lr``.
        before: The value in the checkpoint; None if the option was not set.
        now: The value now.
    """

    option: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"--{self.option} {_shown(self.before)} -> {_shown(self.now)}"


def resumed_changes(
    command: str, checkpoint: Checkpoint | None, config: Mapping[str, Any], given: Collection[str]
) -> list[Change]:
    """Return the options that differ between a resumed training and its checkpoint.

    Args:
        command: The subcommand. Only fit resumes a training.
        checkpoint: The checkpoint, or None for a new training.
        config: The complete configuration of the command.
        given: The dotted names of the options that the user gave. An option that is missing in the checkpoint,
            because it is newer, is a change only if it is among them.

    Raises:
        UserError: If an option cannot change within a run.
    """
    if command != "fit" or checkpoint is None:
        return []
    changes = []
    for section, now in config.items():
        if section in checkpoint.config:
            changes += list(_differences(section, checkpoint.config[section], now, given))
    for change in changes:
        if (reason := _refusal(change)) is not None:
            raise UserError(
                f"{change}: defines {reason}, and cannot change when a run is resumed from {checkpoint.path}; leave "
                f"the option out, or start a new run from these weights with --model.weights {checkpoint.path}"
            )
    return changes


def found_values(config: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the finders of a run found before SLURM restarted it, by dotted name.

    The command line of the run contains the values before the search.

    Args:
        config: The configuration of the command.
        recorded: The configuration in the run's checkpoint.
    """
    given = config["trainer"]["callbacks"] or []
    classes = [
        pkgutil.resolve_name(each["class_path"]) for each in (given if isinstance(given, list) else [given])
    ]
    found = {}
    for finder, path in FOUND_BY.items():
        if any(issubclass(each, finder) for each in classes):
            value: Any = recorded
            for name in path:
                value = value[name]
            found[".".join(path)] = value
    return found


def _refusal(change: Change) -> str | None:
    if change.option == "ema":
        on_or_off = change.before is None or change.now is None
        return "whether the weights are averaged" if on_or_off else None
    if change.option.startswith("model.optim.lr_factors"):
        frozen = 0 in (change.before, change.now)
        return "the trained parameters" if frozen else None
    return next((why for name, why in REFUSED.items() if f"{change.option}.".startswith(f"{name}.")), None)


def _differences(option: str, before: Any, now: Any, given: Collection[str]) -> Iterator[Change]:
    """Yield the differences between two values, option by option if they are mappings."""
    if option in IGNORED or before == now:
        return
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        yield Change(option, before, now)
        return
    classes = (before.get("class_path"), now.get("class_path"))
    if not is_same_class(*classes):
        yield Change(f"{option}.class_path", *classes)
        return  # options of two classes cannot be compared
    before, now = ({**value, **(value.get("init_args") or {})} for value in (before, now))
    for name in sorted(now.keys() - {"class_path", "init_args"}):
        inner = f"{option}.{name}"
        if name in before or any(_overlap(inner, each) for each in given):
            yield from _differences(inner, before.get(name), now[name], given)
    for name in sorted(before.keys() - now.keys() - {"class_path", "init_args"}):
        yield Change(f"{option}.{name}", before[name], None)


def _overlap(one: str, other: str) -> bool:
    """Return whether two options are the same, or one is a part of the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping) and "class_path" in value:
        return str(value["class_path"]).rsplit(".", 1)[-1]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
