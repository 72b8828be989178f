"""SegNet, SegNet-Basic and the decoders that the paper compares on it: where each maximum came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from segdet.nn.float32 import at_least_float32
from segdet.nn.pooling import MaxPooling, Pooled, switch_map
from segdet.nn.upsampling import Bilinear, MaxUnpooling, bilinear_convolution
from segdet.nn.vgg16 import CONVOLUTIONS, VGG16, init_he, load_vgg16_weights
from segdet.segmentation.base import Segmenter
from segdet.segmentation.pictures import heat_maps, strength
from segdet.task import Stage
from segdet.util.errors import UserError, check_choice


class SegNet(Segmenter):
    """SegNet (Badrinarayanan, Kendall, Cipolla, PAMI 2017, section 3): an encoder and its mirror image.

    Max pooling throws away where in its window the maximum stood, and with it the boundaries. SegNet keeps just
    that: the decoder puts every value of its coarse map back to the place that the encoder's switch remembers,
    zeros elsewhere, and convolutions make the sparse map dense. Nothing of the upsampling is learned, and
    instead of the encoder's maps two bits a window would do to be kept.

    The encoder is VGG16's 13 convolutions; the decoder has 13, too. All have batch normalization and ReLU but the
    last, which scores the classes at full resolution. It costs less than a quarter of FCN's parameters, for there is
    no fc6 (29,433,483 with 11 classes, and 15,872 of batch normalization), but convolves 64 channels at full
    resolution twice: 422 ms forward at 360x480 on a Titan against FCN's 317 in the paper.

    Args:
        class_names: See `Task`.
        weights: The name of torchvision's weights for VGG16 with batch normalization (``IMAGENET1K_V1``) or true
            for its default ones, a file of them (of VGG16 without it, too), or the folder or a checkpoint of
            a former run; null starts at random.
        width: The share of VGG16's channels.
        dropout: The rate behind each of the three deeper stages of encoder and decoder. The paper's benchmark says
            .5 for the deeper layers; that these are meant is Bayesian SegNet's choice (Kendall et al., BMVC 2017).
        kwargs: As for `Segmenter`.
    """

    def __init__(
        self,
        class_names: list[str],
        weights: str | bool | None = None,
        width: float = 1.0,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.encoder = VGG16(width, batch_norm=True, dropout=dropout)
        self.unpooling = MaxUnpooling(2)
        channels = self.encoder.channels
        self.decoders = nn.ModuleList()
        for stage in reversed(range(len(channels))):
            into = channels[stage - 1] if stage else len(class_names)
            layers: list[nn.Module] = []
            for _ in range(CONVOLUTIONS[stage] - 1):
                layers += [*_convolution(channels[stage], channels[stage], 3), nn.ReLU(inplace=True)]
            if stage:
                layers += [*_convolution(channels[stage], into, 3), nn.ReLU(inplace=True)]
            else:
                layers.append(nn.Conv2d(channels[stage], into, 3, padding=1))
            if stage >= 2 and dropout:
                layers.append(nn.Dropout(dropout))
            self.decoders.append(nn.Sequential(*layers))
        init_he(self.decoders)
        if weights:
            load_vgg16_weights(self, weights)

    @property
    def pass_module(self) -> nn.Module:
        return self.encoder

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to logits ``[B, C, H, W]``."""
        return self._decoded(self.encoder(images))[-1]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        pooled = self.encoder(image)
        decoded = self._decoded(pooled)
        yield from encoder_stages(pooled)
        for number, features in zip(range(len(decoded), 1, -1), decoded, strict=False):
            yield Stage(
                f"decoder {number}",
                map=strength(features),
                about=f"How strongly decoder {number} responds after unpooling and convolving.",
            )
        yield from heat_maps(decoded[-1], self.class_names)

    def _decoded(self, pooled: list[Pooled]) -> list[Tensor]:
        """What comes out of each decoder, from the coarsest to the logits."""
        decoded: list[Tensor] = []
        features = pooled[-1].features
        for decoder, here in zip(self.decoders, reversed(pooled), strict=True):
            features = decoder(self.unpooling(features, here.size, here.switches))
            decoded.append(features)
        return decoded


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
"""The rows of the paper's table 1, in its order."""


class SegNetBasic(Segmenter):
    """SegNet-Basic and the decoders beside it (Badrinarayanan, Kendall, Cipolla, PAMI 2017, section 3.2, table 1).

    One encoder of four 7x7 convolutions of 64 channels, each with batch normalization, ReLU and max pooling,
    and a choice of decoders that differ in how they come back to full resolution:

    - ``bilinear_interpolation``: classes scored at stride 16, then interpolated; nothing is learned there.
    - ``segnet_basic``: max unpooling by the encoder's switches, then a 7x7 convolution with batch normalization
      and no ReLU, four times; ``single_channel_decoder`` lets each filter see its own channel alone;
      ``encoder_addition`` adds the encoder's 64 maps to each decoder's.
    - ``fcn_basic``: the encoder's maps reduced to one channel a class, transposed convolutions of 8x8 that begin
      as bilinear interpolation, and the encoder's reduced maps added at each resolution;
      ``..._no_addition`` adds none, ``..._no_dim_reduction`` keeps 64 channels and scores the classes at
      the end.

    Convolutions have biases as in the released network, the paper speaks of none: SegNet-Basic has 1,415,563
    parameters and 1,024 of batch normalization, the paper's table 1.425 M; SingleChannelDecoder 625,291, there
    .625 M. Of FCN-Basic the paper leaves open where batch normalization stands and how it scores: here behind
    each reduction and each transposed convolution but the one that gives the logits. That makes 645,612 parameters
    (.65 M in the table), and 1,661,067 where nothing is reduced (1.625 M); bilinear interpolation has 612,491
    (.625 M). What the table's two other numbers count beside that or leave out, the paper does not tell. It costs one
    pass, of 52.6 ms at 360x480 on a Titan (24.2 for bilinear interpolation and FCN-Basic).

    Two steps of the paper's evaluation are taken otherwise, as for all families: batch normalization is tested with
    its running statistics, where the paper computes them once more over the training set; and the best checkpoint
    is the one of the highest ``val/miou``, where the paper takes that of the highest global accuracy.

    Args:
        class_names: See `Task`.
        variant: See above.
        channels: Of the encoder, and of decoders where they are as many.
        kernel_size: Of the convolutions.
        lrn: Whether local response normalization (5, 1e-4, .75) comes before all, as in the released network. It
            is meant for values of 0 to 255: give ``mean: [0, 0, 0]`` and ``std`` of 1/255 with it.
        kwargs: As for `Segmenter`.
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
            raise UserError(f"--model.kernel_size: {kernel_size} has no middle; give an odd number")
        self.normalization = nn.LocalResponseNorm(5, 1e-4, 0.75) if lrn else nn.Identity()
        self.encoder = _BasicEncoder(channels, kernel_size)
        self.decoder = _decoder(variant, channels, len(class_names), kernel_size)
        init_he(self)

    @property
    def pass_module(self) -> nn.Module:
        return self.encoder

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to logits ``[B, C, H, W]``."""
        return self.decoder(*self.encoder(self.normalization(images)))[-1]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        maps, pooled = self.encoder(self.normalization(image))
        decoded = self.decoder(maps, pooled)
        yield from encoder_stages(pooled)
        for number, features in zip(range(len(pooled), 0, -1), decoded, strict=False):
            yield Stage(
                f"decoder {number}",
                map=strength(features),
                about=f"How strongly decoder {number} responds.",
            )
        yield from heat_maps(decoded[-1], self.class_names)


class _BasicEncoder(nn.Module):
    """Images to the maps of four convolutions before pooling, and after it."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Sequential(*_convolution(before, channels, kernel_size), nn.ReLU(inplace=True))
            for before in (3, channels, channels, channels)
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
    """Unpooling and convolving, four times, then the classes' scores.

    Args:
        channels: Of all maps.
        classes: How many are scored.
        kernel_size: Of the convolutions.
        single_channel: Whether a filter sees its own channel alone.
        addition: Whether the encoder's maps are added.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        kernel_size: int,
        single_channel: bool = False,
        addition: bool = False,
    ) -> None:
        super().__init__()
        groups = channels if single_channel else 1
        self.unpooling = MaxUnpooling(2)
        self.convolutions = nn.ModuleList(
            nn.Sequential(*_convolution(channels, channels, kernel_size, groups)) for _ in range(4)
        )
        self.addition = addition
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, maps: list[Tensor], pooled: list[Pooled]) -> list[Tensor]:
        """What each decoder gives, coarse to fine, and last the logits."""
        decoded = [pooled[-1].features]
        for convolution, features, here in zip(self.convolutions, maps[::-1], pooled[::-1], strict=True):
            dense = convolution(self.unpooling(decoded[-1], here.size, here.switches))
            decoded.append(dense + features if self.addition else dense)
        return [*decoded[1:], self.classifier(decoded[-1])]


class _FCNDecoder(nn.Module):
    """Transposed convolutions of 8x8 by two, four times, with the encoder's maps of each resolution added.

    Args:
        channels: Of the encoder's maps.
        classes: How many are scored.
        addition: Whether the encoder's pooled maps are added.
        reduction: Whether the encoder's maps are reduced to a channel a class before all.
    """

    def __init__(self, channels: int, classes: int, addition: bool = True, reduction: bool = True) -> None:
        super().__init__()
        width = classes if reduction else channels
        self.addition = addition
        # From coarse to fine; the finest resolution is the image's, for which there is no pooled map.
        self.reductions = nn.ModuleList(
            nn.Sequential(*_convolution(channels, classes, 1)) if reduction else nn.Identity()
            for _ in range(4 if addition else 1)
        )
        self.upsamplings = nn.ModuleList(bilinear_convolution(width, 2, 8, padding=3) for _ in range(4))
        self.norms = nn.ModuleList(
            # The logits are what they are.
            nn.Identity() if reduction and index == 3 else nn.BatchNorm2d(width)
            for index in range(4)
        )
        self.classifier = nn.Identity() if reduction else nn.Conv2d(channels, classes, 1)

    def forward(self, maps: list[Tensor], pooled: list[Pooled]) -> list[Tensor]:
        """What each decoder gives, coarse to fine, and last the logits."""
        coarse = pooled[::-1]
        decoded = [self.reductions[0](coarse[0].features)]
        for index, here in enumerate(coarse):
            h, w = here.size
            large = self.norms[index](self.upsamplings[index](decoded[-1])[..., :h, :w])
            if self.addition and index < 3:
                large = large + self.reductions[index + 1](coarse[index + 1].features)
            decoded.append(large)
        return [*decoded[1:], self.classifier(decoded[-1])]


class _BilinearDecoder(nn.Module):
    """The classes' scores at the coarsest map, interpolated by two four times."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, classes, 1)
        self.upsampling = Bilinear(2)

    def forward(self, maps: list[Tensor], pooled: list[Pooled]) -> list[Tensor]:
        """The scores at each resolution, coarse to fine."""
        decoded = [at_least_float32(self.classifier(pooled[-1].features))]
        for here in pooled[::-1]:
            decoded.append(self.upsampling(decoded[-1], here.size))
        return decoded[1:]


def _decoder(variant: Variant, channels: int, classes: int, kernel_size: int) -> nn.Module:
    """The decoder that `SegNetBasic` calls ``variant``."""
    match variant:
        case "bilinear_interpolation":
            return _BilinearDecoder(channels, classes)
        case "segnet_basic":
            return _SegNetDecoder(channels, classes, kernel_size)
        case "encoder_addition":
            return _SegNetDecoder(channels, classes, kernel_size, addition=True)
        case "single_channel_decoder":
            return _SegNetDecoder(channels, classes, kernel_size, single_channel=True)
        case "fcn_basic":
            return _FCNDecoder(channels, classes)
        case "fcn_basic_no_addition":
            return _FCNDecoder(channels, classes, addition=False)
        case "fcn_basic_no_dim_reduction":
            return _FCNDecoder(channels, classes, reduction=False)
        case "fcn_basic_no_addition_no_dim_reduction":
            return _FCNDecoder(channels, classes, addition=False, reduction=False)


def encoder_stages(pooled: list[Pooled]) -> Iterator[Stage]:
    """What each encoder responds to, and which pixels its pooling remembers."""
    for number, here in enumerate(pooled, 1):
        yield Stage(
            f"encoder {number}",
            map=strength(here.features),
            about=f"How strongly encoder {number} responds after pooling.",
        )
        yield Stage(
            f"switches {number}",
            map=switch_map(here),
            about=f"In how many channels of encoder {number} the maximum of its window stood at this pixel.",
        )


def _convolution(before: int, channels: int, kernel_size: int, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size, and its batch normalization."""
    convolution = nn.Conv2d(before, channels, kernel_size, padding=kernel_size // 2, groups=groups)
    return [convolution, nn.BatchNorm2d(channels)]
