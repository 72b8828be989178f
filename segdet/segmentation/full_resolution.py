"""The simplest fully convolutional network: convolutions at full resolution, without pooling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from segdet.segmentation.base import Segmenter
from segdet.segmentation.stage_maps import class_heat_maps, feature_stage, record_outputs
from segdet.task import Stage
from segdet.util.errors import UserError, check_range


class FullResolutionFCN(Segmenter):
    """A stack of convolutions with the image's resolution in every layer.

    A sliding window classifies one pixel per pass; this network classifies all pixels in one pass. Without pooling and
    strides no detail is lost and no upsampling is needed. But the network is expensive. Every layer computes and stores
    ``width`` x H x W values, 4 times as many as after one pooling and 256 times as many as after four. The receptive
    field grows by only two pixels per layer, whereas every pooling doubles it: ``depth`` layers of 3x3 cover
    ``2 * depth + 1`` pixels. The SegNet paper (PAMI 2017, section 4) found that such a network needs more memory,
    learns more slowly and scores worse.

    ``dilations`` enlarge the receptive field without further parameters (Yu and Koltun, ICLR 2016), still at full
    resolution.

    Args:
        depth: The number of 3x3 convolutions, each with batch normalization and ReLU. A 1x1 convolution
            classifies their output.
        width: The channels of each convolution.
        dilations: The dilation of each convolution; null for 1 everywhere.
        dropout: The dropout rate before the classifier.
        kwargs: See `Segmenter`.

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
        check_range("--model.depth", depth, least=1)
        check_range("--model.width", width, least=1)
        if dilations is None:
            dilations = [1] * depth
        if len(dilations) != depth or min(dilations) < 1:
            raise UserError(
                f"--model.dilations: {dilations} for a depth of {depth}; give {depth} integers of at least 1"
            )
        convolutions = [
            Conv2dNormActivation(width if index else 3, width, 3, dilation=dilation)
            for index, dilation in enumerate(dilations)
        ]
        self.convolutions = nn.Sequential(*convolutions)
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, len(class_names), 1))

    @property
    def pass_module(self) -> nn.Module:
        return self.convolutions

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        return self.classifier(self.convolutions(images))

    def stages(self, image: Tensor) -> Iterator[Stage]:
        with record_outputs(self.convolutions) as outputs:
            logits = self(image)
        field = 1
        for number, convolution in enumerate(self.convolutions, start=1):
            field += 2 * convolution[0].dilation[0]  # type: ignore[index]
            caption = (
                f"The feature strength after {number} convolutions. Their receptive field is {field}x{field}."
            )
            yield feature_stage(f"features {number}", outputs[convolution], caption)
        yield from class_heat_maps(logits, self.class_names)
