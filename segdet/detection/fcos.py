"""FCOS: no anchors; every cell within an object says how far its four sides are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, detections_stage
from segdet.detection.torchvision_network import torchvision_network
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import pad_targets
from segdet.nn.pyramid import FeaturePyramid, GridAnchors, group_norm, pad_to_stride
from segdet.task import Stage
from segdet.util.stages import stage


class PointDetector(Detector):
    """What FCOS' forms have in common; use `FCOS` or `TorchvisionFCOS`.

    Losses and detections are those of torchvision's module, for a whole batch at once.

    Args:
        radius: A cell learns an object only if it is so near to the object's centre, in strides (centre sampling).
        score_threshold: Detections must exceed this score, the root of class times centre-ness.
        nms_threshold: Of two boxes of a class with a greater IoU, the worse is dropped.
        candidates_per_level: How many of a map's boxes and classes take part in that.
        detections_per_image: How many remain.
        kwargs: As for `Detector`.

    Attributes:
        backbone: Maps images to features; set by the family, as all of these.
        head: torchvision's, on each map.
        cells: A square of a stride's side for each cell, around its place in the image.
        multiple: What the sides of images are padded to multiples of.
    """

    backbone: nn.Module
    head: FCOSHead
    cells: GridAnchors
    multiple: int

    def __init__(
        self,
        class_names: list[str],
        radius: float = 1.5,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.6,
        candidates_per_level: int = 1000,
        detections_per_image: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.radius = radius
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.candidates_per_level = candidates_per_level
        self.detections_per_image = detections_per_image

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """The maps that the head stands on, fine to coarse, of images whose sides are multiples of ``multiple``."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """Images ``[B, 3, H, W]`` to what the A cells of all maps say, fine to coarse, row by row.

        Returns:
            Logits ``[B, A, K]``, logits of centre-ness ``[B, A]``, distances to the four sides in strides
            ``[B, A, 4]``, the cells' squares ``[A, 4]``, and how many cells each map has.
        """
        grid = pad_to_stride(images, self.multiple)
        maps = self.features(grid.tensors)
        out = self.head(maps)
        levels = [each.shape[-2] * each.shape[-1] for each in maps]
        # torchvision's weights have an output for a background that no cell is of.
        logits = out["cls_logits"].float()[..., -len(self.class_names) :]
        centred, distances = out["bbox_ctrness"].float()[..., 0], out["bbox_regression"].float()
        return logits, centred, distances, self.cells(grid, maps)[0], levels

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        logits, centred, distances, cells, levels = self(images)
        boxes, labels = pad_targets(targets, images.device)
        matched, wanted = match_cells(cells, levels, boxes, labels, self.radius)
        positive = wanted > 0
        count = positive.sum().clamp(min=1)
        named = F.one_hot(wanted, len(self.class_names) + 1)[..., 1:].to(logits.dtype)
        goal = boxes.gather(1, matched[..., None].expand(-1, -1, 4))
        overlap = generalized_box_iou_loss(self.head.box_coder.decode(distances, cells), goal)
        # How much nearer one side is than its opposite (equation 3); where there is no object, no matter.
        sides = self.head.box_coder.encode(cells, goal).clamp(min=1e-6)
        near = torch.minimum(sides[..., :2], sides[..., 2:]) / torch.maximum(sides[..., :2], sides[..., 2:])
        centre = F.binary_cross_entropy_with_logits(centred, near.prod(-1).sqrt(), reduction="none")
        return {
            "class": sigmoid_focal_loss(logits, named, reduction="sum") / count,
            "box": torch.where(positive, overlap, 0.0).sum() / count,
            "centre": torch.where(positive, centre, 0.0).sum() / count,
        }

    def predict(self, images: Tensor) -> list[Prediction]:
        with stage("network"):
            logits, centred, distances, cells, levels = self(images)
        size = (images.shape[2], images.shape[3])
        return self._detections(logits, centred, distances, cells, levels, size)

    def _detections(
        self,
        logits: Tensor,
        centred: Tensor,
        distances: Tensor,
        cells: Tensor,
        levels: list[int],
        size: tuple[int, int],
    ) -> list[Prediction]:
        with stage("nms"):
            boxes = self.head.box_coder.decode(distances, cells)
            scores = (logits.sigmoid() * centred.sigmoid()[..., None]).sqrt()
            return self.selected_from_levels(boxes, scores, levels, size)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        grid = pad_to_stride(image, self.multiple)
        logits, centred, distances, cells, levels = self(image)
        scores = (logits[0].sigmoid().amax(-1) * centred[0].sigmoid()).sqrt()
        strides = [int(sizes[0]) for sizes in self.cells.sizes]
        rows = grid.tensors.shape[-2]
        for stride, part in zip(strides, scores.split(levels), strict=True):
            about = f"How sure each cell of {stride} pixels is that an object is centred there."
            yield Stage(f"centres, stride {stride}", map=part.view(-(-rows // stride), -1), about=about)
        best = scores.topk(min(100, len(scores))).indices
        boxes = self.head.box_coder.decode(distances[0], cells)
        yield Stage("boxes", boxes=boxes[best], scores=scores[best], about="The surest boxes, unsuppressed.")
        size = (image.shape[2], image.shape[3])
        (final,) = self._detections(logits, centred, distances, cells, levels, size)
        yield detections_stage(final)


class FCOS(PointDetector):
    """FCOS (Tian, Shen, Chen, He, ICCV 2019, "Fully Convolutional One-Stage Object Detection") on any backbone.

    Detection as segmentation does it: each cell within an object says the object's class and how far it is to the
    left, top, right and bottom of it. There are no anchors to choose and no IoUs to match by. Objects that lie over
    one another are kept apart by their size, as each map answers for sizes of its own (section 3.2), and boxes
    from far off the centre are worth less, by a third output, the centre-ness (section 3.3). It costs one pass of the
    backbone. The head is torchvision's, with the authors' later refinements (GIoU loss, centre sampling,
    centre-ness beside the box).

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See there.
        backbone_options: See there.
        strides: The backbone's maps.
        extra_levels: How many maps follow, each half the size of the one before.
        width: The channels of pyramid and head.
        norm: Whether batch normalization follows the pyramid's convolutions, which is not in the paper and helps from
            scratch.
        head_convolutions: The 3x3 convolutions of either branch of the head, each normalized in groups of at least 8
            channels.
        kwargs: As for `PointDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: str | bool | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [8, 16, 32],  # noqa: B006  read only; jsonargparse shows it as the default
        extra_levels: int = 2,
        width: int = 256,
        norm: bool = False,
        head_convolutions: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        norm_layer = group_norm(width)
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        self.multiple = self.backbone.strides[-1]
        self.neck = FeaturePyramid(
            self.backbone.channels, self.backbone.strides, width, extra_levels, norm=norm
        )
        self.cells = GridAnchors(
            [[float(stride)] for stride in self.neck.strides], [[1.0]] * len(self.neck.strides)
        )
        self.head = FCOSHead(width, 1, len(class_names), 0)
        self.head.classification_head = FCOSClassificationHead(
            width, 1, len(class_names), head_convolutions, norm_layer=norm_layer
        )
        self.head.regression_head = FCOSRegressionHead(width, 1, head_convolutions, norm_layer=norm_layer)

    def features(self, images: Tensor) -> list[Tensor]:
        return list(self.neck(self.backbone(images)).values())


class TorchvisionFCOS(PointDetector):
    """torchvision's FCOS, with its weights of COCO: the same detections for the same pixels.

    Args:
        network: ``resnet50_fpn``, the one there is.
        weights: Of the whole network: torchvision's name (``COCO_V1``), true, a local file, or null for random ones;
            for other classes see `segdet.detection.torchvision_network`.
        weights_backbone: Of the backbone alone, likewise (``IMAGENET1K_V1``).
        score_threshold: As for `PointDetector`; here torchvision's.
        kwargs: As for `PointDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        network: str = "resnet50_fpn",
        weights: str | bool | None = None,
        weights_backbone: str | bool | None = None,
        score_threshold: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, score_threshold=score_threshold, **kwargs)
        heads = {"head.classification_head.cls_logits": 1}
        whole = torchvision_network("fcos", network, self.class_names, weights, weights_backbone, heads)
        self.backbone, self.head = whole.backbone, whole.head
        self.cells = GridAnchors(whole.anchor_generator.sizes, whole.anchor_generator.aspect_ratios)
        self.multiple = 32

    def features(self, images: Tensor) -> list[Tensor]:
        return list(self.backbone(images).values())


def match_cells(
    cells: Tensor, levels: list[int], boxes: Tensor, labels: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Which object each cell is to learn (section 3.2, and centre sampling of the authors' code).

    A cell may learn an object in which it lies, at most ``radius`` strides from its centre in x and in y, if the
    farthest of the four sides is within the map's range: 4 to 8 strides, from 0 on the finest map and without end on
    the coarsest. Of several objects it learns the smallest.

    Args:
        cells: Squares of a stride's side around each cell's place, ``[A, 4]`` xyxy, fine maps first.
        levels: How many cells each map has.
        boxes: ``[B, G, 4]`` xyxy, from `pad_targets`.
        labels: ``[B, G]``, 0 where there is no object.
        radius: See above.

    Returns:
        The index of each cell's object, int64 ``[B, A]`` (of use only where it has one), and the cells' labels, int64
        ``[B, A]``: the object's, or 0.
    """
    centres, strides = (cells[:, :2] + cells[:, 2:]) / 2, cells[:, 2] - cells[:, 0]
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]  # [B, G, 1, 2]
    sides = torch.cat([centres - low, high - centres], -1)  # [B, G, A, 4]
    farthest = sides.amax(-1)
    near = (centres - (low + high) / 2).abs().amax(-1) < radius * strides
    least, most = 4 * strides, 8 * strides
    least[: levels[0]] = 0
    most[-levels[-1] :] = torch.inf
    fits = near & (sides.amin(-1) > 0) & (farthest > least) & (farthest < most) & (labels > 0)[..., None]
    area = (high - low).prod(-1)  # [B, G, 1]
    smallest, matched = torch.where(fits, area, torch.inf).min(1)
    return matched, torch.where(smallest.isfinite(), labels.gather(1, matched), 0)
