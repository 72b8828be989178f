"""The first idea of a fully convolutional network: convolutions at the image's size, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from segdet.segmentation.base import Segmenter
from segdet.segmentation.pictures import heat_maps, outputs, strength
from segdet.task import Stage
from segdet.util.errors import UserError


class FullResolutionFCN(Segmenter):
    """A stack of convolutions that keeps the image's resolution from the first layer to the last.

    Where a sliding window labels one pixel a pass, this labels all of them in one: no pooling, no stride, hence
    nothing to bring back, and no detail is lost. It is right, and very expensive: every layer computes and keeps
    ``width`` x H x W numbers, four times those of a layer behind one pooling and 256 times those behind
    four. And what a pixel sees grows by two pixels a layer only, where every pooling doubles it: ``depth``
    layers of 3x3 see ``2 * depth + 1`` pixels. The SegNet paper (PAMI 2017, section 4) found such a network to need
    more memory, to learn more slowly and to score worse.

    ``dilations`` widen the view at no cost in parameters (Yu and Koltun, ICLR 2016), still at full resolution.

    Args:
        depth: How many 3x3 convolutions, each with batch normalization and ReLU; a 1x1 convolution
            classifies after them.
        width: The channels of each.
        dilations: Of each convolution; null for 1 everywhere.
        dropout: The rate before the classifier.
        kwargs: As for `Segmenter`.

    Raises:
        UserError: If depth or width is not positive, or the dilations are not ``depth`` positive numbers.
    """

    def __init__(
        self,
        class_names: list[str],
        depth: int = 8,
        width: int = 32,
        dilations: list[int] | None = None,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        if depth < 1 or width < 1:
            raise UserError(f"--model.depth and --model.width: {depth} and {width}; give 1 or more")
        if dilations is None:
            dilations = [1] * depth
        if len(dilations) != depth or min(dilations) < 1:
            raise UserError(
                f"--model.dilations: {dilations} for a depth of {depth}; give {depth} numbers from 1 on"
            )
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(
                        width if index else 3, width, 3, padding=dilation, dilation=dilation, bias=False
                    ),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
                for index, dilation in enumerate(dilations)
            )
        )
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, len(class_names), 1))

    @property
    def pass_module(self) -> nn.Module:
        return self.convolutions

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to logits ``[B, C, H, W]``."""
        return self.classifier(self.convolutions(images))

    def stages(self, image: Tensor) -> Iterator[Stage]:
        with outputs(self.convolutions) as seen:
            logits = self(image)
        view = 1
        for number, convolution in enumerate(self.convolutions, start=1):
            view += 2 * convolution[0].dilation[0]  # type: ignore[index]
            yield Stage(
                f"features {number}",
                map=strength(seen[convolution]),
                about=f"Where the features are strong after {number} convolutions; each sees {view}x{view} pixels.",
            )
        yield from heat_maps(logits, self.class_names)
