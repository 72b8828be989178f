"""Mask R-CNN: Faster R-CNN with a mask branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference, maskrcnn_loss, paste_masks_in_image

from segdet.data.sample import Prediction, Target
from segdet.detection.faster_rcnn import (
    FasterRCNN,
    Maps,
    RoIAlign,
    SampledRegions,
    TorchvisionFasterRCNN,
    TwoStageDetector,
)
from segdet.metrics.base import Scores
from segdet.metrics.detection import DetectionScores
from segdet.nn.float32 import output_float32
from segdet.util.errors import UserError, check_range
from segdet.util.stage_timing import stage


class MaskBranch(TwoStageDetector):
    """The common part of `MaskRCNN` and `TorchvisionMaskRCNN`.

    The predicted masks are resized to the boxes as in torchvision, with a threshold of 0.5. The scores of the masks
    (``mask_map``, ``mask_map_50`` and so on) are logged in addition to those of the boxes.
    """

    def build_scores(self) -> Scores:
        return DetectionScores(self.class_names, masks=True)

    def torchvision_target(self, target: Target) -> dict[str, Tensor]:
        if "masks" not in target:
            raise UserError(f"{type(self).__name__} needs masks of objects; give --data.masks true")
        return super().torchvision_target(target) | {"masks": target["masks"]}

    def region_losses(
        self, images: ImageList, maps: Maps, targets: list[dict[str, Tensor]], sampled: SampledRegions
    ) -> dict[str, Tensor]:
        positive = [labels > 0 for labels in sampled.labels]
        boxes = [each[keep] for each, keep in zip(sampled.boxes, positive, strict=True)]
        objects = [index[keep] for index, keep in zip(sampled.objects, positive, strict=True)]
        logits = self._mask_logits(images, maps, boxes)
        masks = [target["masks"] for target in targets]
        target_labels = [target["labels"] for target in targets]
        return {"mask": maskrcnn_loss(logits, boxes, masks, target_labels, objects)}

    def _detections(self, images: ImageList, maps: Maps, regions: list[Tensor]) -> list[Prediction]:
        detections = super()._detections(images, maps, regions)
        with stage("head"):
            logits = self._mask_logits(images, maps, [each["boxes"] for each in detections])
            masks = maskrcnn_inference(logits, [each["labels"] for each in detections])
        return [
            Prediction(**{**each, "masks": mask[:, 0]}) for each, mask in zip(detections, masks, strict=True)
        ]

    def _mask_logits(self, images: ImageList, maps: Maps, boxes: list[Tensor]) -> Tensor:
        """Return logits ``[R, K + 1, 28, 28]`` of the boxes of all images."""
        heads = self.roi_heads
        with stage("warps"):
            pooled = heads.mask_roi_pool(maps, boxes, images.image_sizes)
        logits: Tensor = heads.mask_predictor(heads.mask_head(pooled))
        return logits

    def postprocess(
        self, output: list[Prediction], original_sizes: list[tuple[int, int]], size: tuple[int, int]
    ) -> list[Prediction]:
        predictions = super().postprocess(output, original_sizes, size)
        for prediction, small, original in zip(predictions, output, original_sizes, strict=True):
            masks = paste_masks_in_image(small["masks"][:, None].float(), prediction["boxes"], original)
            prediction["masks"] = (masks[:, 0] > 0.5).to(torch.uint8)
        return predictions


class MaskRCNN(MaskBranch, FasterRCNN):
    """Mask R-CNN (He, Gkioxari, Dollár, Girshick, ICCV 2017) on any backbone.

    The features of a positive region are pooled again, to twice the size. A small fully convolutional network predicts
    a mask of 28x28 for each class, with a separate logistic output per class. The class itself comes from the box
    branch (section 3). RoI Align samples the features without rounding, which makes masks accurate to the pixel. The
    cost is one pass of the backbone plus the mask branch per detection. Branch and losses are torchvision's.

    Args:
        mask_width: The channels of the mask branch.
        mask_convolutions: The number of 3x3 convolutions of the mask branch.
        kwargs: See `FasterRCNN`.
    """

    cpu_network = FasterRCNN.cpu_network | {"mask_width": 64, "mask_convolutions": 2}

    def __init__(
        self,
        class_names: list[str],
        mask_width: int = 256,
        mask_convolutions: int = 4,
        canonical_size: int = 224,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, canonical_size=canonical_size, **kwargs)
        check_range("--model.mask_convolutions", mask_convolutions, least=1)
        self.roi_heads.mask_roi_pool = RoIAlign(14, self.strides, canonical_size)
        self.roi_heads.mask_head = MaskRCNNHeads(self.channels, (mask_width,) * mask_convolutions, 1)
        self.roi_heads.mask_predictor = MaskRCNNPredictor(mask_width, mask_width, len(self.class_names) + 1)
        output_float32(self.roi_heads.mask_predictor)


class TorchvisionMaskRCNN(MaskBranch, TorchvisionFasterRCNN):
    """torchvision's Mask R-CNNs. With their COCO weights, detections and masks equal those of torchvision.

    Args:
        network: ``resnet50_fpn``, or its second version ``resnet50_fpn_v2``.
        kwargs: See `TorchvisionFasterRCNN`.
    """

    family = "maskrcnn"
    heads = {**TorchvisionFasterRCNN.heads, "roi_heads.mask_predictor.mask_fcn_logits": 1}

    def __init__(self, class_names: list[str], network: str = "resnet50_fpn", **kwargs: Any) -> None:
        super().__init__(class_names, network, **kwargs)
        self.roi_heads.mask_roi_pool = RoIAlign(14, [4, 8, 16, 32])
        output_float32(self.roi_heads.mask_predictor)
