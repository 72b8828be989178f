"""SSDLite: SSD with depthwise separable convolutions on MobileNetV3, for mobile devices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssdlite import (
    SSDLite320_MobileNet_V3_Large_Weights,
    SSDLiteFeatureExtractorMobileNet,
    SSDLiteHead,
)

from segdet.detection.ssd import DefaultBoxDetector
from segdet.nn.train_eval_mode import evaluating
from segdet.nn.weights import (
    Normalization,
    is_weights_file,
    load_state,
    published_normalization,
    read_weights,
)
from segdet.util.errors import UserError

_HALF = (0.5, 0.5, 0.5)

_FIRST = "features.0.0.weight"
"""The name of a parameter in torchvision's MobileNetV3, but not in torchvision's SSDLite."""


class SSDLite(DefaultBoxDetector):
    """SSDLite (Sandler et al., CVPR 2018, section 6.2) on MobileNetV3 (Howard et al., ICCV 2019, section 6.3).

    An `SSD` with depthwise separable convolutions (depthwise, then 1x1) in backbone, extra maps and heads. The finest
    map with default boxes is the expansion layer of stride 16. At 320 pixels SSDLite needs a sixtieth of the operations
    of `SSD300`, by torchvision's count. The network is torchvision's, so that its weights can be loaded. Images of
    other sizes than 320 have maps of other sizes, with the same number of default boxes per cell. Images are scaled to
    -1..1, except with weights of MobileNetV3 alone.

    Args:
        weights: Weights of the whole network, torchvision's (``COCO_V1``, or true); or of MobileNetV3 alone
            (``IMAGENET1K_V1``, ``IMAGENET1K_V2``); or a local file of either. For another number of classes see
            `DefaultBoxDetector.load_torchvision`.
        reduced_tail: Whether the backbone's last stage has half the channels (Howard et al., table 6), as in
            torchvision's detector; ImageNet weights are for the full network.
        kwargs: See `DefaultBoxDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        weights: bool | str | None = None,
        reduced_tail: bool = True,
        score_threshold: float = 0.001,
        nms_threshold: float = 0.55,
        detections_per_class: int = 300,
        detections_per_image: int = 300,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            class_names,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            detections_per_class=detections_per_class,
            detections_per_image=detections_per_image,
            **kwargs,
        )
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
        features = mobilenet_v3_large(norm_layer=norm, reduced_tail=reduced_tail).features
        for layer in features.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.03)
        # The finest map is the expansion of the last block with a stride.
        last = [i for i, block in enumerate(features) if getattr(block, "_is_cn", False)][-1]
        self.backbone = SSDLiteFeatureExtractorMobileNet(features, last, norm)
        self.default_boxes = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
        self.head = SSDLiteHead(
            self._channels(), self.default_boxes.num_anchors_per_location(), len(class_names) + 1, norm
        )
        if weights:
            self._load_weights(weights, reduced_tail)

    @classmethod
    def weights_normalization(cls, arguments: Mapping[str, Any]) -> Normalization | None:
        weights = arguments.get("weights")
        if weights in MobileNet_V3_Large_Weights.__members__ or _is_mobilenet(weights):
            return published_normalization(weights, [MobileNet_V3_Large_Weights])
        return Normalization(_HALF, _HALF)

    def _maps(self, images: Tensor) -> list[Tensor]:
        return list(self.backbone(images).values())

    def _channels(self) -> list[int]:
        """Return the channels of the maps, from a forward pass."""
        with torch.no_grad(), evaluating(self.backbone):
            return [features.shape[1] for features in self._maps(torch.zeros(1, 3, 64, 64))]

    def _load_weights(self, weights: bool | str, reduced_tail: bool) -> None:
        published = [SSDLite320_MobileNet_V3_Large_Weights, MobileNet_V3_Large_Weights]
        source, state = read_weights(weights, "SSDLite", published)
        if _FIRST not in state:
            self.load_torchvision(state, source)
            return
        if reduced_tail:
            raise UserError(
                f"--model.weights {source}: for the full MobileNetV3; add --model.reduced_tail false"
            )
        new = {k: v for k, v in self.backbone.state_dict().items() if k.startswith("extra.")}
        load_state(
            self.backbone, new | self._convert_mobilenet(state), source, "SSDLite's MobileNetV3", given=state
        )

    def _convert_mobilenet(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename torchvision's MobileNetV3 weights to the parameter names of the backbone, which splits a block."""
        cut = len(self.backbone.features[0]) - 1  # type: ignore[index]
        ours: dict[str, Tensor] = {}
        for key, value in state.items():
            if not key.startswith("features."):
                continue
            _, index, rest = key.split(".", 2)
            block = int(index)
            if block < cut:
                place = f"features.0.{block}.{rest}"
            elif block > cut:
                place = f"features.1.{block - cut}.{rest}"
            else:
                _, layer, rest = rest.split(".", 2)  # block.LAYER.rest
                place = f"features.0.{cut}.{rest}" if layer == "0" else f"features.1.0.{int(layer)}.{rest}"
            ours[place] = value
        return ours


def _is_mobilenet(weights: bool | str | None) -> bool:
    """Return whether ``weights`` is a file of MobileNetV3 alone."""
    return is_weights_file(weights) and _FIRST in read_weights(str(weights), "SSDLite")[1]
