"""FCN: a fully convolutional network with skip connections and bilinear upsampling, on any backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from segdet.nn.backbones import build_backbone
from segdet.nn.float32 import at_least_float32
from segdet.nn.upsampling import upsample_to
from segdet.segmentation.base import Segmenter
from segdet.segmentation.stage_maps import confidence_stage
from segdet.task import Stage
from segdet.util.stage_timing import stage


class FCN(Segmenter):
    """A fully convolutional network (Long, Shelhamer, Darrell, CVPR 2015) on any backbone.

    A classification network without its classifier is applied to the whole image; 1x1 convolutions convert its
    coarse features to class scores, and bilinear interpolation upsamples these to the image's size (section 3).
    Coarse features carry semantics, fine features carry location. Skip connections add the maps, from the coarsest to
    the finest of ``strides`` (section 4.2): one stride corresponds to the paper's FCN-32s, three to its FCN-8s.

    The paper adds class scores. This network adds maps of ``width`` channels and classifies once at the finest
    stride, at the same cost, so that fine maps can correct coarse ones. The cost is little more than one pass of the
    backbone.

    Args:
        backbone: The backbone, see `segdet.nn.backbones.build_backbone`.
        weights: Its pretrained weights, see `segdet.nn.backbones.build_backbone`.
        backbone_options: Further arguments of `segdet.nn.backbones.build_backbone`.
        strides: The strides of the maps that are added.
        width: The number of channels of the sums.
        dropout: The dropout rate before the classifier.
        kwargs: See `Segmenter`.
    """

    cpu_network = {
        "backbone": "small_vgg",
        "backbone_options": {"channels": [32, 64, 128, 192, 256]},
        "strides": [2, 4, 8, 16, 32],
        "width": 32,
    }

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: bool | str | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [4, 8, 16, 32],  # noqa: B006  read only; jsonargparse shows it as the default
        width: int = 64,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        self.laterals = nn.ModuleList(
            Conv2dNormActivation(channels, width, 1, activation_layer=None)
            for channels in self.backbone.channels
        )
        self.classifier = nn.Sequential(
            nn.ReLU(inplace=True),
            *Conv2dNormActivation(width, width, 3),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, len(class_names), 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``, upsampled bilinearly from the finest stride."""
        sums = self._sums(images)
        with stage("head"):
            logits = at_least_float32(self.classifier(sums[-1]))
            return upsample_to(logits, (images.shape[2], images.shape[3]), self.backbone.strides[0])

    def stages(self, image: Tensor) -> Iterator[Stage]:
        sums = self._sums(image)
        for stride, features in zip(reversed(self.backbone.strides), sums, strict=True):
            caption = f"The probability of the predicted class from the maps down to stride {stride}."
            yield confidence_stage(f"stride {stride}", self.classifier(features), caption)

    def _sums(self, images: Tensor) -> list[Tensor]:
        """Return the cumulative sums of the maps, from the coarsest map alone to the sum of all."""
        maps = self.backbone(images)
        strides = self.backbone.strides
        sums = [self.laterals[-1](maps[-1])]
        for level in range(len(maps) - 2, -1, -1):
            lateral = self.laterals[level](maps[level])
            size = (lateral.shape[2], lateral.shape[3])
            sums.append(lateral + upsample_to(sums[-1], size, strides[level + 1] // strides[level]))
        return sums
