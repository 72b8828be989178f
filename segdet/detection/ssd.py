"""SSD: one pass, a grid of default boxes on each of several feature maps."""

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

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, detections_stage
from segdet.detection.torchvision_network import rows_of_classes
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import BoxCoder, match_anchors, pad_targets
from segdet.nn.size_cache import SizeCache
from segdet.nn.upsampling import upsample_to
from segdet.nn.weights import load_state
from segdet.task import Stage, View
from segdet.util.errors import UserError
from segdet.util.stages import stage


class DefaultBoxDetector(Detector):
    """What detectors with SSD's default boxes have in common; use `SSD` or one of its published forms.

    Training matches every object with its best default box and with all of IoU >= 0.5, and keeps three
    negatives, the hardest, for each positive (section 2.2).

    Args:
        score_threshold: Detections must exceed this score.
        nms_threshold: Of two boxes of a class with a greater IoU, the worse is dropped.
        detections_per_class: How many of a class take part in that.
        detections_per_image: How many remain.
        negatives_per_positive: The hard negatives kept.
        kwargs: As for `Detector`.

    Attributes:
        backbone: Maps images to features; set by the family, as the next two.
        default_boxes: torchvision's generator of them.
        head: torchvision's convolutions on the maps.
    """

    backbone: nn.Module
    default_boxes: DefaultBoxGenerator
    head: nn.Module

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
        super().__init__(class_names, **kwargs)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_class = detections_per_class
        self.detections_per_image = detections_per_image
        self.negatives_per_positive = negatives_per_positive
        self.coder = BoxCoder((0.1, 0.1, 0.2, 0.2))
        self._computed: SizeCache[Tensor] = SizeCache()

    @abstractmethod
    def _maps(self, images: Tensor) -> list[Tensor]:
        """The maps that carry default boxes, fine to coarse."""

    def load_torchvision(self, state: dict[str, Tensor], source: str) -> None:
        """Gives backbone and head the weights of torchvision's SSD of the same form.

        Where they were learned on COCO's 91 numbers and all classes here are among COCO's names, their rows are
        taken by name. Where they are of another number of classes, the last convolutions of the classes stay new.

        Args:
            state: By torchvision's names.
            source: Where they come from, for the error's line.

        Raises:
            UserError: If they do not fit.
        """
        network = nn.ModuleDict({"backbone": self.backbone, "head": self.head})
        own = network.state_dict()
        fitted = dict(state)
        for key, value in ((k, v) for k, v in state.items() if k in own):
            if not key.startswith("head.classification_head.") or value.shape == own[key].shape:
                continue
            if value.shape[1:] != own[key].shape[1:]:
                continue  # another network: told below
            rows = rows_of_classes(value, own[key], self.class_names)
            fitted[key] = own[key] if rows is None else rows
        load_state(network, fitted, source, type(self).__name__)

    def loss_inputs(self, view: View) -> dict[str, Any]:
        return {"scale": view.scale}

    def predict_inputs(self, targets: list[Target], view: View) -> dict[str, Any]:
        return {"scale": view.scale}

    def forward(
        self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images ``[B, 3, H, W]`` to logits ``[B, A, K + 1]``, offsets ``[B, A, 4]`` and default boxes ``[A, 4]``.

        Args:
            images: Normalized.
            scale: Their height and width divided by those of the loaded images.
        """
        return self._heads(images, self._maps(images), scale)

    def _heads(
        self, images: Tensor, maps: list[Tensor], scale: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[Tensor, Tensor, Tensor]:
        out = self.head(maps)
        return out["cls_logits"].float(), out["bbox_regression"].float(), self._anchors(images, maps, scale)

    def losses(
        self, images: Tensor, targets: list[Target], scale: tuple[float, float] = (1.0, 1.0)
    ) -> dict[str, Tensor]:
        logits, offsets, anchors = self(images, scale)
        boxes, labels = pad_targets(targets, images.device)
        matched, wanted = match_anchors(anchors, boxes, labels, foreground=0.5, background=0.5)
        positive = wanted > 0
        count = positive.sum().clamp(min=1)
        goal = self.coder.encode(boxes.gather(1, matched[..., None].expand(-1, -1, 4)), anchors)
        box = F.smooth_l1_loss(offsets, goal, reduction="none").sum(-1)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(
            wanted
        )
        # The rank of each anchor among the negatives of its image, the hardest first.
        hardness = cross_entropy.detach().masked_fill(positive, -torch.inf)
        rank = hardness.argsort(1, descending=True).argsort(1)
        kept = positive.sum(1, keepdim=True) * self.negatives_per_positive
        negative = ~positive & (rank < kept)
        return {
            "class": torch.where(positive | negative, cross_entropy, 0.0).sum() / count,
            "box": torch.where(positive, box, 0.0).sum() / count,
        }

    def predict(self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> list[Prediction]:
        with stage("network"):
            logits, offsets, anchors = self(images, scale)
        return self._detections(logits, offsets, anchors, (images.shape[2], images.shape[3]))

    def _detections(
        self, logits: Tensor, offsets: Tensor, anchors: Tensor, size: tuple[int, int]
    ) -> list[Prediction]:
        with stage("nms"):
            return self.selected(self.coder.decode(offsets, anchors), logits.softmax(-1)[..., 1:], size)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        maps = self._maps(image)
        logits, offsets, anchors = self._heads(image, maps)
        scores = logits[0].softmax(-1)[:, 1:].amax(-1)
        per_map = [
            features.shape[-2] * features.shape[-1] * boxes
            for features, boxes in zip(maps, self.default_boxes.num_anchors_per_location(), strict=True)
        ]
        for features, index in zip(maps, torch.arange(len(anchors)).split(per_map), strict=True):
            best = index[scores[index].topk(min(20, len(index))).indices]
            rows, columns = features.shape[-2:]
            about = f"The default boxes of the {rows}x{columns} map that are most sure to hold something."
            yield Stage(
                f"default boxes {rows}x{columns}", boxes=anchors[best], scores=scores[best], about=about
            )
        best = scores.topk(min(100, len(scores))).indices
        moved = self.coder.decode(offsets[0], anchors)[best]
        yield Stage(
            "regressed boxes",
            boxes=moved,
            scores=scores[best],
            about="The same after their offsets, unsuppressed.",
        )
        final = self._detections(logits, offsets, anchors, (image.shape[2], image.shape[3]))[0]
        yield detections_stage(final)

    def _anchors(self, images: Tensor, maps: list[Tensor], scale: tuple[float, float]) -> Tensor:
        """Return the default boxes ``[A, 4]`` of images of this size, computed once per size.

        Their sides are fractions of the loaded images. In resized images they keep their size in pixels, because the
        receptive field of a map's cell is a number of pixels too.
        """
        size = (images.shape[2], images.shape[3])
        grids = tuple((features.shape[2], features.shape[3]) for features in maps)

        def compute() -> Tensor:
            # In float32 whatever the maps are in: bfloat16 would move the boxes by most of a pixel.
            shapes = [images.new_empty(1, 1, *grid, dtype=torch.float32) for grid in grids]
            boxes: Tensor = self.default_boxes(ImageList(images[:1].float(), [size]), shapes)[0]
            if scale == (1.0, 1.0):
                return boxes
            centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            half = sides / sides.new_tensor([2 * scale[1], 2 * scale[0]])
            return torch.cat([centres - half, centres + half], 1)

        return self._computed.get((size, grids, images.device, scale), compute)


class SSD(DefaultBoxDetector):
    """Single Shot MultiBox Detector (Liu et al., ECCV 2016) on any backbone.

    There are no proposals: each cell of feature maps of several strides holds default boxes of a few
    shapes, and small convolutions say for every one of them at once what class it holds (background
    is class 0) and how its box is off. Fine maps find small objects, coarse maps large ones. It costs one
    pass of the backbone. Default boxes, heads and their numbers are torchvision's.

    `SSD300` and `SSD512` are the paper's networks on VGG16, `SSDLite` is MobileNet's.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See there.
        backbone_options: See there.
        strides: The backbone's maps that carry default boxes.
        extra_maps: How many maps follow, each half the size of the one before.
        width: The channels of those, and of all maps after a 1x1 convolution when ``top_down``.
        top_down: Whether each map also receives the coarser ones (a feature pyramid, Lin et al., CVPR 2017),
            which is not in the paper.
        scales: The sides of the default boxes of each map, as shares of the image, and one more at the end;
            null for the paper's rule, evenly from 0.07 and 0.15 to 1.05 (min sizes 30 to 315 of 300).
        aspect_ratios: Of each map, beside 1: each stands for itself and its inverse.
        kwargs: As for `DefaultBoxDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: str | bool | None = None,
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
            self.smooth.extend(_conv(width, width, 3) for _ in channels)
            channels = [width] * len(channels)
        self.extras = nn.ModuleList()
        for _ in range(extra_maps):
            self.extras.append(
                nn.Sequential(_conv(channels[-1], width // 2, 1), _conv(width // 2, width, 3, stride=2))
            )
            channels.append(width)
            self.strides.append(2 * self.strides[-1])
        maps = len(channels)
        if scales is None:
            scales = [0.07, *(0.15 + 0.9 * i / max(1, maps - 1) for i in range(maps))]
        elif len(scales) != maps + 1:
            raise UserError(
                f"--model.scales: {len(scales)} numbers for {maps} maps; give {maps + 1}, one a map and one more"
            )
        if aspect_ratios is not None and len(aspect_ratios) != maps:
            raise UserError(
                f"--model.aspect_ratios: {len(aspect_ratios)} lists for {maps} maps; give one a map"
            )
        aspect_ratios = aspect_ratios or [[2.0], *[[2.0, 3.0]] * (maps - 2), [2.0]][:maps]
        # Told, and not guessed from image and map: a map's last cell may lie beyond the image.
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


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )
