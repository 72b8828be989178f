"""YOLOX: YOLO without anchors, a head of two branches, and targets dealt out anew in every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, detections_stage
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import pad_targets, paired_iou, pairwise_iou
from segdet.task import Stage
from segdet.util.errors import UserError
from segdet.util.stages import stage

_PRIOR = 0.01
"""What every cell takes to be the chance of an object before it has learned anything (RetinaNet, section 4.1)."""

_OUTSIDE = 1e5
"""What it costs a cell not to lie both within an object and near its centre."""


class YOLOX(Detector):
    """YOLOX (Ge, Liu, Wang, Li, Sun, 2021, "Exceeding YOLO Series in 2021") on any backbone.

    Each cell of maps of several strides says directly where a box is: its centre from the cell's own corner and its
    sides in strides, with no anchors to choose. What there is and where it is are learned by separate branches of the
    head (section 2.1, figure 2), and confidence stands beside the classes as in YOLO. Which cells learn which object
    is decided in every step by what the network already finds (`simota`). It costs one pass of the backbone.

    Its COCO recipe has mosaic and mixup, an L1 loss in the last epochs and a backbone of its own; here the
    backbone is the one given and the data's recipe augments.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See there.
        backbone_options: See there.
        strides: The backbone's maps that are looked at.
        width: The channels of neck and head.
        bottom_up: Whether a path back down the strides follows the feature pyramid (PANet, Liu et al., CVPR 2018,
            section 3.1), as in the paper; without it the neck is the plain pyramid.
        head_convolutions: The 3x3 convolutions of each branch; 2 in the paper.
        radius: In strides, how far from an object's centre cells count as near it.
        most_cells: The most cells that an object is dealt.
        box_weight: The weight of the box loss; 5 in the authors' code.
        score_threshold: Detections must exceed this score.
        nms_threshold: Of two boxes of a class with a greater IoU, the worse is dropped.
        detections_per_class: How many of a class take part in that.
        detections_per_image: How many remain.
        kwargs: As for `Detector`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: str | bool | None = None,
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
        super().__init__(class_names, **kwargs)
        if most_cells < 1:
            raise UserError(f"--model.most_cells {most_cells}: no cell would learn an object; give 1 or more")
        self.radius = radius
        self.most_cells = most_cells
        self.box_weight = box_weight
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_class = detections_per_class
        self.detections_per_image = detections_per_image
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        self.strides = self.backbone.strides
        self.neck = PAFPN(self.backbone.channels, width, bottom_up)
        self.heads = nn.ModuleList(
            DecoupledHead(width, len(class_names), head_convolutions) for _ in self.strides
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Cells]:
        """Images ``[B, 3, H, W]`` to what the A cells of all maps say, fine to coarse, row by row.

        Returns:
            Class logits ``[B, A, K]``, objectness logits ``[B, A]``, boxes ``[B, A, 4]`` xyxy in pixels, and where
            the cells are.
        """
        maps = self.neck(self.backbone(images))
        answers = [head(features) for head, features in zip(self.heads, maps, strict=True)]
        # [B, outputs, h, w] of each map to [B, A, outputs] of all
        answer = torch.cat([each.float().flatten(2) for each in answers], 2).transpose(1, 2)
        cells = self._cells(maps)
        offsets, objectness, logits = answer[..., :4], answer[..., 4], answer[..., 5:]
        stride = cells.strides[:, None]
        centre = (cells.centres - stride / 2) + offsets[..., :2] * stride
        # A side of a thousand strides is larger than any image, and its square still finite.
        half = offsets[..., 2:].clamp(max=math.log(1000)).exp() * stride / 2
        return logits, objectness, torch.cat([centre - half, centre + half], -1), cells

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        logits, objectness, found, cells = self(images)
        boxes, labels = pad_targets(targets, images.device)
        matched, positive, iou = simota(
            logits.detach(),
            objectness.detach(),
            found.detach(),
            cells,
            boxes,
            labels,
            self.radius,
            self.most_cells,
        )
        count = positive.sum().clamp(min=1)
        wanted = boxes.gather(1, matched[..., None].expand(-1, -1, 4))
        # Classes are asked for as surely as the box overlaps (section 2.1, "IoU-aware" as the code has it).
        named = F.one_hot((labels.gather(1, matched) - 1).clamp(min=0), logits.shape[-1]) * iou[..., None]
        names = F.binary_cross_entropy_with_logits(logits, named, reduction="none").sum(-1)
        overlap = 1 - paired_iou(found, wanted).square()
        present = F.binary_cross_entropy_with_logits(
            objectness, positive.to(objectness.dtype), reduction="sum"
        )
        return {
            "box": self.box_weight * torch.where(positive, overlap, 0.0).sum() / count,
            "objectness": present / count,
            "class": torch.where(positive, names, 0.0).sum() / count,
        }

    def predict(self, images: Tensor) -> list[Prediction]:
        with stage("network"):
            logits, objectness, boxes, _ = self(images)
        return self._detections(logits, objectness, boxes, (images.shape[2], images.shape[3]))

    def _detections(
        self, logits: Tensor, objectness: Tensor, boxes: Tensor, size: tuple[int, int]
    ) -> list[Prediction]:
        with stage("nms"):
            return self.selected(boxes, logits.sigmoid() * objectness.sigmoid()[..., None], size)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        logits, objectness, boxes, cells = self(image)
        sure = objectness[0].sigmoid()
        per_map = [rows * columns for rows, columns in cells.grids]
        for (rows, columns), stride, part in zip(cells.grids, self.strides, sure.split(per_map), strict=True):
            about = f"How sure each cell of {stride} pixels is that it finds an object."
            yield Stage(f"objectness, stride {stride}", map=part.view(rows, columns), about=about)
        scores = (logits[0].sigmoid() * sure[:, None]).amax(-1)
        best = scores.topk(min(100, len(scores))).indices
        yield Stage(
            "boxes", boxes=boxes[0, best], scores=scores[best], about="The surest boxes, unsuppressed."
        )
        final = self._detections(logits, objectness, boxes, (image.shape[2], image.shape[3]))[0]
        yield detections_stage(final)

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
    """Where the A cells of all maps are.

    Attributes:
        centres: float32 ``[A, 2]``, x and y in pixels.
        strides: float32 ``[A]``.
        grids: The rows and columns of each map.
    """

    centres: Tensor
    strides: Tensor
    grids: list[tuple[int, int]]


def simota(
    logits: Tensor,
    objectness: Tensor,
    found: Tensor,
    cells: Cells,
    boxes: Tensor,
    labels: Tensor,
    radius: float = 2.5,
    most_cells: int = 10,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which object each cell is to learn: SimOTA (section 2.1), for a whole batch at once.

    A cell is a candidate for an object if its centre is within the object's box, or within ``radius`` strides of
    its centre in x and in y. It costs the cross entropy of the class (of the root of class times objectness, as in
    the authors' code) and three times -log IoU, and a great deal more where it is not both. An object takes
    as many of the cheapest candidates as the IoUs of its ``most_cells`` best ones add up to, at least one; a cell
    that several objects take goes to the one that it is cheapest for.

    Args:
        logits: ``[B, A, K]``.
        objectness: Logits ``[B, A]``.
        found: The cells' boxes ``[B, A, 4]`` xyxy in pixels.
        cells: Where they are.
        boxes: The objects, ``[B, G, 4]`` xyxy in pixels, from `pad_targets`.
        labels: ``[B, G]``, 0 where there is no object.
        radius: See above.
        most_cells: See above.

    Returns:
        The index of each cell's object, int64 ``[B, A]`` (of use only where it has one); whether it has one, bool
        ``[B, A]``; and its box's IoU with that object, float32 ``[B, A]``.
    """
    x, y = cells.centres.unbind(-1)
    x0, y0, x1, y1 = boxes.unsqueeze(-1).unbind(-2)  # [B, G, 1] each
    inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    reach = radius * cells.strides
    near = ((x - (x0 + x1) / 2).abs() < reach) & ((y - (y0 + y1) / 2).abs() < reach)
    candidate = (inside | near) & (labels > 0)[..., None]  # [B, G, A]

    iou = pairwise_iou(boxes, found) * candidate
    # The cross entropy of each label is that of "no class at all" but for one term, so that nothing is G x A x K.
    root = (logits.sigmoid() * objectness.sigmoid()[..., None]).sqrt()
    no = -torch.log1p(-root.clamp(max=1 - 1e-6))
    yes = -root.clamp(min=1e-8).log()
    index = (labels - 1).clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)  # [B, A, G]
    naming = no.sum(-1, keepdim=True) + (yes - no).gather(2, index)
    cost = naming.transpose(1, 2) - 3 * (iou + 1e-8).log() + _OUTSIDE * ~(inside & near)
    cost = torch.where(candidate, cost, torch.inf)

    most = min(most_cells, cost.shape[-1])
    takes = iou.topk(most, -1).values.sum(-1).int().clamp(min=1)  # [B, G]
    cheapest = cost.topk(most, -1, largest=False)
    taken = (torch.arange(most, device=cost.device) < takes[..., None]) & cheapest.values.isfinite()
    taken = torch.zeros_like(candidate).scatter_(-1, cheapest.indices, taken)
    matched = torch.where(taken, cost, torch.inf).argmin(1)
    return matched, taken.any(1), iou.gather(1, matched[:, None]).squeeze(1)


class PAFPN(nn.Module):
    """A feature pyramid (Lin et al., CVPR 2017) and, after it, a path from fine to coarse (PANet).

    Args:
        channels: Of the maps that come in, fine to coarse.
        width: Of those that go out.
        bottom_up: Whether there is the second path.
    """

    def __init__(self, channels: list[int], width: int, bottom_up: bool = True) -> None:
        super().__init__()
        self.top_down = FeaturePyramidNetwork(channels, width, norm_layer=nn.BatchNorm2d)
        steps = len(channels) - 1 if bottom_up else 0
        self.down = nn.ModuleList(_conv(width, width, 3, 2) for _ in range(steps))
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in range(steps))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps ``[B, channels[i], h_i, w_i]`` to maps ``[B, width, h_i, w_i]``."""
        pyramid = list(self.top_down({str(i): features for i, features in enumerate(maps)}).values())
        for i, (down, smooth) in enumerate(zip(self.down, self.smooth, strict=True)):
            pyramid[i + 1] = smooth(pyramid[i + 1] + down(pyramid[i]))
        return pyramid


class DecoupledHead(nn.Module):
    """What one map's cells say: box and objectness from one branch, the class from another (figure 2).

    Args:
        width: The channels of the map and of the branches.
        classes: K.
        convolutions: The 3x3 convolutions of each branch.
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
        """A map ``[B, width, h, w]`` to ``[B, 4 + 1 + K, h, w]``: offsets, objectness and class logits."""
        features = self.stem(features)
        boxes = self.box_branch(features)
        return torch.cat(
            [self.box(boxes), self.objectness(boxes), self.classes(self.class_branch(features))], 1
        )


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out),
        nn.SiLU(inplace=True),
    )
