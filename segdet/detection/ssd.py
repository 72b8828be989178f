"""SSD: default boxes on several feature maps, classified and regressed in one pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSDHead
from torchvision.ops import Conv2dNormActivation

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, best_boxes_stage, detections_stage
from segdet.detection.torchvision_network import rows_of_classes
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import BoxCoder, match_anchors, pad_targets
from segdet.nn.size_cache import SizeCache
from segdet.nn.strided import HalvingConv2d
from segdet.nn.upsampling import upsample_to
from segdet.nn.weights import load_state
from segdet.task import Stage
from segdet.util.errors import UserError
from segdet.util.stage_timing import stage


class DefaultBoxDetector(Detector):
    """The common base of detectors with SSD's default boxes; use `SSD`, `SSD300`, `SSD512` or `SSDLite`.

    Training matches every object with its best default box and with all default boxes of IoU >= 0.5. Only the hardest
    negatives are used, three per positive (section 2.2).

    Args:
        detections_per_class: The maximum number of boxes per class before suppression.
        negatives_per_positive: The number of hard negatives per positive.
        kwargs: See `Detector`.

    Attributes:
        backbone: The network from images to features. Each family sets this and the other attributes.
        default_boxes: torchvision's generator of default boxes.
        head: torchvision's convolutions on the feature maps.
    """

    backbone: nn.Module
    default_boxes: DefaultBoxGenerator
    head: nn.Module
    uses_scale = True

    def __init__(
        self,
        class_names: list[str],
        score_threshold: float = 0.01,
        nms_threshold: float = 0.45,
        detections_per_class: int = 400,
        detections_per_image: int = 200,
        negatives_per_positive: float = 3.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, score_threshold, nms_threshold, detections_per_image, **kwargs)
        self.detections_per_class = detections_per_class
        self.negatives_per_positive = negatives_per_positive
        self.coder = BoxCoder((0.1, 0.1, 0.2, 0.2))
        self._computed: SizeCache[Tensor] = SizeCache()

    def forward(
        self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map images ``[B, 3, H, W]`` to logits ``[B, A, K + 1]``, offsets ``[B, A, 4]`` and default boxes ``[A, 4]``.

        ``scale`` is the height and width of the images, divided by the height and width of the loaded images.
        """
        return self._heads(images, self._maps(images), scale)

    def losses(
        self, images: Tensor, targets: list[Target], scale: tuple[float, float] = (1.0, 1.0)
    ) -> dict[str, Tensor]:
        logits, offsets, anchors = self(images, scale)
        boxes, labels = pad_targets(targets, images.device)
        matched, target_labels = match_anchors(anchors, boxes, labels, foreground=0.5, background=0.5)
        positive = target_labels > 0
        count = positive.sum().clamp(min=1)
        target_boxes = boxes.gather(1, matched[..., None].expand(-1, -1, 4))
        target_offsets = self.coder.encode(target_boxes, anchors)
        box_loss = F.smooth_l1_loss(offsets, target_offsets, reduction="none").sum(-1)
        cross_entropy = F.cross_entropy(
            logits.flatten(0, 1), target_labels.flatten(), reduction="none"
        ).view_as(target_labels)
        # Hard negative mining: the rank of each default box among the negatives of its image, hardest first.
        hardness = cross_entropy.detach().masked_fill(positive, -torch.inf)
        rank = hardness.argsort(1, descending=True).argsort(1)
        limit = positive.sum(1, keepdim=True) * self.negatives_per_positive
        negative = ~positive & (rank < limit)
        return {
            "class": torch.where(positive | negative, cross_entropy, 0.0).sum() / count,
            "box": torch.where(positive, box_loss, 0.0).sum() / count,
        }

    def predict(self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> list[Prediction]:
        with stage("network"):
            logits, offsets, anchors = self(images, scale)
        return self._detections(logits, offsets, anchors, (images.shape[2], images.shape[3]))

    def stages(self, image: Tensor) -> Iterator[Stage]:
        maps = self._maps(image)
        logits, offsets, anchors = self._heads(image, maps)
        scores = logits[0].softmax(-1)[:, 1:].amax(-1)
        per_map = [
            features.shape[-2] * features.shape[-1] * boxes
            for features, boxes in zip(maps, self.default_boxes.num_anchors_per_location(), strict=True)
        ]
        for features, boxes, of_map in zip(maps, anchors.split(per_map), scores.split(per_map), strict=True):
            rows, columns = features.shape[-2:]
            caption = f"The default boxes of highest score on the {rows}x{columns} map."
            yield best_boxes_stage(f"default boxes {rows}x{columns}", boxes, of_map, caption, 20)
        caption = "The boxes of highest score after box regression, before suppression."
        yield best_boxes_stage("regressed boxes", self.coder.decode(offsets[0], anchors), scores, caption)
        final = self._detections(logits, offsets, anchors, (image.shape[2], image.shape[3]))[0]
        yield detections_stage(final)

    @abstractmethod
    def _maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps with default boxes, fine to coarse."""

    def _heads(
        self, images: Tensor, maps: list[Tensor], scale: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[Tensor, Tensor, Tensor]:
        with stage("head"):
            out = self.head(maps)
        return out["cls_logits"].float(), out["bbox_regression"].float(), self._anchors(images, maps, scale)

    def _anchors(self, images: Tensor, maps: list[Tensor], scale: tuple[float, float]) -> Tensor:
        """Return the default boxes ``[A, 4]`` of images of this size, computed once per size.

        Their sides are fractions of the loaded images. In resized images the boxes keep their size in pixels, because
        the receptive field of a cell is also fixed in pixels.
        """
        size = (images.shape[2], images.shape[3])
        grids = tuple((features.shape[2], features.shape[3]) for features in maps)

        def compute() -> Tensor:
            # Boxes are computed in float32, because bfloat16 would move them by almost a pixel.
            shapes = [images.new_empty(1, 1, *grid, dtype=torch.float32) for grid in grids]
            boxes: Tensor = self.default_boxes(ImageList(images[:1].float(), [size]), shapes)[0]
            if scale == (1.0, 1.0):
                return boxes
            centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            half = sides / sides.new_tensor([2 * scale[1], 2 * scale[0]])
            return torch.cat([centres - half, centres + half], 1)

        return self._computed.get((size, grids, images.device, scale), compute)

    def _detections(
        self, logits: Tensor, offsets: Tensor, anchors: Tensor, size: tuple[int, int]
    ) -> list[Prediction]:
        with stage("nms"):
            return self.select(self.coder.decode(offsets, anchors), logits.softmax(-1)[..., 1:], size)

    def load_torchvision(self, state: dict[str, Tensor], source: str) -> None:
        """Load the weights of torchvision's SSD with the same architecture.

        If they are weights for COCO's 91 category ids and all classes have COCO names, the rows of these classes are
        used. With another number of classes, the last convolutions of the class head keep their random weights.

        Args:
            state: The weights by torchvision's parameter names.
            source: The file or name of the weights, for error messages.

        Raises:
            UserError: If they do not match this network.
        """
        network = nn.ModuleDict({"backbone": self.backbone, "head": self.head})
        own = network.state_dict()
        fitted = dict(state)
        for key, value in ((k, v) for k, v in state.items() if k in own):
            if not key.startswith("head.classification_head.") or value.shape == own[key].shape:
                continue
            if value.shape[1:] != own[key].shape[1:]:
                continue  # a different network; load_state reports it
            rows = rows_of_classes(value, own[key], self.class_names)
            fitted[key] = own[key] if rows is None else rows
        load_state(network, fitted, source, type(self).__name__, given=state)


class SSD(DefaultBoxDetector):
    """Single Shot MultiBox Detector (Liu et al., ECCV 2016) on any backbone.

    There are no proposals. Each cell of several feature maps of different strides has default boxes of a few shapes.
    Small convolutions predict the class (0 is background) and the offsets of all default boxes in one pass. Fine maps
    detect small objects, coarse maps large ones. The cost is one pass of the backbone. Default boxes, heads and their
    hyper-parameters are torchvision's.

    `SSD300` and `SSD512` are the paper's networks on VGG16; `SSDLite` uses MobileNetV3.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See `segdet.nn.backbones.build_backbone`.
        backbone_options: See `segdet.nn.backbones.build_backbone`.
        strides: The strides of the backbone's maps with default boxes.
        extra_maps: The number of additional maps, each half the size of the one before.
        width: The channels of the additional maps; with ``top_down``, the channels of all maps.
        top_down: Whether a feature pyramid (Lin et al., CVPR 2017) adds the coarser maps to each map; not in the paper.
        scales: The side of each map's default boxes relative to the image, and one final value for the larger square
            box of the last map. Null for the paper's values for COCO (section 3.4): 0.07, then evenly spaced values
            from 0.15 to 1.05.
        aspect_ratios: The aspect ratios of each map in addition to 1; the inverse of each is also used.
        kwargs: See `DefaultBoxDetector`.
    """

    cpu_network = {
        "backbone_options": {"channels": [32, 64, 128, 256]},
        "width": 96,
        "top_down": True,
    }

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: bool | str | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [8, 16, 32],  # noqa: B006  read only; jsonargparse shows it as the default
        extra_maps: int = 2,
        width: int = 128,
        top_down: bool = False,
        scales: list[float] | None = None,
        aspect_ratios: list[list[float]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        channels, self.strides = list(self.backbone.channels), list(self.backbone.strides)
        self.laterals = nn.ModuleList()
        self.smooth = nn.ModuleList()
        if top_down:
            self.laterals.extend(nn.Conv2d(c, width, 1) for c in channels)
            self.smooth.extend(Conv2dNormActivation(width, width, 3) for _ in channels)
            channels = [width] * len(channels)
        self.extras = nn.ModuleList()
        for _ in range(extra_maps):
            reduce = Conv2dNormActivation(channels[-1], width // 2, 1)
            halve = HalvingConv2d(width // 2, width, 3, stride=2, padding=1, bias=False)
            normalized = nn.Sequential(halve, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            self.extras.append(nn.Sequential(reduce, normalized))
            channels.append(width)
            self.strides.append(2 * self.strides[-1])
        maps = len(channels)
        if scales is None:
            scales = [0.07, *(0.15 + 0.9 * i / max(1, maps - 1) for i in range(maps))]
        elif len(scales) != maps + 1:
            raise UserError(
                f"--model.scales: {len(scales)} numbers for {maps} maps; give {maps + 1}, one per map and one more"
            )
        if aspect_ratios is not None and len(aspect_ratios) != maps:
            raise UserError(
                f"--model.aspect_ratios: {len(aspect_ratios)} lists for {maps} maps; give one per map"
            )
        aspect_ratios = aspect_ratios or [[2.0], *[[2.0, 3.0]] * (maps - 2), [2.0]][:maps]
        # Steps are explicit, because the sizes do not determine them: the last cell of a map may exceed the image.
        self.default_boxes = DefaultBoxGenerator(aspect_ratios, scales=scales, steps=self.strides)
        self.head = SSDHead(channels, self.default_boxes.num_anchors_per_location(), len(class_names) + 1)

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone(images)
        if self.laterals:
            maps = [lateral(features) for lateral, features in zip(self.laterals, maps, strict=True)]
            for i in range(len(maps) - 2, -1, -1):
                size, factor = (maps[i].shape[2], maps[i].shape[3]), self.strides[i + 1] // self.strides[i]
                maps[i] = maps[i] + upsample_to(maps[i + 1], size, factor, "nearest")
            maps = [smooth(features) for smooth, features in zip(self.smooth, maps, strict=True)]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps
