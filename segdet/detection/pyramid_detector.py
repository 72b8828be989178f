"""The base class of detectors with one head on all maps of a feature pyramid: RetinaNet and FCOS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from segdet.data.sample import Prediction
from segdet.detection.base import Detector
from segdet.detection.torchvision_network import torchvision_network
from segdet.nn.backbones import Backbone
from segdet.nn.boxes import select_from_levels
from segdet.nn.pyramid import FeaturePyramid, GridAnchors, pad_to_stride
from segdet.util.stage_timing import stage


class PyramidDetector(Detector):
    """A detector with one torchvision head for all maps of a feature pyramid.

    Losses and detections equal those of torchvision's modules, but are computed for a whole batch at once.

    Args:
        candidates_per_level: The maximum number of candidates (a box with a class) per map before suppression.
        kwargs: See `Detector`.

    Attributes:
        backbone: The network from images to features. Each family sets this and the other attributes.
        neck: The feature pyramid, unless it is part of the backbone.
        head: torchvision's head, shared by all maps.
        anchors: The anchors of all cells.
        size_divisor: The sides of images are padded to multiples of this.
    """

    backbone: nn.Module
    neck: nn.Module
    head: nn.Module
    anchors: GridAnchors
    size_divisor: int

    def __init__(self, class_names: list[str], candidates_per_level: int = 1000, **kwargs: Any) -> None:
        super().__init__(class_names, **kwargs)
        self.candidates_per_level = candidates_per_level

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the maps for the head, fine to coarse. The sides of the images are multiples of ``size_divisor``."""
        return list(self.neck(self.backbone(images)).values())

    def run_head(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor, list[int]]:
        """Apply the network to images ``[B, 3, H, W]``.

        Returns:
            The head's outputs by torchvision's names, float32 ``[B, A, ...]`` for the A anchors of all maps, fine to
            coarse; the anchors ``[A, 4]``; and the number of anchors of each map.
        """
        padded = pad_to_stride(images, self.size_divisor)
        maps = self.features(padded.tensors)
        with stage("head"):
            outputs = {name: output.float() for name, output in self.head(maps).items()}
        # torchvision's weights have an unused output for background.
        outputs["cls_logits"] = outputs["cls_logits"][..., -len(self.class_names) :]
        per_cell = self.anchors.num_anchors_per_location()
        levels = [each.shape[-2] * each.shape[-1] * k for each, k in zip(maps, per_cell, strict=True)]
        return outputs, self.anchors(padded, maps)[0], levels

    def select_from_levels(
        self, boxes: Tensor, scores: Tensor, levels: Sequence[int], size: tuple[int, int]
    ) -> list[Prediction]:
        """Select the detections of a batch, see `segdet.nn.boxes.select_from_levels`."""
        return select_from_levels(boxes, scores, levels, size, self.selection, self.candidates_per_level)

    def build_pyramid(self, backbone: Backbone, width: int, extra_levels: int, norm: bool) -> list[int]:
        """Build a feature pyramid on a backbone, see `FeaturePyramid`, and return the strides of its maps."""
        self.backbone, self.size_divisor = backbone, backbone.strides[-1]
        neck = FeaturePyramid(backbone.channels, backbone.strides, width, extra_levels, norm=norm)
        self.neck = neck
        return neck.strides

    def build_torchvision(
        self, family: str, network: str, weights: bool | str | None, weights_backbone: bool | str | None
    ) -> None:
        """Build a network of torchvision, see `torchvision_network`."""
        heads = {"head.classification_head.cls_logits": 1}
        module = torchvision_network(family, network, self.class_names, weights, weights_backbone, heads)
        self.backbone, self.neck, self.head = module.backbone, nn.Identity(), module.head
        self.anchors = GridAnchors(module.anchor_generator.sizes, module.anchor_generator.aspect_ratios)
        self.size_divisor = 32
