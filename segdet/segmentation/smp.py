"""An adapter for all architectures and encoders of segmentation_models_pytorch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.nn.backbones import backbone_normalization, is_known, timm_names
from segdet.nn.float32 import at_least_float32
from segdet.nn.weights import (
    Normalization,
    download_error,
    is_restoring,
    is_weights_file,
    load_state,
    normalization,
    read_weights,
    summarized_retries,
)
from segdet.segmentation.base import Segmenter
from segdet.segmentation.stage_maps import class_heat_maps, feature_stage
from segdet.task import Stage
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean

_RESERVED = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params")
"""Arguments of an architecture that the adapter sets."""


class SMP(Segmenter):
    """A network of the segmentation_models_pytorch library (pip install 'segdet[smp]').

    The library combines decoders (``Unet``, ``UnetPlusPlus``, ``MAnet``, ``Linknet``, ``FPN``, ``PSPNet``,
    ``DeepLabV3``, ``DeepLabV3Plus``, ``PAN``, ``UPerNet``, ``Segformer``, ``DPT``) with encoders. The encoders are the
    library's own (``resnet34``, ``mit_b0`` ...) and those of timm with the prefix ``tu-`` (``tu-convnext_tiny``). All
    combinations are trained and scored like other families. The library's documentation names the paper of each
    decoder. The cost is one pass of the encoder and of the decoder.

    Images are padded at the right and bottom with the mean colour to multiples of the encoder's stride, and the logits
    are cropped.

    Args:
        architecture: The class of the decoder.
        encoder: The name of the encoder. `DPT` supports vision transformers of timm only, such as
            ``tu-vit_tiny_patch16_224`` with ``options: {dynamic_img_size: true}`` for sides other than 224.
        weights: The name of the encoder's pretrained weights (``imagenet``; for ``tu-`` encoders timm's tag, such as
            ``a1_in1k``), true for its default weights, a local file, or null for random weights.
        options: Further arguments of the architecture, such as ``{decoder_channels: 128}``.
        kwargs: See `Segmenter`.

    Raises:
        UserError: If the library is not installed, the decoder or encoder does not exist, or the weights cannot be
            loaded.
    """

    def __init__(
        self,
        class_names: list[str],
        architecture: str = "DeepLabV3Plus",
        encoder: str = "resnet34",
        weights: bool | str | None = None,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        try:
            import segmentation_models_pytorch as smp
        except ImportError as error:
            raise UserError(
                "SMP: the package segmentation_models_pytorch is not installed; pip install 'segdet[smp]'"
            ) from error
        known = {kind.__name__: kind for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}
        if architecture not in known:
            raise UserError(
                f"--model.architecture {architecture}: {_no_such('decoder', architecture, known)}"
            )
        kind = known[architecture]
        if not encoder.startswith("tu-") and encoder not in smp.encoders.get_encoder_names():
            encoders = [*smp.encoders.get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]
            raise UserError(f"--model.encoder {encoder}: {_no_such('encoder', encoder, encoders)}")
        if encoder.startswith("tu-") and not timm.is_model(encoder.removeprefix("tu-").split(".")[0]):
            models = [f"tu-{name}" for name in timm.list_models()]
            raise UserError(f"--model.encoder {encoder}: {_no_such('encoder', encoder, models)}")
        options = dict(options or {})
        _check_options(kind, encoder, options)
        from_file = is_weights_file(weights)
        named: bool | str | None = None
        if weights and not from_file:
            if not is_restoring():
                encoder, named = _named(smp, encoder, weights)
            elif encoder.startswith("tu-") and is_known(
                f"{encoder.removeprefix('tu-').split('.')[0]}.{weights}"
            ):
                encoder = _named(smp, encoder, weights)[0]  # a tag selects a variant of the network
        try:
            with summarized_retries(f"encoder {encoder}"):
                self.network: nn.Module = kind(
                    encoder_name=encoder, encoder_weights=named, classes=len(class_names), **options
                )
        except (OSError, RuntimeError) as error:
            if named is None:
                raise UserError(f"SMP {architecture} on {encoder}: {_first_line(error)}") from error
            raise download_error(f"encoder {encoder}", error) from error
        except (TypeError, ValueError, KeyError, NotImplementedError) as error:
            raise UserError(
                f"SMP {architecture} on {encoder}: {_first_line(error)}; give another encoder or other options"
            ) from error
        for layer in self.network.segmentation_head.modules():
            if isinstance(layer, nn.Upsample):
                layer.register_forward_pre_hook(_to_float32)
        if architecture == "DPT" and hasattr(self.network.encoder.model, "prune_intermediate_layers"):
            # Transformer layers after the last one that the decoder uses would get no gradient, an error in DDP.
            last = options.get("encoder_output_indices") or 1
            self.network.encoder.model.prune_intermediate_layers(last, prune_norm=True, prune_head=True)
        if weights and from_file:
            source, state = read_weights(weights, f"encoder {encoder}")
            body = self.network.encoder
            load_state(
                body, state, source, f"encoder {encoder}", _parameter_names(encoder, body) if state else None
            )

    @classmethod
    def weights_normalization(cls, arguments: Mapping[str, Any]) -> Normalization | None:
        weights = arguments.get("weights")
        return _normalization(str(arguments["encoder"]), weights) if weights and not is_restoring() else None

    @property
    def pass_module(self) -> nn.Module:
        """The encoder."""
        return self.network.encoder  # type: ignore[return-value]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        try:
            return self.network(self._padded(images))[:, :, : images.shape[-2], : images.shape[-1]]
        except AssertionError as error:  # timm's transformers check the size with assertions
            raise UserError(
                f"SMP on {self.network.encoder.name}: {_first_line(error)}; give images of that size "  # type: ignore[union-attr]
                "(--data.recipe.size), or --model.options='{dynamic_img_size: true}'"
            ) from error

    def stages(self, image: Tensor) -> Iterator[Stage]:
        padded = self._padded(image)
        maps = self.network.encoder(padded)  # type: ignore[operator]
        maps = maps[0] if isinstance(maps, tuple) else maps  # transformers also return tokens
        for index, features in enumerate(maps):
            if not features.shape[1] or features.shape[2] == padded.shape[2]:
                continue  # an empty map, or the image itself
            height, width = (math.ceil(image.shape[i] * features.shape[i] / padded.shape[i]) for i in (2, 3))
            caption = f"The strength of the encoder's map of {height}x{width} cells."
            yield feature_stage(f"encoder {index}", features[:, :, :height, :width], caption)
        yield from class_heat_maps(self(image), self.class_names)

    def _padded(self, images: Tensor) -> Tensor:
        """Pad images to sides that the network accepts."""
        if not getattr(self.network, "requires_divisible_input_shape", True):
            return images
        stride = int(self.network.encoder.output_stride)  # type: ignore[union-attr,arg-type]
        if type(self.network).__name__ == "DPT":
            stride *= 2  # the decoder halves the transformer's grid once more
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % stride, 0, -height % stride))


def _normalization(encoder: str, weights: bool | str) -> Normalization | None:
    """Return the normalization that the weights of an encoder expect; None if it is unknown.

    A file on an encoder of timm is assumed to have been trained like timm's default weights.

    Raises:
        UserError: If the metadata cannot be read, or the images of the weights are not RGB.
    """
    smp = import_module("segmentation_models_pytorch")
    try:
        if is_weights_file(weights):
            return (
                backbone_normalization(encoder.removeprefix("tu-"), True)
                if encoder.startswith("tu-")
                else None
            )
        encoder, named = _named(smp, encoder, weights)
        with summarized_retries(f"encoder {encoder}"):
            expected = smp.encoders.get_preprocessing_params(encoder, named)
    except OSError as error:
        raise download_error(f"encoder {encoder}", error) from error
    if expected.get("input_space", "RGB") != "RGB":
        raise UserError(
            f"--model.weights: those of {encoder} expect {expected['input_space']}, images are RGB; choose "
            "other weights"
        )
    white = expected["input_range"][-1] if expected.get("input_range") else 1
    mean, std = ([round(value / white, 6) for value in expected[key]] for key in ("mean", "std"))
    return normalization(mean, std)


def _parameter_names(encoder: str, body: nn.Module) -> dict[str, str] | None:
    """Return the published name of each parameter of an encoder of timm; None for the library's own encoders."""
    if not encoder.startswith("tu-"):
        return None
    network: nn.Module = body.model  # type: ignore[assignment]
    names = timm_names(encoder.removeprefix("tu-"), network, {})
    return {f"model.{name}": published for name, published in names.items()}


def _to_float32(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Convert logits to float32 before their interpolation: a forward pre-hook."""
    return (at_least_float32(inputs[0]),)


def _check_options(kind: Any, encoder: str, options: dict[str, Any]) -> None:
    known = [
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if name not in _RESERVED and parameter.kind is not parameter.VAR_KEYWORD
    ]
    for name in options:
        if name in _RESERVED:
            raise UserError(f"--model.options.{name}: is set by SMP itself; remove it")
        # timm's encoders receive the other options and reject unknown ones; the library's own encoders ignore them.
        if name not in known and not encoder.startswith("tu-"):
            raise UserError(
                f"--model.options.{name}: {kind.__name__} has no such option; {did_you_mean(name, known)}"
            )


def _named(smp: Any, encoder: str, weights: bool | str) -> tuple[str, bool | str]:
    """Return the names of encoder and weights in the library's notation."""
    if encoder.startswith("tu-"):
        # In timm, a tag is part of the name of the model.
        return (encoder, True) if weights is True else (f"{encoder.split('.')[0]}.{weights}", True)
    choices = list(smp.encoders.encoders[encoder]["pretrained_settings"])
    chosen = choices[0] if weights is True and choices else weights
    if chosen not in choices:
        raise UserError(
            f"--model.weights: there are no weights {weights!r} of {encoder}; choose from {', '.join(choices)}"
        )
    return encoder, chosen


def _no_such(what: str, name: str, known: Sequence[str] | dict[str, Any]) -> str:
    return f"segmentation_models_pytorch has no such {what}; {did_you_mean(name, known, cutoff=0.5)}"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
