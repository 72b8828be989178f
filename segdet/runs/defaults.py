"""Options of a training that the user does not give. They are chosen from the data, the model and the machine."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from segdet.data.base import DataModule
from segdet.data.defaults import default_epochs, hardware
from segdet.detection.region_detector import RegionDetector
from segdet.proposals import SelectiveSearch
from segdet.task import Task
from segdet.training.optim import DEFAULTS

_SHOWN = (
    "model.backbone",
    "model.backbone_options",
    "model.optim.name",
    "model.optim.lr",
    "data.recipe.size",
    "data.batch_size",
    "trainer.max_epochs",
)
"""The options that `describe` names; ``config.yaml`` holds all of them."""


def choose_network(model_class: type[Task], given: Collection[str]) -> dict[str, Any]:
    """Choose a network and its optimizer for training from scratch on a CPU, if this machine has no accelerator.

    The default network of a family is that of its paper or library. It takes up to ten times as long per training step
    as ``cpu_network``, and the scores after the same time are lower. The optimizer is Muon, unless the user gave one of
    its options: it learns more per step than AdamW, and its steps are fast for narrow layers.

    Args:
        model_class: The family.
        given: The names of the options that the user gave. The default network is used if the user gave an argument of
            ``cpu_network``, or weights.

    Returns:
        The chosen values by dotted name, in the form of a ``--config`` file.
    """
    names = {f"model.{name}" for name in (*model_class.cpu_network, "weights")}
    if hardware() != "cpu" or any(".".join(option.split(".")[:2]) in names for option in given):
        return {}
    chosen = {f"model.init_args.{name}": value for name, value in model_class.cpu_network.items()}
    if chosen and not any(option.startswith("model.optim") for option in given):
        chosen["model.init_args.optim.name"] = "muon"
    return chosen


def choose_defaults(config: Any, model: Task, data: DataModule) -> dict[str, Any]:
    """Choose the options of a training that the user did not give, and set the transforms of ``data`` if necessary.

    Args:
        config: The configuration; its values are accessed by dotted name, such as ``trainer.max_steps``.
        model: The model.
        data: The data.

    Returns:
        The chosen values by dotted name, in the form of a ``--config`` file.
    """
    chosen: dict[str, Any] = {}
    if data.chosen_recipe is None:
        recipe = data.choose_recipe(model.input_size)
        chosen["data.init_args.recipe.class_path"] = f"segdet.data.{type(recipe).__name__}"
        for name in inspect.signature(type(recipe)).parameters:
            value = getattr(recipe, name) if name != "extra" else None
            chosen[f"data.init_args.recipe.init_args.{name}"] = (
                list(value) if isinstance(value, tuple) else value
            )
    if isinstance(model, RegionDetector) and data.proposals is None:
        data.proposals = SelectiveSearch()
        chosen["data.init_args.proposals.class_path"] = f"segdet.proposals.{SelectiveSearch.__name__}"
        for field in fields(SelectiveSearch):
            chosen[f"data.init_args.proposals.init_args.{field.name}"] = getattr(data.proposals, field.name)
    devices = config["trainer.devices"]
    processes = (devices if isinstance(devices, int) and devices > 0 else 1) * config["trainer.num_nodes"]
    images = len(data.reader("train"))
    images = min(images, data.limit_train or images)
    if config["data.init_args.batch_size"] is None:
        data.batch_size = max(1, min(data.batch_size, images // processes))  # an epoch needs one whole batch
        chosen["data.init_args.batch_size"] = data.batch_size
    for name in DEFAULTS[model.optim.name]:
        if getattr(model.optim, name) is None:
            chosen[f"model.init_args.optim.{name}"] = model.optim.value_of(name)
    limits = [config[f"trainer.{name}"] for name in ("max_epochs", "max_time")]
    if limits == [None, None] and config["trainer.max_steps"] == -1:
        chosen["trainer.max_epochs"] = default_epochs(images // (data.batch_size * processes))
    return chosen


def describe(chosen: Mapping[str, Any]) -> str:
    """Return one sentence about chosen options, such as ``data.recipe ScaleJitter, data.recipe.size 240x320``.

    Only some options are described. The sentence is empty if none of them is chosen.
    """
    parts = []
    for option, value in chosen.items():
        name = option.replace(".init_args", "")
        if name.endswith(".class_path"):
            parts.append(f"{name.removesuffix('.class_path')} {value.rpartition('.')[2]}")
        elif name in _SHOWN:
            parts.append(f"{name} {_shown(value)}")
    if not parts:
        return ""
    return f"chosen for these data and this {hardware().upper()}: {', '.join(parts)}"


def _shown(value: Any) -> str:
    """Return ``240x320`` for a size, ``channels 32-64`` for the arguments of a backbone, and other values as text."""
    if isinstance(value, list):
        return "x".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {'-'.join(map(str, part))}" for name, part in value.items())
    return str(value)
