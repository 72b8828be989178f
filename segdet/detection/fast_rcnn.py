"""Fast R-CNN: one pass per image, RoI pooling of each proposal, and one loss for class and box."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.data.image_input import ImageLike
from segdet.data.sample import Prediction, Target
from segdet.detection.region_detector import RegionDetector
from segdet.nn.boxes import BoxCoder
from segdet.nn.roi import Pooling, RoIPooling, rois_of, sample_rois
from segdet.task import Stage
from segdet.training.fine_tune import ClassRows
from segdet.util.errors import check_choice, check_range
from segdet.util.stage_timing import stage


class FastRCNN(RegionDetector):
    """Fast R-CNN (Girshick, ICCV 2015) on any backbone.

    The convolutions run once on the whole image. The features of each proposal are pooled to a small map of fixed size.
    Two fully connected layers and two heads follow. One head predicts the class (0 is background). The other predicts
    the offsets of the box for each class. Both heads and all layers below are trained jointly. The cost is one pass of
    the backbone for any number of proposals.

    Training samples 64 RoIs per image (section 2.3). Up to a quarter are positive, with an IoU of at least 0.5 with an
    object; the others are negative, with an IoU of 0.1 to 0.5. The paper's batches have two images.

    Args:
        pooling: ``max`` for RoI max pooling, or ``align`` for RoI Align, which does not round coordinates.
        rois_per_image: The number of RoIs per image in training.
        positive_share: The maximum share of positive RoIs.
        background: The range of the IoU of negative RoIs: at least the first number, below the second.
        svd_ranks: The ranks of the truncated singular value decompositions that replace ``fc6`` and ``fc7`` in
            evaluation (section 3.1). The paper's ranks are 1024 and 256. Null keeps the layers.
        kwargs: See `RegionDetector`.
    """

    class_rows = {"regressor": ClassRows(per_class=4)}

    def __init__(
        self,
        class_names: list[str],
        stride: int = 16,
        pooling: Pooling = "max",
        pool: int = 7,
        width: int = 1024,
        rois_per_image: int = 64,
        positive_share: float = 0.25,
        background: tuple[float, float] = (0.1, 0.5),
        svd_ranks: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, stride=stride, pool=pool, width=width, **kwargs)
        check_choice("--model.pooling", pooling, Pooling)
        if svd_ranks is not None:
            check_range("--model.svd_ranks", svd_ranks, least=1)
        self.rois_per_image = rois_per_image
        self.positive_share = positive_share
        self.background = background
        self.svd_ranks = svd_ranks
        self.pooling = RoIPooling(pool, stride, pooling)
        self.classifier = nn.Linear(width, len(class_names) + 1)
        # Background has offsets too, as in the paper, but they are not used.
        self.regressor = nn.Linear(width, 4 * (len(class_names) + 1))
        for layer, deviation in ((self.classifier, 0.01), (self.regressor, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        self.coder = BoxCoder((0.1, 0.1, 0.2, 0.2))

    def forward(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Map images and RoIs ``[R, 5]`` to logits ``[R, K + 1]`` and offsets ``[R, K + 1, 4]``."""
        with stage("network"):
            features = self.backbone(images)[0]
        with stage("warps"):
            pooled = self.pooling(features, rois).flatten(1)
        with stage("head"):
            fc7 = self.layers(pooled)
            return self.classifier(fc7).float(), self.regressor(fc7).float().unflatten(1, (-1, 4))

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        sampled = sample_rois(targets, self.rois_per_image, self.positive_share, background=self.background)
        logits, offsets = self(images, sampled.rois)
        count = (sampled.labels >= 0).sum().clamp(min=1)
        target_offsets = self.coder.encode(sampled.boxes, sampled.rois[:, 1:])
        predicted = offsets.gather(1, sampled.labels.clamp(min=0)[:, None, None].expand(-1, 1, 4))[:, 0]
        box = F.smooth_l1_loss(predicted, target_offsets, reduction="none").sum(1)
        cross_entropy = F.cross_entropy(logits, sampled.labels, ignore_index=-1, reduction="sum")
        return {
            "class": cross_entropy / count,
            # The divisor is the number of all RoIs, positive and negative, as in equation 1.
            "box": torch.where(sampled.labels > 0, box, 0.0).sum() / count,
        }

    def classify(self, images: Tensor, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        rois = rois_of(proposals)
        logits, offsets = self(images, rois)
        with stage("head"):
            boxes = self.coder.decode(offsets[:, 1:], rois[:, None, 1:])
            return logits.softmax(1)[:, 1:], boxes

    def proposal_stages(self, image: Tensor, proposals: Tensor) -> Iterator[Stage]:
        energy = self.backbone(image)[0].square().mean(1).sqrt()[0].float()
        caption = "The map that all RoIs are pooled from: the root mean square of its channels."
        yield Stage("features", map=energy, caption=caption)
        side, boxes = self.pooling.size, proposals[:12]
        if self.pooling.kind == "max":
            boxes = (boxes / self.pooling.stride).round() * self.pooling.stride
        caption = f"Twelve RoIs, as they are pooled. Each is pooled to {side}x{side} cells."
        yield Stage("regions of interest", boxes=boxes, caption=caption)

    def predict_image(self, image: ImageLike) -> Prediction:
        if self._trainer is None:  # a loaded model; during training, the layers stay as they are
            self._compress()
        return super().predict_image(image)

    def on_validation_start(self) -> None:
        # `segdet validate` evaluates the compressed network; validation during training does not.
        if self.trainer.state.fn == "validate":
            self._compress()

    def on_test_start(self) -> None:
        self._compress()

    def on_predict_start(self) -> None:
        self._compress()

    def _compress(self) -> None:
        """Compress the layers if ``svd_ranks`` are given."""
        if self.svd_ranks is not None and isinstance(self.layers.fc6, nn.Linear):
            self.layers.compress(self.svd_ranks)
