"""Fast R-CNN: one pass for the image, one look at its map for each proposal, one loss for class and box."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.data.sample import Target
from segdet.detection.region_detector import RegionDetector
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import BoxCoder
from segdet.nn.roi import Pooling, RoIPooling, TwoLayerHead, rois_of, sample_rois
from segdet.task import Stage
from segdet.util.errors import UserError, check_choice
from segdet.util.stages import stage


class FastRCNN(RegionDetector):
    """Fast R-CNN (Girshick, ICCV 2015) on any backbone.

    The convolutions run once over the whole image; each proposal's features are pooled from their map to a small map of
    fixed size, on which two fully connected layers and two heads say which class it holds (0 is background) and, for
    each class, how its box is off. Both are learned at once, with all that lies below. It costs one pass of the
    backbone however many proposals there are.

    Training draws 64 regions of each image, up to a quarter of them with an IoU of at least 0.5 with an object, the
    others with one of 0.1 to 0.5 (section 2.3). The paper's images are two a batch.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See there. Of torchvision's VGG16, ``fc6`` and ``fc7`` start from its classifier when ``width`` is 4096
            and ``pool`` 7.
        backbone_options: See there.
        stride: Of the map that regions are pooled from.
        pooling: ``max``, RoI max pooling, or ``align``, RoIAlign, which does not round.
        pool: The side of a region's map.
        width: The units of the two layers.
        dropout: The rate behind either.
        rois_per_image: Regions of an image in training.
        positive_share: The share of them with an object, at most.
        background: The IoU of those without: from the first to below the second.
        svd_ranks: Replaces the two layers in tests by truncated singular value decompositions of these ranks; the
            paper's are 1024 and 256. Null leaves them whole.
        kwargs: As for `RegionDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: str | bool | None = None,
        backbone_options: dict[str, Any] | None = None,
        stride: int = 16,
        pooling: Pooling = "max",
        pool: int = 7,
        width: int = 1024,
        dropout: float = 0.5,
        rois_per_image: int = 64,
        positive_share: float = 0.25,
        background: tuple[float, float] = (0.1, 0.5),
        svd_ranks: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.pooling", pooling, Pooling)
        if svd_ranks is not None and min(svd_ranks) < 1:
            raise UserError(f"--model.svd_ranks: {list(svd_ranks)}; give two ranks of at least 1, or null")
        self.rois_per_image = rois_per_image
        self.positive_share = positive_share
        self.background = background
        self.svd_ranks = svd_ranks
        self.backbone = build_backbone(backbone, weights, [stride], **(backbone_options or {}))
        self.pooling = RoIPooling(pool, stride, pooling)
        self.layers = TwoLayerHead(self.backbone.channels[0] * pool * pool, width, dropout)
        self.layers.start_from(backbone, weights)
        self.classifier = nn.Linear(width, len(class_names) + 1)
        # Four numbers for background, too, which nobody reads: so it is in the paper.
        self.regressor = nn.Linear(width, 4 * (len(class_names) + 1))
        for layer, deviation in ((self.classifier, 0.01), (self.regressor, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        self.coder = BoxCoder((0.1, 0.1, 0.2, 0.2))

    def forward(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Images and regions ``[R, 5]`` in them to logits ``[R, K + 1]`` and offsets ``[R, K + 1, 4]``."""
        with stage("network"):
            features = self.backbone(images)[0]
        with stage("crops"):
            pooled = self.pooling(features, rois).flatten(1)
        with stage("classifier"):
            seen = self.layers(pooled)
            return self.classifier(seen).float(), self.regressor(seen).float().unflatten(1, (-1, 4))

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        drawn = sample_rois(targets, self.rois_per_image, self.positive_share, background=self.background)
        logits, offsets = self(images, drawn.rois)
        count = (drawn.labels >= 0).sum().clamp(min=1)
        goal = self.coder.encode(drawn.boxes, drawn.rois[:, 1:])
        own = offsets.gather(1, drawn.labels.clamp(min=0)[:, None, None].expand(-1, 1, 4))[:, 0]
        box = F.smooth_l1_loss(own, goal, reduction="none").sum(1)
        cross_entropy = F.cross_entropy(logits, drawn.labels, ignore_index=-1, reduction="sum")
        return {
            "class": cross_entropy / count,
            # Over all regions, not over those with an object: their share is to weigh.
            "box": torch.where(drawn.labels > 0, box, 0.0).sum() / count,
        }

    def classify(self, images: Tensor, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        rois = rois_of(proposals)
        logits, offsets = self(images, rois)
        with stage("classifier"):
            boxes = self.coder.decode(offsets[:, 1:], rois[:, None, 1:])
            return logits.softmax(1)[:, 1:], boxes

    def regions(self, image: Tensor, proposals: Tensor) -> Iterator[Stage]:
        features = self.backbone(image)[0]
        yield Stage(
            "features",
            map=features.square().mean(1).sqrt()[0].float(),
            about="The one map that the features of all regions are pooled from: where it is strong.",
        )
        cells = (proposals[:12] / self.pooling.stride).round() * self.pooling.stride
        yield Stage(
            "regions of interest",
            boxes=cells if self.pooling.kind == "max" else proposals[:12],
            about="A dozen regions as the pooling sees them; each becomes "
            f"{self.pooling.size}x{self.pooling.size} cells.",
        )

    def on_validation_start(self) -> None:
        """Compresses the layers for `segdet validate`, if that is wanted."""
        if self.trainer.state.fn == "validate":
            self._compress()

    def on_test_start(self) -> None:
        """Compresses the layers, if that is wanted."""
        self._compress()

    def on_predict_start(self) -> None:
        """Compresses the layers, if that is wanted."""
        self._compress()

    def _compress(self) -> None:
        if self.svd_ranks is not None and isinstance(self.layers.fc6, nn.Linear):
            self.layers.compress(self.svd_ranks)
