"""FCOS: anchor-free detection; cells within an object predict the distances to its four sides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.ops import sigmoid_focal_loss

from segdet.data.sample import Prediction, Target
from segdet.detection.base import best_boxes_stage, detections_stage
from segdet.detection.pyramid_detector import PyramidDetector
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import pad_targets, paired_giou_loss
from segdet.nn.pyramid import GridAnchors, group_norm
from segdet.task import Stage
from segdet.util.stage_timing import stage


class PointDetector(PyramidDetector):
    """The common base of `FCOS` and `TorchvisionFCOS`.

    Scores are the square root of class probability times centre-ness.

    Args:
        radius: The maximum distance, in strides, of positive cells from the object's centre (centre sampling).
        kwargs: See `PyramidDetector`.

    Attributes:
        anchors: One square per cell, centred on the cell, with a side of one stride.
    """

    head: FCOSHead

    def __init__(
        self, class_names: list[str], radius: float = 1.5, nms_threshold: float = 0.6, **kwargs: Any
    ) -> None:
        super().__init__(class_names, nms_threshold=nms_threshold, **kwargs)
        self.radius = radius

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """Map images ``[B, 3, H, W]`` to the predictions of all A cells, by map (fine to coarse), row and column.

        Returns:
            Class logits ``[B, A, K]``, centre-ness logits ``[B, A]``, distances to the four sides in strides
            ``[B, A, 4]``, the cells' squares ``[A, 4]``, and the number of cells of each map.
        """
        outputs, cells, levels = self.run_head(images)
        centreness = outputs["bbox_ctrness"][..., 0]
        return outputs["cls_logits"], centreness, outputs["bbox_regression"], cells, levels

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        logits, centreness, distances, cells, levels = self(images)
        boxes, labels = pad_targets(targets, images.device)
        matched, target_labels = match_cells(cells, levels, boxes, labels, self.radius)
        positive = target_labels > 0
        count = positive.sum().clamp(min=1)
        one_hot = F.one_hot(target_labels, len(self.class_names) + 1)[..., 1:].to(logits.dtype)
        target_boxes = boxes.gather(1, matched[..., None].expand(-1, -1, 4))
        box_loss = paired_giou_loss(self.head.box_coder.decode(distances, cells), target_boxes)
        # Equation 3; negative cells are masked below.
        sides = self.head.box_coder.encode(cells, target_boxes).clamp(min=1e-6)
        ratios = torch.minimum(sides[..., :2], sides[..., 2:]) / torch.maximum(sides[..., :2], sides[..., 2:])
        target_centreness = ratios.prod(-1).sqrt()
        centre_loss = F.binary_cross_entropy_with_logits(centreness, target_centreness, reduction="none")
        return {
            "class": sigmoid_focal_loss(logits, one_hot, reduction="sum") / count,
            "box": torch.where(positive, box_loss, 0.0).sum() / count,
            "centre": torch.where(positive, centre_loss, 0.0).sum() / count,
        }

    def predict(self, images: Tensor) -> list[Prediction]:
        with stage("network"):
            predictions = self(images)
        return self._detections((images.shape[2], images.shape[3]), *predictions)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        logits, centreness, distances, cells, levels = self(image)
        scores = (logits[0].sigmoid().amax(-1) * centreness[0].sigmoid()).sqrt()
        strides = [int(sizes[0]) for sizes in self.anchors.sizes]
        rows = -(-image.shape[2] // self.size_divisor) * self.size_divisor  # with padding
        for stride, part in zip(strides, scores.split(levels), strict=True):
            caption = f"The score of each cell of {stride} pixels."
            yield Stage(f"centres, stride {stride}", map=part.view(-(-rows // stride), -1), caption=caption)
        boxes = self.head.box_coder.decode(distances[0], cells)
        yield best_boxes_stage("boxes", boxes, scores, "The boxes of highest score, before suppression.")
        size = (image.shape[2], image.shape[3])
        (final,) = self._detections(size, logits, centreness, distances, cells, levels)
        yield detections_stage(final)

    def _detections(
        self,
        size: tuple[int, int],
        logits: Tensor,
        centreness: Tensor,
        distances: Tensor,
        cells: Tensor,
        levels: list[int],
    ) -> list[Prediction]:
        with stage("nms"):
            boxes = self.head.box_coder.decode(distances, cells)
            scores = (logits.sigmoid() * centreness.sigmoid()[..., None]).sqrt()
            return self.select_from_levels(boxes, scores, levels, size)


class FCOS(PointDetector):
    """FCOS (Tian, Shen, Chen, He, ICCV 2019, "Fully Convolutional One-Stage Object Detection") on any backbone.

    Detection per pixel, as in segmentation: each cell within an object predicts its class and the distances to its
    left, top, right and bottom side. There are no anchors and no IoU thresholds for matching. Overlapping objects of
    different sizes are separated because each map is responsible for a range of sizes (section 3.2). A third output,
    the centre-ness, lowers the scores of boxes predicted far from the centre of an object (section 3.3). The cost is
    one pass of the backbone. The head is torchvision's, with the authors' later improvements: GIoU loss, centre
    sampling, and centre-ness in the box branch.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See `segdet.nn.backbones.build_backbone`.
        backbone_options: See `segdet.nn.backbones.build_backbone`.
        strides: The strides of the backbone's maps.
        extra_levels: The number of additional maps, each half the size of the one before.
        width: The channels of pyramid and head.
        norm: Whether batch normalization follows the pyramid's convolutions. Not in the paper; improves training from
            scratch.
        head_convolutions: The number of 3x3 convolutions in each branch of the head, each with group normalization
            (groups of at least 8 channels).
        kwargs: See `PointDetector`.
    """

    cpu_network = {
        "backbone_options": {"channels": [32, 64, 128, 256]},
        "width": 96,
        "norm": True,
        "head_convolutions": 2,
    }

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: bool | str | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [8, 16, 32],  # noqa: B006  read only; jsonargparse shows it as the default
        extra_levels: int = 2,
        width: int = 256,
        norm: bool = False,
        head_convolutions: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        norm_layer = group_norm(width)
        network = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        levels = self.build_pyramid(network, width, extra_levels, norm)
        self.anchors = GridAnchors([[float(stride)] for stride in levels], [[1.0]] * len(levels))
        self.head = FCOSHead(width, 1, len(class_names), 0)
        self.head.classification_head = FCOSClassificationHead(
            width, 1, len(class_names), head_convolutions, norm_layer=norm_layer
        )
        self.head.regression_head = FCOSRegressionHead(width, 1, head_convolutions, norm_layer=norm_layer)


class TorchvisionFCOS(PointDetector):
    """torchvision's FCOS. With its COCO weights, detections equal those of torchvision.

    Args:
        network: ``resnet50_fpn``, the only one.
        weights: Weights of the whole network: torchvision's name (``COCO_V1``), true, a local file, or null for random
            weights; for other classes see `segdet.detection.torchvision_network`.
        weights_backbone: Weights of the backbone alone, in the same notation (``IMAGENET1K_V1``).
        kwargs: See `PointDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        network: str = "resnet50_fpn",
        weights: bool | str | None = None,
        weights_backbone: bool | str | None = None,
        score_threshold: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, score_threshold=score_threshold, **kwargs)
        self.build_torchvision("fcos", network, weights, weights_backbone)


def match_cells(
    cells: Tensor, levels: list[int], boxes: Tensor, labels: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Match each cell with an object (section 3.2, and centre sampling of the authors' code).

    A cell matches an object if it lies within the object's box, at most ``radius`` strides from the object's centre in
    x and in y. The distance to the farthest of the four sides must also be 4 to 8 strides. The finest map has no lower
    limit, the coarsest map no upper limit. If several objects match, the smallest is used.

    Args:
        cells: The squares of the cells, ``[A, 4]`` xyxy, fine maps first.
        levels: The number of cells of each map.
        boxes: ``[B, G, 4]`` xyxy, from `pad_targets`.
        labels: ``[B, G]``, 0 where there is no object.
        radius: See above.

    Returns:
        The index of each cell's object, int64 ``[B, A]`` (meaningful only for matched cells), and the cells' labels,
        int64 ``[B, A]``: the object's label, or 0.
    """
    centres, strides = (cells[:, :2] + cells[:, 2:]) / 2, cells[:, 2] - cells[:, 0]
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]  # [B, G, 1, 2]
    sides = torch.cat([centres - low, high - centres], -1)  # [B, G, A, 4]
    farthest = sides.amax(-1)
    near = (centres - (low + high) / 2).abs().amax(-1) < radius * strides
    least, most = 4 * strides, 8 * strides
    least[: levels[0]] = 0
    most[-levels[-1] :] = torch.inf
    fits = near & (sides.amin(-1) > 0) & (farthest > least) & (farthest < most) & (labels > 0)[..., None]
    area = (high - low).prod(-1)  # [B, G, 1]
    smallest, matched = torch.where(fits, area, torch.inf).min(1)
    return matched, torch.where(smallest.isfinite(), labels.gather(1, matched), 0)
