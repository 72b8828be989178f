"""Backbones: any classification network of timm or torchvision as a pyramid of features.

One function, `backbone`, returns a `Backbone`: a module that yields feature maps from fine to coarse and
knows their channels and strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from segdet.nn.weights import download_error, is_restoring, is_weights_file, load_weights, published_name
from segdet.util.errors import UserError
from segdet.util.suggest import closest


class Backbone(nn.Module):
    """A feature extractor.

    Args:
        body: Maps images ``[B, 3, H, W]`` to feature maps, fine to coarse.
        channels: The channels of each map.
        strides: The stride of each map in pixels of the image, ascending.
    """

    def __init__(self, body: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self.channels = list(channels)
        self.strides = list(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps ``[B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])]``, fine to coarse.

        Raises:
            UserError: If the network takes images of one size alone, and these are of another.
        """
        try:
            return list(self.body(images))
        except AssertionError as error:  # how timm's transformers refuse a size
            height, width = images.shape[2:]
            raise UserError(
                f"backbone: images of {width}x{height} do not suit it ({' '.join(str(error).split())[:160]}); resize "
                "them (--data.recipe), or build it for them: --model.backbone_options "
                f"'{{img_size: [{height}, {width}]}}'"
            ) from error


class SmallVGG(nn.Module):
    """A small network in the manner of VGG (Simonyan and Zisserman, ICLR 2015), for small images and CPUs.

    Each stage has convolutions of 3x3 with batch normalization, and max pooling before it; only the very first
    convolution has a stride. Where a ResNet has gone to stride 4 after one convolution, this network has
    looked at edges and corners at stride 2, which small objects are made of.

    Args:
        channels: Of each stage; stage i has stride ``2 ** (i + 1)``.
        convolutions: In each stage.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 96, 128, 128), convolutions: int = 2) -> None:
        super().__init__()
        self.channels = list(channels)
        self.stages = nn.ModuleList()
        before = 3
        for index, width in enumerate(channels):
            layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if index else []
            for position in range(convolutions):
                stride = 2 if index == position == 0 else 1
                layers += [
                    nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
                ]  # fmt: skip
                before = width
            self.stages.append(nn.Sequential(*layers))

    def keep(self, count: int) -> None:
        """Drops all stages but the first ``count``."""
        self.channels = self.channels[:count]
        self.stages = self.stages[:count]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of strides 2, 4, 8 ..., fine to coarse."""
        maps: list[Tensor] = []
        for stage in self.stages:
            maps.append(stage(maps[-1] if maps else images))
        return maps


def backbone(
    name: str = "resnet18",
    weights: str | bool | None = None,
    strides: Sequence[int] | None = None,
    output_stride: int | None = None,
    **options: Any,
) -> Backbone:
    """A backbone by its name.

    What lies behind the last of the wanted strides is left out where the library allows it.

    Args:
        name: A timm model (``resnet18``, ``convnext_tiny`` ...), ``torchvision:`` and one of torchvision's
            (``torchvision:vgg16``), or ``small_vgg`` for `SmallVGG`.
        weights: A local file of weights (``.pth``, ``.pt``, ``.safetensors``), or the name of pretrained weights
            (timm's tag, torchvision's enum member such as ``IMAGENET1K_V1``), or true for the library's
            default ones; null or false for random ones.
        strides: The strides wanted, of each the last map; all there are when null.
        output_stride: The greatest stride, kept by dilated convolutions (timm networks that can).
        options: Further arguments of the library's constructor, such as ``channels=[32, 64, 128, 256]`` for a
            narrow ResNet of timm's.

    Raises:
        UserError: If there is no such network, it has no such stride, or the weights cannot be had.
    """
    if strides is not None and not strides:
        raise UserError(f"backbone {name}: no stride is wanted; name at least one, such as [32]")
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
    # Dilation keeps the stride over several stages: the last map of a stride is the one that saw them all.
    last = {stride: index for index, stride in enumerate(network.strides)}
    wanted = [last[stride] for stride in sorted(strides)]
    return Backbone(
        _Pick(network.body, wanted),
        [network.channels[i] for i in wanted],
        [network.strides[i] for i in wanted],
    )


_WEIGHTS_OF_OTHER_NORMALIZATION = ("googlenet", "inception_v3")
"""torchvision's networks that normalize images anew, within themselves, where its weights are asked for."""


class _Info(Protocol):
    """What timm says of a feature extractor's maps."""

    out_indices: Sequence[int]

    def channels(self) -> list[int]: ...
    def reduction(self) -> list[int]: ...


class _Pick(nn.Module):
    def __init__(self, body: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.body = body
        self.indices = indices

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images)
        return [maps[index] for index in self.indices]


class _ChannelsFirst(nn.Module):
    """Maps ``[B, h, w, C]``, as some of timm's transformers have them, as ``[B, C, h, w]``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> list[Tensor]:
        return [features.permute(0, 3, 1, 2).contiguous() for features in self.body(images)]


class _Values(nn.Module):
    """torchvision's extractor returns a dict; a backbone a list."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.extractor(images).values())


def _small_vgg(
    weights: str | bool | None, options: dict[str, Any], strides: Sequence[int] | None
) -> Backbone:
    try:
        body = SmallVGG(**options)
    except TypeError as error:
        raise UserError(f"backbone small_vgg: {error}; its options are channels and convolutions") from error
    all_strides = [2 ** (i + 1) for i in range(len(body.channels))]
    if strides is not None and set(strides) <= set(all_strides):
        # Dropped and not left unbuilt: what is built after the backbone keeps its seeded weights.
        body.keep(all_strides.index(max(strides)) + 1)
    if weights:
        load_weights(body, weights, "small_vgg", option="backbone small_vgg")
    return Backbone(body, body.channels, all_strides[: len(body.channels)])


def _from_timm(
    name: str, weights: str | bool | None, options: dict[str, Any], strides: Sequence[int] | None
) -> Backbone:
    if not timm.is_model(name.split(".")[0]):
        near = closest(name, timm.list_models()) or "resnet18"
        raise UserError(f"backbone {name}: timm has no such model; did you mean {near}?")
    named = isinstance(weights, str) and not is_weights_file(weights)
    model = f"{name.split('.')[0]}.{weights}" if named else name
    try:
        if strides is not None:
            last = _last_of_each_reduction(model, options)
            if set(strides) <= last.keys() and max(strides) < max(last):
                # With the wanted maps alone: layers behind the last would be learned by nobody.
                options = options | {"out_indices": [last[stride] for stride in sorted(strides)]}
        pretrained = (named or weights is True) and not is_restoring()
        body = timm.create_model(model, features_only=True, pretrained=pretrained, **options)
    except TypeError as error:
        raise UserError(f"backbone {name}: {error}; see the model's options in timm") from error
    except (OSError, RuntimeError) as error:
        raise download_error(f"backbone {name}", error) from error
    if isinstance(weights, str) and not named:
        load_weights(body, weights, f"backbone {name}")
    info = cast(_Info, body.feature_info)
    stages = getattr(body, "_stage_out_idx", None)
    if isinstance(stages, dict) and isinstance(body.blocks, nn.Sequential):
        # Networks in the manner of MobileNet keep the blocks behind the last map, and run them.
        del body.blocks[max(stages) :]
    if str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC"):
        body = _ChannelsFirst(body)
    return Backbone(body, info.channels(), info.reduction())


def _last_of_each_reduction(model: str, options: dict[str, Any]) -> dict[int, int]:
    """The strides of the maps of a timm network, and by what number it knows the last map of each.

    It has to be built to tell them, but without its weights.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                body = timm.create_model(model, features_only=True, pretrained=False, **options)
        except (NotImplementedError, RuntimeError):  # a constructor that computes with what it makes
            body = timm.create_model(model, features_only=True, pretrained=False, **options)
    info = cast(_Info, body.feature_info)
    return dict(zip(info.reduction(), info.out_indices, strict=True))


def _from_torchvision(
    name: str, weights: str | bool | None, options: dict[str, Any], wanted_strides: Sequence[int] | None
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
            if name in _WEIGHTS_OF_OTHER_NORMALIZATION:
                options = {"transform_input": True, "init_weights": False} | options
    try:
        model = torchvision.models.get_model(name, weights=published, **options)
    except OSError as error:
        raise download_error(f"backbone torchvision:{name}", error) from error
    if isinstance(weights, str) and is_weights_file(weights):
        load_weights(model, weights, f"backbone torchvision:{name}")
    nodes, channels, strides = _last_of_each_stride(model)
    if wanted_strides is not None and set(wanted_strides) <= set(strides):
        # The extractor drops what no wanted map needs.
        keep = [strides.index(stride) for stride in sorted(wanted_strides)]
        nodes = [nodes[i] for i in keep]
        channels, strides = [channels[i] for i in keep], [strides[i] for i in keep]
    return Backbone(_Values(create_feature_extractor(model, nodes)), channels, strides)


def _last_of_each_stride(model: nn.Module) -> tuple[list[str], list[int], list[int]]:
    """The last four-dimensional output of every stride from 2 on: ``(node names, channels, strides)``."""
    side = 224
    _, names = get_graph_node_names(model)
    model.eval()
    last: dict[int, tuple[str, int]] = {}
    with torch.no_grad():
        outputs = create_feature_extractor(model, {name: name for name in names if name != "x"})(
            torch.zeros(1, 3, side, side)
        )
    for name, value in outputs.items():
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] > 1:
            stride = round(side / value.shape[-1])
            if stride >= 2 and stride & (stride - 1) == 0 and not name.startswith(("avgpool", "adaptive")):
                last[stride] = name, value.shape[1]
    model.train()
    ordered = sorted(last)
    return [last[s][0] for s in ordered], [last[s][1] for s in ordered], ordered
