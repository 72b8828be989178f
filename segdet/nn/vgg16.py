"""The convolutions of VGG16 as an encoder with pretrained weights, for FCN, SegNet and DeconvNet."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import VGG16_BN_Weights, VGG16_Weights
from torchvision.ops import Conv2dNormActivation

from segdet.nn.pooling import MaxPooling, Pooled
from segdet.nn.weights import (
    Normalization,
    StateDict,
    check_complete,
    count_used,
    listed,
    published_normalization,
    read_weights,
    report,
)
from segdet.util.errors import UserError, check_range

CHANNELS = (64, 128, 256, 512, 512)
"""The channels of the five stages."""

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""The number of convolutions in each stage."""


class VGG16(nn.Module):
    """The thirteen 3x3 convolutions of VGG16 in five stages (Simonyan and Zisserman, ICLR 2015, table 1, D).

    Each stage ends with a max pooling that rounds sizes up, as in Caffe: a map of 7 pixels is pooled to 4.

    Args:
        width: The fraction of VGG16's channels.
        batch_norm: Whether batch normalization follows each convolution.
        pad: The padding of the first convolution, in pixels.
        dropout: The dropout rate after the pooling of each of the last three stages.

    Raises:
        UserError: If ``width`` is not positive.
    """

    def __init__(
        self, width: float = 1.0, batch_norm: bool = False, pad: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_range("--model.width", width, above=0)
        self.channels = [max(1, round(width * channels)) for channels in CHANNELS]
        self.batch_norm = batch_norm
        self.stages = nn.ModuleList()
        in_channels = 3
        norm = nn.BatchNorm2d if batch_norm else None
        for channels, convolutions in zip(self.channels, CONVOLUTIONS, strict=True):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                padding = 1 if self.stages or layers else pad
                layers += Conv2dNormActivation(
                    in_channels, channels, 3, 1, padding, norm_layer=norm, bias=True
                )
                in_channels = channels
            self.stages.append(nn.Sequential(*layers))
        self.pool = MaxPooling()
        self.dropout = nn.Dropout(dropout)
        init_he(self)

    def forward(self, images: Tensor) -> list[Pooled]:
        """Map images ``[B, 3, H, W]`` to the five stages' maps of strides 2, 4, 8, 16 and 32, fine to coarse."""
        pooled: list[Pooled] = []
        features = images
        for index, stage in enumerate(self.stages):
            pooled.append(self.pool(stage(features)))
            features = self.dropout(pooled[-1].features) if index >= 2 else pooled[-1].features
        return [*pooled[:-1], pooled[-1]._replace(features=features)]

    def convert_torchvision(self, state: Mapping[str, Tensor]) -> StateDict:
        """Return the ``features`` of torchvision's VGG16, with or without batch normalization, under our names.

        Args:
            state: torchvision's state dict.

        Raises:
            UserError: If the convolutions differ in number or shape, or only ``state`` has batch normalization.
        """
        by_index: dict[int, StateDict] = {}
        for key, value in state.items():
            if key.startswith("features."):
                _, index, name = key.split(".")
                by_index.setdefault(int(index), {})[name] = value
        layers = [layer for _, layer in sorted(by_index.items())]
        conv_states = [layer for layer in layers if layer["weight"].ndim == 4]
        norm_states = [layer for layer in layers if layer["weight"].ndim != 4]
        convs = {name: module for name, module in self.named_modules() if isinstance(module, nn.Conv2d)}
        shapes = [conv.weight.shape for conv in convs.values()]
        if [layer["weight"].shape for layer in conv_states] != shapes:
            raise UserError(
                f"--model.weights: not those of a VGG16 with {shapes[0][0]} to {shapes[-1][0]} channels; give "
                "torchvision's for --model.width 1, or null for random weights"
            )
        norms = [name for name, module in self.named_modules() if isinstance(module, nn.BatchNorm2d)]
        if norm_states and not norms:
            raise UserError(
                "--model.weights: those of a VGG16 with batch normalization, but the model has none; give "
                "the weights of vgg16"
            )
        pairs = [*zip(convs, conv_states, strict=True), *zip(norms, norm_states, strict=False)]
        return {f"{name}.{key}": value for name, layer in pairs for key, value in layer.items()}


def init_he(module: nn.Module) -> None:
    """Initialize all convolutions as in He et al. (ICCV 2015), Caffe's "MSRA" filler, with zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def vgg16_normalization(weights: bool | str | None, batch_norm: bool) -> Normalization | None:
    """Return the normalization that torchvision's weights of VGG16 expect; None without weights.

    Args:
        weights: See `segdet.nn.weights.read_weights`.
        batch_norm: Whether the network has batch normalization.
    """
    published = VGG16_BN_Weights if batch_norm else VGG16_Weights
    return published_normalization(weights, [published]) if weights else None


def load_vgg16_weights(model: nn.Module, weights: bool | str) -> None:
    """Load the weights of ImageNet's VGG16 into ``model``, and print which layers stay random.

    The encoder gets the convolutions. ``fc6`` and ``fc7``, if the model has them, get the first two fully connected
    layers as convolutions of 7x7 and 1x1. From a file with the model's own parameter names, the model gets all
    parameters of the same shape. Nothing is loaded within `segdet.nn.weights.restoring`, nor from a checkpoint of
    segdet, which is loaded later.

    Args:
        model: A model with a `VGG16` as ``encoder``.
        weights: See `segdet.nn.weights.read_weights`.

    Raises:
        UserError: If the weights cannot be read or do not fit.
    """
    encoder = model.encoder
    assert isinstance(encoder, VGG16)
    published = VGG16_BN_Weights if encoder.batch_norm else VGG16_Weights
    source, state = read_weights(weights, "VGG16", [published])
    if not state:
        return
    given = state
    if "features.0.weight" in state:
        state = _convert_classifier(encoder, state)
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    convolutions = [
        f"encoder.{name}.weight" for name, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d)
    ]
    missing = [key for key in convolutions if key not in fitting]
    check_complete(own, missing, source, f"{type(model).__name__}'s VGG16")
    model.load_state_dict(fitting, strict=False)
    new = list(dict.fromkeys(key.rpartition(".")[0] for key in own if key not in fitting))
    counted = count_used(given, fitting.values())
    report(f"VGG16: {counted} from {source}; random weights: {listed(new) if new else 'none'}")


def _convert_classifier(encoder: VGG16, state: StateDict) -> StateDict:
    """Return torchvision's state dict under the names of a model with ``encoder``, ``fc6`` and ``fc7``."""
    converted = {f"encoder.{key}": value for key, value in encoder.convert_torchvision(state).items()}
    for layer, name, side in (("classifier.0", "fc6", 7), ("classifier.3", "fc7", 1)):
        weight, bias = state.get(f"{layer}.weight"), state.get(f"{layer}.bias")
        # IMAGENET1K_FEATURES has NaN in the classifier, which was never published.
        if weight is not None and bias is not None and bool(weight.isfinite().all()):
            converted |= {f"{name}.weight": weight.unflatten(1, (-1, side, side)), f"{name}.bias": bias}
    return converted
