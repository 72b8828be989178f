"""U-Net: on any backbone, and the network of the paper with unpadded convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from segdet.data.sample import IGNORE, Target
from segdet.nn.backbones import build_backbone
from segdet.nn.float32 import at_least_float32
from segdet.nn.transfer import to_device
from segdet.nn.upsampling import upsample_to
from segdet.segmentation.base import Segmenter, masks_of
from segdet.segmentation.stage_maps import class_heat_maps, feature_stage
from segdet.task import Stage
from segdet.util.errors import UserError, check_choice, check_range
from segdet.util.stage_timing import stage

Channels = Literal[1, 3]


class UNet(Segmenter):
    """U-Net (Ronneberger, Fischer, Brox, MICCAI 2015) with any backbone as contracting path.

    An FCN adds maps of different strides; U-Net concatenates them. In each level of the expansive path an
    up-convolution upsamples the map to the next finer stride. The result is concatenated with the backbone's map of
    that stride; two 3x3 convolutions combine both (section 2). The decoder thus has as many channels as the encoder,
    which is expensive: the convolutions at strides 1 and 2 take most of the computation.

    Unlike in `OriginalUNet`, convolutions are padded, so that the logits have the image's size. Batch normalization
    follows each of them.

    Args:
        backbone: The backbone, see `segdet.nn.backbones.build_backbone`.
        weights: Its pretrained weights, see `segdet.nn.backbones.build_backbone`.
        backbone_options: Further arguments of `segdet.nn.backbones.build_backbone`.
        strides: The strides of the levels. The level of stride 1, which no backbone has, consists of two convolutions
            on the image, as in the paper. Without it, the logits of the finest stride are interpolated.
        widths: The channels of the expansive path at each level except the coarsest, fine to coarse.
        dropout: The dropout rate of the coarsest map, at the end of the contracting path (section 3.1).
        kwargs: See `Segmenter`.
    """

    cpu_network = {
        "backbone": "small_vgg",
        "backbone_options": {"channels": [32, 64, 96, 128, 192]},
        "strides": [2, 4, 8, 16, 32],
        "widths": [32, 48, 64, 96],
    }

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: bool | str | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [1, 2, 4, 8, 16],  # noqa: B006  read only; jsonargparse shows it as the default
        widths: list[int] = [64, 128, 256, 512],  # noqa: B006
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        strides = sorted(strides)
        if len(strides) < 2:
            raise UserError(f"--model.strides: {strides}; give two or more")
        if len(widths) != len(strides) - 1:
            raise UserError(
                f"--model.widths: {len(widths)} numbers for {len(strides)} strides; give {len(strides) - 1}, one for "
                "each stride but the coarsest"
            )
        self.strides = strides
        self.backbone = build_backbone(
            backbone, weights, [s for s in strides if s > 1], **(backbone_options or {})
        )
        channels = list(self.backbone.channels)
        self.stem: nn.Module | None = None
        if strides[0] == 1:
            self.stem = _two_convolutions(3, widths[0])
            channels.insert(0, widths[0])
        self.dropout = nn.Dropout(dropout)
        coarser = [*widths[1:], channels[-1]]  # the channels of the next coarser level
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(
                coarser[i], widths[i], strides[i + 1] // strides[i], strides[i + 1] // strides[i]
            )
            for i in range(len(widths))
        )
        self.blocks = nn.ModuleList(
            _two_convolutions(width + skip, width) for width, skip in zip(widths, channels, strict=False)
        )
        self.classifier = nn.Conv2d(widths[0], len(class_names), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        contracted = self._contract(images)
        with stage("head"):
            logits = self.classifier(self._expand(contracted)[-1])
        if logits.shape[-2:] == images.shape[-2:]:
            return logits
        return upsample_to(at_least_float32(logits), (images.shape[2], images.shape[3]), self.strides[0])

    def stages(self, image: Tensor) -> Iterator[Stage]:
        contracted = self._contract(image)
        expanded = self._expand(contracted)
        for stride, features in zip(self.strides, contracted, strict=True):
            caption = "The feature strength of the contracting path."
            yield feature_stage(f"contracting, stride {stride}", features, caption)
        for stride, features in zip(reversed(self.strides[:-1]), expanded, strict=True):
            caption = "The feature strength of the expansive path."
            yield feature_stage(f"expanding, stride {stride}", features, caption)
        yield from class_heat_maps(self.classifier(expanded[-1]), self.class_names)

    def _contract(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's maps of all strides, fine to coarse."""
        maps = self.backbone(images)
        maps[-1] = self.dropout(maps[-1])
        return maps if self.stem is None else [self.stem(images), *maps]

    def _expand(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the expansive path's maps of all strides except the coarsest, coarse to fine."""
        expanded = [maps[-1]]
        for up, block, skip in zip(
            reversed(self.ups), reversed(self.blocks), reversed(maps[:-1]), strict=True
        ):
            upsampled = up(expanded[-1])
            # Sides that are not multiples of the stride are rounded up by most backbones, and down by some. In the
            # first case the padding is negative, which crops the map.
            missing = [skip.shape[i] - upsampled.shape[i] for i in (-1, -2)]
            upsampled = F.pad(upsampled, (0, missing[0], 0, missing[1]))
            expanded.append(block(torch.cat([skip, upsampled], 1)))
        return expanded[1:]


class OriginalUNet(Segmenter):
    """The network of the U-Net paper (Ronneberger, Fischer, Brox, MICCAI 2015), with unpadded convolutions.

    23 unpadded convolutions map 572x572 pixels to the classes of the central 388x388 pixels. Each of four levels has
    two 3x3 convolutions and max pooling. The number of channels doubles after each pooling. In the expansive path a
    2x2 up-convolution halves the channels, and its output is concatenated with the cropped map of the contracting
    path (section 2, figure 1).

    Every logit is computed from its full receptive field, so tiles fit together seamlessly (overlap-tile strategy,
    figure 2). The image is extended by mirroring, so that every pixel has a logit, in training and in prediction. With
    ``output_tile``, prediction runs tile by tile, in constant memory and with the same result.

    To separate touching cells, the paper weights the loss of every pixel by
    ``w_c(x) + w_0 exp(-(d_1(x) + d_2(x))^2 / 2 sigma^2)``. d_1 and d_2 are the distances to the nearest and the second
    nearest cell (section 3, equation 2). Class masks do not distinguish cells, only classes. Here, d_1 + d_2 is
    replaced by the distance to the nearest pixel with a neighbour of another class. The narrow gap between two cells
    still has the largest weight of all background, because it is close to a class boundary everywhere, but outer
    boundaries have the same weight.

    The network is expensive: the first level has 64 channels at full resolution, and the margin increases the number of
    pixels of a 388x388 image by a factor of 2.2.

    Args:
        channels: 3 for colour images; 1 for grey images, the mean of the three channels, as in the paper.
        width: The channels of the first level.
        depth: The number of poolings.
        dropout: The dropout rate at the end of the contracting path, applied to its last two maps.
        border_weight: The paper's w_0 (10 in the paper), which requires a ``loss`` of cross_entropy; 0 for no border
            weights.
        border_sigma: The paper's sigma, in pixels.
        output_tile: The side of the tiles in prediction, in logits (388 in the paper); null for the whole image at
            once.
        kwargs: See `Segmenter`.
    """

    def __init__(
        self,
        class_names: list[str],
        channels: Channels = 3,
        width: int = 64,
        depth: int = 4,
        dropout: float = 0.5,
        border_weight: float = 0.0,
        border_sigma: float = 5.0,
        output_tile: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.channels", channels, Channels)
        check_range("--model.width", width, least=1)
        check_range("--model.depth", depth, least=1)
        check_range("--model.border_weight", border_weight, least=0)
        check_range("--model.border_sigma", border_sigma, above=0)
        self.channels = channels
        self.depth = depth
        self.border_weight = border_weight
        self.border_sigma = border_sigma
        if output_tile is not None and output_tile != (possible := self.output_side(max(output_tile, 5))):
            raise UserError(
                f"--model.output_tile {output_tile}: the network cannot output tiles of this size; give {possible}"
            )
        if border_weight and self.loss != "cross_entropy":
            raise UserError(
                f"--model.border_weight {border_weight}: works with cross_entropy, not with {self.loss}; "
                "give --model.loss cross_entropy or a border_weight of 0"
            )
        self.output_tile = output_tile
        widths = [width * 2**level for level in range(depth + 1)]
        self.downs = nn.ModuleList(
            _two_valid_convolutions(in_channels, out)
            for in_channels, out in zip([channels, *widths], widths, strict=False)
        )
        self.dropout = nn.Dropout(dropout)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in widths[:-1])
        self.blocks = nn.ModuleList(_two_valid_convolutions(2 * width, width) for width in widths[:-1])
        self.classifier = nn.Conv2d(width, len(class_names), 1)
        self.apply(_init_he)

    @property
    def pass_module(self) -> nn.Module:
        """The network; a forward pass of one tile counts as one network pass."""
        return self

    @property
    def margin(self) -> int:
        """The number of pixels by which the input exceeds the output on each side: 92 for a depth of 4."""
        return 6 * 2**self.depth - 4

    def output_side(self, side: int) -> int:
        """Return the smallest side of an output that covers ``side`` pixels; the input is ``2 * margin`` larger."""
        step = 2**self.depth
        return 4 + step * max(0, math.ceil((side - 4) / step))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, h, w]`` of the centres of images ``[B, channels, h + 2 margin, w + 2 margin]``.

        ``h`` and ``w`` must be values that `output_side` returns.
        """
        contracted = self._contract(images)
        with stage("head"):
            return self.classifier(self._expand(contracted)[-1])

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        masks = masks_of(targets)
        logits = self(self._extend(images))[:, :, : masks.shape[-2], : masks.shape[-1]]
        if not self.border_weight:
            return {"segmentation": self.pixel_loss(logits, masks)}
        valid = masks != IGNORE
        classes = torch.where(valid, masks, 0)
        class_weights = self.known_weights()
        weights = (
            torch.ones(masks.shape, device=masks.device) if class_weights is None else class_weights[classes]
        )
        weights = weights + self.border_weight * border_proximity(masks, self.border_sigma)
        weights = torch.where(valid, weights, 0.0)
        losses = F.cross_entropy(logits.float(), classes, reduction="none")
        return {"segmentation": (weights * losses).sum() / weights.sum().clamp(min=1e-6)}

    def predict(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        with stage("network"):
            return self._predict_tiles(images)

    def _predict_tiles(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        extended = self._extend(images)
        if self.output_tile is None:
            return self(extended)[:, :, :height, :width]
        rows, columns = self.output_side(height), self.output_side(width)
        side = (min(self.output_tile, rows), min(self.output_tile, columns))
        logits = images.new_empty(len(images), len(self.class_names), rows, columns)
        for top in self._starts(rows, side[0]):
            for left in self._starts(columns, side[1]):
                bottom, right = top + side[0], left + side[1]
                tile = extended[:, :, top : bottom + 2 * self.margin, left : right + 2 * self.margin]
                logits[:, :, top:bottom, left:right] = self(tile)
        return logits[:, :, :height, :width]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        size = (image.shape[2], image.shape[3])
        contracted = self._contract(self._extend(image))
        expanded = self._expand(contracted)
        for level, features in enumerate(contracted):
            offset = 2 * (2 ** (level + 1) - 1)
            visible = self._crop_to_image(features, level, offset, size)
            caption = "The feature strength of the contracting path."
            yield feature_stage(f"contracting, stride {2**level}", visible, caption)
        for level, features in zip(reversed(range(self.depth)), expanded, strict=True):
            offset = self.margin - 2 * (2**level - 1)
            visible = self._crop_to_image(features, level, offset, size)
            caption = "The feature strength of the expansive path."
            yield feature_stage(f"expanding, stride {2**level}", visible, caption)
        logits = self.classifier(expanded[-1])[:, :, : size[0], : size[1]]
        yield from class_heat_maps(logits, self.class_names)

    def _contract(self, images: Tensor) -> list[Tensor]:
        """Return the contracting path's maps of all levels, fine to coarse."""
        maps: list[Tensor] = []
        for level, down in enumerate(self.downs):
            features = down(F.max_pool2d(maps[-1], 2) if maps else images)
            maps.append(self.dropout(features) if level >= self.depth - 1 else features)
        return maps

    def _expand(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the expansive path's maps, coarse to fine."""
        expanded = [maps[-1]]
        for up, block, skip in zip(
            reversed(self.ups), reversed(self.blocks), reversed(maps[:-1]), strict=True
        ):
            upsampled = up(expanded[-1])
            height, width = upsampled.shape[-2:]
            top, left = (skip.shape[-2] - height) // 2, (skip.shape[-1] - width) // 2
            cropped = skip[:, :, top : top + height, left : left + width]
            expanded.append(block(torch.cat([cropped, upsampled], 1)))
        return expanded[1:]

    def _extend(self, images: Tensor) -> Tensor:
        """Extend images by mirroring, so that the network computes a logit for every pixel."""
        if self.channels == 1:
            images = images.mean(1, keepdim=True)
        for axis in (2, 3):
            length = images.shape[axis]
            after = self.output_side(length) - length + self.margin
            # Unlike torch, NumPy mirrors as often as needed, at both ends.
            index = torch.from_numpy(np.pad(np.arange(length), (self.margin, after), "reflect"))
            images = images.index_select(axis, to_device(index, images.device))
        return images

    def _starts(self, length: int, side: int) -> list[int]:
        """Return the first pixels of tiles. Their distances are multiples of the coarsest stride.

        The pooling windows of a tile therefore coincide with those of the whole image.
        """
        return [*range(0, length - side, max(1, side - 4)), length - side]

    def _crop_to_image(self, features: Tensor, level: int, offset: int, size: tuple[int, int]) -> Tensor:
        """Return the part of a map that covers the image. The map starts ``offset`` pixels within the input."""
        start = round((self.margin - offset) / 2**level)
        height, width = (math.ceil(side / 2**level) for side in size)
        return features[:, :, start : start + height, start : start + width]


def border_proximity(masks: Tensor, sigma: float) -> Tensor:
    """Return ``exp(-d^2 / 2 sigma^2)``, where d is the distance of each pixel to the nearest border pixel.

    A border pixel has a 4-neighbour of another class. Ignored pixels have no class and form no border. Beyond four
    sigma the result is zero.

    Args:
        masks: int64 ``[B, H, W]``, 255 where ignored.
        sigma: The standard deviation in pixels.

    Returns:
        float32 ``[B, H, W]``.
    """
    valid = masks != IGNORE
    border = torch.zeros(masks.shape, dtype=torch.bool, device=masks.device)
    horizontal = (masks[:, :, 1:] != masks[:, :, :-1]) & valid[:, :, 1:] & valid[:, :, :-1]
    border[:, :, 1:] |= horizontal
    border[:, :, :-1] |= horizontal
    vertical = (masks[:, 1:] != masks[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    border[:, 1:] |= vertical
    border[:, :-1] |= vertical
    reach = math.ceil(4 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=masks.device)
    gaussian = torch.exp(-(offsets**2) / (2 * sigma**2))
    # The Gaussian of the distance is a product over both axes, so its maximum is found by one pass along each.
    proximity = border.float()
    proximity = (F.pad(proximity, (reach, reach)).unfold(2, len(gaussian), 1) * gaussian).amax(-1)
    return (F.pad(proximity, (0, 0, reach, reach)).unfold(1, len(gaussian), 1) * gaussian).amax(-1)


def _two_convolutions(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(*Conv2dNormActivation(channels, out, 3), *Conv2dNormActivation(out, out, 3))


def _two_valid_convolutions(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3), nn.ReLU(inplace=True), nn.Conv2d(out, out, 3), nn.ReLU(inplace=True)
    )


def _init_he(module: nn.Module) -> None:
    """Initialize weights with variance 2 / N, where N inputs reach one output (He et al., ICCV 2015); zero biases."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        # The windows of an up-convolution do not overlap: each output has one tap.
        taps = 1 if isinstance(module, nn.ConvTranspose2d) else math.prod(module.kernel_size)
        nn.init.normal_(module.weight, std=math.sqrt(2 / (taps * module.in_channels)))
        assert module.bias is not None
        nn.init.zeros_(module.bias)
