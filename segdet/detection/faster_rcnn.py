"""Faster R-CNN: a small network on the same features proposes the regions that are classified."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector
from segdet.detection.torchvision_network import torchvision_network
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import Selection, select_detections
from segdet.nn.float32 import output_float32
from segdet.nn.pyramid import FeaturePyramid, GridAnchors, RoundedAnchors, pad_to_stride
from segdet.nn.roi import RoIPooling, TwoLayerHead, rois_of
from segdet.task import Stage
from segdet.util.errors import UserError, check_choice
from segdet.util.stages import stage

Pooling = Literal["align", "pool"]

Maps = dict[str, Tensor]
"""Feature maps by their place, fine to coarse."""

_MIN_SIDE = 1e-2
"""Of detections, in pixels, as torchvision has it."""


class Proposed(NamedTuple):
    """What the proposal network says of a batch.

    Attributes:
        objectness: Logits ``[B * A, 1]`` of all anchors.
        offsets: ``[B * A, 4]`` from the anchors.
        anchors: ``[A, 4]`` for each image.
        boxes: For each image ``[P, 4]`` xyxy, the best first, without gradient.
        scores: For each image ``[P]``.
    """

    objectness: Tensor
    offsets: Tensor
    anchors: list[Tensor]
    boxes: list[Tensor]
    scores: list[Tensor]


class TwoStageDetector(Detector):
    """What Faster R-CNN's forms have in common; use `FasterRCNN` or `TorchvisionFasterRCNN`.

    Both stages are learned at once from the sum of four losses, in which proposals count as given ("approximate joint
    training", section 3.2).

    Args:
        kwargs: As for `Detector`.

    Attributes:
        backbone: Maps images to features; set by the family, as all of these.
        rpn: torchvision's proposal network.
        roi_heads: torchvision's second stage.
        multiple: What the sides of images are padded to multiples of.
    """

    backbone: nn.Module
    rpn: RegionProposalNetwork
    roi_heads: RoIHeads
    multiple: int

    @property
    def compiled_modules(self) -> list[nn.Module]:
        """The proposal network and the second stage are called by their parts."""
        stages = (self.rpn, self.roi_heads)
        others = [part for part in super().compiled_modules if part not in stages]
        parts = [part for stage in stages for part in stage.children()]
        return [*others, *(part for part in parts if next(part.parameters(), None) is not None)]

    @abstractmethod
    def features(self, images: Tensor) -> Maps:
        """The maps that both stages stand on, of images whose sides are multiples of ``multiple``."""

    def anchor_targets(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]], size: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the proposal network learns of each image's anchors ``[A, 4]``.

        Args:
            anchors: The same for all images.
            targets: ``boxes`` and ``labels`` of each.
            size: ``(height, width)`` of the images.

        Returns:
            For each image 1 (an object), 0 (none) or -1 (not learned from), float32 ``[A]``, and the box of the object,
            ``[A, 4]``.
        """
        return self.rpn.assign_targets_to_anchors(anchors, targets)

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        grid = pad_to_stride(images, self.multiple)
        maps = self.features(grid.tensors)
        proposed = self._propose(grid, maps)
        told = [self._told(target) for target in targets]
        wanted, matched = self.anchor_targets(proposed.anchors, told, grid.image_sizes[0])
        goals = self.rpn.box_coder.encode(matched, proposed.anchors)
        objectness, offsets = self.rpn.compute_loss(proposed.objectness, proposed.offsets, wanted, goals)
        drawn = self.roi_heads.select_training_samples(list(proposed.boxes), told)
        regions, objects, labels, region_goals = drawn
        logits, moves = self._classify(grid, maps, regions)
        names, boxes = fastrcnn_loss(logits, moves, labels, region_goals)
        losses = {"rpn_class": objectness, "rpn_box": offsets, "class": names, "box": boxes}
        return losses | self._more_losses(grid, maps, told, regions, objects, labels)

    def _told(self, target: Target) -> dict[str, Tensor]:
        """What torchvision's second stage is told of an image."""
        return {"boxes": target["boxes"], "labels": target["labels"]}

    def _more_losses(
        self,
        images: ImageList,
        maps: Maps,
        targets: list[dict[str, Tensor]],
        regions: list[Tensor],
        objects: list[Tensor],
        labels: list[Tensor],
    ) -> dict[str, Tensor]:
        """The losses of further branches on the drawn regions, of which each image's objects and labels are known."""
        return {}

    def predict(self, images: Tensor) -> list[Prediction]:
        grid = pad_to_stride(images, self.multiple)
        with stage("network"):
            maps = self.features(grid.tensors)
        with stage("proposals"):
            regions = self._propose(grid, maps).boxes
        return self._detections(grid, maps, regions)

    def propose(self, images: Tensor) -> list[Tensor]:
        """The proposal network alone: where in normalized images ``[B, 3, H, W]`` something may be.

        Returns:
            For each image boxes float32 ``[P, 4]``, xyxy in its pixels, the most promising first.
        """
        return self.propose_scored(images)[0]

    def propose_scored(self, images: Tensor, count: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """As `propose`, with the scores ``[P]`` of each image's boxes.

        Args:
            images: See there.
            count: How many boxes of an image to let remain, if that is more than the network itself does; suppression
                begins with no fewer of each map.
        """
        grid = pad_to_stride(images, self.multiple)
        with stage("network"):
            maps = self.features(grid.tensors)
        limits = self.rpn._pre_nms_top_n, self.rpn._post_nms_top_n
        if count is not None:
            self.rpn._pre_nms_top_n, self.rpn._post_nms_top_n = (
                {when: max(limit, count) for when, limit in each.items()} for each in limits
            )
        try:
            with stage("proposals"):
                proposed = self._propose(grid, maps)
        finally:
            self.rpn._pre_nms_top_n, self.rpn._post_nms_top_n = limits
        return proposed.boxes, proposed.scores

    def stages(self, image: Tensor) -> Iterator[Stage]:
        grid = pad_to_stride(image, self.multiple)
        maps = self.features(grid.tensors)
        proposed = self._propose(grid, maps)
        sure = proposed.objectness.flatten().sigmoid()
        best = sure.topk(min(50, len(sure))).indices
        yield Stage(
            "anchors",
            boxes=proposed.anchors[0][best],
            scores=sure[best],
            about="The anchors that the proposal network takes for objects most surely.",
        )
        boxes, scores = proposed.boxes[0], proposed.scores[0]
        about = f"The best of {len(boxes)} regions: anchors after their offsets, without near duplicates."
        yield Stage("proposals", boxes=boxes[:100], scores=scores[:100], about=about)
        (final,) = self._detections(grid, maps, proposed.boxes)
        yield Stage(
            "detections",
            boxes=final["boxes"],
            scores=final["scores"],
            about="The regions, classified and moved.",
        )

    def _propose(self, images: ImageList, maps: Maps) -> Proposed:
        features = list(maps.values())
        objectness, offsets = self.rpn.head(features)
        anchors = self.rpn.anchor_generator(images, features)
        levels = [each[0].numel() for each in objectness]
        objectness, offsets = concat_box_prediction_layers(objectness, offsets)
        # Not learned through: the second stage takes its regions as given.
        boxes = self.rpn.box_coder.decode(offsets.detach(), anchors).view(len(anchors), -1, 4)
        chosen, scores = self.rpn.filter_proposals(boxes, objectness, images.image_sizes, levels)
        return Proposed(objectness, offsets, anchors, chosen, scores)

    def _classify(self, images: ImageList, maps: Maps, regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``[R, K + 1]`` and offsets ``[R, 4 (K + 1)]`` of the regions of all images."""
        pooled = self.roi_heads.box_roi_pool(maps, regions, images.image_sizes)
        logits, offsets = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits, offsets

    def _detections(self, images: ImageList, maps: Maps, regions: list[Tensor]) -> list[Prediction]:
        with stage("classifier"):
            logits, offsets = self._classify(images, maps, regions)
        heads, counts = self.roi_heads, [len(each) for each in regions]
        with stage("nms"):
            # As `postprocess_detections` of torchvision's second stage, which has no class-agnostic suppression.
            boxes = heads.box_coder.decode(offsets, regions)[:, 1:].split(counts)
            scores = logits.softmax(-1)[:, 1:].split(counts)
            selection = Selection(
                heads.score_thresh,
                heads.nms_thresh,
                per_image=heads.detections_per_img,
                class_agnostic=self.class_agnostic_nms,
                min_side=_MIN_SIDE,
            )
            size = images.image_sizes[0]
            return [select_detections(b, s, size, selection) for b, s in zip(boxes, scores, strict=True)]

    def _exact(self) -> None:
        """Boxes in float32, in whatever precision the network computes."""
        output_float32(self.rpn.head)
        output_float32(self.roi_heads.box_predictor)


class FasterRCNN(TwoStageDetector):
    """Faster R-CNN (Ren, He, Girshick, Sun, TPAMI 2017) on any backbone.

    Fast R-CNN spends most of its time waiting for Selective Search. Here a small convolutional network on the same
    features says for anchors, boxes of several sizes and shapes around every cell, whether they hold anything and how
    they are off; the best of them are the regions that are pooled, classified and moved once more. It costs one pass
    of the backbone, and the second stage once for each region.

    Two forms: on a feature pyramid (Lin et al., CVPR 2017), where each map has anchors of one size, and on a
    single map as published (``pyramid: false`` and one stride: 16 for VGG16 and for a ResNet's C4), with nine anchors
    of three sizes. Proposal network, second stage and their numbers are torchvision's; it says of an anchor that it
    holds something by one logistic output where the paper has two of a softmax.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See there. Of torchvision's VGG16, the two layers on a pooled region start from its classifier when
            there is no pyramid, ``head_width`` is 4096 and ``pool_size`` 7.
        backbone_options: See there.
        strides: The backbone's maps: those of the pyramid, or the one.
        pyramid: Which form.
        width: The channels of the pyramid.
        norm: Whether batch normalization follows the pyramid's convolutions, which is not in the paper and helps from
            scratch.
        anchor_sizes: The sides of the square anchors in pixels, a list for each map (the pyramid has one map more than
            there are strides). Null for 8 strides each, and on a single map for 8, 16 and 32, rounded as the
            paper's code does.
        aspect_ratios: Of the anchors, height over width.
        rpn_samples: The anchors of an image that the proposal network learns from, at most half of them objects.
        ignore_crossing: Whether it learns nothing from anchors that cross the image's border (section 3.3).
        before_nms: The anchors of each map that suppression among proposals begins with, in training and in prediction.
        proposals: How many remain, in training and in prediction.
        proposal_nms_threshold: Of two proposals with a greater IoU, the worse is dropped.
        proposal_min_size: Proposals with a shorter side, in pixels, are dropped.
        pooling: ``align`` (RoIAlign, He et al., ICCV 2017), or ``pool`` (RoIPool, as published; on a single map).
        pool_size: The side of what a region is pooled to.
        canonical_size: The side of a region that the pyramid's map of stride 16 answers for; a region of half of it
            is of the next finer map.
        head_width: The units of the two layers on a pooled region.
        head_dropout: The rate after each.
        regions: The regions of an image that the second stage learns from.
        foreground_share: How many of them hold objects, at most.
        score_threshold: Detections must exceed this score.
        nms_threshold: Of two boxes of a class with a greater IoU, the worse is dropped.
        detections_per_image: How many remain.
        kwargs: As for `Detector`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: str | bool | None = None,
        backbone_options: dict[str, Any] | None = None,
        strides: list[int] = [4, 8, 16, 32],  # noqa: B006  read only; jsonargparse shows it as the default
        pyramid: bool = True,
        width: int = 256,
        norm: bool = False,
        anchor_sizes: list[list[float]] | None = None,
        aspect_ratios: list[float] = [0.5, 1.0, 2.0],  # noqa: B006
        rpn_samples: int = 256,
        ignore_crossing: bool = False,
        before_nms: tuple[int, int] = (2000, 1000),
        proposals: tuple[int, int] = (2000, 1000),
        proposal_nms_threshold: float = 0.7,
        proposal_min_size: float = 1e-3,
        pooling: Pooling = "align",
        pool_size: int = 7,
        canonical_size: int = 224,
        head_width: int = 1024,
        head_dropout: float = 0.0,
        regions: int = 512,
        foreground_share: float = 0.25,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.pooling", pooling, Pooling)
        if not pyramid and len(strides) != 1:
            raise UserError(
                f"--model.strides {strides}: without a pyramid there is one map; give one stride, such as [16]"
            )
        if pooling == "pool" and pyramid:
            raise UserError(
                "--model.pooling pool: RoIPool is of a single map; give --model.pyramid false, or align"
            )
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        strides = self.backbone.strides
        self.multiple = strides[-1]
        self.neck: FeaturePyramid | None = None
        channels, levels = self.backbone.channels[0], strides
        if pyramid:
            self.neck = FeaturePyramid(self.backbone.channels, strides, width, subsampled=True, norm=norm)
            channels, levels = width, self.neck.strides
        if anchor_sizes is not None and len(anchor_sizes) != len(levels):
            raise UserError(
                f"--model.anchor_sizes: {len(anchor_sizes)} lists for maps of strides {levels}; give one a map"
            )
        if anchor_sizes is None and not pyramid:
            anchors: GridAnchors = RoundedAnchors(strides[0], aspect_ratios=aspect_ratios)
        else:
            sizes = anchor_sizes or [[8 * stride] for stride in levels]
            anchors = GridAnchors(sizes, [aspect_ratios] * len(levels))
        if len(set(anchors.num_anchors_per_location())) > 1:
            raise UserError(
                "--model.anchor_sizes: all maps share one head; give as many sizes for each of them"
            )
        self.ignore_crossing = ignore_crossing
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.channels, self.strides = channels, strides
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=rpn_samples,
            positive_fraction=0.5,
            pre_nms_top_n={"training": before_nms[0], "testing": before_nms[1]},
            post_nms_top_n={"training": proposals[0], "testing": proposals[1]},
            nms_thresh=proposal_nms_threshold,
        )
        self.rpn.min_size = proposal_min_size
        head = RegionHead(channels * pool_size**2, head_width, head_dropout)
        head.start_from(backbone, weights)
        self.roi_heads = RoIHeads(
            RoIPool(pool_size, strides[0])
            if pooling == "pool"
            else RoIAlign(pool_size, strides, canonical_size),
            head,
            FastRCNNPredictor(head_width, len(class_names) + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=regions,
            positive_fraction=foreground_share,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=detections_per_image,
        )
        self._exact()

    def features(self, images: Tensor) -> Maps:
        maps = self.backbone(images)
        return {"0": maps[0]} if self.neck is None else self.neck(maps)

    def anchor_targets(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]], size: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if not self.ignore_crossing:
            return super().anchor_targets(anchors, targets, size)
        height, width = size
        every = anchors[0]
        within = ((every >= 0) & (every <= every.new_tensor([width, height] * 2))).all(1).nonzero()[:, 0]
        if not len(within):
            raise UserError(
                f"--model.ignore_crossing true: no anchor lies within images of {width}x{height}; give smaller "
                "--model.anchor_sizes, or larger images"
            )
        labels, boxes = super().anchor_targets([every[within]] * len(anchors), targets, size)
        return (
            [each.new_full((len(every),), -1.0).index_copy(0, within, each) for each in labels],
            [each.new_zeros(len(every), 4).index_copy(0, within, each) for each in boxes],
        )


class TorchvisionFasterRCNN(TwoStageDetector):
    """torchvision's Faster R-CNNs, with its weights of COCO: the same detections for the same pixels.

    Args:
        network: Which one: ResNet-50 with a pyramid, its second version (batch normalization in pyramid and head, Li
            et al., 2021), or MobileNetV3, for large images or for 320 pixels.
        weights: Of the whole network: torchvision's name (``COCO_V1``), true, a local file, or null for random ones;
            for other classes see `segdet.detection.torchvision_network`.
        weights_backbone: Of the backbone alone, likewise (``IMAGENET1K_V1``).
        score_threshold: Detections must exceed this score.
        nms_threshold: Of two boxes of a class with a greater IoU, the worse is dropped.
        detections_per_image: How many remain.
        kwargs: As for `Detector`.

    Attributes:
        family: How torchvision's names of these networks begin.
        heads: The last layers of the classes, and how many rows in succession belong to one class.
    """

    family: ClassVar[str] = "fasterrcnn"
    heads: ClassVar[dict[str, int]] = {
        "roi_heads.box_predictor.cls_score": 1,
        "roi_heads.box_predictor.bbox_pred": 4,
    }

    def __init__(
        self,
        class_names: list[str],
        network: str = "resnet50_fpn",
        weights: str | bool | None = None,
        weights_backbone: str | bool | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        whole = torchvision_network(
            self.family, network, self.class_names, weights, weights_backbone, self.heads
        )
        self.backbone, self.rpn, self.roi_heads = whole.backbone, whole.rpn, whole.roi_heads
        self.multiple = 32
        generator = self.rpn.anchor_generator
        self.rpn.anchor_generator = GridAnchors(generator.sizes, generator.aspect_ratios)
        # The finest map, of which torchvision's pooling guesses the stride from the first images, is known.
        strides = [32, 32] if network.startswith("mobilenet") else [4, 8, 16, 32]
        self.roi_heads.box_roi_pool = RoIAlign(7, strides)
        self.roi_heads.score_thresh = score_threshold
        self.roi_heads.nms_thresh = self.nms_threshold = nms_threshold
        self.roi_heads.detections_per_img = self.detections_per_image = detections_per_image
        self._exact()

    def features(self, images: Tensor) -> Maps:
        return {str(place): each for place, each in enumerate(self.backbone(images).values())}


class RoIAlign(MultiScaleRoIAlign):
    """torchvision's RoIAlign on the maps of a pyramid, or on one; the strides are told, not guessed.

    A region is pooled from the map that its size calls for (Lin et al., CVPR 2017, equation 1).

    Args:
        output_size: The side of what a region is pooled to.
        strides: Of the maps "0", "1" ..., fine to coarse.
        canonical_size: The side of a region that the map of stride 16 answers for.
    """

    def __init__(self, output_size: int, strides: list[int], canonical_size: int = 224) -> None:
        super().__init__(
            [str(place) for place in range(len(strides))], output_size, 2, canonical_scale=canonical_size
        )
        self.scales = [1 / stride for stride in strides]
        finest, coarsest = ((stride.bit_length() - 1) for stride in (strides[0], strides[-1]))
        self.map_levels = LevelMapper(finest, coarsest, canonical_size)

    def forward(self, x: Maps, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """The regions ``boxes`` ``[P, 4]`` of each image, pooled: ``[R, C, side, side]`` in the maps' own type."""
        dtype = x["0"].dtype
        maps = {name: x[name].float() for name in self.featmap_names}
        return super().forward(maps, boxes, image_shapes).to(dtype)


class RegionHead(TwoLayerHead):
    """`TwoLayerHead`, as torchvision's second stage calls them."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled regions ``[R, C, side, side]`` to ``[R, width]``."""
        return super().forward(pooled.flatten(1))


class RoIPool(nn.Module):
    """RoI max pooling (Fast R-CNN, ICCV 2015, section 2.1) of a single map, as torchvision's second stage calls it.

    Args:
        output_size: The side of what a region is pooled to.
        stride: The map's.
    """

    def __init__(self, output_size: int, stride: int) -> None:
        super().__init__()
        self.pooling = RoIPooling(output_size, stride, "max")

    def forward(self, maps: Maps, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """The regions ``boxes`` ``[P, 4]`` of each image, pooled: ``[R, C, side, side]`` in the map's own type."""
        pooled: Tensor = self.pooling(maps["0"], rois_of(boxes))
        return pooled
