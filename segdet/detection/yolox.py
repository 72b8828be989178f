"""YOLOX: anchor-free YOLO with a decoupled head and dynamic label assignment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, best_boxes_stage, detections_stage
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import pad_targets, paired_iou, pairwise_iou
from segdet.task import Stage
from segdet.util.errors import check_range
from segdet.util.stage_timing import stage

_conv = partial(Conv2dNormActivation, activation_layer=nn.SiLU)

_PRIOR = 0.01
"""The initial probability of an object in every cell (RetinaNet, section 4.1)."""

_OUTSIDE_COST = 1e5
"""The additional cost of a cell that is outside the object's box or far from its centre."""


class YOLOX(Detector):
    """YOLOX (Ge, Liu, Wang, Li, Sun, 2021, "Exceeding YOLO Series in 2021") on any backbone.

    Each cell of maps of several strides predicts a box without anchors: the offset of its centre from the cell's corner
    and its sides in strides. The head has separate branches for class and box, and an objectness output as in YOLO
    (section 2.1, figure 2). Cells are assigned to objects in every step from the current predictions (`simota`). The
    cost is one pass of the backbone.

    The paper's COCO training has mosaic and mixup, an L1 loss in the last epochs and its own backbone. Here the
    backbone is an argument, and augmentation is an option of the data.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See `segdet.nn.backbones.build_backbone`.
        backbone_options: See `segdet.nn.backbones.build_backbone`.
        strides: The strides of the backbone's maps.
        width: The channels of neck and head.
        bottom_up: Whether a bottom-up path follows the feature pyramid (PANet, Liu et al., CVPR 2018, section 3.1), as
            in the paper; otherwise the neck is the plain pyramid.
        head_convolutions: The number of 3x3 convolutions in each branch; 2 in the paper.
        radius: The maximum distance, in strides, of cells near an object's centre.
        most_cells: The maximum number of cells per object.
        box_weight: The weight of the box loss; 5 in the authors' code.
        detections_per_class: The maximum number of boxes per class before suppression.
        kwargs: See `Detector`.
    """

    cpu_network = {
        "backbone_options": {"channels": [32, 64, 128, 256]},
        "width": 64,
    }

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: bool | str | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [8, 16, 32],  # noqa: B006  read only; jsonargparse shows it as the default
        width: int = 128,
        bottom_up: bool = True,
        head_convolutions: int = 2,
        radius: float = 2.5,
        most_cells: int = 10,
        box_weight: float = 5.0,
        score_threshold: float = 0.01,
        nms_threshold: float = 0.65,
        detections_per_class: int = 400,
        detections_per_image: int = 200,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, score_threshold, nms_threshold, detections_per_image, **kwargs)
        check_range("--model.most_cells", most_cells, least=1)
        self.radius = radius
        self.most_cells = most_cells
        self.box_weight = box_weight
        self.detections_per_class = detections_per_class
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        self.strides = self.backbone.strides
        self.neck = PAFPN(self.backbone.channels, width, bottom_up)
        self.heads = nn.ModuleList(
            DecoupledHead(width, len(class_names), head_convolutions) for _ in self.strides
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Cells]:
        """Map images ``[B, 3, H, W]`` to the predictions of all A cells, by map (fine to coarse), row and column.

        Returns:
            Class logits ``[B, A, K]``, objectness logits ``[B, A]``, boxes ``[B, A, 4]`` xyxy in pixels, and the
            positions of the cells.
        """
        maps = self.neck(self.backbone(images))
        with stage("head"):
            outputs = [head(features) for head, features in zip(self.heads, maps, strict=True)]
        # [B, outputs, h, w] of each map to [B, A, outputs] of all
        output = torch.cat([each.float().flatten(2) for each in outputs], 2).transpose(1, 2)
        cells = self._cells(maps)
        offsets, objectness, logits = output[..., :4], output[..., 4], output[..., 5:]
        stride = cells.strides[:, None]
        centre = (cells.centres - stride / 2) + offsets[..., :2] * stride
        # The limit of 1,000 strides per side exceeds any image and keeps the area finite.
        half = offsets[..., 2:].clamp(max=math.log(1000)).exp() * stride / 2
        return logits, objectness, torch.cat([centre - half, centre + half], -1), cells

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        logits, objectness, predicted, cells = self(images)
        boxes, labels = pad_targets(targets, images.device)
        predictions = logits.detach(), objectness.detach(), predicted.detach()
        matched, positive, iou = simota(*predictions, cells, boxes, labels, self.radius, self.most_cells)
        count = positive.sum().clamp(min=1)
        target_boxes = boxes.gather(1, matched[..., None].expand(-1, -1, 4))
        # The target of the class is the IoU of the box (section 2.1, "IoU-aware", as in the authors' code).
        one_hot = F.one_hot((labels.gather(1, matched) - 1).clamp(min=0), logits.shape[-1])
        class_loss = F.binary_cross_entropy_with_logits(
            logits, one_hot * iou[..., None], reduction="none"
        ).sum(-1)
        box_loss = 1 - paired_iou(predicted, target_boxes).square()
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness, positive.to(objectness.dtype), reduction="sum"
        )
        return {
            "box": self.box_weight * torch.where(positive, box_loss, 0.0).sum() / count,
            "objectness": objectness_loss / count,
            "class": torch.where(positive, class_loss, 0.0).sum() / count,
        }

    def predict(self, images: Tensor) -> list[Prediction]:
        with stage("network"):
            logits, objectness, boxes, _ = self(images)
        return self._detections(logits, objectness, boxes, (images.shape[2], images.shape[3]))

    def stages(self, image: Tensor) -> Iterator[Stage]:
        logits, objectness, boxes, cells = self(image)
        presence = objectness[0].sigmoid()
        per_map = [rows * columns for rows, columns in cells.grids]
        for (rows, columns), stride, part in zip(
            cells.grids, self.strides, presence.split(per_map), strict=True
        ):
            caption = f"The probability of an object in each cell of {stride} pixels."
            yield Stage(f"objectness, stride {stride}", map=part.view(rows, columns), caption=caption)
        scores = (logits[0].sigmoid() * presence[:, None]).amax(-1)
        yield best_boxes_stage("boxes", boxes[0], scores, "The boxes of highest score, before suppression.")
        final = self._detections(logits, objectness, boxes, (image.shape[2], image.shape[3]))[0]
        yield detections_stage(final)

    def _detections(
        self, logits: Tensor, objectness: Tensor, boxes: Tensor, size: tuple[int, int]
    ) -> list[Prediction]:
        with stage("nms"):
            return self.select(boxes, logits.sigmoid() * objectness.sigmoid()[..., None], size)

    def _cells(self, maps: list[Tensor]) -> Cells:
        centres, strides = [], []
        for features, stride in zip(maps, self.strides, strict=True):
            rows, columns = features.shape[-2:]
            y = (torch.arange(rows, device=features.device) + 0.5) * stride
            x = (torch.arange(columns, device=features.device) + 0.5) * stride
            centres.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1))
            strides.append(torch.full((rows * columns,), float(stride), device=features.device))
        grids = [(features.shape[-2], features.shape[-1]) for features in maps]
        return Cells(torch.cat(centres), torch.cat(strides), grids)


class Cells(NamedTuple):
    """The positions of the A cells of all maps."""

    centres: Tensor  # float32 [A, 2], x and y in pixels
    strides: Tensor  # float32 [A], in pixels
    grids: list[tuple[int, int]]  # the number of rows and columns of each map


def simota(
    logits: Tensor,
    objectness: Tensor,
    predicted: Tensor,
    cells: Cells,
    boxes: Tensor,
    labels: Tensor,
    radius: float = 2.5,
    most_cells: int = 10,
) -> tuple[Tensor, Tensor, Tensor]:
    """Match each cell with an object: SimOTA (section 2.1), batched.

    A cell is a candidate for an object if its centre is within the object's box, or within ``radius`` strides of the
    object's centre in x and in y. The cost of a candidate is the cross entropy of the class plus three times -log IoU.
    The probability in the cross entropy is the square root of the product of class probability and objectness, as in
    the authors' code. A large constant is added unless both conditions hold. An object is matched with its k candidates
    of lowest cost. k is the sum of the ``most_cells`` highest IoUs of its candidates, at least 1. A cell selected by
    several objects keeps the object of lowest cost.

    Args:
        logits: ``[B, A, K]``.
        objectness: Logits ``[B, A]``.
        predicted: The cells' boxes ``[B, A, 4]`` xyxy in pixels.
        cells: The positions of the cells.
        boxes: The boxes of the objects, ``[B, G, 4]`` xyxy in pixels, from `pad_targets`.
        labels: ``[B, G]``, 0 where there is no object.
        radius: See above.
        most_cells: See above.

    Returns:
        The index of each cell's object, int64 ``[B, A]`` (meaningful only for matched cells); whether the cell is
        matched, bool ``[B, A]``; and the IoU of the cell's box with the object, float32 ``[B, A]``.
    """
    x, y = cells.centres.unbind(-1)
    x0, y0, x1, y1 = boxes.unsqueeze(-1).unbind(-2)  # [B, G, 1] each
    inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    reach = radius * cells.strides
    near = ((x - (x0 + x1) / 2).abs() < reach) & ((y - (y0 + y1) / 2).abs() < reach)
    candidate = (inside | near) & (labels > 0)[..., None]  # [B, G, A]

    iou = pairwise_iou(boxes, predicted) * candidate
    # The class cost of a label differs from that of background in one term. Only this term is computed per object,
    # which avoids a G x A x K tensor.
    probability = (logits.sigmoid() * objectness.sigmoid()[..., None]).sqrt()
    negative = -torch.log1p(-probability.clamp(max=1 - 1e-6))
    positive = -probability.clamp(min=1e-8).log()
    index = (labels - 1).clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)  # [B, A, G]
    class_cost = negative.sum(-1, keepdim=True) + (positive - negative).gather(2, index)
    cost = class_cost.transpose(1, 2) - 3 * (iou + 1e-8).log() + _OUTSIDE_COST * ~(inside & near)
    cost = torch.where(candidate, cost, torch.inf)

    most = min(most_cells, cost.shape[-1])
    counts = iou.topk(most, -1).values.sum(-1).int().clamp(min=1)  # [B, G]
    lowest = cost.topk(most, -1, largest=False)
    taken = (torch.arange(most, device=cost.device) < counts[..., None]) & lowest.values.isfinite()
    taken = torch.zeros_like(candidate).scatter_(-1, lowest.indices, taken)
    matched = torch.where(taken, cost, torch.inf).argmin(1)
    return matched, taken.any(1), iou.gather(1, matched[:, None]).squeeze(1)


class PAFPN(nn.Module):
    """A feature pyramid (Lin et al., CVPR 2017) followed by a bottom-up path (PANet).

    Args:
        channels: The channels of the input maps, fine to coarse.
        width: The channels of the output maps.
        bottom_up: Whether there is a bottom-up path.
    """

    def __init__(self, channels: list[int], width: int, bottom_up: bool = True) -> None:
        super().__init__()
        self.top_down = FeaturePyramidNetwork(channels, width, norm_layer=nn.BatchNorm2d)
        steps = len(channels) - 1 if bottom_up else 0
        self.down = nn.ModuleList(_conv(width, width, 3, 2) for _ in range(steps))
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in range(steps))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Convert maps ``[B, channels[i], h_i, w_i]`` to maps ``[B, width, h_i, w_i]``."""
        pyramid = list(self.top_down({str(i): features for i, features in enumerate(maps)}).values())
        for i, (down, smooth) in enumerate(zip(self.down, self.smooth, strict=True)):
            pyramid[i + 1] = smooth(pyramid[i + 1] + down(pyramid[i]))
        return pyramid


class DecoupledHead(nn.Module):
    """The head of one map: box and objectness from one branch, the class from another (figure 2).

    Args:
        width: The channels of the map and of the branches.
        classes: K.
        convolutions: The number of 3x3 convolutions in each branch.
    """

    def __init__(self, width: int, classes: int, convolutions: int = 2) -> None:
        super().__init__()
        self.stem = _conv(width, width, 1)
        self.class_branch = nn.Sequential(*(_conv(width, width, 3) for _ in range(convolutions)))
        self.box_branch = nn.Sequential(*(_conv(width, width, 3) for _ in range(convolutions)))
        self.classes = nn.Conv2d(width, classes, 1)
        self.box = nn.Conv2d(width, 4, 1)
        self.objectness = nn.Conv2d(width, 1, 1)
        for layer in (self.classes, self.objectness):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, features: Tensor) -> Tensor:
        """Convert a map ``[B, width, h, w]`` to ``[B, 4 + 1 + K, h, w]``: offsets, objectness and class logits."""
        features = self.stem(features)
        boxes = self.box_branch(features)
        return torch.cat(
            [self.box(boxes), self.objectness(boxes), self.classes(self.class_branch(features))], 1
        )
