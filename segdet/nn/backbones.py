"""Backbones: classification networks of timm and torchvision as extractors of multi-scale feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
import torchvision
from timm.models import FeatureInfo
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import Conv2dNormActivation

from segdet.nn.train_eval_mode import evaluating
from segdet.nn.weights import (
    Normalization,
    download_error,
    is_restoring,
    is_weights_file,
    load_state,
    load_weights,
    normalization,
    published_name,
    published_normalization,
    read_weights,
    summarized_retries,
)
from segdet.util.errors import UserError
from segdet.util.suggest import closest


class Backbone(nn.Module):
    """A feature extractor.

    Args:
        body: A module that maps images ``[B, 3, H, W]`` to feature maps, fine to coarse.
        channels: The number of channels of each map.
        strides: The stride of each map in pixels of the image, ascending.
    """

    def __init__(self, body: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self.channels = list(channels)
        self.strides = list(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return feature maps ``[B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])]``, fine to coarse.

        Raises:
            UserError: If the network accepts a single image size and the images have another.
        """
        try:
            return list(self.body(images))
        except AssertionError as error:  # timm's transformers check the size with assertions
            height, width = images.shape[2:]
            raise UserError(
                f"backbone: does not accept images of {width}x{height} ({' '.join(str(error).split())[:160]}); "
                "resize them (--data.recipe), or build the backbone for this size: --model.backbone_options "
                f"'{{img_size: [{height}, {width}]}}'"
            ) from error


class SmallVGG(nn.Module):
    """A small network in the style of VGG (Simonyan and Zisserman, ICLR 2015), for small images and CPUs.

    Each stage has 3x3 convolutions with batch normalization. Max pooling precedes every stage except the first. The
    first convolution of the network has stride 2. A ResNet reaches stride 4 after one convolution; this network has a
    whole stage at stride 2, which preserves the edges and corners of small objects.

    Args:
        channels: The channels of each stage. Stage i has stride ``2 ** (i + 1)``.
        convolutions: The number of convolutions per stage.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 96, 128, 128), convolutions: int = 2) -> None:
        super().__init__()
        self.channels = list(channels)
        self.stages = nn.ModuleList()
        in_channels = 3
        for index, width in enumerate(channels):
            layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if index else []
            for position in range(convolutions):
                stride = 2 if index == position == 0 else 1
                layers += Conv2dNormActivation(in_channels, width, 3, stride)
                in_channels = width
            self.stages.append(nn.Sequential(*layers))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return feature maps of strides 2, 4, 8 ..., fine to coarse."""
        maps: list[Tensor] = []
        for stage in self.stages:
            maps.append(stage(maps[-1] if maps else images))
        return maps


def build_backbone(
    name: str = "resnet18",
    weights: bool | str | None = None,
    strides: Sequence[int] | None = None,
    output_stride: int | None = None,
    **options: Any,
) -> Backbone:
    """Return the backbone called ``name``.

    Layers after the last of ``strides`` are removed where the library allows it.

    Args:
        name: A timm model (``resnet18``, ``convnext_tiny`` ...), ``torchvision:`` followed by a torchvision model
            (``torchvision:vgg16``), or ``small_vgg`` for `SmallVGG`.
        weights: A local file (``.pth``, ``.pt``, ``.safetensors``) with the library's parameter names; the name of
            pretrained weights, which is a tag of timm or a member of torchvision's enum such as ``IMAGENET1K_V1``;
            true for the library's default weights; null or false for random ones. A run or checkpoint of segdet is
            loaded later, see `segdet.task.Task`.
        strides: The strides of the maps to return. If several maps have one stride, the last is returned. Null for all
            strides.
        output_stride: The largest stride, enforced by dilated convolutions; for timm networks that support it.
        options: Further arguments of the library's constructor, such as ``channels=[32, 64, 128, 256]`` for a
            narrow ResNet of timm.

    Raises:
        UserError: If the network or a stride does not exist, or the weights cannot be loaded.
    """
    if strides is not None and not strides:
        raise UserError(f"backbone {name}: strides is empty; give at least one, such as [32]")
    if output_stride is not None:
        options["output_stride"] = output_stride
    if name == "small_vgg":
        network = _small_vgg(weights, options, strides)
    elif name.startswith("torchvision:"):
        network = _from_torchvision(name.removeprefix("torchvision:"), weights, options, strides)
    else:
        network = _from_timm(name, weights, options, strides)
    if strides is None:
        return network
    missing = sorted(set(strides) - set(network.strides))
    if missing:
        raise UserError(f"backbone {name}: no feature map of stride {missing[0]}; it has {network.strides}")
    if sorted(strides) == network.strides:
        return network
    # With dilation several stages have the same stride; the last one is the deepest.
    last = {stride: index for index, stride in enumerate(network.strides)}
    indices = [last[stride] for stride in sorted(strides)]
    return Backbone(
        _Select(network.body, indices),
        [network.channels[i] for i in indices],
        [network.strides[i] for i in indices],
    )


_WITH_INPUT_TRANSFORM = ("googlenet", "inception_v3")
"""torchvision's networks that change the normalization of their input when built with pretrained weights."""


class _Select(nn.Module):
    """A body that returns only the maps at ``indices``."""

    def __init__(self, body: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.body = body
        self.indices = indices

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images)
        return [maps[index] for index in self.indices]


class _ChannelsFirst(nn.Module):
    """A wrapper of a timm body that converts its maps from ``[B, h, w, C]`` to ``[B, C, h, w]``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> list[Tensor]:
        return [features.permute(0, 3, 1, 2).contiguous() for features in self.body(images)]


class _Values(nn.Module):
    """torchvision's feature extractor with a list of maps as output instead of a dict."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.extractor(images).values())


def _small_vgg(
    weights: bool | str | None, options: dict[str, Any], strides: Sequence[int] | None
) -> Backbone:
    try:
        body = SmallVGG(**options)
    except TypeError as error:
        raise UserError(f"backbone small_vgg: {error}; its options are channels and convolutions") from error
    all_strides = [2 ** (i + 1) for i in range(len(body.channels))]
    if strides is not None and set(strides) <= set(all_strides):
        # Stages are built and then removed, so that later modules draw the same random weights for any strides.
        body.stages = body.stages[: all_strides.index(max(strides)) + 1]
    if weights:
        load_weights(body, weights, "small_vgg", option="backbone small_vgg")
    count = len(body.stages)
    return Backbone(body, body.channels[:count], all_strides[:count])


def _from_timm(
    name: str, weights: bool | str | None, options: dict[str, Any], strides: Sequence[int] | None
) -> Backbone:
    if not timm.is_model(name.split(".")[0]):
        near = closest(name, ["small_vgg", *timm.list_models()]) or "resnet18"
        raise UserError(f"backbone {name}: timm has no such model; did you mean {near}?")
    named = isinstance(weights, str) and not is_weights_file(weights)
    model = f"{name.split('.')[0]}.{weights}" if named else name
    if is_restoring() and not is_known(model):
        model = name  # the weights were a file or folder that is gone
    try:
        if strides is not None:
            last = _last_of_each_reduction(model, options)
            if set(strides) <= last.keys() and max(strides) < max(last):
                # Layers after the last map would receive no gradient, which is an error in DDP.
                options = options | {"out_indices": [last[stride] for stride in sorted(strides)]}
        pretrained = (named or weights is True) and not is_restoring()
        with summarized_retries(f"backbone {name}"):
            body = timm.create_model(model, features_only=True, pretrained=pretrained, **options)
    except TypeError as error:
        raise UserError(f"backbone {name}: {error}; see the model's options in timm") from error
    except (OSError, RuntimeError) as error:
        raise download_error(f"backbone {name}", error) from error
    if isinstance(weights, str) and not named:
        source, state = read_weights(weights, f"backbone {name}")
        if state:
            load_state(body, state, source, f"backbone {name}", timm_names(model, body, options))
    info = cast(FeatureInfo, body.feature_info)
    stages = getattr(body, "_stage_out_idx", None)
    if isinstance(stages, dict) and isinstance(body.blocks, nn.Sequential):
        # timm's MobileNet-like networks keep and run the blocks after the last map.
        del body.blocks[max(stages) :]
    if str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC"):
        body = _ChannelsFirst(body)
    return Backbone(body, info.channels(), info.reduction())


def backbone_normalization(name: str, weights: bool | str | None) -> Normalization | None:
    """Return the normalization of images in the metadata of a backbone's weights; None if there are none.

    A file has no metadata. It is assumed to have been trained like the library's default weights of the network.

    Args:
        name: See `build_backbone`.
        weights: See `build_backbone`.
    """
    if not weights or name == "small_vgg":
        return None
    if name.startswith("torchvision:"):
        network = name.removeprefix("torchvision:")
        if network not in torchvision.models.list_models(module=torchvision.models):
            return None  # build_backbone reports it
        return published_normalization(weights, [torchvision.models.get_model_weights(network)])
    named = isinstance(weights, str) and not is_weights_file(weights)
    model = f"{name.split('.')[0]}.{weights}" if named else name
    config = timm.get_pretrained_cfg(model, allow_unregistered=False) if is_known(model) else None
    return None if config is None else normalization(config.mean, config.std)


def is_known(model: str) -> bool:
    """Return whether timm has a model and, if the name includes a tag, pretrained weights with this tag."""
    name, _, tag = model.partition(".")
    return timm.is_model(name) and (not tag or model in timm.list_pretrained(f"{name}.*"))


def timm_names(model: str, body: nn.Module, options: dict[str, Any]) -> dict[str, str]:
    """Map the name of each parameter of a feature extractor to its name in timm's classification network.

    timm's extractors join the first two parts of a name (``stages_0``) or have a prefix (``model.``).

    Args:
        model: The name of the network in timm.
        body: The extractor.
        options: The arguments with which it was built.
    """
    options = {key: value for key, value in options.items() if key not in ("out_indices", "feature_cls")}
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                whole = timm.create_model(model, **options)
        except (NotImplementedError, RuntimeError):  # the constructor reads values of its tensors
            whole = timm.create_model(model, **options)
    published = whole.state_dict().keys()
    names = {}
    for name in body.state_dict():
        candidates = [name, name.removeprefix("model."), *(_split_at(name, i) for i in _underscores(name))]
        names[name] = next((each for each in candidates if each in published), name)
    return names


def _underscores(name: str) -> list[int]:
    """Return the positions of the underscores in the first part of a name."""
    return [place for place, letter in enumerate(name.split(".")[0]) if letter == "_"]


def _split_at(name: str, place: int) -> str:
    return f"{name[:place]}.{name[place + 1 :]}"


def _last_of_each_reduction(model: str, options: dict[str, Any]) -> dict[int, int]:
    """Return the last map of each stride of a network, as its index in timm.

    The network is built to read the indices, on the meta device if possible.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                body = timm.create_model(model, features_only=True, pretrained=False, **options)
        except (NotImplementedError, RuntimeError):  # the constructor reads values of its tensors
            body = timm.create_model(model, features_only=True, pretrained=False, **options)
    info = cast(FeatureInfo, body.feature_info)
    return dict(zip(info.reduction(), info.out_indices, strict=True))


def _from_torchvision(
    name: str, weights: bool | str | None, options: dict[str, Any], strides: Sequence[int] | None
) -> Backbone:
    if name not in torchvision.models.list_models(module=torchvision.models):
        near = closest(name, torchvision.models.list_models(module=torchvision.models)) or "resnet18"
        raise UserError(f"backbone torchvision:{name}: no such model; did you mean torchvision:{near}?")
    published: str | None = None
    if weights and not is_weights_file(weights):
        kinds = [torchvision.models.get_model_weights(name)]
        published = published_name(weights, name, kinds, f"backbone torchvision:{name}")
        if is_restoring():
            published = None
            if name in _WITH_INPUT_TRANSFORM:
                options = {"transform_input": True, "init_weights": False} | options
    try:
        model = torchvision.models.get_model(name, weights=published, **options)
    except OSError as error:
        raise download_error(f"backbone torchvision:{name}", error) from error
    last = _last_of_each_stride(model)
    if strides is not None and set(strides) <= last.keys():
        # The extractor removes the layers that none of these maps needs.
        last = {stride: last[stride] for stride in sorted(strides)}
    extractor = create_feature_extractor(model, [node for node, _ in last.values()])
    if isinstance(weights, str) and is_weights_file(weights):
        load_weights(extractor, weights, f"backbone torchvision:{name}")
    return Backbone(_Values(extractor), [channels for _, channels in last.values()], list(last))


def _last_of_each_stride(model: nn.Module) -> dict[int, tuple[str, int]]:
    """Return the node name and the channels of the last map of each stride from 2 on, by ascending stride."""
    side = 224
    _, names = get_graph_node_names(model)
    last = {}
    with torch.no_grad(), evaluating(model):
        outputs = create_feature_extractor(model, {name: name for name in names if name != "x"})(
            torch.zeros(1, 3, side, side)
        )
    for name, value in outputs.items():
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] > 1:
            stride = round(side / value.shape[-1])
            if stride >= 2 and stride & (stride - 1) == 0 and not name.startswith(("avgpool", "adaptive")):
                last[stride] = name, value.shape[1]
    return dict(sorted(last.items()))
