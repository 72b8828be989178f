"""VGG16's convolutions as an encoder, and where its weights come from: FCN, SegNet and DeconvNet stand on it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torchvision.models import VGG16_BN_Weights, VGG16_Weights

from segdet.nn.pooling import MaxPooling, Pooled
from segdet.nn.weights import is_restoring, read_weights
from segdet.util.errors import UserError

CHANNELS = (64, 128, 256, 512, 512)
"""Of the five stages."""

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""In each stage."""


def widths(width: float) -> list[int]:
    """The channels of the five stages when each has the share ``width`` of VGG16's, at least one.

    Raises:
        UserError: If ``width`` is not positive.
    """
    if width <= 0:
        raise UserError(
            f"--model.width: {width} of VGG16's channels are none; give a share such as 0.125, or 1"
        )
    return [max(1, round(width * channels)) for channels in CHANNELS]


class VGG16(nn.Module):
    """The thirteen 3x3 convolutions of VGG16 in five stages (Simonyan and Zisserman, ICLR 2015, table 1, D).

    Each stage ends in max pooling, whose windows reach over the border as Caffe's do: a map of 7 pixels
    becomes one of 4.

    Args:
        width: The share of the channels.
        batch_norm: Whether batch normalization follows each convolution.
        pad: How far the very first convolution pads the image.
        dropout: The rate behind the pooling of the last three stages.
    """

    def __init__(
        self, width: float = 1.0, batch_norm: bool = False, pad: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.channels = widths(width)
        self.batch_norm = batch_norm
        self.stages = nn.ModuleList()
        before = 3
        for channels, convolutions in zip(self.channels, CONVOLUTIONS, strict=True):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                layers.append(nn.Conv2d(before, channels, 3, padding=1 if self.stages or layers else pad))
                layers += [nn.BatchNorm2d(channels)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                before = channels
            self.stages.append(nn.Sequential(*layers))
        self.pool = MaxPooling()
        self.dropout = nn.Dropout(dropout)
        he_initialized(self)

    def forward(self, images: Tensor) -> list[Pooled]:
        """Images ``[B, 3, H, W]`` to the five stages' maps of strides 2, 4, 8, 16 and 32, fine to coarse."""
        pooled: list[Pooled] = []
        features = images
        for index, stage in enumerate(self.stages):
            here = self.pool(stage(features))
            pooled.append(here)
            features = self.dropout(here.features) if index >= 2 else here.features
        return [*pooled[:-1], pooled[-1]._replace(features=features)]

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What torchvision's VGG16 (with or without batch normalization) calls ``features``, by the names here.

        Args:
            state: torchvision's state dict.

        Raises:
            UserError: If those are not thirteen convolutions of this shape.
        """
        theirs: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("features."):
                _, index, name = key.split(".")
                theirs.setdefault(int(index), {})[name] = value
        parts: dict[bool, list[dict[str, Tensor]]] = {True: [], False: []}
        for _, part in sorted(theirs.items()):
            parts[part["weight"].ndim == 4].append(part)
        own = [(n, m) for n, m in self.named_modules() if isinstance(m, nn.Conv2d)]
        shapes = [m.weight.shape for _, m in own]
        if [part["weight"].shape for part in parts[True]] != shapes:
            raise UserError(
                f"--model.weights: not those of a VGG16 with {shapes[0][0]} to {shapes[-1][0]} channels; give "
                "torchvision's for --model.width 1, or null to start at random"
            )
        norms = [(n, m) for n, m in self.named_modules() if isinstance(m, nn.BatchNorm2d)]
        if parts[False] and not norms:
            raise UserError(
                "--model.weights: those of a VGG16 with batch normalization, which this one has not; give vgg16's"
            )
        pairs = [*zip(own, parts[True], strict=True), *zip(norms, parts[False], strict=False)]
        return {f"{n}.{key}": value for (n, _), part in pairs for key, value in part.items()}


def he_initialized(module: nn.Module) -> None:
    """Draws the weights of all convolutions as He et al. (ICCV 2015) do, Caffe's "MSRA"; biases are zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def start_from(model: nn.Module, encoder: VGG16, weights: str | bool) -> None:
    """Gives ``model`` the weights of ImageNet's VGG16 or of a former run, and says what stays new.

    Of ImageNet's VGG16 the encoder takes the convolutions, and ``fc6`` and ``fc7``, where the model has
    them, the first two fully connected layers seen as convolutions of 7x7 and 1x1. Of a former run the
    model takes all that has its name and shape in both. A model that is restored has no start.

    Args:
        model: What is to start; has ``encoder`` as ``encoder``.
        encoder: Its encoder.
        weights: The name of torchvision's weights (``IMAGENET1K_V1``) or true for its default ones; or a file
            of them; or the folder of a run or a checkpoint in it.

    Raises:
        UserError: If the weights cannot be had or do not fit.
    """
    if is_restoring():
        return
    published = VGG16_BN_Weights if encoder.batch_norm else VGG16_Weights
    _, state = read_weights(weights, "VGG16", [published])
    if "features.0.weight" in state:
        state = _of_imagenet(encoder, state)
    own = model.state_dict()
    taken = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    if not taken:
        raise UserError(
            f"{weights}: nothing in it fits {type(model).__name__}; give torchvision's VGG16 or a run of this family"
        )
    model.load_state_dict(taken, strict=False)
    new = dict.fromkeys(key.rpartition(".")[0] for key in own if key not in taken)
    _say(f"starts from {weights}; new: {_listed(list(new)) or 'nothing'}")


def _of_imagenet(encoder: VGG16, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's state dict by the names of a model that has ``encoder``, ``fc6`` and ``fc7``."""
    ours = {f"encoder.{key}": value for key, value in encoder.renamed(state).items()}
    for theirs, name, side in (("classifier.0", "fc6", 7), ("classifier.3", "fc7", 1)):
        weight, bias = state.get(f"{theirs}.weight"), state.get(f"{theirs}.bias")
        # IMAGENET1K_FEATURES has NaN in the classifier, for it was never published.
        if weight is not None and bias is not None and bool(weight.isfinite().all()):
            ours |= {f"{name}.weight": weight.unflatten(1, (-1, side, side)), f"{name}.bias": bias}
    return ours


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


@rank_zero_only
def _say(line: str) -> None:
    sys.stderr.write(f"segdet: {line}\n")
