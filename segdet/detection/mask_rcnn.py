"""Mask R-CNN: Faster R-CNN with a third branch that says which pixels of its box an object has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    maskrcnn_inference,
    maskrcnn_loss,
    paste_masks_in_image,
)

from segdet.data.sample import Prediction, Target
from segdet.detection.faster_rcnn import FasterRCNN, Maps, RoIAlign, TorchvisionFasterRCNN, TwoStageDetector
from segdet.metrics.base import Scores
from segdet.metrics.detection import DetectionScores
from segdet.nn.float32 import output_float32
from segdet.util.errors import UserError
from segdet.util.stages import stage


class MaskBranch(TwoStageDetector):
    """What Mask R-CNN's forms add to Faster R-CNN's; use `MaskRCNN` or `TorchvisionMaskRCNN`.

    The masks of small maps are put into the image's boxes as torchvision does it, and are where they exceed a half.
    Their scores are ``mask_map``, ``mask_map_50`` and so on beside those of the boxes.
    """

    def build_scores(self) -> Scores:
        return DetectionScores(self.class_names, self.category_ids, masks=True)

    def _told(self, target: Target) -> dict[str, Tensor]:
        if "masks" not in target:
            raise UserError(f"{type(self).__name__} learns from objects' masks; give --data.masks true")
        return super()._told(target) | {"masks": target["masks"]}

    def _more_losses(
        self,
        images: ImageList,
        maps: Maps,
        targets: list[dict[str, Tensor]],
        regions: list[Tensor],
        objects: list[Tensor],
        labels: list[Tensor],
    ) -> dict[str, Tensor]:
        positive = [each > 0 for each in labels]
        held = [boxes[keep] for boxes, keep in zip(regions, positive, strict=True)]
        which = [index[keep] for index, keep in zip(objects, positive, strict=True)]
        logits = self._mask_logits(images, maps, held)
        masks = [target["masks"] for target in targets]
        names = [target["labels"] for target in targets]
        return {"mask": maskrcnn_loss(logits, held, masks, names, which)}

    def _detections(self, images: ImageList, maps: Maps, regions: list[Tensor]) -> list[Prediction]:
        found = super()._detections(images, maps, regions)
        with stage("classifier"):
            logits = self._mask_logits(images, maps, [each["boxes"] for each in found])
            masks = maskrcnn_inference(logits, [each["labels"] for each in found])
        return [Prediction(**{**each, "masks": mask[:, 0]}) for each, mask in zip(found, masks, strict=True)]

    def _mask_logits(self, images: ImageList, maps: Maps, boxes: list[Tensor]) -> Tensor:
        """Logits ``[R, K + 1, 28, 28]`` of the boxes of all images."""
        heads = self.roi_heads
        pooled = heads.mask_roi_pool(maps, boxes, images.image_sizes)
        logits: Tensor = heads.mask_predictor(heads.mask_head(pooled))
        return logits

    def postprocess(
        self, output: list[Prediction], original_sizes: list[tuple[int, int]], size: tuple[int, int]
    ) -> list[Prediction]:
        found = super().postprocess(output, original_sizes, size)
        for prediction, small, original in zip(found, output, original_sizes, strict=True):
            masks = paste_masks_in_image(small["masks"][:, None].float(), prediction["boxes"], original)
            prediction["masks"] = (masks[:, 0] > 0.5).to(torch.uint8)
        return found


class MaskRCNN(MaskBranch, FasterRCNN):
    """Mask R-CNN (He, Gkioxari, Dollár, Girshick, ICCV 2017) on any backbone.

    A region that holds an object is pooled once more, to twice the size, and a small fully convolutional network gives
    a mask of 28x28 for each class, each by a logistic output of its own; the class is the other branch's to say
    (section 3). RoIAlign, whose samples lie where the region says, is what makes masks exact to the pixel. It costs one
    pass of the backbone, and the third branch once for each detection. Branch and losses are torchvision's.

    Args:
        class_names: As for `FasterRCNN`.
        mask_width: The channels of the third branch.
        mask_convolutions: Its 3x3 convolutions.
        canonical_size: As for `FasterRCNN`.
        kwargs: See there.
    """

    def __init__(
        self,
        class_names: list[str],
        mask_width: int = 256,
        mask_convolutions: int = 4,
        canonical_size: int = 224,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, canonical_size=canonical_size, **kwargs)
        if mask_convolutions < 1:
            raise UserError(f"--model.mask_convolutions {mask_convolutions}: must be at least 1")
        self.roi_heads.mask_roi_pool = RoIAlign(14, self.strides, canonical_size)
        self.roi_heads.mask_head = MaskRCNNHeads(self.channels, (mask_width,) * mask_convolutions, 1)
        self.roi_heads.mask_predictor = MaskRCNNPredictor(mask_width, mask_width, len(self.class_names) + 1)
        output_float32(self.roi_heads.mask_predictor)


class TorchvisionMaskRCNN(MaskBranch, TorchvisionFasterRCNN):
    """torchvision's Mask R-CNNs, with its weights of COCO: the same detections and masks for the same pixels.

    Args:
        class_names: As for `TorchvisionFasterRCNN`.
        network: Which one: ResNet-50 with a pyramid, or its second version.
        kwargs: As for `TorchvisionFasterRCNN`.
    """

    family = "maskrcnn"
    heads = {**TorchvisionFasterRCNN.heads, "roi_heads.mask_predictor.mask_fcn_logits": 1}

    def __init__(self, class_names: list[str], network: str = "resnet50_fpn", **kwargs: Any) -> None:
        super().__init__(class_names, network, **kwargs)
        self.roi_heads.mask_roi_pool = RoIAlign(14, [4, 8, 16, 32])
        output_float32(self.roi_heads.mask_predictor)
