"""torchvision's detection networks and their weights: by name or from a file, for the classes of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.ops import FrozenBatchNorm2d

from segdet.nn.weights import check_complete, is_restoring, load_state, read_weights, restored_names
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean

COCO_NAMES: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
"""COCO's 91 numbers by name, 0 for the background, as torchvision's weights have them."""

_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
"""Of these, torchvision's weights were learned when its frozen batch normalization had no epsilon."""


def torchvision_network(
    family: str,
    network: str,
    class_names: list[str],
    weights: str | bool | None,
    weights_backbone: str | bool | None,
    heads: Mapping[str, int],
) -> Any:
    """torchvision's module, with as many outputs as torchvision would give it for these classes.

    It has one output more than there are classes, the first, for the background (of which RetinaNet and FCOS make no
    use). Where ``weights`` are of another number of classes: if they are COCO's, and all classes here have names of
    COCO's, the rows of these names are taken; else the last layers of the classes, and only they, stay new.

    Batch normalization is frozen in the backbone if it was when the weights were learned, as torchvision does; for
    weights of the backbone alone likewise, the second versions excepted. A network that is restored has the
    normalization that its checkpoint shows.

    Args:
        family: How torchvision's names of such networks begin, ``fasterrcnn``.
        network: What follows in the name, ``resnet50_fpn``.
        class_names: The classes, without the background.
        weights: Of the whole network: a name (``COCO_V1``), true for the default ones, a local file, or null.
        weights_backbone: Of the backbone alone, likewise (``IMAGENET1K_V1``); not looked at when there are
            ``weights``.
        heads: The last layers of the classes, by name, and how many rows in succession belong to one class.

    Raises:
        UserError: If there is no such network, or weights cannot be had or do not fit.
    """
    name = f"{family}_{network}"
    known = [
        each.removeprefix(family + "_")
        for each in torchvision.models.list_models(module=torchvision.models.detection)
        if each.startswith(family + "_")
    ]
    if network not in known:
        hint = did_you_mean(network, known, cutoff=0)
        raise UserError(f"--model.network {network}: torchvision has no {name}; {hint}")
    # Without weights in any case, so that a file is read in the same way as what torchvision fetches.
    model = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=len(class_names) + 1
    )
    frozen, epsilon = False, None
    if weights:
        source, state = read_weights(weights, name, [torchvision.models.get_model_weights(name)])
        frozen, epsilon = _is_frozen(state), 0.0 if name in _WITHOUT_EPSILON else None
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
        # torchvision's MobileNets have their layers under this name, its detectors have not.
        state = {key.removeprefix("features."): value for key, value in state.items()}
        load_state(model.backbone.body, state, source, f"backbone {backbone}")
    return model


def _is_frozen(names: Iterable[str]) -> bool:
    """Whether weights of these names have frozen batch normalization in the backbone: it counts no batches."""
    return not any(
        name.startswith("backbone.body.") and name.endswith("num_batches_tracked") for name in names
    )


def rows_of_classes(
    value: Tensor, like: Tensor, class_names: Sequence[str], in_succession: int = 1
) -> Tensor | None:
    """What a last layer of COCO's 91 numbers has for these classes, taken by name.

    Args:
        value: The layer's weight or bias.
        like: That of the layer for the background and ``class_names``.
        class_names: The classes.
        in_succession: How many rows in succession belong to one class.

    Returns:
        In the shape of ``like``; None if ``value`` is of other classes, or some name is none of COCO's.
    """
    groups = len(like) // ((len(class_names) + 1) * in_succession)
    if len(value) != groups * len(COCO_NAMES) * in_succession or not set(class_names) <= set(COCO_NAMES):
        return None
    rows = [0, *(COCO_NAMES.index(name) for name in class_names)]
    return value.unflatten(0, (groups, len(COCO_NAMES), in_succession))[:, rows].flatten(0, 2)


def _load(
    model: nn.Module,
    name: str,
    source: str,
    state: dict[str, Tensor],
    class_names: list[str],
    heads: Mapping[str, int],
) -> None:
    if is_restoring():
        return
    own = model.state_dict()
    fitted = dict(state)
    new = set()
    for head, in_succession in heads.items():
        for key in (f"{head}.weight", f"{head}.bias"):
            value = state.get(key)
            if value is None or value.shape == own[key].shape:
                continue
            rows = rows_of_classes(value, own[key], class_names, in_succession)
            if rows is None:
                del fitted[key]
                new.add(key)
            else:
                fitted[key] = rows
    try:
        # torchvision itself knows the names that its layers had in older files.
        missing = model.load_state_dict(fitted, strict=False).missing_keys
    except RuntimeError as error:
        wrong = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{source}: not the weights of {name} ({wrong}); choose weights of this network"
        ) from error
    check_complete(own, [key for key in missing if key not in new], source, name)


def _freeze_normalization(module: nn.Module, epsilon: float | None) -> None:
    """Puts torchvision's frozen batch normalization, whose numbers are never learned, in the place of the other."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            eps = child.eps if epsilon is None else epsilon
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
        else:
            _freeze_normalization(child, epsilon)
