"""RetinaNet: anchors on a feature pyramid, trained with the focal loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from segdet.data.sample import Prediction, Target
from segdet.detection.base import best_boxes_stage, detections_stage
from segdet.detection.pyramid_detector import PyramidDetector
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import BoxCoder, match_all_best, pad_targets, paired_giou_loss
from segdet.nn.pyramid import GridAnchors, group_norm
from segdet.task import Stage
from segdet.util.errors import UserError, check_choice
from segdet.util.stage_timing import stage

BoxLoss = Literal["l1", "giou"]


class FocalLossDetector(PyramidDetector):
    """The common base of `RetinaNet` and `TorchvisionRetinaNet`.

    An anchor is positive if its IoU with an object is at least 0.5, or if no other anchor has a higher IoU with this
    object. Other anchors with an IoU between 0.4 and 0.5 are ignored (section 4.1).

    Args:
        box_loss: The box loss of positive anchors: ``l1`` of their offsets, or ``giou`` of their boxes.
        kwargs: See `PyramidDetector`.
    """

    def __init__(
        self, class_names: list[str], box_loss: BoxLoss = "l1", detections_per_image: int = 300, **kwargs: Any
    ) -> None:
        super().__init__(class_names, detections_per_image=detections_per_image, **kwargs)
        check_choice("--model.box_loss", box_loss, BoxLoss)
        self.box_loss = box_loss
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Map images ``[B, 3, H, W]`` to the predictions for the A anchors of all maps, fine to coarse.

        Returns:
            Logits ``[B, A, K]``, offsets ``[B, A, 4]``, anchors ``[A, 4]``, and the number of anchors of each map.
        """
        outputs, anchors, levels = self.run_head(images)
        return outputs["cls_logits"], outputs["bbox_regression"], anchors, levels

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        logits, offsets, anchors, _ = self(images)
        boxes, labels = pad_targets(targets, images.device)
        matched, target_labels = match_all_best(anchors, boxes, labels, foreground=0.5, background=0.4)
        positive = target_labels > 0
        count = positive.sum(1).clamp(min=1)
        one_hot = F.one_hot(target_labels.clamp(min=0), len(self.class_names) + 1)[..., 1:].to(logits.dtype)
        class_loss = sigmoid_focal_loss(logits, one_hot).sum(-1)
        target_boxes = boxes.gather(1, matched[..., None].expand(-1, -1, 4))
        if self.box_loss == "l1":
            box_loss = (offsets - self.coder.encode(target_boxes, anchors)).abs().sum(-1)
        else:
            box_loss = paired_giou_loss(self.coder.decode(offsets, anchors), target_boxes)
        return {
            "class": (torch.where(target_labels >= 0, class_loss, 0.0).sum(1) / count).mean(),
            "box": (torch.where(positive, box_loss, 0.0).sum(1) / count).mean(),
        }

    def predict(self, images: Tensor) -> list[Prediction]:
        with stage("network"):
            predictions = self(images)
        return self._detections((images.shape[2], images.shape[3]), *predictions)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        logits, offsets, anchors, levels = self(image)
        scores = logits[0].sigmoid().amax(-1)
        parts = zip(anchors.split(levels), scores.split(levels), strict=True)
        for place, (boxes, of_map) in enumerate(parts, 1):
            caption = f"The anchors of highest score on map {place} of {len(levels)}."
            yield best_boxes_stage(f"anchors {place}", boxes, of_map, caption, 20)
        caption = "The boxes of highest score after box regression, before suppression."
        yield best_boxes_stage("regressed boxes", self.coder.decode(offsets[0], anchors), scores, caption)
        (final,) = self._detections((image.shape[2], image.shape[3]), logits, offsets, anchors, levels)
        yield detections_stage(final)

    def _detections(
        self, size: tuple[int, int], logits: Tensor, offsets: Tensor, anchors: Tensor, levels: list[int]
    ) -> list[Prediction]:
        with stage("nms"):
            boxes = self.coder.decode(offsets, anchors)
            return self.select_from_levels(boxes, logits.sigmoid(), levels, size)


class RetinaNet(FocalLossDetector):
    """RetinaNet (Lin, Goyal, Girshick, He, Dollár, ICCV 2017, "Focal Loss for Dense Object Detection").

    RetinaNet has one pass and no proposals, like SSD, but uses a feature pyramid. Every cell of every map has nine
    anchors, and all maps share one head. Almost all of the about 100,000 anchors are easy background. The focal loss
    reduces the weight of well-classified anchors, so that negatives need not be sampled. The cost is one pass of the
    backbone. The head is torchvision's.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See `segdet.nn.backbones.build_backbone`.
        backbone_options: See `segdet.nn.backbones.build_backbone`.
        strides: The strides of the backbone's maps.
        extra_levels: The number of additional maps, each half the size of the one before.
        width: The channels of pyramid and head.
        norm: Whether normalization follows the convolutions: batch normalization in the pyramid, group normalization
            (groups of at least 8 channels) in the head, because several maps share it. Not in the paper; improves
            training from scratch.
        head_convolutions: The number of 3x3 convolutions in each branch of the head, at most 4.
        anchor_sizes: The sides of the square anchors in pixels, one list per map; null for 4 times the stride, times 1,
            2^(1/3) and 2^(2/3) (section 4.1).
        aspect_ratios: The aspect ratios of the anchors, height over width.
        kwargs: See `FocalLossDetector`.
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
        anchor_sizes: list[list[float]] | None = None,
        aspect_ratios: list[float] = [0.5, 1.0, 2.0],  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        if not 0 <= head_convolutions <= 4:
            raise UserError(
                f"--model.head_convolutions {head_convolutions}: torchvision's head has 0 to 4; give one of these"
            )
        network = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        levels = self.build_pyramid(network, width, extra_levels, norm)
        if anchor_sizes is None:
            anchor_sizes = [[float(int(4 * s * 2 ** (i / 3))) for i in range(3)] for s in levels]
        if len(anchor_sizes) != len(levels) or len({len(sizes) for sizes in anchor_sizes}) != 1:
            raise UserError(
                f"--model.anchor_sizes: {len(anchor_sizes)} lists for maps of strides {levels}, which share one head; "
                "give one list per map, all of the same length"
            )
        self.anchors = GridAnchors(anchor_sizes, [aspect_ratios] * len(levels))
        head: Any = RetinaNetHead(
            width,
            self.anchors.num_anchors_per_location()[0],
            len(class_names),
            norm_layer=group_norm(width) if norm else None,
        )
        for branch in (head.classification_head, head.regression_head):
            branch.conv = branch.conv[:head_convolutions]
        self.head = head


class TorchvisionRetinaNet(FocalLossDetector):
    """torchvision's RetinaNets. With their COCO weights, detections equal those of torchvision.

    Args:
        network: ``resnet50_fpn``, or its second version ``resnet50_fpn_v2``.
        weights: Weights of the whole network: torchvision's name (``COCO_V1``), true, a local file, or null for random
            weights; for other classes see `segdet.detection.torchvision_network`.
        weights_backbone: Weights of the backbone alone, in the same notation (``IMAGENET1K_V1``).
        box_loss: See `FocalLossDetector`; null for torchvision's loss: GIoU for the second version, else L1.
        kwargs: See `FocalLossDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        network: str = "resnet50_fpn",
        weights: bool | str | None = None,
        weights_backbone: bool | str | None = None,
        box_loss: BoxLoss | None = None,
        **kwargs: Any,
    ) -> None:
        box_loss = box_loss or ("giou" if network.endswith("_v2") else "l1")
        super().__init__(class_names, box_loss=box_loss, **kwargs)
        self.build_torchvision("retinanet", network, weights, weights_backbone)
