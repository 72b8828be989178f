"""Faster R-CNN: a region proposal network on the features of the detector."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, best_boxes_stage, detections_stage
from segdet.detection.torchvision_network import torchvision_network
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import Selection
from segdet.nn.float32 import output_float32
from segdet.nn.pyramid import FeaturePyramid, GridAnchors, RoundedAnchors, pad_to_stride
from segdet.nn.roi import RoIPooling, TwoLayerHead, rois_of
from segdet.task import Stage
from segdet.training.fine_tune import ClassRows
from segdet.util.errors import UserError, check_choice
from segdet.util.stage_timing import stage

Pooling = Literal["align", "pool"]

Maps = dict[str, Tensor]
"""Feature maps by level, fine to coarse."""


class ProposalOutput(NamedTuple):
    """The output of the region proposal network for a batch."""

    objectness: Tensor  # logits of all anchors, [B * A, 1]
    offsets: Tensor  # box offsets from the anchors, [B * A, 4]
    anchors: list[Tensor]  # [A, 4] for each image
    boxes: list[Tensor]  # the proposals of each image, [P, 4] xyxy, best first, without gradient
    scores: list[Tensor]  # the scores of each image's proposals, [P]


class SampledRegions(NamedTuple):
    """The regions of each image in the losses of the second stage."""

    boxes: list[Tensor]  # [R, 4] xyxy
    objects: list[Tensor]  # the index of each region's object, int64 [R]
    labels: list[Tensor]  # int64 [R], 0 for background


class TwoStageDetector(Detector):
    """The common base of `FasterRCNN` and `TorchvisionFasterRCNN`.

    Both stages are trained jointly on the sum of four losses, without gradients through the proposals ("approximate
    joint training", section 3.2).

    Args:
        kwargs: See `Detector`.

    Attributes:
        backbone: The network from images to features. Each family sets this and the other attributes.
        rpn: torchvision's region proposal network.
        roi_heads: torchvision's second stage.
        size_divisor: The sides of images are padded to multiples of this.
    """

    class_rows = {"bbox_pred": ClassRows(per_class=4)}
    backbone: nn.Module
    rpn: RegionProposalNetwork
    roi_heads: RoIHeads
    size_divisor: int

    @abstractmethod
    def features(self, images: Tensor) -> Maps:
        """Return the maps that both stages use. The sides of the images are multiples of ``size_divisor``."""

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        padded = pad_to_stride(images, self.size_divisor)
        maps = self.features(padded.tensors)
        proposed = self._propose(padded, maps)
        module_targets = [self.torchvision_target(target) for target in targets]
        anchor_labels, anchor_boxes = self.anchor_targets(
            proposed.anchors, module_targets, padded.image_sizes[0]
        )
        rpn_targets = self.rpn.box_coder.encode(anchor_boxes, proposed.anchors)
        rpn_class_loss, rpn_box_loss = self.rpn.compute_loss(
            proposed.objectness, proposed.offsets, anchor_labels, rpn_targets
        )
        *regions, target_offsets = self.roi_heads.select_training_samples(
            list(proposed.boxes), module_targets
        )
        sampled = SampledRegions(*regions)
        logits, offsets = self._classify(padded, maps, sampled.boxes)
        class_loss, box_loss = fastrcnn_loss(logits, offsets, sampled.labels, target_offsets)
        losses = {"rpn_class": rpn_class_loss, "rpn_box": rpn_box_loss, "class": class_loss, "box": box_loss}
        return losses | self.region_losses(padded, maps, module_targets, sampled)

    def predict(self, images: Tensor) -> list[Prediction]:
        padded = pad_to_stride(images, self.size_divisor)
        with stage("network"):
            maps = self.features(padded.tensors)
        with stage("proposals"):
            regions = self._propose(padded, maps).boxes
        return self._detections(padded, maps, regions)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        padded = pad_to_stride(image, self.size_divisor)
        maps = self.features(padded.tensors)
        proposed = self._propose(padded, maps)
        probabilities = proposed.objectness.flatten().sigmoid()
        caption = "The anchors of highest objectness in the proposal network."
        yield best_boxes_stage("anchors", proposed.anchors[0], probabilities, caption, 50)
        boxes, scores = proposed.boxes[0], proposed.scores[0]
        caption = f"The best of {len(boxes)} proposals: anchors after box regression and suppression."
        yield Stage("proposals", boxes=boxes[:100], scores=scores[:100], caption=caption)
        (final,) = self._detections(padded, maps, proposed.boxes)
        yield detections_stage(final, "The proposals after classification, box regression and suppression.")

    def propose(self, images: Tensor, count: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Return the proposals for normalized images ``[B, 3, H, W]``.

        Args:
            images: Images of one size.
            count: The least number of boxes per image, and of candidates per map before suppression, to which the
                network's limits are raised. None keeps the limits.

        Returns:
            Boxes of each image, float32 ``[P, 4]``, xyxy in its pixels, best first, and scores of each image, ``[P]``.
        """
        padded = pad_to_stride(images, self.size_divisor)
        with stage("network"):
            maps = self.features(padded.tensors)
        limits = self.rpn._pre_nms_top_n, self.rpn._post_nms_top_n
        if count is not None:
            self.rpn._pre_nms_top_n, self.rpn._post_nms_top_n = (
                {when: max(limit, count) for when, limit in each.items()} for each in limits
            )
        try:
            with stage("proposals"):
                proposed = self._propose(padded, maps)
        finally:
            self.rpn._pre_nms_top_n, self.rpn._post_nms_top_n = limits
        return proposed.boxes, proposed.scores

    def anchor_targets(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]], size: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the training targets of the anchors ``[A, 4]`` of each image.

        Args:
            anchors: The anchors of each image, equal for all images.
            targets: ``boxes`` and ``labels`` of each image.
            size: ``(height, width)`` of the images.

        Returns:
            For each image the labels, float32 ``[A]``: 1 (object), 0 (background) or -1 (ignored), and the boxes of the
            objects, ``[A, 4]``.
        """
        return self.rpn.assign_targets_to_anchors(anchors, targets)

    def torchvision_target(self, target: Target) -> dict[str, Tensor]:
        """Return the target of an image in the format of torchvision's modules."""
        return {"boxes": target["boxes"], "labels": target["labels"]}

    def region_losses(
        self, images: ImageList, maps: Maps, targets: list[dict[str, Tensor]], sampled: SampledRegions
    ) -> dict[str, Tensor]:
        """Return the losses of other branches on the sampled regions of padded images; none by default."""
        return {}

    @property
    def selection(self) -> Selection:
        """The thresholds and limits of suppression, with the minimum side of torchvision."""
        return replace(super().selection, min_side=1e-2)

    @property
    def compiled_modules(self) -> list[nn.Module]:
        """The modules to compile. The parts of the proposal network and second stage are called one by one."""
        stages = (self.rpn, self.roi_heads)
        others = [part for part in super().compiled_modules if part not in stages]
        parts = [part for stage in stages for part in stage.children()]
        return [*others, *(part for part in parts if next(part.parameters(), None) is not None)]

    def _propose(self, images: ImageList, maps: Maps) -> ProposalOutput:
        features = list(maps.values())
        objectness, offsets = self.rpn.head(features)
        anchors = self.rpn.anchor_generator(images, features)
        levels = [each[0].numel() for each in objectness]
        objectness, offsets = concat_box_prediction_layers(objectness, offsets)
        # Proposals are detached, so that the second stage's losses have no gradient through them.
        boxes = self.rpn.box_coder.decode(offsets.detach(), anchors).view(len(anchors), -1, 4)
        chosen, scores = self.rpn.filter_proposals(boxes, objectness, images.image_sizes, levels)
        return ProposalOutput(objectness, offsets, anchors, chosen, scores)

    def _classify(self, images: ImageList, maps: Maps, regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits ``[R, K + 1]`` and offsets ``[R, 4 (K + 1)]`` of the regions of all images."""
        with stage("warps"):
            pooled = self.roi_heads.box_roi_pool(maps, regions, images.image_sizes)
        logits, offsets = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits, offsets

    def _detections(self, images: ImageList, maps: Maps, regions: list[Tensor]) -> list[Prediction]:
        with stage("head"):
            logits, offsets = self._classify(images, maps, regions)
        heads, counts = self.roi_heads, [len(each) for each in regions]
        with stage("nms"):
            # This replaces torchvision's `postprocess_detections`, which has no class-agnostic suppression.
            boxes = heads.box_coder.decode(offsets, regions)[:, 1:].split(counts)
            scores = logits.softmax(-1)[:, 1:].split(counts)
            return self.select(boxes, scores, images.image_sizes[0])

    def _predict_in_float32(self) -> None:
        """Convert the box outputs to float32, because the network may run in a lower precision."""
        output_float32(self.rpn.head)
        output_float32(self.roi_heads.box_predictor)


class FasterRCNN(TwoStageDetector):
    """Faster R-CNN (Ren, He, Girshick, Sun, TPAMI 2017) on any backbone.

    In Fast R-CNN, Selective Search takes most of the time. Faster R-CNN replaces this step by a small convolutional
    network on the same features, the region proposal network (RPN). The RPN predicts the objectness and box offsets of
    anchors: boxes of several sizes and aspect ratios at every cell. The second stage pools the features of the best
    boxes and classifies and regresses them again. The cost is one backbone pass plus the second stage per region.

    There are two variants. One uses a feature pyramid (Lin et al., CVPR 2017), with anchors of one size per map. The
    other uses a single map as published (``pyramid: false`` and one stride: 16 for VGG16 and for a ResNet's C4), with
    nine anchors of three sizes. The RPN, the second stage and their hyper-parameters are torchvision's. The objectness
    is one logistic output, whereas the paper has a softmax over two outputs.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See `segdet.nn.backbones.build_backbone`. With torchvision's VGG16, the two layers on a pooled region
            are initialized from its classifier if there is no pyramid, ``head_width`` is 4096 and ``pool_size`` 7.
        backbone_options: See `segdet.nn.backbones.build_backbone`.
        strides: The strides of the backbone's maps for the pyramid, or of the single map.
        pyramid: Whether there is a feature pyramid.
        width: The channels of the pyramid.
        norm: Whether batch normalization follows the pyramid's convolutions. Not in the paper; improves training from
            scratch.
        anchor_sizes: The sides of the square anchors in pixels, one list per map (the pyramid has one map more than
            ``strides``). Null for 8 times the stride of each pyramid map, or 8, 16 and 32 times the stride of a single
            map, rounded as in the paper's code.
        aspect_ratios: The aspect ratios of the anchors, height over width.
        rpn_samples: The number of anchors per image in the RPN's losses, at most half of them positive.
        ignore_crossing: Whether the RPN's losses ignore anchors that cross the image's border (section 3.3).
        before_nms: The number of anchors per map before suppression of proposals, in training and in prediction.
        proposals: The number of proposals per image after suppression, in training and in prediction.
        proposal_nms_threshold: A proposal is removed if its IoU with a proposal of higher score exceeds this.
        proposal_min_size: Proposals with a shorter side, in pixels, are removed.
        pooling: ``align`` (RoI Align, He et al., ICCV 2017), or ``pool`` (RoI max pooling, as published; only without a
            pyramid).
        pool_size: The side of a pooled region.
        canonical_size: The side of a region that is pooled from the map of stride 16; regions of half this side are
            pooled from the next finer map.
        head_width: The units of the two layers on a pooled region.
        head_dropout: The dropout rate after each of these layers.
        regions: The number of regions per image in the second stage's losses.
        foreground_share: The maximum share of positive regions.
        kwargs: See `Detector`.
    """

    cpu_network = {
        "backbone_options": {"channels": [32, 64, 128, 256]},
        "strides": [8, 16, 32],
        "width": 96,
        "norm": True,
        "anchor_sizes": [[16, 24], [32, 48], [64, 96], [128, 192]],
        "before_nms": [600, 600],
        "proposals": [400, 300],
        "head_width": 256,
        "regions": 128,
    }

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: bool | str | None = None,
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
                "--model.pooling pool: RoI max pooling needs a single map; give --model.pyramid false, or align"
            )
        self.backbone = build_backbone(backbone, weights, strides, **(backbone_options or {}))
        strides = self.backbone.strides
        self.size_divisor = strides[-1]
        self.neck: FeaturePyramid | None = None
        channels, levels = self.backbone.channels[0], strides
        if pyramid:
            self.neck = FeaturePyramid(self.backbone.channels, strides, width, subsampled=True, norm=norm)
            channels, levels = width, self.neck.strides
        if anchor_sizes is not None and len(anchor_sizes) != len(levels):
            raise UserError(
                f"--model.anchor_sizes: {len(anchor_sizes)} lists for maps of strides {levels}; give one per map"
            )
        if anchor_sizes is None and not pyramid:
            anchors: GridAnchors = RoundedAnchors(strides[0], aspect_ratios=aspect_ratios)
        else:
            sizes = anchor_sizes or [[8 * stride] for stride in levels]
            anchors = GridAnchors(sizes, [aspect_ratios] * len(levels))
        if len(set(anchors.num_anchors_per_location())) > 1:
            raise UserError(
                "--model.anchor_sizes: all maps share one head; give the same number of sizes for each"
            )
        self.ignore_crossing = ignore_crossing
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
            # Not used: the thresholds and limits are in `Detector.selection`.
            score_thresh=self.score_threshold,
            nms_thresh=self.nms_threshold,
            detections_per_img=self.detections_per_image,
        )
        self._predict_in_float32()

    def features(self, images: Tensor) -> Maps:
        maps = self.backbone(images)
        return {"0": maps[0]} if self.neck is None else self.neck(maps)

    def anchor_targets(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]], size: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if not self.ignore_crossing:
            return super().anchor_targets(anchors, targets, size)
        height, width = size
        all_anchors = anchors[0]
        limits = all_anchors.new_tensor([width, height] * 2)
        within = ((all_anchors >= 0) & (all_anchors <= limits)).all(1).nonzero()[:, 0]
        if not len(within):
            raise UserError(
                f"--model.ignore_crossing true: no anchor lies within images of {width}x{height}; give smaller "
                "--model.anchor_sizes, or larger images"
            )
        labels, boxes = super().anchor_targets([all_anchors[within]] * len(anchors), targets, size)
        return (
            [each.new_full((len(all_anchors),), -1.0).index_copy(0, within, each) for each in labels],
            [each.new_zeros(len(all_anchors), 4).index_copy(0, within, each) for each in boxes],
        )


class TorchvisionFasterRCNN(TwoStageDetector):
    """torchvision's Faster R-CNNs. With their COCO weights, detections equal those of torchvision.

    Args:
        network: ``resnet50_fpn``; ``resnet50_fpn_v2`` (batch normalization in pyramid and head, Li et al., 2021);
            ``mobilenet_v3_large_fpn``, or ``mobilenet_v3_large_320_fpn`` for images of 320 pixels.
        weights: Weights of the whole network: torchvision's name (``COCO_V1``), true, a local file, or null for random
            weights; for other classes see `segdet.detection.torchvision_network`.
        weights_backbone: Weights of the backbone alone, in the same notation (``IMAGENET1K_V1``).
        kwargs: See `Detector`.

    Attributes:
        family: The prefix of these networks' names in torchvision.
        heads: The number of consecutive rows per class of each output layer that depends on the classes, by name.
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
        weights: bool | str | None = None,
        weights_backbone: bool | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        network_module = torchvision_network(
            self.family, network, self.class_names, weights, weights_backbone, self.heads
        )
        self.backbone, self.rpn = network_module.backbone, network_module.rpn
        self.roi_heads = network_module.roi_heads
        self.size_divisor = 32
        generator = self.rpn.anchor_generator
        self.rpn.anchor_generator = GridAnchors(generator.sizes, generator.aspect_ratios)
        # Strides are explicit, because torchvision's pooling derives them from the sizes of the first images.
        strides = [32, 32] if network.startswith("mobilenet") else [4, 8, 16, 32]
        self.roi_heads.box_roi_pool = RoIAlign(7, strides)
        self._predict_in_float32()

    def features(self, images: Tensor) -> Maps:
        return {str(place): each for place, each in enumerate(self.backbone(images).values())}


class RoIAlign(MultiScaleRoIAlign):
    """torchvision's RoI Align on the maps of a pyramid or on a single map, with explicit strides.

    The size of a region determines the map it is pooled from (Lin et al., CVPR 2017, equation 1).

    Args:
        output_size: The side of a pooled region.
        strides: The strides of the maps "0", "1" ..., fine to coarse.
        canonical_size: The side of a region that is pooled from the map of stride 16.
    """

    def __init__(self, output_size: int, strides: list[int], canonical_size: int = 224) -> None:
        super().__init__(
            [str(place) for place in range(len(strides))], output_size, 2, canonical_scale=canonical_size
        )
        self.scales = [1 / stride for stride in strides]
        finest, coarsest = ((stride.bit_length() - 1) for stride in (strides[0], strides[-1]))
        self.map_levels = LevelMapper(finest, coarsest, canonical_size)

    def forward(self, x: Maps, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool the regions ``boxes``, ``[P, 4]`` for each image, to ``[R, C, side, side]`` in the type of the maps."""
        dtype = x["0"].dtype
        maps = {name: x[name].float() for name in self.featmap_names}
        return super().forward(maps, boxes, image_shapes).to(dtype)


class RegionHead(TwoLayerHead):
    """`TwoLayerHead` with the interface of torchvision's second stage."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled regions ``[R, C, side, side]`` to ``[R, width]``."""
        return super().forward(pooled.flatten(1))


class RoIPool(nn.Module):
    """RoI max pooling (Fast R-CNN, ICCV 2015, section 2.1) with the interface of torchvision's second stage.

    Args:
        output_size: The side of a pooled region.
        stride: The stride of the map.
    """

    def __init__(self, output_size: int, stride: int) -> None:
        super().__init__()
        self.pooling = RoIPooling(output_size, stride, "max")

    def forward(self, maps: Maps, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool the regions ``boxes``, ``[P, 4]`` for each image, to ``[R, C, side, side]`` in the type of the map."""
        pooled: Tensor = self.pooling(maps["0"], rois_of(boxes))
        return pooled
