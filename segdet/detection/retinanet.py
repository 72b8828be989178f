"""RetinaNet: anchors on a pyramid, and a loss that the many easy ones do not drown."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, detections_stage
from segdet.detection.torchvision_network import torchvision_network
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import BoxCoder, match_all_best, pad_targets
from segdet.nn.pyramid import FeaturePyramid, GridAnchors, group_norm, pad_to_stride
from segdet.task import Stage
from segdet.util.errors import UserError, check_choice
from segdet.util.stages import stage

BoxLoss = Literal["l1", "giou"]


class FocalLossDetector(Detector):
    """What RetinaNet's forms have in common; use `RetinaNet` or `TorchvisionRetinaNet`.

    An anchor learns to find an object that it overlaps by IoU 0.5 or that no other overlaps more, and learns nothing
    between 0.4 and 0.5 (section 4.1). Losses and detections are those of torchvision's module, for a whole batch at
    once.

    Args:
        box_loss: The loss of the anchors that have an object: ``l1`` of their offsets, or ``giou`` of their boxes.
        score_threshold: Detections must exceed this score.
        nms_threshold: Of two boxes of a class with a greater IoU, the worse is dropped.
        candidates_per_level: How many of a map's boxes and classes take part in that.
        detections_per_image: How many remain.
        kwargs: As for `Detector`.

    Attributes:
        backbone: Maps images to features; set by the family, as all of these.
        head: torchvision's, on each map.
        anchors: Around each cell.
        multiple: What the sides of images are padded to multiples of.
    """

    backbone: nn.Module
    head: nn.Module
    anchors: GridAnchors
    multiple: int

    def __init__(
        self,
        class_names: list[str],
        box_loss: BoxLoss = "l1",
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        candidates_per_level: int = 1000,
        detections_per_image: int = 300,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.box_loss", box_loss, BoxLoss)
        self.box_loss = box_loss
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.candidates_per_level = candidates_per_level
        self.detections_per_image = detections_per_image
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """The maps with anchors, fine to coarse, of images whose sides are multiples of ``multiple``."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Images ``[B, 3, H, W]`` to what is said of the A anchors of all maps, fine to coarse.

        Returns:
            Logits ``[B, A, K]``, offsets ``[B, A, 4]``, anchors ``[A, 4]``, and how many anchors each map has.
        """
        grid = pad_to_stride(images, self.multiple)
        maps = self.features(grid.tensors)
        out = self.head(maps)
        anchors = self.anchors(grid, maps)[0]
        cells = [each.shape[-2] * each.shape[-1] for each in maps]
        levels = [n * k for n, k in zip(cells, self.anchors.num_anchors_per_location(), strict=True)]
        # torchvision's weights have an output for a background that no anchor is of.
        logits = out["cls_logits"].float()[..., -len(self.class_names) :]
        return logits, out["bbox_regression"].float(), anchors, levels

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        logits, offsets, anchors, _ = self(images)
        boxes, labels = pad_targets(targets, images.device)
        matched, wanted = match_all_best(anchors, boxes, labels, foreground=0.5, background=0.4)
        positive = wanted > 0
        count = positive.sum(1).clamp(min=1)
        named = F.one_hot(wanted.clamp(min=0), len(self.class_names) + 1)[..., 1:].to(logits.dtype)
        focal = sigmoid_focal_loss(logits, named).sum(-1)
        goal = boxes.gather(1, matched[..., None].expand(-1, -1, 4))
        if self.box_loss == "l1":
            off = (offsets - self.coder.encode(goal, anchors)).abs().sum(-1)
        else:
            off = generalized_box_iou_loss(self.coder.decode(offsets, anchors), goal)
        return {
            "class": (torch.where(wanted >= 0, focal, 0.0).sum(1) / count).mean(),
            "box": (torch.where(positive, off, 0.0).sum(1) / count).mean(),
        }

    def predict(self, images: Tensor) -> list[Prediction]:
        with stage("network"):
            logits, offsets, anchors, levels = self(images)
        size = (images.shape[2], images.shape[3])
        return self._detections(logits, offsets, anchors, levels, size)

    def _detections(
        self, logits: Tensor, offsets: Tensor, anchors: Tensor, levels: list[int], size: tuple[int, int]
    ) -> list[Prediction]:
        with stage("nms"):
            boxes = self.coder.decode(offsets, anchors)
            return self.selected_from_levels(boxes, logits.sigmoid(), levels, size)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        logits, offsets, anchors, levels = self(image)
        scores = logits[0].sigmoid().amax(-1)
        start = 0
        for place, level in enumerate(levels):
            best = start + scores[start : start + level].topk(min(20, level)).indices
            start += level
            about = f"The anchors of map {place + 1} of {len(levels)} that are most sure to hold something."
            yield Stage(f"anchors {place + 1}", boxes=anchors[best], scores=scores[best], about=about)
        best = scores.topk(min(100, len(scores))).indices
        moved = self.coder.decode(offsets[0], anchors)[best]
        yield Stage(
            "regressed boxes",
            boxes=moved,
            scores=scores[best],
            about="The surest after their offsets, unsuppressed.",
        )
        (final,) = self._detections(logits, offsets, anchors, levels, (image.shape[2], image.shape[3]))
        yield detections_stage(final)


class RetinaNet(FocalLossDetector):
    """RetinaNet (Lin, Goyal, Girshick, He, Dollár, ICCV 2017, "Focal Loss for Dense Object Detection").

    One pass and no proposals, like SSD, on a feature pyramid: at every cell of every map, nine anchors, and one head
    that all maps share. Of some hundred thousand anchors nearly all are background and easy; the focal loss weighs
    an anchor by how wrong it still is, so that no negatives have to be picked. It costs one pass of the backbone.
    The head is torchvision's.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See there.
        backbone_options: See there.
        strides: The backbone's maps.
        extra_levels: How many maps follow, each half the size of the one before.
        width: The channels of pyramid and head.
        norm: Whether normalization follows the convolutions of the pyramid (batch) and of the head (in groups of
            8 channels or more, which a head on several maps needs); not in the paper, helps from scratch.
        head_convolutions: The 3x3 convolutions of either branch of the head, at most 4.
        anchor_sizes: The sides of the square anchors in pixels, a list for each map; null for 4 strides times 1,
            2^(1/3) and 2^(2/3) each (section 4.1).
        aspect_ratios: Of the anchors, height over width.
        kwargs: As for `FocalLossDetector`.
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
        anchor_sizes: list[list[float]] | None = None,
        aspect_ratios: list[float] = [0.5, 1.0, 2.0],  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        if not 0 <= head_convolutions <= 4:
            raise UserError(f"--model.head_convolutions {head_convolutions}: torchvision's head has 0 to 4")
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        self.multiple = self.backbone.strides[-1]
        self.neck = FeaturePyramid(
            self.backbone.channels, self.backbone.strides, width, extra_levels, norm=norm
        )
        levels = self.neck.strides
        if anchor_sizes is None:
            anchor_sizes = [[float(int(4 * s * 2 ** (i / 3))) for i in range(3)] for s in levels]
        if len(anchor_sizes) != len(levels) or len({len(sizes) for sizes in anchor_sizes}) != 1:
            raise UserError(
                f"--model.anchor_sizes: {len(anchor_sizes)} lists for maps of strides {levels}, which share one head; "
                "give one a map, all of the same length"
            )
        self.anchors = GridAnchors(anchor_sizes, [aspect_ratios] * len(levels))
        head: Any = RetinaNetHead(
            width,
            self.anchors.num_anchors_per_location()[0],
            len(class_names),
            norm_layer=group_norm(width) if norm else None,
        )
        for branch in (head.classification_head, head.regression_head):
            branch.conv = branch.conv[:head_convolutions]
        self.head = head

    def features(self, images: Tensor) -> list[Tensor]:
        return list(self.neck(self.backbone(images)).values())


class TorchvisionRetinaNet(FocalLossDetector):
    """torchvision's RetinaNets, with its weights of COCO: the same detections for the same pixels.

    Args:
        network: Which one: ResNet-50 with a pyramid, or its second version.
        weights: Of the whole network: torchvision's name (``COCO_V1``), true, a local file, or null for random ones;
            for other classes see `segdet.detection.torchvision_network`.
        weights_backbone: Of the backbone alone, likewise (``IMAGENET1K_V1``).
        box_loss: As for `FocalLossDetector`; what torchvision learned this network with when null: GIoU for the second
            version, else L1.
        kwargs: See there.
    """

    def __init__(
        self,
        class_names: list[str],
        network: str = "resnet50_fpn",
        weights: str | bool | None = None,
        weights_backbone: str | bool | None = None,
        box_loss: BoxLoss | None = None,
        **kwargs: Any,
    ) -> None:
        box_loss = box_loss or ("giou" if network.endswith("_v2") else "l1")
        super().__init__(class_names, box_loss=box_loss, **kwargs)
        heads = {"head.classification_head.cls_logits": 1}
        whole = torchvision_network("retinanet", network, self.class_names, weights, weights_backbone, heads)
        self.backbone, self.head = whole.backbone, whole.head
        self.anchors = GridAnchors(whole.anchor_generator.sizes, whole.anchor_generator.aspect_ratios)
        self.multiple = 32

    def features(self, images: Tensor) -> list[Tensor]:
        return list(self.backbone(images).values())
