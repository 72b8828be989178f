"""Classification with localization: a class head and a box head on one backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from segdet.data.sample import Target
from segdet.localization.base import Localizer
from segdet.nn.backbones import backbone as build_backbone
from segdet.task import Stage


class BoxHead(Localizer):
    """A classifier with a second head of four numbers: the box of the image's one object.

    The regression head stands on the same features as the classifier (Sermanet et al., OverFeat, ICLR
    2014; Simonyan and Zisserman, ICLR 2015, section A). For the box they are pooled to a grid and
    flattened, for an average forgets where things are; for the class, which is the same wherever the
    object stands, each channel's maximum and average over the image are enough, and are learned from far fewer
    images. The four numbers are centre, width and height as shares of the image. It costs one pass of
    the backbone.

    Args:
        backbone: See `segdet.nn.backbones.backbone`.
        weights: See there.
        backbone_options: See there.
        strides: The strides of the features that the heads stand on: the class head on all of them, the box
            head on the coarsest.
        grid: The side of the features after pooling, for the box head.
        width: The units of the hidden layer of either head.
        dropout: The rate before either head's last layer.
        per_class: Whether each class has four numbers of its own.
        box_loss: ``l2``, ``smooth_l1`` or ``giou``.
        box_weight: The box loss's weight beside the cross entropy.
        kwargs: As for `Localizer`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: str | bool | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [32],  # noqa: B006  read only; jsonargparse shows it as the default
        grid: int = 4,
        width: int = 256,
        dropout: float = 0.2,
        per_class: bool = False,
        box_loss: Literal["l2", "smooth_l1", "giou"] = "smooth_l1",
        box_weight: float = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        self.grid = grid
        self.per_class = per_class
        self.box_loss = box_loss
        self.box_weight = box_weight
        channels = self.backbone.channels
        boxes = len(class_names) if per_class else 1
        self.class_head = _head(2 * sum(channels), width, len(class_names), dropout)
        self.box_head = _head(channels[-1] * grid * grid, width, 4 * boxes, dropout)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[B, 3, H, W]`` to logits ``[B, K]`` and centre, width, height of 0..1, ``[B, 1 or K, 4]``."""
        maps = self.backbone(images)
        what = torch.cat([pooled for m in maps for pooled in (m.amax((2, 3)), m.mean((2, 3)))], 1)
        where = F.adaptive_avg_pool2d(maps[-1], self.grid).flatten(1)
        return self.class_head(what), self.box_head(where).unflatten(1, (-1, 4)).sigmoid()

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        logits, boxes = self(images)
        labels = torch.cat([target["labels"] for target in targets]) - 1
        height, width = images.shape[-2:]
        wanted = torch.cat([target["boxes"] for target in targets]) / images.new_tensor([width, height] * 2)
        boxes = (
            boxes[torch.arange(len(boxes), device=boxes.device), labels] if self.per_class else boxes[:, 0]
        )
        return {
            "class": F.cross_entropy(logits.float(), labels),
            "box": self.box_weight * self._box_loss(boxes.float(), wanted),
        }

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, K]`` and boxes ``[B, 4]`` or ``[B, K, 4]``, xyxy in pixels."""
        logits, boxes = self(images)
        height, width = images.shape[-2:]
        pixels = box_convert(boxes.float(), "cxcywh", "xyxy") * boxes.new_tensor(
            [width, height] * 2, dtype=torch.float
        )
        return logits, pixels if self.per_class else pixels[:, 0]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        energy = self.backbone(image)[-1].square().mean(1).sqrt()[0]
        yield Stage("features", map=energy, about="Where the features that both heads read are strong.")
        logits, boxes = self.predict(image)
        best = logits.argmax(1)
        box = boxes[0] if boxes.ndim == 2 else boxes[0, best[0]]
        yield Stage(
            "box", boxes=box[None], scores=logits.softmax(1).amax(1), about="The one box it answers with."
        )

    def _box_loss(self, boxes: Tensor, wanted: Tensor) -> Tensor:
        if self.box_loss == "giou":
            return generalized_box_iou_loss(box_convert(boxes, "cxcywh", "xyxy"), wanted, reduction="mean")
        wanted = box_convert(wanted, "xyxy", "cxcywh")
        if self.box_loss == "l2":
            return F.mse_loss(boxes, wanted, reduction="none").sum(1).mean()
        return F.smooth_l1_loss(boxes, wanted, reduction="none", beta=0.1).sum(1).mean()


def _head(features: int, width: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(width, out)
    )
