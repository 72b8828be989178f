"""torchvision's detection networks with pretrained weights, for any classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.ops import FrozenBatchNorm2d

from segdet.nn.weights import (
    check_complete,
    checkpoint_of,
    count_used,
    load_state,
    read_weights,
    report,
    restored_names,
)
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean

COCO_NAMES: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
"""The names of COCO's 91 category ids in torchvision's weights; 0 is background."""

_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
"""Networks that torchvision trained with frozen batch normalization without epsilon."""


def torchvision_network(
    family: str,
    network: str,
    class_names: list[str],
    weights: bool | str | None,
    weights_backbone: bool | str | None,
    heads: Mapping[str, int],
) -> Any:
    """Build a detection network of torchvision.

    The first output of the class heads is background, which RetinaNet and FCOS do not use. ``weights`` may have another
    number of classes. If they are COCO's and all classes have COCO names, the rows of these classes are used. Otherwise
    the output layers that depend on the classes keep their random weights.

    As in torchvision, batch normalization of the backbone is frozen if it was frozen when ``weights`` were trained.
    With weights of the backbone alone it is frozen except in version 2 networks. A network that is restored from a
    checkpoint has the normalization of the checkpoint.

    Args:
        family: The prefix of torchvision's name, such as ``fasterrcnn``.
        network: The rest of the name, such as ``resnet50_fpn``.
        class_names: The classes, without background.
        weights: Weights of the whole network: a name (``COCO_V1``), true for the default, a local file, or null.
        weights_backbone: Weights of the backbone alone, in the same notation (``IMAGENET1K_V1``); ignored if there are
            ``weights``.
        heads: The number of consecutive rows per class of each output layer that depends on the classes, by name.

    Raises:
        UserError: If there is no such network, or the weights are missing or do not match it.
    """
    name = f"{family}_{network}"
    names = torchvision.models.list_models(module=torchvision.models.detection, include=f"{family}_*")
    known = [each.removeprefix(f"{family}_") for each in names]
    if network not in known:
        hint = did_you_mean(network, known, cutoff=0)
        raise UserError(f"--model.network {network}: torchvision has no {name}; {hint}")
    # The network is built without weights, so that files and published weights are loaded in the same way.
    model = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=len(class_names) + 1
    )
    frozen, epsilon = False, None
    if weights:
        source, state = read_weights(weights, name, [torchvision.models.get_model_weights(name)])
        start = checkpoint_of(weights)
        frozen = _is_frozen(state if start is None else start[1]["state_dict"])
        epsilon = 0.0 if name in _WITHOUT_EPSILON else None
    elif weights_backbone:
        backbone = "mobilenet_v3_large" if network.startswith("mobilenet") else "resnet50"
        published = [torchvision.models.get_model_weights(backbone)]
        source, state = read_weights(weights_backbone, backbone, published, "--model.weights_backbone")
        frozen = not network.endswith("_v2")
    restored = restored_names()
    if _is_frozen(restored) if restored is not None else frozen:
        _freeze_normalization(model.backbone, epsilon)
    if weights:
        _load(model, name, source, state, class_names, heads)
    elif weights_backbone:
        # Layer names have this prefix in torchvision's MobileNets, but not in its detectors.
        state = {key.removeprefix("features."): value for key, value in state.items()}
        load_state(model.backbone.body, state, source, f"backbone {backbone}")
    return model


def _is_frozen(names: Iterable[str]) -> bool:
    """Return whether the backbone's batch normalization is frozen: it then has no buffer ``num_batches_tracked``."""
    return not any(
        name.startswith("backbone.body.") and name.endswith("num_batches_tracked") for name in names
    )


def rows_of_classes(
    value: Tensor, like: Tensor, class_names: Sequence[str], rows_per_class: int = 1
) -> Tensor | None:
    """Select the rows of the given classes from an output layer for COCO's 91 category ids.

    Args:
        value: The weight or bias of the layer.
        like: The weight or bias of the layer for background and ``class_names``.
        class_names: The classes.
        rows_per_class: The number of consecutive rows per class.

    Returns:
        A tensor of the shape of ``like``; None if ``value`` has other classes, or a name is not a COCO name.
    """
    groups = len(like) // ((len(class_names) + 1) * rows_per_class)
    if len(value) != groups * len(COCO_NAMES) * rows_per_class or not set(class_names) <= set(COCO_NAMES):
        return None
    rows = [0, *(COCO_NAMES.index(name) for name in class_names)]
    return value.unflatten(0, (groups, len(COCO_NAMES), rows_per_class))[:, rows].flatten(0, 2)


def _load(
    model: nn.Module,
    name: str,
    source: str,
    state: dict[str, Tensor],
    class_names: list[str],
    heads: Mapping[str, int],
) -> None:
    if not state:
        return
    own = model.state_dict()
    fitted = dict(state)
    for head, rows_per_class in heads.items():
        for key in (f"{head}.weight", f"{head}.bias"):
            value = state.get(key)
            if value is not None and value.shape != own[key].shape:
                rows = rows_of_classes(value, own[key], class_names, rows_per_class)
                fitted[key] = own[key] if rows is None else rows
    try:
        # torchvision's modules convert the parameter names of older files.
        missing = model.load_state_dict(fitted, strict=False).missing_keys
    except RuntimeError as error:
        wrong = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{source}: not the weights of {name} ({wrong}); choose weights of this network"
        ) from error
    check_complete(own, missing, source, name)
    used = [state[key] for key in own if key in state and fitted[key] is not own[key]]
    report(f"{name}: {count_used(state, used)} from {source}")


def _freeze_normalization(module: nn.Module, epsilon: float | None) -> None:
    """Replace batch normalization by torchvision's frozen version, which is not trained."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            eps = child.eps if epsilon is None else epsilon
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
        else:
            _freeze_normalization(child, epsilon)
