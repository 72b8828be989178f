"""Classification with localization: a class head and a box head on one backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, box_convert

from segdet.data.sample import Target
from segdet.localization.base import Localizer
from segdet.localization.multi_crop import MultiCrop, Views, merge_views
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import paired_giou_loss
from segdet.task import Stage
from segdet.training.fine_tune import ClassRows
from segdet.util.errors import check_choice
from segdet.util.stage_timing import stage

Heads = Literal["flat", "voting"]
BoxLoss = Literal["l2", "smooth_l1", "giou"]


class BoxHead(Localizer):
    """A classifier with a second head that regresses the box of the image's only object.

    The regression head uses the same features as the classifier (Sermanet et al., OverFeat, ICLR 2014; Simonyan and
    Zisserman, ICLR 2015, appendix A). The cost is one pass of the backbone. There are two kinds of heads:

    - ``flat``: linear layers on pooled maps, as in VGG (see `FlatHeads`);
    - ``voting``: class and box at every cell, as in OverFeat, combined into one prediction (see `VotingHeads`). The
      cells share their weights, so one image trains all cells around its object. The classes can be learned from
      several times fewer images.

    Args:
        backbone: The backbone, see `segdet.nn.backbones.build_backbone`.
        weights: Its pretrained weights, see `segdet.nn.backbones.build_backbone`.
        backbone_options: Further arguments of `segdet.nn.backbones.build_backbone`.
        strides: The strides of the maps that the heads use.
        heads: ``flat`` or ``voting``, see above.
        grid: The side of the pooled map, for the box head of ``flat``.
        width: The units of the hidden layer of each head.
        dropout: The dropout rate before the last layer of each head.
        per_class: Whether each class has its own box.
        box_loss: ``l2``, ``smooth_l1`` or ``giou``.
        box_weight: The weight of the box loss; the cross entropy has weight 1.
        views: The views of an image in testing: ``one`` is the whole image, ``two`` adds its mirror image, ``five`` are
            the four corners and the centre, ``ten`` adds their mirror images (see `MultiCrop`). Each view costs one
            pass.
        crop_share: The side of the corner and centre crops, as a fraction of the image's side.
        test_scales: The factors by which the image is resized for the views.
        kwargs: See `Localizer`.
    """

    class_rows = {"box_head": ClassRows(per_class=4)}

    cpu_network = {
        "backbone": "small_vgg",
        "backbone_options": {"channels": [32, 64, 96, 128, 192]},
        "strides": [8, 16, 32],
        "heads": "voting",
        "width": 96,
    }

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: bool | str | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [32],  # noqa: B006  read only; jsonargparse shows it as the default
        heads: Heads = "flat",
        grid: int = 4,
        width: int = 256,
        dropout: float = 0.2,
        per_class: bool = False,
        box_loss: BoxLoss = "smooth_l1",
        box_weight: float = 5.0,
        views: Views = "one",
        crop_share: float = 0.875,
        test_scales: list[float] = [1.0],  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.heads", heads, Heads)
        check_choice("--model.box_loss", box_loss, BoxLoss)
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        self.per_class = per_class
        self.box_loss = box_loss
        self.box_weight = box_weight
        self.multi_crop = MultiCrop(views, crop_share, test_scales)
        channels, classes = self.backbone.channels, len(class_names)
        boxes = classes if per_class else 1
        self.heads: FlatHeads | VotingHeads = (
            FlatHeads(channels, classes, boxes, grid, width, dropout)
            if heads == "flat"
            else VotingHeads(channels, classes, boxes, width, dropout)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, K]`` and boxes ``[B, 1 or K, 4]``, cxcywh as fractions of the image's sides."""
        with stage("network"):
            maps = self.backbone(images)
        with stage("head"):
            logits, boxes = self.heads(maps)
            return logits, boxes

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        logits, boxes = self(images)
        labels = torch.cat([target["labels"] for target in targets]) - 1
        height, width = images.shape[-2:]
        size = images.new_tensor([width, height] * 2)
        target_boxes = torch.cat([target["boxes"] for target in targets]) / size
        position = torch.arange(len(boxes), device=boxes.device)
        boxes = boxes[position, labels] if self.per_class else boxes[:, 0]
        return {
            "class": F.cross_entropy(logits.float(), labels),
            "box": self.box_weight * self._box_loss(boxes.float(), target_boxes),
        }

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, K]`` and boxes ``[B, 4]`` or ``[B, K, 4]``, xyxy in pixels."""
        if self.multi_crop.single:
            return self.predict_view(images)
        return merge_views(*self.multi_crop.predict(self.predict_view, images))

    def predict_view(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result of `predict` for the given view only."""
        logits, boxes = self(images)
        height, width = images.shape[-2:]
        size = boxes.new_tensor([width, height] * 2, dtype=torch.float)
        pixels = box_convert(boxes.float(), "cxcywh", "xyxy") * size
        return logits, pixels if self.per_class else pixels[:, 0]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        maps = self.backbone(image)
        strength = maps[-1].square().mean(1).sqrt()[0]
        yield Stage("features", map=strength, caption="The strength of the features that both heads use.")
        if isinstance(self.heads, VotingHeads):
            votes = self.heads.weights(self.heads.features(maps))[0]
            yield Stage("votes", map=votes, caption="The weight of each cell's class and box.")
        if not self.multi_crop.single:
            view_logits, view_boxes = self.multi_crop.predict(self.predict_view, image)
            scores, labels = view_logits[:, 0].softmax(1).max(1)
            count = len(view_boxes)
            # With one box for all classes, its index is 0.
            best_boxes = view_boxes[torch.arange(count), 0, labels if self.per_class else 0]
            caption = f"The prediction from each of the {count} views of the image."
            yield Stage("boxes of the views", boxes=best_boxes, scores=scores, caption=caption)
        logits, boxes = self.predict(image)
        best = logits.argmax(1)
        box = boxes[0] if boxes.ndim == 2 else boxes[0, best[0]]
        yield Stage("box", boxes=box[None], scores=logits.softmax(1).amax(1), caption="The predicted box.")

    def _box_loss(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of boxes ``[B, 4]`` cxcywh, given target boxes ``[B, 4]`` xyxy."""
        if self.box_loss == "giou":
            return paired_giou_loss(box_convert(boxes, "cxcywh", "xyxy"), targets).mean()
        targets = box_convert(targets, "xyxy", "cxcywh")
        if self.box_loss == "l2":
            return F.mse_loss(boxes, targets, reduction="none").sum(1).mean()
        return F.smooth_l1_loss(boxes, targets, reduction="none", beta=0.1).sum(1).mean()


class FlatHeads(nn.Module):
    """A class head and a box head, each of two linear layers, on pooled features.

    The box head uses the coarsest map, pooled to a grid and flattened, because a global average loses positions. The
    class does not depend on the position. The class head therefore uses only the maximum and the mean of each channel,
    and needs fewer training images.

    Args:
        channels: The channels of each map.
        classes: K.
        boxes: The number of boxes per image: 1, or K.
        grid: The side of the grid.
        width: The units of the hidden layers.
        dropout: The dropout rate before the last layers.
    """

    def __init__(
        self, channels: list[int], classes: int, boxes: int, grid: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.grid = grid
        self.class_head = _two_layers(2 * sum(channels), width, classes, dropout)
        self.box_head = _two_layers(channels[-1] * grid * grid, width, 4 * boxes, dropout)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Map features, fine to coarse, to logits ``[B, K]`` and boxes ``[B, boxes, 4]``, cxcywh, 0..1."""
        pooled = torch.cat([value for m in maps for value in (m.amax((2, 3)), m.mean((2, 3)))], 1)
        grid = F.adaptive_avg_pool2d(maps[-1], self.grid).flatten(1)
        return self.class_head(pooled), self.box_head(grid).unflatten(1, (-1, 4)).sigmoid()


class VotingHeads(nn.Module):
    """A class head, a box head and a weight at every cell of a map.

    OverFeat applies its classifier and its regressor at all cells and merges their predictions by rules. Here the
    weights are a learned softmax over the cells, and the prediction is the weighted mean of all logits and of all
    boxes. A cell predicts the distances from its centre to the four sides of the box. The distances do not depend on
    the position of the object in the image.

    The maps are added, from the coarsest to the finest. The cells are thus small and also have the context of the
    coarse maps.

    Args:
        channels: The channels of each map.
        classes: K.
        boxes: The number of boxes per image: 1, or K.
        width: The channels of the sum of the maps.
        dropout: The dropout rate before the last layers.
    """

    def __init__(self, channels: list[int], classes: int, boxes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(in_channels, width, 1) for in_channels in channels)
        self.shared = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            *Conv2dNormActivation(width, width, 3),
            nn.Dropout2d(dropout),
        )
        self.class_head = nn.Conv2d(width, classes, 1)
        self.box_head = nn.Conv2d(width, 4 * boxes, 1)
        self.weight_head = nn.Conv2d(width, 1, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Map features, fine to coarse, to logits ``[B, K]`` and boxes ``[B, boxes, 4]``, cxcywh as fractions."""
        features = self.features(maps)
        weights = self.weights(features).flatten(1)
        logits = self.class_head(features).float().flatten(2)
        height, width = features.shape[-2:]
        x = (torch.arange(width, device=features.device) + 0.5) / width
        y = ((torch.arange(height, device=features.device) + 0.5) / height)[:, None]
        # The distances are positive, and initially about a sixth of the image.
        distances = F.softplus(self.box_head(features).float()) / 4
        left, top, right, bottom = distances.unflatten(1, (-1, 4)).unbind(2)
        boxes = torch.stack(
            [x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom], 2
        ).flatten(3)
        return (logits * weights[:, None]).sum(-1), (boxes * weights[:, None, None]).sum(-1)

    def features(self, maps: list[Tensor]) -> Tensor:
        """Return the sum of the maps, ``[B, width, h, w]`` at the finest stride."""
        total = self.laterals[-1](maps[-1])
        for lateral, finer in zip(reversed(self.laterals[:-1]), reversed(maps[:-1]), strict=True):
            coarse = F.interpolate(total, finer.shape[-2:], mode="bilinear", align_corners=False)
            total = coarse + lateral(finer)
        summed: Tensor = self.shared(total)
        return summed

    def weights(self, features: Tensor) -> Tensor:
        """Return the weight of each cell, ``[B, h, w]``, which sums to one over an image."""
        scores: Tensor = self.weight_head(features).float()
        return scores.flatten(1).softmax(1).view(len(features), *features.shape[-2:])


def _two_layers(features: int, width: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(width, out)
    )
