"""Down and up again: one encoder, a mirrored decoder, and an upsampler to choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from segdet.nn.pooling import MaxPooling, Pooled, switch_map
from segdet.nn.upsampling import Upsampling, build_upsampler
from segdet.segmentation.base import Segmenter
from segdet.segmentation.pictures import heat_maps, outputs, strength
from segdet.task import Stage
from segdet.util.errors import UserError


class UpsamplingFCN(Segmenter):
    """An encoder of 2x2 max pools and a decoder that mirrors it, alike for six ways of upsampling.

    Most of the work is done at low resolution, where a convolution costs a quarter with every pooling and
    sees twice as far; then the maps are brought back to the image's size step by step. How, is the question
    that this network is to answer, so all else stays the same: layers, channels, initial weights of a seed.
    There are no skips, which would hide what the upsampler does.

    - ``nearest`` repeats values, ``bilinear`` interpolates; neither knows where in a window a value came from.
    - ``bed_of_nails`` puts them at a fixed corner, with zeros for the decoder's convolutions to fill.
    - ``max_unpooling`` puts them where the encoder's maxima stood, as SegNet (Badrinarayanan et al., PAMI 2017)
      and DeconvNet (Noh et al., ICCV 2015) do.
    - ``transposed`` learns the kernel, from bilinear on, and is alone in having parameters to learn;
      ``transposed_frozen`` keeps it (FCN, CVPR 2015, and SegNet's table 1 compare the two).

    Max unpooling places a channel by the switches of the same channel, so the decoder has at each
    resolution the encoder's channels: its stage reduces them last, after they are placed, and the stage between the
    last pooling and the first upsampling keeps them. Each stage is VGG's 3x3 convolutions (Simonyan and
    Zisserman, ICLR 2015) with batch normalization and ReLU. It costs one pass; switches cost the memory of
    an index for each pooled value, which all six remember and one uses.

    Args:
        upsampling: See above.
        channels: Of each of the encoder's stages, fine to coarse; a pooling follows each.
        convolutions: In each stage, on the way down and up, and between.
        dropout: The rate before the classifier.
        kwargs: As for `Segmenter`.

    Raises:
        UserError: If there is no such upsampling, no stage, or no convolution in a stage.
    """

    def __init__(
        self,
        class_names: list[str],
        upsampling: Upsampling = "max_unpooling",
        channels: list[int] = [32, 64, 128, 256],  # noqa: B006  read only; jsonargparse shows it as the default
        convolutions: int = 2,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        if not channels or min(channels) < 1:
            raise UserError(
                f"--model.channels: {channels}; give a positive number for each stage, such as [32, 64]"
            )
        if convolutions < 1:
            raise UserError(f"--model.convolutions: {convolutions}; give 1 or more")
        self.upsampling = upsampling
        widths = [3, *channels]
        self.encoder = nn.ModuleList(
            _convolutions([before] + [width] * convolutions)
            for before, width in zip(widths, channels, strict=False)
        )
        self.pools = nn.ModuleList(MaxPooling() for _ in channels)
        self.between = _convolutions([channels[-1]] * (convolutions + 1))
        self.upsamplers = nn.ModuleList(build_upsampler(upsampling, width) for width in reversed(channels))
        self.decoder = nn.ModuleList(
            _convolutions([width] * convolutions + [after])
            for width, after in zip(reversed(channels), [*reversed(channels[:-1]), channels[0]], strict=True)
        )
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels[0], len(class_names), 1))

    @property
    def pass_module(self) -> nn.Module:
        return self.between

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to logits ``[B, C, H, W]``."""
        features = images
        pooled: list[Pooled] = []
        for stage, pool in zip(self.encoder, self.pools, strict=True):
            pooled.append(pool(stage(features)))
            features = pooled[-1].features
        features = self.between(features)
        for upsample, stage, here in zip(self.upsamplers, self.decoder, reversed(pooled), strict=True):
            features = stage(upsample(features, here.size, here.switches))
        return self.classifier(features)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        watched = [*self.encoder, *self.pools, self.between, *self.upsamplers, *self.decoder]
        with outputs(watched) as seen:
            logits = self(image)
        remembered = (
            "used again on the way up" if self.upsampling == "max_unpooling" else "not used on the way up"
        )
        for level, (stage, pool) in enumerate(zip(self.encoder, self.pools, strict=True)):
            features, stride = seen[stage], 2**level
            yield Stage(
                f"down, stride {stride}",
                map=strength(features),
                about=f"Where the encoder's features are strong at stride {stride}.",
            )
            yield Stage(
                f"switches, stride {stride}",
                map=switch_map(seen[pool]),
                about=f"In what share of the channels a pixel was the maximum of its 2x2 window; {remembered}.",
            )
        yield Stage(
            f"between, stride {2 ** len(self.pools)}",
            map=strength(seen[self.between]),
            about="Where features are strong at the lowest resolution.",
        )
        for level, (upsample, stage) in enumerate(zip(self.upsamplers, self.decoder, strict=True), start=1):
            stride = 2 ** (len(self.pools) - level)
            yield Stage(
                f"{self.upsampling}, stride {stride}",
                map=strength(seen[upsample]),
                about=f"What {self.upsampling} makes of it at stride {stride}, before any convolution.",
            )
            yield Stage(
                f"up, stride {stride}",
                map=strength(seen[stage]),
                about=f"The same after the decoder's convolutions at stride {stride}.",
            )
        yield from heat_maps(logits, self.class_names)


def _convolutions(widths: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions from each width to the next, each with batch normalization and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
        ]  # fmt: skip
    return nn.Sequential(*layers)
