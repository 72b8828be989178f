"""The fully convolutional network with skips and bilinear upsampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from segdet.nn.backbones import build_backbone
from segdet.nn.float32 import at_least_float32
from segdet.nn.upsampling import upsample_to
from segdet.segmentation.base import Segmenter
from segdet.task import Stage


class FCN(Segmenter):
    """A fully convolutional network (Long, Shelhamer, Darrell, CVPR 2015) on any backbone.

    A classification network without its classifier sees the whole image at once; 1x1 convolutions turn
    its coarse features into class scores, which bilinear interpolation brings back to the image's size.
    Coarse features know what, fine features know where: skips add the two, from the coarsest map
    to the finest of ``strides`` (one stride is the paper's FCN-32s, three are its FCN-8s).

    Where the paper adds class scores, this one adds ``width`` channels and classifies once at the
    finest stride, which costs the same and lets the fine maps correct the coarse ones. It costs one pass
    of the backbone and little more.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See there.
        backbone_options: See there.
        strides: The strides of the maps that are added.
        width: The channels that they are added in.
        dropout: The rate before the classifier.
        kwargs: As for `Segmenter`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: str | bool | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [4, 8, 16, 32],  # noqa: B006  read only; jsonargparse shows it as the default
        width: int = 64,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
            for channels in self.backbone.channels
        )
        self.classifier = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, len(class_names), 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to logits ``[B, C, H, W]``, interpolated between the cells of the finest stride."""
        logits = at_least_float32(self.classifier(self._summed(images)[-1]))
        return upsample_to(logits, (images.shape[2], images.shape[3]), self.backbone.strides[0])

    def stages(self, image: Tensor) -> Iterator[Stage]:
        sums = self._summed(image)
        for stride, features in zip(reversed(self.backbone.strides), sums, strict=True):
            confidence = self.classifier(features).softmax(1).amax(1)[0]
            yield Stage(
                f"stride {stride}",
                map=confidence,
                about=f"How sure it is with the maps down to stride {stride}.",
            )

    def _summed(self, images: Tensor) -> list[Tensor]:
        """The sums of the maps, from the coarsest alone to all of them."""
        maps = self.backbone(images)
        strides = self.backbone.strides
        sums = [self.laterals[-1](maps[-1])]
        for level in range(len(maps) - 2, -1, -1):
            here = self.laterals[level](maps[level])
            above = upsample_to(
                sums[-1], (here.shape[2], here.shape[3]), strides[level + 1] // strides[level]
            )
            sums.append(here + above)
        return sums
