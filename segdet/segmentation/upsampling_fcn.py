"""A comparison of upsampling methods: one encoder, a mirrored decoder and a choice of upsamplers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from segdet.nn.pooling import MaxPooling, Pooled, switch_map
from segdet.nn.upsampling import Upsampling, build_upsampler
from segdet.segmentation.base import Segmenter
from segdet.segmentation.stage_maps import class_heat_maps, feature_stage, record_outputs
from segdet.task import Stage
from segdet.util.errors import check_range


class UpsamplingFCN(Segmenter):
    """An encoder with 2x2 max pooling and a mirrored decoder, with a choice of six upsampling methods.

    Each pooling reduces the cost of a convolution to a quarter and doubles its receptive field, so most of the
    computation is done at low resolution. The decoder then upsamples the maps to the image's size step by step. The
    network serves to compare upsampling methods, so everything else is the same for all of them: layers, channels, and
    the initial weights for a given seed. Skip connections would hide the effect of the upsampler, so there are none.

    - ``nearest`` repeats values, ``bilinear`` interpolates; the position of a value within its window is lost.
    - ``bed_of_nails`` puts values at a fixed corner of their window, zeros elsewhere.
    - ``max_unpooling`` puts values at the positions of the encoder's maxima, as in SegNet (Badrinarayanan et al., PAMI
      2017) and DeconvNet (Noh et al., ICCV 2015).
    - ``transposed`` learns a kernel that is initially bilinear, and is the only method with learned parameters;
      ``transposed_frozen`` keeps the bilinear kernel (compared in FCN, CVPR 2015, and in SegNet's table 1).

    Max unpooling places each channel by the switches of the same channel. At each resolution the decoder therefore has
    as many channels as the encoder. Each decoder stage reduces the channels in its last convolution; the stage between
    the last pooling and the first upsampling keeps them. Each stage consists of VGG's 3x3 convolutions (Simonyan and
    Zisserman, ICLR 2015) with batch normalization and ReLU. The cost is one pass, plus memory for the switches: one
    index per pooled value. All six methods store them, but only ``max_unpooling`` uses them.

    Args:
        upsampling: The upsampling method, see above.
        channels: The channels of each encoder stage, fine to coarse. A pooling follows each.
        convolutions: The number of convolutions per stage.
        dropout: The dropout rate before the classifier.
        kwargs: See `Segmenter`.

    Raises:
        UserError: If the upsampling is unknown, or there is no stage or no convolution in a stage.
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
        check_range("--model.channels", channels, least=1)
        check_range("--model.convolutions", convolutions, least=1)
        self.upsampling = upsampling
        widths = [3, *channels]
        self.encoder = nn.ModuleList(
            _convolutions([previous] + [width] * convolutions)
            for previous, width in zip(widths, channels, strict=False)
        )
        self.pools = nn.ModuleList(MaxPooling() for _ in channels)
        self.between = _convolutions([channels[-1]] * (convolutions + 1))
        self.upsamplers = nn.ModuleList(build_upsampler(upsampling, width) for width in reversed(channels))
        self.decoder = nn.ModuleList(
            _convolutions([width] * convolutions + [following])
            for width, following in zip(
                reversed(channels), [*reversed(channels[:-1]), channels[0]], strict=True
            )
        )
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels[0], len(class_names), 1))

    @property
    def pass_module(self) -> nn.Module:
        return self.between

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        features = images
        pooled: list[Pooled] = []
        for stage, pool in zip(self.encoder, self.pools, strict=True):
            pooled.append(pool(stage(features)))
            features = pooled[-1].features
        features = self.between(features)
        for upsample, stage, below in zip(self.upsamplers, self.decoder, reversed(pooled), strict=True):
            features = stage(upsample(features, below.size, below.switches))
        return self.classifier(features)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        watched = [*self.encoder, *self.pools, self.between, *self.upsamplers, *self.decoder]
        with record_outputs(watched) as outputs:
            logits = self(image)
        used = "used by the decoder" if self.upsampling == "max_unpooling" else "not used by the decoder"
        for level, (stage, pool) in enumerate(zip(self.encoder, self.pools, strict=True)):
            stride = 2**level
            caption = f"The feature strength of the encoder at stride {stride}."
            yield feature_stage(f"down, stride {stride}", outputs[stage], caption)
            caption = f"The fraction of channels in which a pixel is the maximum of its 2x2 window; {used}."
            yield Stage(f"switches, stride {stride}", map=switch_map(outputs[pool]), caption=caption)
        name, caption = (
            f"between, stride {2 ** len(self.pools)}",
            "The feature strength at the lowest resolution.",
        )
        yield feature_stage(name, outputs[self.between], caption)
        for level, (upsample, stage) in enumerate(zip(self.upsamplers, self.decoder, strict=True), start=1):
            stride = 2 ** (len(self.pools) - level)
            caption = (
                f"The feature strength after {self.upsampling} at stride {stride}, before any convolution."
            )
            yield feature_stage(f"{self.upsampling}, stride {stride}", outputs[upsample], caption)
            caption = f"The feature strength after the decoder's convolutions at stride {stride}."
            yield feature_stage(f"up, stride {stride}", outputs[stage], caption)
        yield from class_heat_maps(logits, self.class_names)


def _convolutions(widths: Sequence[int]) -> nn.Sequential:
    """Return 3x3 convolutions from each width to the next, each with batch normalization and ReLU."""
    layers: list[nn.Module] = []
    for channels, out in pairwise(widths):
        layers += Conv2dNormActivation(channels, out, 3)
    return nn.Sequential(*layers)
