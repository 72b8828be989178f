"""U-Net: on any backbone, and the paper's own network of valid convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.data.sample import IGNORE, Target
from segdet.nn.backbones import build_backbone
from segdet.nn.float32 import at_least_float32
from segdet.nn.upsampling import upsample_to
from segdet.segmentation.base import Segmenter, masks_of
from segdet.segmentation.pictures import heat_maps, strength
from segdet.task import Stage
from segdet.util.errors import UserError, check_choice

Channels = Literal[1, 3]


class UNet(Segmenter):
    """U-Net (Ronneberger, Fischer, Brox, MICCAI 2015) with any backbone as its contracting side.

    Where an FCN adds what fine maps say to what coarse maps say, U-Net concatenates the fine features themselves:
    on the expanding side each map is brought to the next finer stride by an up-convolution, laid beside
    the backbone's map of that stride, and two 3x3 convolutions learn what to make of both, down to the pixel.
    So the decoder is as rich as the encoder, which also is what it costs: at stride 1 and 2 its convolutions are
    most of the work.

    Unlike `OriginalUNet`, convolutions are padded, so that an image of any size has logits of its size, and
    followed by batch normalization.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See there.
        backbone_options: See there.
        strides: Those of the levels. Stride 1, which no backbone has, is two convolutions on the image itself,
            as in the paper; without it, logits of the finest stride are interpolated.
        widths: The channels of the expanding side at each level but the coarsest, from fine to coarse.
        dropout: The rate on the coarsest map, at the end of the contracting side (section 3.1).
        kwargs: As for `Segmenter`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: str | bool | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [1, 2, 4, 8, 16],  # noqa: B006  read only; jsonargparse shows it as the default
        widths: list[int] = [64, 128, 256, 512],  # noqa: B006
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        strides = sorted(strides)
        if len(strides) < 2:
            raise UserError(f"--model.strides: {strides} leave nothing to expand; give two or more")
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
        below = [*widths[1:], channels[-1]]  # what comes up to each level
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(
                below[i], widths[i], strides[i + 1] // strides[i], strides[i + 1] // strides[i]
            )
            for i in range(len(widths))
        )
        self.blocks = nn.ModuleList(
            _two_convolutions(width + skip, width) for width, skip in zip(widths, channels, strict=False)
        )
        self.classifier = nn.Conv2d(widths[0], len(class_names), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to logits ``[B, C, H, W]``."""
        logits = self.classifier(self._expand(self._contract(images))[-1])
        if logits.shape[-2:] == images.shape[-2:]:
            return logits
        return upsample_to(at_least_float32(logits), (images.shape[2], images.shape[3]), self.strides[0])

    def stages(self, image: Tensor) -> Iterator[Stage]:
        contracted = self._contract(image)
        expanded = self._expand(contracted)
        for stride, features in zip(self.strides, contracted, strict=True):
            yield Stage(
                f"contracting, stride {stride}",
                map=strength(features),
                about="What it finds on the way down.",
            )
        for stride, features in zip(reversed(self.strides[:-1]), expanded, strict=True):
            yield Stage(
                f"expanding, stride {stride}",
                map=strength(features),
                about="What it makes of that and of coarser maps.",
            )
        yield from heat_maps(self.classifier(expanded[-1]), self.class_names)

    def _contract(self, images: Tensor) -> list[Tensor]:
        """The maps of all strides, fine to coarse."""
        maps = self.backbone(images)
        maps[-1] = self.dropout(maps[-1])
        return maps if self.stem is None else [self.stem(images), *maps]

    def _expand(self, maps: list[Tensor]) -> list[Tensor]:
        """The expanding side's maps of all strides but the coarsest, coarse to fine."""
        expanded = [maps[-1]]
        for up, block, skip in zip(
            reversed(self.ups), reversed(self.blocks), reversed(maps[:-1]), strict=True
        ):
            raised = up(expanded[-1])
            # A side that the stride does not divide is rounded up by most backbones and down by some.
            missing = [skip.shape[i] - raised.shape[i] for i in (-1, -2)]
            raised = F.pad(raised, (0, missing[0], 0, missing[1]))
            expanded.append(block(torch.cat([skip, raised], 1)))
        return expanded[1:]


class OriginalUNet(Segmenter):
    """The network of the U-Net paper (Ronneberger, Fischer, Brox, MICCAI 2015): valid convolutions alone.

    23 convolutions, none of which looks beyond the border of what it is given, turn 572x572 pixels into the classes
    of the 388x388 in their middle. Each of four levels has two 3x3 convolutions and halves the map by max
    pooling while doubling its channels; on the way up a 2x2 up-convolution halves the channels, and the
    cropped map of the other side is put beside the result (section 2, figure 1).

    Since every logit has seen its whole surroundings, tiles fit together without a seam: the overlap-tile
    strategy (figure 2). The image is continued beyond its border by mirroring it, so that every pixel has
    a logit, in training and in prediction; with ``output_tile``, prediction goes tile by tile, in constant memory and
    with the same result.

    The paper's loss weighs every pixel by ``w_c(x) + w_0 exp(-(d_1(x) + d_2(x))^2 / 2 sigma^2)``, d_1 and d_2 being
    the distances to the nearest and the second nearest cell, so that it learns to keep touching cells
    apart (equation 2). Class masks do not tell one cell from the next; what they tell is where the class changes.
    So d_1 + d_2 is here the distance to the nearest pixel whose neighbour is of another class: the narrow gap
    between two cells still weighs most of all background, being close to a change throughout, but outer borders
    weigh as much.

    It is expensive: the first level has 64 channels at full resolution, and the margin makes 2.2 times as many
    pixels of an image of 388x388.

    Args:
        channels: 3 for colours; 1 for grey, the mean of the three, which the paper's images are.
        width: The channels of the first level.
        depth: How often the map is halved.
        dropout: The rate at the end of the contracting side: on its two last maps.
        border_weight: The paper's w_0 (it takes 10), with a ``loss`` of cross_entropy; 0 for the base's loss.
        border_sigma: The paper's sigma, in pixels.
        output_tile: The side of the tiles in prediction, of their logits (388 in the paper); null for the whole
            image at once.
        kwargs: As for `Segmenter`.
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
        for name, whole in (("width", width), ("depth", depth)):
            if whole < 1:
                raise UserError(f"--model.{name} {whole}: must be at least 1")
        if not border_weight >= 0:
            raise UserError(f"--model.border_weight {border_weight}: must be at least 0")
        if not border_sigma > 0:
            raise UserError(f"--model.border_sigma {border_sigma}: must be above 0")
        self.channels = channels
        self.depth = depth
        self.border_weight = border_weight
        self.border_sigma = border_sigma
        if output_tile is not None and output_tile != (possible := self.output_side(max(output_tile, 5))):
            raise UserError(
                f"--model.output_tile: the network has no tiles of {output_tile} pixels; give {possible}"
            )
        if border_weight and self.loss != "cross_entropy":
            raise UserError(
                f"--model.border_weight {border_weight}: weighs the pixels of cross_entropy, not of {self.loss}; "
                "give --model.loss cross_entropy or a border_weight of 0"
            )
        self.output_tile = output_tile
        widths = [width * 2**level for level in range(depth + 1)]
        self.downs = nn.ModuleList(
            _two_valid_convolutions(before, after)
            for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.dropout = nn.Dropout(dropout)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in widths[:-1])
        self.blocks = nn.ModuleList(_two_valid_convolutions(2 * width, width) for width in widths[:-1])
        self.classifier = nn.Conv2d(width, len(class_names), 1)
        self.apply(_he)

    @property
    def pass_module(self) -> nn.Module:
        """One forward of one tile is a network pass."""
        return self

    @property
    def margin(self) -> int:
        """The pixels that the output lacks on each side of the input: 92 for four halvings."""
        return 6 * 2**self.depth - 4

    def output_side(self, side: int) -> int:
        """The smallest side of an output that covers ``side`` pixels; the input has ``2 * margin`` more."""
        step = 2**self.depth
        return 4 + step * max(0, math.ceil((side - 4) / step))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, channels, h + 2 margin, w + 2 margin]`` to the logits ``[B, C, h, w]`` of their middle.

        ``h`` and ``w`` are to be sides that `output_side` gives.
        """
        return self.classifier(self._expand(self._contract(images))[-1])

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        masks = masks_of(targets)
        logits = self(self._continued(images))[:, :, : masks.shape[-2], : masks.shape[-1]]
        if not self.border_weight:
            return {"segmentation": self.pixel_loss(logits, masks)}
        valid = masks != IGNORE
        classes = torch.where(valid, masks, 0)
        counts = self.known_weights()
        weights = torch.ones(masks.shape, device=masks.device) if counts is None else counts[classes]
        weights = weights + self.border_weight * nearness_to_borders(masks, self.border_sigma)
        weights = torch.where(valid, weights, 0.0)
        losses = F.cross_entropy(logits.float(), classes, reduction="none")
        return {"segmentation": (weights * losses).sum() / weights.sum().clamp(min=1e-6)}

    def predict(self, images: Tensor) -> Tensor:
        """Logits ``[B, C, H, W]`` of every pixel."""
        height, width = images.shape[-2:]
        continued = self._continued(images)
        if self.output_tile is None:
            return self(continued)[:, :, :height, :width]
        rows, columns = self.output_side(height), self.output_side(width)
        side = (min(self.output_tile, rows), min(self.output_tile, columns))
        logits = images.new_empty(len(images), len(self.class_names), rows, columns)
        for top in self._starts(rows, side[0]):
            for left in self._starts(columns, side[1]):
                bottom, right = top + side[0], left + side[1]
                seen = continued[:, :, top : bottom + 2 * self.margin, left : right + 2 * self.margin]
                logits[:, :, top:bottom, left:right] = self(seen)
        return logits[:, :, :height, :width]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        size = (image.shape[2], image.shape[3])
        contracted = self._contract(self._continued(image))
        expanded = self._expand(contracted)
        for level, features in enumerate(contracted):
            lost = 2 * (2 ** (level + 1) - 1)
            inside = self._over(features, level, lost, size)
            yield Stage(
                f"contracting, stride {2**level}",
                map=strength(inside),
                about="What it finds on the way down.",
            )
        for level, features in zip(reversed(range(self.depth)), expanded, strict=True):
            inside = self._over(features, level, self.margin - 2 * (2**level - 1), size)
            yield Stage(
                f"expanding, stride {2**level}",
                map=strength(inside),
                about="What it makes of that and of coarser maps.",
            )
        logits = self.classifier(expanded[-1])[:, :, : size[0], : size[1]]
        yield from heat_maps(logits, self.class_names)

    def _contract(self, images: Tensor) -> list[Tensor]:
        """The maps of all levels, fine to coarse."""
        maps: list[Tensor] = []
        for level, down in enumerate(self.downs):
            features = down(F.max_pool2d(maps[-1], 2) if maps else images)
            maps.append(self.dropout(features) if level >= self.depth - 1 else features)
        return maps

    def _expand(self, maps: list[Tensor]) -> list[Tensor]:
        """The expanding side's maps, coarse to fine."""
        expanded = [maps[-1]]
        for up, block, skip in zip(
            reversed(self.ups), reversed(self.blocks), reversed(maps[:-1]), strict=True
        ):
            raised = up(expanded[-1])
            top, left = ((skip.shape[i] - raised.shape[i]) // 2 for i in (-2, -1))
            cropped = skip[:, :, top : top + raised.shape[-2], left : left + raised.shape[-1]]
            expanded.append(block(torch.cat([cropped, raised], 1)))
        return expanded[1:]

    def _continued(self, images: Tensor) -> Tensor:
        """Images with as much of their mirror image around them as the network needs for every pixel."""
        if self.channels == 1:
            images = images.mean(1, keepdim=True)
        height, width = images.shape[-2:]
        rows = _mirrored(height, self.margin, self.output_side(height) - height + self.margin)
        columns = _mirrored(width, self.margin, self.output_side(width) - width + self.margin)
        return images.index_select(2, rows.to(images.device)).index_select(3, columns.to(images.device))

    def _starts(self, whole: int, side: int) -> list[int]:
        """Where tiles begin, in steps that the pooling of all levels divides: so each sees what the whole would."""
        return [*range(0, whole - side, max(1, side - 4)), whole - side]

    def _over(self, features: Tensor, level: int, lost: int, size: tuple[int, int]) -> Tensor:
        """The part of a map over the image: ``lost`` are the input's pixels before the map's first one."""
        start = round((self.margin - lost) / 2**level)
        height, width = (math.ceil(side / 2**level) for side in size)
        return features[:, :, start : start + height, start : start + width]


def nearness_to_borders(masks: Tensor, sigma: float) -> Tensor:
    """``exp(-d^2 / 2 sigma^2)``, d the distance of each pixel to the nearest where the class changes.

    Such a pixel has one of another class above, below, left or right of it. What is ignored is of no class and
    makes no border. Beyond four sigma the result is zero.

    Args:
        masks: int64 ``[B, H, W]``, 255 where ignored.
        sigma: In pixels.

    Returns:
        float32 ``[B, H, W]``.
    """
    valid = masks != IGNORE
    changes = torch.zeros(masks.shape, dtype=torch.bool, device=masks.device)
    across = (masks[:, :, 1:] != masks[:, :, :-1]) & valid[:, :, 1:] & valid[:, :, :-1]
    changes[:, :, 1:] |= across
    changes[:, :, :-1] |= across
    down = (masks[:, 1:] != masks[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    changes[:, 1:] |= down
    changes[:, :-1] |= down
    reach = math.ceil(4 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=masks.device)
    bell = torch.exp(-(offsets**2) / (2 * sigma**2))
    # The nearest border is where the product of two bells is greatest, which a pass along each side finds.
    near = changes.float()
    near = (F.pad(near, (reach, reach)).unfold(2, len(bell), 1) * bell).amax(-1)
    return (F.pad(near, (0, 0, reach, reach)).unfold(1, len(bell), 1) * bell).amax(-1)


def _two_convolutions(channels: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (channels, out):
        layers += [
            nn.Conv2d(before, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _two_valid_convolutions(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3), nn.ReLU(inplace=True), nn.Conv2d(out, out, 3), nn.ReLU(inplace=True)
    )


def _he(module: nn.Module) -> None:
    """Weights of variance 2 / N, N being the inputs of one output (He et al., ICCV 2015); biases of zero."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        # An up-convolution's windows do not overlap: one tap reaches each output.
        taps = 1 if isinstance(module, nn.ConvTranspose2d) else math.prod(module.kernel_size)
        nn.init.normal_(module.weight, std=math.sqrt(2 / (taps * module.in_channels)))
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def _mirrored(length: int, before: int, after: int) -> Tensor:
    """Positions ``-before`` to ``length + after``, those outside mirrored at the first and last, as often as needed."""
    period = max(1, 2 * (length - 1))
    position = torch.arange(-before, length + after) % period
    return torch.minimum(position, period - position) if length > 1 else torch.zeros_like(position)
