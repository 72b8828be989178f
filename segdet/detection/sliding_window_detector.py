"""Detection by sliding window: a classifier of all windows of an image pyramid, crop by crop or densely."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, best_boxes_stage, detections_stage
from segdet.nn.backbones import Backbone, build_backbone
from segdet.nn.boxes import match_anchors, pad_targets
from segdet.nn.dense_windows import DensePass
from segdet.nn.float32 import at_least_float32
from segdet.nn.size_cache import SizeCache
from segdet.nn.train_eval_mode import evaluating
from segdet.nn.window_pyramid import (
    WindowLayout,
    build_levels,
    crop_packed,
    layout_windows,
    level_sizes,
    pack_levels,
)
from segdet.nn.windows import Mode, window_stages
from segdet.task import Stage
from segdet.util.errors import UserError, check_choice, check_range
from segdet.util.stage_timing import stage


class SlidingWindowDetector(Detector):
    """A classifier of windows at all positions, sizes and aspect ratios.

    Rowley, Baluja, Kanade, Neural network-based face detection, PAMI 1998; Viola, Jones, CVPR 2001.

    The network classifies windows of a fixed size. For windows of other sizes, the image is resized. Each pair of a
    scale and an aspect ratio is one level of the pyramid. For wide windows, the image is squeezed horizontally, and the
    windows are square. The size of a level is chosen so that its last windows end at the image's borders. Every window
    is classified separately, with background as one of the classes, and non-maximum suppression per class leaves one
    window per object.

    The classifier is trained on windows of the same pyramid. A window is positive if its IoU with an object is at least
    ``foreground``, or if no other window has a higher IoU with this object. It is negative if its IoU with every object
    is below ``background``. Other windows are ignored. Most windows are easy background. Therefore a share of the
    negatives are hard: those of each image with the highest probability of an object under the current weights
    (bootstrapping, Sung and Poggio, PAMI 1998; during training as in OverFeat, section 5).

    The cost is proportional to the number of windows, because features are computed per window (``mode: crops``).
    ``mode: dense`` applies the same weights to whole levels (see `DensePass`), with the same detections in one pass per
    level. A checkpoint can be tested in both modes. In cost tables a pass is a window (``crops``) or a level.

    Args:
        window: The side of a window in pixels of the resized image.
        scales: The sizes of the windows: the square root of the ratio of window area to image area.
        aspects: The aspect ratios of the windows, width over height.
        stride: The distance between windows in pixels of the resized image.
        mode: ``crops`` evaluates every window separately, ``dense`` all windows of a level in one pass.
        channels: The output channels of each stage: convolution, batch normalization, ReLU and max pooling.
        kernels: The side of each stage's convolution.
        pools: The side and stride of each stage's pooling; 1 for none.
        conv_strides: The stride of each stage's convolution; null for 1.
        hidden: The widths of the linear layers between the features and the classes.
        dropout: The dropout rate before and after the first of these layers.
        backbone: A network instead of the stages, see `segdet.nn.backbones.build_backbone`; its coarsest map is
            averaged. A backbone pads each window and therefore cannot run densely.
        weights: See `segdet.nn.backbones.build_backbone`.
        backbone_options: See `segdet.nn.backbones.build_backbone`.
        windows_per_image: The number of training windows per image.
        positives: The maximum share of positives among the training windows.
        hard_negatives: The share of hard negatives among the negatives; the others are sampled at random. Hard
            negatives are searched densely in both modes if the network can run densely.
        foreground: The minimum IoU of a positive with an object.
        background: A window is a negative if its IoU with every object is below this.
        crop_batch: The number of windows per pass of the network in ``crops``.
        detections_per_class: The maximum number of boxes per class before suppression.
        kwargs: See `Detector`.
    """

    uses_scale = True
    extra_units = 0
    """The number of units of the first linear layer that a subclass uses for another head."""

    def __init__(
        self,
        class_names: list[str],
        window: int = 32,
        scales: list[float] = [0.16, 0.24, 0.36, 0.54, 0.8],  # noqa: B006  read only; jsonargparse shows it
        aspects: list[float] = [0.5, 1.0, 2.0],  # noqa: B006
        stride: int = 8,
        mode: Mode = "crops",
        channels: list[int] = [16, 32, 64],  # noqa: B006
        kernels: list[int] = [5, 3, 3],  # noqa: B006
        pools: list[int] = [2, 2, 2],  # noqa: B006
        conv_strides: list[int] | None = None,
        hidden: list[int] = [128],  # noqa: B006
        dropout: float = 0.0,
        backbone: str | None = None,
        weights: bool | str | None = None,
        backbone_options: dict[str, Any] | None = None,
        windows_per_image: int = 64,
        positives: float = 0.25,
        hard_negatives: float = 0.5,
        foreground: float = 0.5,
        background: float = 0.3,
        crop_batch: int = 256,
        nms_threshold: float = 0.3,
        detections_per_class: int = 400,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, nms_threshold=nms_threshold, **kwargs)
        check_choice("--model.mode", mode, Mode)
        for name, value in (
            ("window", window), ("stride", stride), ("crop_batch", crop_batch), ("windows_per_image", windows_per_image)
        ):  # fmt: skip
            check_range(f"--model.{name}", value, least=1)
        for name, values in (("scales", scales), ("aspects", aspects), ("hidden", hidden)):
            check_range(f"--model.{name}", values, above=0)
        for name, share in (
            ("positives", positives), ("hard_negatives", hard_negatives),
            ("foreground", foreground), ("background", background),
        ):  # fmt: skip
            check_range(f"--model.{name}", share, least=0, most=1)
        if background > foreground:
            raise UserError(
                f"--model.background: {background} exceeds --model.foreground, {foreground}; give at most that value"
            )
        self.window, self.stride, self.scales, self.aspects = window, stride, list(scales), list(aspects)
        self.mode, self.crop_batch = mode, crop_batch
        self.windows_per_image = windows_per_image
        self.positive_slots = round(positives * windows_per_image)
        self.hard_slots = round(hard_negatives * (windows_per_image - self.positive_slots))
        self.foreground, self.background = foreground, background
        self.detections_per_class = detections_per_class

        if backbone is None:
            layers, features = window_stages(window, channels, kernels, pools, conv_strides)
        elif mode == "dense":
            raise UserError(
                f"--model.mode dense: backbone {backbone} pads each window with zeros, which a dense pass cannot do; "
                "give --model.mode crops, or no backbone"
            )
        else:
            body = build_backbone(backbone, weights, **(backbone_options or {}))
            layers, features = [_CoarsestMap(body), nn.AdaptiveAvgPool2d(1)], body.channels[-1]
        self.class_units = hidden[0]
        linear = nn.Linear(features, hidden[0] + self.extra_units)
        self.network = nn.Sequential(
            OrderedDict(
                features=nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout)),
                hidden=nn.Sequential(linear, nn.ReLU(inplace=True), nn.Dropout(dropout)),
            )
        )
        self.class_head = linear_layers([*hidden, len(class_names) + 1])
        self.dense = DensePass(self.network, window, stride) if backbone is None else None
        self._layouts: SizeCache[WindowLayout] = SizeCache()

    def losses(
        self, images: Tensor, targets: list[Target], scale: tuple[float, float] = (1.0, 1.0)
    ) -> dict[str, Tensor]:
        layout = self.layout(images, scale)
        boxes, labels = pad_targets(targets, images.device)
        matched, target_labels = match_anchors(layout.boxes, boxes, labels, self.foreground, self.background)
        levels = build_levels(images, layout)
        packed = pack_levels(levels)
        hardness = self.hardness(levels, packed, layout) if self.hard_slots else None
        sampled = self.sample_windows(target_labels, hardness)
        index = torch.arange(len(images), device=images.device)[:, None].expand_as(sampled)
        windows = crop_packed(packed, layout, index.flatten(), sampled.flatten(), self.window)
        features = self.network[0](windows)
        logits = self.class_head(self.network[1](features)[:, : self.class_units])
        sampled_labels = target_labels.gather(1, sampled)
        # Windows of intermediate overlap are ignored.
        count = (sampled_labels >= 0).sum().clamp(min=1)
        cross_entropy = F.cross_entropy(
            logits.float(), sampled_labels.flatten(), ignore_index=-1, reduction="sum"
        )
        losses = {"class": cross_entropy / count}
        positives = sampled[:, : self.positive_slots]
        target_boxes = boxes.gather(1, matched.gather(1, positives)[..., None].expand(-1, -1, 4))
        return losses | self.box_losses(
            features.unflatten(0, sampled.shape)[:, : self.positive_slots].flatten(0, 1),
            layout.boxes[positives].flatten(0, 1),
            target_boxes.flatten(0, 1),
            sampled_labels[:, : self.positive_slots].flatten(),
        )

    def predict(self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> list[Prediction]:
        size = (images.shape[2], images.shape[3])
        scores, boxes = self.score_windows(images, scale)
        with stage("nms"):
            return self.select(boxes, scores, size)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        layout = self.layout(image)
        scores, boxes = self.score_windows(image)
        best_scores, labels = scores[0].max(-1)
        levels = zip(
            layout.sizes, layout.boxes.split(layout.counts), best_scores.split(layout.counts), strict=True
        )
        for (height, width), windows, of_level in levels:
            wide, high = (windows[0, 2:] - windows[0, :2]).tolist()
            caption = (
                f"The windows of highest score among {len(windows):,} windows of {wide:.0f}x{high:.0f} pixels (width x "
                f"height). In the image resized to {width}x{height} they have {self.window}x{self.window} pixels."
            )
            yield best_boxes_stage(f"level {width}x{height}", windows, of_level, caption, 20)
        caption = f"The windows of highest score of all {len(layout.sizes)} levels, before suppression."
        yield best_boxes_stage("best windows", layout.boxes, best_scores, caption)
        if self.extra_units:
            regressed = (
                boxes[0]
                if boxes.ndim == 3
                else boxes[0, torch.arange(len(labels), device=labels.device), labels]
            )
            yield best_boxes_stage(
                "regressed boxes", regressed, best_scores, "The same after box regression."
            )
        (final,) = self.select(boxes, scores, (image.shape[2], image.shape[3]))
        yield detections_stage(final)

    def score_windows(self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> tuple[Tensor, Tensor]:
        """Return scores and boxes of all windows, as in `classify`, by level, row and column."""
        layout = self.layout(images, scale)
        with stage("warps"):
            levels = build_levels(images, layout)
            packed = pack_levels(levels) if self.mode == "crops" else None
        hidden = self._evaluate_levels(levels) if packed is None else self._evaluate_crops(packed, layout)
        with stage("head"):
            return self.classify(hidden, layout.boxes)

    def classify(self, hidden: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the heads to the network's output.

        Args:
            hidden: The output of the network for A windows, ``[B, A, units]``.
            windows: ``[A, 4]`` xyxy.

        Returns:
            Scores ``[B, A, K]``, and boxes ``[B, A, 4]``, or ``[B, A, K, 4]`` with a box per class.
        """
        scores = self.probabilities(hidden)[..., 1:]
        return scores, windows.to(scores.dtype).expand(len(hidden), -1, -1)

    def probabilities(self, hidden: Tensor) -> Tensor:
        """Return the probabilities ``[..., K + 1]`` of background and classes from the network's output."""
        logits: Tensor = self.class_head(hidden[..., : self.class_units])
        return at_least_float32(logits).softmax(-1)

    def box_losses(
        self, features: Tensor, windows: Tensor, boxes: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of box regression; none by default.

        Args:
            features: The features of N windows, ``[N, F]``.
            windows: ``[N, 4]`` xyxy.
            boxes: The boxes of their objects, ``[N, 4]`` xyxy.
            labels: int64 ``[N]``; only windows with a label above 0 have an object.
        """
        return {}

    def layout(self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> WindowLayout:
        """Return the windows of images of this size, computed once per size.

        Window sides are fractions of the loaded image; in resized images windows keep their size in pixels.

        Args:
            images: ``[B, 3, H, W]``; only the size is used.
            scale: The images' height and width, divided by the height and width of the loaded images.
        """
        size = (images.shape[2], images.shape[3])

        def compute() -> WindowLayout:
            shrink = 1 / math.sqrt(math.prod(scale))
            scales = [each * shrink for each in self.scales]
            sizes = level_sizes(size, self.window, self.stride, scales, self.aspects)
            return layout_windows(size, sizes, self.window, self.stride, images.device)

        return self._layouts.get((size, scale, images.device), compute)

    def _evaluate_levels(self, levels: list[Tensor]) -> Tensor:
        """Return the network's output ``[B, A, units]`` for all windows, with one pass per level."""
        assert self.dense is not None
        with stage("network"):
            return torch.cat(
                [self.dense(level, self.network).flatten(2).transpose(1, 2) for level in levels], 1
            )

    def _evaluate_crops(self, packed: Tensor, layout: WindowLayout) -> Tensor:
        """Return the network's output ``[B, A, units]`` for all windows, from their crops."""
        total = len(packed) * len(layout.boxes)
        outputs: list[Tensor] = []
        with tqdm(total=total, desc="windows", unit="", leave=False, delay=2) as bar:
            for start in range(0, total, self.crop_batch):
                with stage("warps"):
                    number = torch.arange(start, min(start + self.crop_batch, total), device=packed.device)
                    image, window = number // len(layout.boxes), number % len(layout.boxes)
                    windows = crop_packed(packed, layout, image, window, self.window)
                with stage("network"):
                    outputs.append(self.network(windows))
                bar.update(len(number))
        return torch.cat(outputs).unflatten(0, (len(packed), len(layout.boxes)))

    # Training windows.

    def sample_windows(self, target_labels: Tensor, hardness: Tensor | None) -> Tensor:
        """Sample the training windows, with torch's random numbers.

        Args:
            target_labels: int64 ``[B, A]``, 0 for background, -1 for ignored windows.
            hardness: ``[B, A]``, larger for harder negatives; None for no hard negatives.

        Returns:
            int64 ``[B, n]``, without duplicates: first positives, then hard negatives, then random negatives. Negatives
            fill the places of missing positives; ignored windows fill the places of missing negatives.
        """
        background = target_labels == 0
        key = torch.rand(target_labels.shape, device=target_labels.device)
        negatives = key.masked_fill(~background, -1.0)
        first = _top(torch.where(target_labels > 0, key + 1, negatives), self.positive_slots)
        parts = [first]
        # Sampled windows rank behind the ignored ones, so that none is sampled twice.
        negatives = negatives.scatter(1, first, -2.0)
        total = target_labels.shape[1]
        hard = min(self.hard_slots, total - first.shape[1]) if hardness is not None else 0
        if hardness is not None:
            hardest = _top(hardness.masked_fill(~background, -1.0).scatter(1, first, -2.0), hard)
            negatives = negatives.scatter(1, hardest, -2.0)
            parts.append(hardest)
        rest = self.windows_per_image - first.shape[1] - hard
        parts.append(_top(negatives, min(rest, total - first.shape[1] - hard)))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def hardness(self, levels: list[Tensor], packed: Tensor, layout: WindowLayout) -> Tensor:
        """Return the probability of an object in each window under the current weights: ``[B, A]``."""
        with evaluating(self.network, self.class_head):
            dense = self.dense is not None
            hidden = self._evaluate_levels(levels) if dense else self._evaluate_crops(packed, layout)
            hardness = 1 - self.probabilities(hidden)[..., 0]
        # Autocast would cache converted weights, which have no gradient here, and reuse them for the loss.
        torch.clear_autocast_cache()
        return hardness

    @property
    def compiled_modules(self) -> list[nn.Module]:
        """The two parts of the network, which training calls separately, and the dense pass."""
        parts = [*self.network, *(part for part in super().compiled_modules if part is not self.network)]
        return parts if self.dense is None else [*parts, self.dense]

    @property
    def pass_module(self) -> nn.Module:
        """The network, with one window per pass; or the dense pass, with one level of the pyramid per pass."""
        if self.mode == "crops":
            return self.network
        assert self.dense is not None
        return self.dense


class _CoarsestMap(nn.Module):
    """The coarsest map of a backbone."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        coarsest: Tensor = self.body(images)[-1]
        return coarsest


def linear_layers(widths: list[int]) -> nn.Sequential:
    """Return linear layers between consecutive widths, with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ReLU(inplace=True), nn.Linear(before, after)]
    return nn.Sequential(*layers[1:])


def _top(values: Tensor, count: int) -> Tensor:
    """Return the indices of the largest values of ``[B, A]``: int64 ``[B, min(count, A)]``."""
    return values.topk(min(count, values.shape[1]), dim=1).indices
