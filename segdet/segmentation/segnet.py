"""SegNet, and SegNet-Basic with the decoders that the paper compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from segdet.nn.float32 import at_least_float32
from segdet.nn.pooling import MaxPooling, Pooled
from segdet.nn.upsampling import Bilinear, MaxUnpooling, bilinear_convolution
from segdet.nn.vgg16 import CONVOLUTIONS, VGG16, init_he, load_vgg16_weights, vgg16_normalization
from segdet.nn.weights import Normalization
from segdet.segmentation.base import Segmenter
from segdet.segmentation.stage_maps import class_heat_maps, encoder_stages, feature_stage
from segdet.task import Stage
from segdet.util.errors import UserError, check_choice
from segdet.util.stage_timing import stage


class SegNet(Segmenter):
    """SegNet (Badrinarayanan, Kendall, Cipolla, PAMI 2017, section 3): an encoder and a mirrored decoder.

    Max pooling loses the position of each maximum within its window, and with it the boundaries. SegNet stores these
    positions, the switches. The decoder puts each value of its coarse map at the position of the encoder's switch, with
    zeros elsewhere. Convolutions make the sparse map dense. The upsampling has no learned parameters, and two bits per
    window would suffice to store the switches. The encoder's maps need not be stored.

    The encoder has the 13 convolutions of VGG16, and the decoder has 13 too. Batch normalization and ReLU follow all
    except the last, which computes class scores at full resolution. Without fc6 the network has less than a quarter of
    FCN's parameters (29,433,483 with 11 classes, and 15,872 of batch normalization), but it convolves 64 channels at
    full resolution twice. The paper reports 422 ms per forward pass at 360x480 on a Titan, and 317 ms for FCN.

    Args:
        weights: The name of torchvision's weights of VGG16 with batch normalization (``IMAGENET1K_V1``); true for the
            default ones; a file of VGG16 weights, with or without batch normalization; the folder or a checkpoint of an
            earlier run; null for random weights.
        width: The fraction of VGG16's channels.
        dropout: The dropout rate after each of the three deeper stages of encoder and decoder. The paper's benchmark
            uses .5 "in the deeper layers"; the choice of layers follows Bayesian SegNet (Kendall et al., BMVC 2017).
        kwargs: See `Segmenter`.
    """

    def __init__(
        self,
        class_names: list[str],
        weights: bool | str | None = None,
        width: float = 1.0,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.encoder = VGG16(width, batch_norm=True, dropout=dropout)
        self.unpooling = MaxUnpooling(2)
        channels = self.encoder.channels
        self.decoders = nn.ModuleList()
        for level in reversed(range(len(channels))):
            out = channels[level - 1] if level else len(class_names)
            layers: list[nn.Module] = []
            for _ in range(CONVOLUTIONS[level] - 1):
                layers += Conv2dNormActivation(channels[level], channels[level], 3, bias=True)
            if level:
                layers += Conv2dNormActivation(channels[level], out, 3, bias=True)
            else:
                layers.append(nn.Conv2d(channels[level], out, 3, padding=1))
            if level >= 2 and dropout:
                layers.append(nn.Dropout(dropout))
            self.decoders.append(nn.Sequential(*layers))
        init_he(self.decoders)
        if weights:
            load_vgg16_weights(self, weights)

    @classmethod
    def weights_normalization(cls, arguments: Mapping[str, Any]) -> Normalization | None:
        return vgg16_normalization(arguments.get("weights"), batch_norm=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        pooled = self.encoder(images)
        with stage("head"):
            return self._decode(pooled)[-1]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        pooled = self.encoder(image)
        decoded = self._decode(pooled)
        yield from encoder_stages(pooled)
        for number, features in zip(range(len(decoded), 1, -1), decoded, strict=False):
            caption = f"The feature strength of decoder {number}, after unpooling and convolutions."
            yield feature_stage(f"decoder {number}", features, caption)
        yield from class_heat_maps(decoded[-1], self.class_names)

    def _decode(self, pooled: list[Pooled]) -> list[Tensor]:
        """Return the output of each decoder, coarse to fine; the last are the logits."""
        decoded = [pooled[-1].features]
        for decoder, below in zip(self.decoders, reversed(pooled), strict=True):
            decoded.append(decoder(self.unpooling(decoded[-1], below.size, below.switches)))
        return decoded[1:]


Variant = Literal[
    "bilinear_interpolation",
    "segnet_basic",
    "encoder_addition",
    "single_channel_decoder",
    "fcn_basic",
    "fcn_basic_no_addition",
    "fcn_basic_no_dim_reduction",
    "fcn_basic_no_addition_no_dim_reduction",
]
"""The decoders in the paper's table 1, in its order."""


class SegNetBasic(Segmenter):
    """SegNet-Basic and the decoders compared with it (Badrinarayanan et al., PAMI 2017, section 3.2, table 1).

    The encoder has four 7x7 convolutions of 64 channels, each with batch normalization, ReLU and max pooling. The
    decoders differ in how they return to full resolution:

    - ``bilinear_interpolation``: class scores at stride 16, interpolated, without learned upsampling.
    - ``segnet_basic``: four decoders, each of max unpooling with the encoder's switches and a 7x7 convolution with
      batch normalization and without ReLU. In ``single_channel_decoder`` each filter uses its own channel only;
      ``encoder_addition`` adds the encoder's 64 maps to the output of each decoder.
    - ``fcn_basic``: the encoder's maps reduced to one channel per class, 8x8 transposed convolutions that are
      initialized to bilinear interpolation, and the encoder's reduced maps added at each resolution;
      ``..._no_addition`` adds none; ``..._no_dim_reduction`` keeps 64 channels and computes class scores last.

    Convolutions have biases as in the released network; the paper mentions none. SegNet-Basic has 1,415,563 parameters
    and 1,024 of batch normalization (1.425 M in the paper's table); the single-channel decoder has 625,291 (.625 M).
    For FCN-Basic the paper leaves open where batch normalization is placed and how classes are scored. Here batch
    normalization follows each reduction and each transposed convolution except the one that computes the logits. This
    gives 645,612 parameters (.65 M in the table), and 1,661,067 without reduction (1.625 M); bilinear interpolation has
    612,491 (.625 M). The paper does not explain the remaining differences. The cost is one pass: 52.6 ms at 360x480 on
    a Titan (24.2 ms for bilinear interpolation and FCN-Basic).

    The evaluation differs from the paper's in two points, as for all families. Batch normalization uses its running
    statistics; the paper computes them again over the training set. The best checkpoint has the highest ``val/miou``;
    in the paper, it has the highest global accuracy.

    Args:
        variant: The decoder, see above.
        channels: The channels of the encoder, and of the decoders without reduction.
        kernel_size: The side of the convolutions.
        lrn: Whether local response normalization (5, 1e-4, .75) is applied to the image, as in the released network. It
            expects values of 0 to 255: combine it with ``mean: [0, 0, 0]`` and ``std`` of 1/255.
        kwargs: See `Segmenter`.
    """

    def __init__(
        self,
        class_names: list[str],
        variant: Variant = "segnet_basic",
        channels: int = 64,
        kernel_size: int = 7,
        lrn: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.variant", variant, Variant)
        if kernel_size % 2 == 0:
            raise UserError(f"--model.kernel_size: {kernel_size} is even; give an odd number")
        self.normalization = nn.LocalResponseNorm(5, 1e-4, 0.75) if lrn else nn.Identity()
        self.encoder = _BasicEncoder(channels, kernel_size)
        self.decoder = _build_decoder(variant, channels, len(class_names), kernel_size)
        init_he(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        encoded = self.encoder(self.normalization(images))
        with stage("head"):
            return self.decoder(*encoded)[-1]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        maps, pooled = self.encoder(self.normalization(image))
        decoded = self.decoder(maps, pooled)
        yield from encoder_stages(pooled)
        for number, features in zip(range(len(pooled), 0, -1), decoded, strict=False):
            yield feature_stage(f"decoder {number}", features, f"The feature strength of decoder {number}.")
        yield from class_heat_maps(decoded[-1], self.class_names)


class _BasicEncoder(nn.Module):
    """Four convolutions with max pooling; returns the maps before and after each pooling."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            Conv2dNormActivation(in_channels, channels, kernel_size, bias=True)
            for in_channels in (3, channels, channels, channels)
        )
        self.pool = MaxPooling()

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Pooled]]:
        maps: list[Tensor] = []
        pooled: list[Pooled] = []
        for convolution in self.convolutions:
            maps.append(convolution(pooled[-1].features if pooled else images))
            pooled.append(self.pool(maps[-1]))
        return maps, pooled


class _SegNetDecoder(nn.Module):
    """Max unpooling and a convolution, four times, then class scores.

    With ``groups`` equal to the channels, each filter uses its own channel only. ``addition`` adds the encoder's maps.
    """

    def __init__(
        self, channels: int, classes: int, kernel_size: int, groups: int = 1, addition: bool = False
    ) -> None:
        super().__init__()
        self.unpooling = MaxUnpooling(2)
        self.convolutions = nn.ModuleList(
            Conv2dNormActivation(
                channels, channels, kernel_size, groups=groups, activation_layer=None, bias=True
            )
            for _ in range(4)
        )
        self.addition = addition
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, maps: list[Tensor], pooled: list[Pooled]) -> list[Tensor]:
        """Return the output of each decoder, coarse to fine, and last the logits."""
        decoded = [pooled[-1].features]
        for convolution, features, below in zip(self.convolutions, maps[::-1], pooled[::-1], strict=True):
            dense = convolution(self.unpooling(decoded[-1], below.size, below.switches))
            decoded.append(dense + features if self.addition else dense)
        return [*decoded[1:], self.classifier(decoded[-1])]


class _FCNDecoder(nn.Module):
    """Four 8x8 transposed convolutions of stride 2; ``addition`` adds the encoder's pooled maps at each resolution.

    With ``reduction`` the encoder's maps are first reduced to one channel per class.
    """

    def __init__(self, channels: int, classes: int, addition: bool = True, reduction: bool = True) -> None:
        super().__init__()
        width = classes if reduction else channels
        self.addition = addition
        # Coarse to fine. There is no pooled map at the finest resolution, the image's.
        self.reductions = nn.ModuleList(
            Conv2dNormActivation(channels, classes, 1, activation_layer=None, bias=True)
            if reduction
            else nn.Identity()
            for _ in range(4 if addition else 1)
        )
        self.upsamplings = nn.ModuleList(bilinear_convolution(width, 2, 8, padding=3) for _ in range(4))
        self.norms = nn.ModuleList(
            # The logits are not normalized.
            nn.Identity() if reduction and index == 3 else nn.BatchNorm2d(width)
            for index in range(4)
        )
        self.classifier = nn.Identity() if reduction else nn.Conv2d(channels, classes, 1)

    def forward(self, maps: list[Tensor], pooled: list[Pooled]) -> list[Tensor]:
        """Return the output of each decoder, coarse to fine, and last the logits."""
        coarse = pooled[::-1]
        decoded = [self.reductions[0](coarse[0].features)]
        for index, below in enumerate(coarse):
            h, w = below.size
            large = self.norms[index](self.upsamplings[index](decoded[-1])[..., :h, :w])
            if self.addition and index < 3:
                large = large + self.reductions[index + 1](coarse[index + 1].features)
            decoded.append(large)
        return [*decoded[1:], self.classifier(decoded[-1])]


class _BilinearDecoder(nn.Module):
    """Class scores of the coarsest map, interpolated by 2 four times."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, classes, 1)
        self.upsampling = Bilinear(2)

    def forward(self, maps: list[Tensor], pooled: list[Pooled]) -> list[Tensor]:
        """Return the scores at each resolution, coarse to fine."""
        decoded = [at_least_float32(self.classifier(pooled[-1].features))]
        for below in pooled[::-1]:
            decoded.append(self.upsampling(decoded[-1], below.size))
        return decoded[1:]


def _build_decoder(variant: Variant, channels: int, classes: int, kernel_size: int) -> nn.Module:
    match variant:
        case "bilinear_interpolation":
            return _BilinearDecoder(channels, classes)
        case "segnet_basic":
            return _SegNetDecoder(channels, classes, kernel_size)
        case "encoder_addition":
            return _SegNetDecoder(channels, classes, kernel_size, addition=True)
        case "single_channel_decoder":
            return _SegNetDecoder(channels, classes, kernel_size, groups=channels)
        case "fcn_basic":
            return _FCNDecoder(channels, classes)
        case "fcn_basic_no_addition":
            return _FCNDecoder(channels, classes, addition=False)
        case "fcn_basic_no_dim_reduction":
            return _FCNDecoder(channels, classes, reduction=False)
        case "fcn_basic_no_addition_no_dim_reduction":
            return _FCNDecoder(channels, classes, addition=False, reduction=False)
