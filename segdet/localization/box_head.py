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
from segdet.localization.multi_crop import MultiCrop, Views, merge_views
from segdet.nn.backbones import build_backbone
from segdet.task import Stage
from segdet.util.errors import check_choice

Heads = Literal["flat", "voting"]
BoxLoss = Literal["l2", "smooth_l1", "giou"]


class BoxHead(Localizer):
    """A classifier with a second head of four numbers: the box of the image's one object.

    The regression head stands on the same features as the classifier (Sermanet et al., OverFeat, ICLR
    2014; Simonyan and Zisserman, ICLR 2015, section A). It costs one pass of the backbone. There are two ways for the
    heads to read the features:

    - ``flat``: linear layers on what is left of the maps after pooling (see `FlatHeads`), as in VGG;
    - ``voting``: class and box at every place, as in OverFeat, and one answer from all of them (see
      `VotingHeads`). A place sees an object where it is, so one image teaches all places that look at its object,
      and the classes are learned from several times fewer images.

    Args:
        backbone: The backbone, see `segdet.nn.backbones.build_backbone`.
        weights: Its pretrained weights, see `segdet.nn.backbones.build_backbone`.
        backbone_options: Further arguments of `segdet.nn.backbones.build_backbone`.
        strides: The strides of the features that the heads stand on.
        heads: ``flat`` or ``voting``, see above.
        grid: The side of the features after pooling, for the box head of ``flat``.
        width: The units of the hidden layer of either head.
        dropout: The rate before either head's last layer.
        per_class: Whether each class has four numbers of its own.
        box_loss: ``l2``, ``smooth_l1`` or ``giou``.
        box_weight: The box loss's weight beside the cross entropy.
        views: What is seen of an image in testing: ``one`` is the whole image, ``two`` adds its mirror image,
            ``five`` are four corners and the centre, ``ten`` adds their mirror images (see `MultiCrop`). Each costs a
            pass.
        crop_share: The side of a corner or of the centre, as a share of the image's.
        test_scales: The sizes that the image is resized to for each view, as shares of its own.
        kwargs: See `Localizer`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: str | bool | None = None,
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
        """Images ``[B, 3, H, W]`` to logits ``[B, K]`` and centre, width, height as shares, ``[B, 1 or K, 4]``."""
        logits, boxes = self.heads(self.backbone(images))
        return logits, boxes

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
        if self.multi_crop.single:
            return self.answer_of_view(images)
        return merge_views(*self.multi_crop.ask(self.answer_of_view, images))

    def answer_of_view(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `predict`, of the images as they are."""
        logits, boxes = self(images)
        height, width = images.shape[-2:]
        pixels = box_convert(boxes.float(), "cxcywh", "xyxy") * boxes.new_tensor(
            [width, height] * 2, dtype=torch.float
        )
        return logits, pixels if self.per_class else pixels[:, 0]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        maps = self.backbone(image)
        energy = maps[-1].square().mean(1).sqrt()[0]
        yield Stage("features", map=energy, about="Where the features that both heads read are strong.")
        if isinstance(self.heads, VotingHeads):
            votes = self.heads.weights(self.heads.features(maps))[0]
            yield Stage("votes", map=votes, about="How much each place's own class and box count.")
        if not self.multi_crop.single:
            said, found = self.multi_crop.ask(self.answer_of_view, image)
            sure, label = said[:, 0].softmax(1).max(1)
            own = found[:, 0, 0] if found.shape[2] == 1 else found[torch.arange(len(found)), 0, label]
            about = f"What each of the {len(found)} views of the image says of its object."
            yield Stage("boxes of the views", boxes=own, scores=sure, about=about)
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


class FlatHeads(nn.Module):
    """A class head and a box head, each of two linear layers, on pooled features.

    For the box the coarsest map is pooled to a grid and flattened, for an average forgets where things are;
    for the class, which is the same wherever the object stands, each channel's maximum and average over the
    image are enough, and are learned from fewer images.

    Args:
        channels: Of each map.
        classes: K.
        boxes: How many boxes an image has: 1, or K.
        grid: The side of the grid.
        width: The units of the hidden layers.
        dropout: The rate before the last layers.
    """

    def __init__(
        self, channels: list[int], classes: int, boxes: int, grid: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.grid = grid
        self.class_head = _two_layers(2 * sum(channels), width, classes, dropout)
        self.box_head = _two_layers(channels[-1] * grid * grid, width, 4 * boxes, dropout)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps, fine to coarse, to logits ``[B, K]`` and boxes ``[B, boxes, 4]``: centre and sides, 0..1."""
        what = torch.cat([pooled for m in maps for pooled in (m.amax((2, 3)), m.mean((2, 3)))], 1)
        where = F.adaptive_avg_pool2d(maps[-1], self.grid).flatten(1)
        return self.class_head(what), self.box_head(where).unflatten(1, (-1, 4)).sigmoid()


class VotingHeads(nn.Module):
    """A class head and a box head at every place of a map, and a weight for each place's say.

    OverFeat runs its classifier and its regressor at all places and merges what they find by rules; here
    a softmax over the places, learned with the rest, says whose answer counts, and the answer is
    the weighted mean of all logits and of all boxes. A place gives its box by the distances from itself to the four
    sides, so that the same features mean the same box wherever they stand.

    The maps are added, from the coarsest to the finest, so that places are fine and each knows the whole image.

    Args:
        channels: Of each map.
        classes: K.
        boxes: How many boxes an image has: 1, or K.
        width: The channels that the maps are added in.
        dropout: The rate before the last layers.
    """

    def __init__(self, channels: list[int], classes: int, boxes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(before, width, 1) for before in channels)
        self.shared = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
        )
        self.class_head = nn.Conv2d(width, classes, 1)
        self.box_head = nn.Conv2d(width, 4 * boxes, 1)
        self.weight_head = nn.Conv2d(width, 1, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps, fine to coarse, to logits ``[B, K]`` and boxes ``[B, boxes, 4]``: centre and sides as shares."""
        features = self.features(maps)
        weights = self.weights(features).flatten(1)
        logits = self.class_head(features).float().flatten(2)
        height, width = features.shape[-2:]
        x = (torch.arange(width, device=features.device) + 0.5) / width
        y = ((torch.arange(height, device=features.device) + 0.5) / height)[:, None]
        # A quarter of the image to begin with, and never negative.
        reach = F.softplus(self.box_head(features).float()) / 4
        left, top, right, bottom = reach.unflatten(1, (-1, 4)).unbind(2)
        boxes = torch.stack(
            [x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom], 2
        ).flatten(3)
        return (logits * weights[:, None]).sum(-1), (boxes * weights[:, None, None]).sum(-1)

    def features(self, maps: list[Tensor]) -> Tensor:
        """The sum of the maps, ``[B, width, h, w]`` at the finest stride."""
        total = self.laterals[-1](maps[-1])
        for lateral, finer in zip(reversed(self.laterals[:-1]), reversed(maps[:-1]), strict=True):
            total = F.interpolate(total, finer.shape[-2:], mode="bilinear", align_corners=False) + lateral(
                finer
            )
        summed: Tensor = self.shared(total)
        return summed

    def weights(self, features: Tensor) -> Tensor:
        """How much each place counts, ``[B, h, w]``; the sum over an image is one."""
        scores: Tensor = self.weight_head(features).float()
        return scores.flatten(1).softmax(1).view(len(features), *features.shape[-2:])


def _two_layers(features: int, width: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(width, out)
    )
