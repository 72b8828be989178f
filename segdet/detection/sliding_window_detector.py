"""Detection by sliding window: a classifier looks at every window of an image pyramid, one by one or all at once."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, detections_stage
from segdet.nn.backbones import Backbone, build_backbone
from segdet.nn.boxes import match_anchors, pad_targets
from segdet.nn.dense_windows import DensePass
from segdet.nn.float32 import at_least_float32
from segdet.nn.modes import evaluating
from segdet.nn.size_cache import SizeCache
from segdet.nn.windows import Mode, window_features, window_grid
from segdet.task import Stage, View
from segdet.util.errors import UserError, check_choice
from segdet.util.stages import stage


class SlidingWindowDetector(Detector):
    """A classifier of windows at all places, sizes and aspects (Rowley, Baluja, Kanade, PAMI 1998; Viola, Jones, 2001).

    A window has one size, in pixels of the network; the image is resized until an object fills it. Each pair of
    a scale and an aspect makes one level of the pyramid, for a window that is wide in the image is a square one in
    the image squeezed. A level's size is such that its windows end where the image ends. Every window is classified by
    itself as a class or as background, and non-maximum suppression of each class leaves one window an object.

    It is trained on windows of the same pyramid: positives overlap an object by IoU ``foreground`` (or are the one that
    overlaps it most), negatives none by ``background``. Most of the images' windows are background and easy; so
    a part of the negatives are the hardest of their image, those that the classifier as it is in this step takes
    for objects most firmly (bootstrapping, Sung and Poggio, PAMI 1998; during training as in OverFeat, section 5).

    What it costs is the windows, which each compute their features anew (``mode: crops``). ``mode: dense`` runs
    the same weights over whole levels (see `DensePass`): the same detections in one pass a level; a checkpoint
    can be tested either way. A pass of the cost tables is one window there, and one level here.

    Args:
        window: The side of the window in pixels of the network.
        scales: The windows' sizes in the image: the square roots of their areas as shares of that of the image.
        aspects: Their aspects, width over height.
        stride: From one window to the next, in pixels of the network.
        mode: ``crops`` cuts out every window, ``dense`` takes all of a level at once.
        channels: Of the stages, each a convolution, normalization, ReLU and max pooling.
        kernels: The side of each stage's convolution.
        pools: The side and stride of each stage's pooling; 1 for none.
        conv_strides: Of each stage's convolution; 1 when null.
        hidden: The widths of the linear layers between the features and the classes.
        dropout: The rate before and behind the first of them.
        backbone: In place of the stages a network by its name, see `segdet.nn.backbones.build_backbone`; its
            coarsest map is averaged. It pads each window, and so cannot be run densely.
        weights: See there.
        backbone_options: See there.
        windows_per_image: How many windows of each image to train on.
        positives: The share of positives among them, as far as there are any.
        hard_negatives: The share of the hardest among the negatives; the others are drawn at random. They are
            searched in ``dense`` mode if the classifier can be run so, whatever the mode.
        foreground: Windows of this IoU with an object are positives.
        background: Windows without it are negatives.
        crop_batch: How many windows go through the network at a time in ``crops``.
        score_threshold: Detections must exceed this score.
        nms_threshold: Of two boxes of a class with a greater IoU, the worse is dropped.
        detections_per_class: How many of a class take part in that.
        detections_per_image: How many remain.
        kwargs: As for `Detector`.
    """

    extra_units = 0
    """Units of the first linear layer that are not the class head's, for those who derive."""

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
        weights: str | bool | None = None,
        backbone_options: dict[str, Any] | None = None,
        windows_per_image: int = 64,
        positives: float = 0.25,
        hard_negatives: float = 0.5,
        foreground: float = 0.5,
        background: float = 0.3,
        crop_batch: int = 256,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        detections_per_class: int = 400,
        detections_per_image: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.mode", mode, Mode)
        for name, value in (
            ("window", window), ("stride", stride), ("crop_batch", crop_batch), ("windows_per_image", windows_per_image)
        ):  # fmt: skip
            if value < 1:
                raise UserError(f"--model.{name}: {value}; give at least 1")
        for name, values in (("scales", scales), ("aspects", aspects), ("hidden", hidden)):
            if not values or min(values) <= 0:
                raise UserError(f"--model.{name}: {values}; give one or more numbers greater than 0")
        for name, share in (
            ("positives", positives), ("hard_negatives", hard_negatives),
            ("foreground", foreground), ("background", background),
        ):  # fmt: skip
            if not 0 <= share <= 1:
                raise UserError(f"--model.{name}: {share}; give a share, 0 to 1")
        if background > foreground:
            raise UserError(
                f"--model.background: {background} is more than --model.foreground, {foreground}; give at most that"
            )
        self.window, self.stride, self.scales, self.aspects = window, stride, list(scales), list(aspects)
        self.mode, self.crop_batch = mode, crop_batch
        self.windows_per_image = windows_per_image
        self.positive_slots = round(positives * windows_per_image)
        self.hard_slots = round(hard_negatives * (windows_per_image - self.positive_slots))
        self.foreground, self.background = foreground, background
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.detections_per_class, self.detections_per_image = detections_per_class, detections_per_image

        if backbone is None:
            layers, features = window_features(window, channels, kernels, pools, conv_strides)
        elif mode == "dense":
            raise UserError(
                f"--model.mode dense: backbone {backbone} pads each window, where the image goes on in the whole; take "
                "--model.mode crops, or no backbone"
            )
        else:
            body = build_backbone(backbone, weights, **(backbone_options or {}))
            layers, features = [_Coarsest(body), nn.AdaptiveAvgPool2d(1)], body.channels[-1]
        self.class_units = hidden[0]
        self.network = nn.Sequential(
            OrderedDict(
                features=nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout)),
                hidden=nn.Sequential(
                    nn.Linear(features, hidden[0] + self.extra_units),
                    nn.ReLU(inplace=True),
                    nn.Dropout(dropout),
                ),
            )
        )
        self.class_head = linear_layers([*hidden, len(class_names) + 1])
        self.dense = DensePass(self.network, window, stride) if backbone is None else None
        self._layouts: SizeCache[Layout] = SizeCache()

    @property
    def compiled_modules(self) -> list[nn.Module]:
        """The network is called by its two parts in training; that of its layers over a whole level is one more."""
        parts = [*self.network, *(part for part in super().compiled_modules if part is not self.network)]
        return parts if self.dense is None else [*parts, self.dense]

    @property
    def pass_module(self) -> nn.Module:
        """The network, one window a pass; or the dense network, one level of the pyramid a pass."""
        if self.mode == "crops":
            return self.network
        assert self.dense is not None
        return self.dense

    def loss_inputs(self, view: View) -> dict[str, Any]:
        return {"scale": view.scale}

    def predict_inputs(self, targets: list[Target], view: View) -> dict[str, Any]:
        return {"scale": view.scale}

    def losses(
        self, images: Tensor, targets: list[Target], scale: tuple[float, float] = (1.0, 1.0)
    ) -> dict[str, Tensor]:
        layout = self.layout(images, scale)
        boxes, labels = pad_targets(targets, images.device)
        matched, wanted = match_anchors(layout.boxes, boxes, labels, self.foreground, self.background)
        levels = pyramid(images, layout)
        packed = pack(levels)
        chosen = self.choose(wanted, self.hardness(levels, packed, layout) if self.hard_slots else None)
        index = torch.arange(len(images), device=images.device)[:, None].expand_as(chosen)
        features = self.features(cut(packed, layout, index.flatten(), chosen.flatten(), self.window))
        logits = self.class_head(self.hidden(features)[:, : self.class_units])
        own = wanted.gather(1, chosen)
        # Of no window that overlaps an object by neither much nor little is anything demanded.
        count = (own >= 0).sum().clamp(min=1)
        cross_entropy = F.cross_entropy(logits.float(), own.flatten(), ignore_index=-1, reduction="sum")
        losses = {"class": cross_entropy / count}
        slots = chosen[:, : self.positive_slots]
        goals = boxes.gather(1, matched.gather(1, slots)[..., None].expand(-1, -1, 4))
        return losses | self.box_losses(
            features.unflatten(0, chosen.shape)[:, : self.positive_slots].flatten(0, 1),
            layout.boxes[slots].flatten(0, 1),
            goals.flatten(0, 1),
            own[:, : self.positive_slots].flatten(),
        )

    def features(self, windows: Tensor) -> Tensor:
        """What the network sees in windows ``[N, 3, window, window]``: ``[N, F]``."""
        features: Tensor = self.network[0](windows)
        return features

    def hidden(self, features: Tensor) -> Tensor:
        """The first linear layer's units ``[N, units]`` from the features ``[N, F]``."""
        hidden: Tensor = self.network[1](features)
        return hidden

    def box_losses(
        self, features: Tensor, windows: Tensor, boxes: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """The losses of the boxes, if the detector gives others than its windows.

        Args:
            features: Of N windows, ``[N, F]``.
            windows: ``[N, 4]`` xyxy.
            boxes: Those of their objects, ``[N, 4]`` xyxy.
            labels: int64 ``[N]``; of use are the windows where they are greater than 0.
        """
        return {}

    def classify(self, hidden: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads make of the network's answers.

        Args:
            hidden: ``[B, A, units]`` of A windows.
            windows: ``[A, 4]`` xyxy.

        Returns:
            Scores ``[B, A, K]``, and boxes ``[B, A, 4]``, or ``[B, A, K, 4]`` where each class has its own.
        """
        scores = self.probabilities(hidden)[..., 1:]
        return scores, windows.to(scores.dtype).expand(len(hidden), -1, -1)

    def probabilities(self, hidden: Tensor) -> Tensor:
        """The probabilities ``[..., K + 1]`` of background and classes from the network's answers."""
        logits: Tensor = self.class_head(hidden[..., : self.class_units])
        return at_least_float32(logits).softmax(-1)

    def select(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Prediction:
        """The detections of one image from the boxes and scores of its windows."""
        return self.selected([boxes], [scores], size)[0]

    def predict(self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> list[Prediction]:
        size = (images.shape[2], images.shape[3])
        scores, boxes = self.look(images, scale)
        with stage("nms"):
            return [self.select(b, s, size) for b, s in zip(boxes, scores, strict=True)]

    def look(self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> tuple[Tensor, Tensor]:
        """Scores and boxes of all windows, as in `classify`; level by level, each row by row."""
        layout = self.layout(images, scale)
        with stage("crops"):
            levels = pyramid(images, layout)
            packed = pack(levels) if self.mode == "crops" else None
        hidden = self._of_levels(levels) if packed is None else self._of_crops(packed, layout)
        with stage("classifier"):
            return self.classify(hidden, layout.boxes)

    def layout(self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> Layout:
        """Return the windows of images of this size, computed once per size.

        Window sides are fractions of the loaded image; in resized images windows keep their size in pixels.

        Args:
            images: ``[B, 3, H, W]``; only the size is used.
            scale: Their height and width divided by those of the loaded images.
        """
        size = (images.shape[2], images.shape[3])

        def compute() -> Layout:
            smaller = 1 / math.sqrt(math.prod(scale))
            scales = [each * smaller for each in self.scales]
            sizes = level_sizes(size, self.window, self.stride, scales, self.aspects)
            return lay_out(size, sizes, self.window, self.stride, images.device)

        return self._layouts.get((size, scale, images.device), compute)

    def _of_levels(self, levels: list[Tensor]) -> Tensor:
        """The network's answers ``[B, A, units]`` for all windows, one pass a level."""
        assert self.dense is not None
        with stage("network"):
            return torch.cat(
                [self.dense(level, self.network).flatten(2).transpose(1, 2) for level in levels], 1
            )

    def _of_crops(self, packed: Tensor, layout: Layout) -> Tensor:
        """The network's answers ``[B, A, units]`` for all windows, each cut out."""
        total = len(packed) * len(layout.boxes)
        answers: list[Tensor] = []
        with tqdm(total=total, desc="windows", unit="", leave=False, delay=2) as bar:
            for start in range(0, total, self.crop_batch):
                with stage("crops"):
                    number = torch.arange(start, min(start + self.crop_batch, total), device=packed.device)
                    windows = cut(
                        packed,
                        layout,
                        number // len(layout.boxes),
                        number % len(layout.boxes),
                        self.window,
                    )
                with stage("network"):
                    answers.append(self.network(windows))
                bar.update(len(number))
        return torch.cat(answers).unflatten(0, (len(packed), len(layout.boxes)))

    # Training windows.

    def choose(self, wanted: Tensor, hardness: Tensor | None) -> Tensor:
        """Draws the windows to train on, by torch's random numbers.

        Args:
            wanted: int64 ``[B, A]``: the windows' labels, 0 for background, -1 for what is not to be drawn.
            hardness: ``[B, A]``, of which the greatest are the hardest negatives; null for none.

        Returns:
            int64 ``[B, n]``: first positives, then the hardest negatives, then random ones. Where there
            are too few positives random negatives take their place; where there are too few of those, undrawables.
        """
        background = wanted == 0
        drawn = torch.rand(wanted.shape, device=wanted.device)
        negatives = drawn.masked_fill(~background, -1.0)
        first = _top(torch.where(wanted > 0, drawn + 1, negatives), self.positive_slots)
        parts = [first]
        negatives = negatives.scatter(1, first, -2.0)  # behind the undrawables: nothing is drawn twice
        total = wanted.shape[1]
        hard = min(self.hard_slots, total - first.shape[1]) if hardness is not None else 0
        if hardness is not None:
            hardest = _top(hardness.masked_fill(~background, -1.0).scatter(1, first, -2.0), hard)
            negatives = negatives.scatter(1, hardest, -2.0)
            parts.append(hardest)
        rest = self.windows_per_image - first.shape[1] - hard
        parts.append(_top(negatives, min(rest, total - first.shape[1] - hard)))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def hardness(self, levels: list[Tensor], packed: Tensor, layout: Layout) -> Tensor:
        """How sure the classifier, as it is, takes each window for an object: ``[B, A]``."""
        with evaluating(self.network, self.class_head):
            hidden = self._of_levels(levels) if self.dense is not None else self._of_crops(packed, layout)
            hardness = 1 - self.probabilities(hidden)[..., 0]
        # Weights that autocast has converted here have no gradient, and would be taken for those of the loss.
        torch.clear_autocast_cache()
        return hardness

    def stages(self, image: Tensor) -> Iterator[Stage]:
        layout = self.layout(image)
        scores, boxes = self.look(image)
        sure, labels = scores[0].max(-1)
        for (height, width), index in zip(
            layout.sizes, torch.arange(len(sure)).split(layout.counts), strict=True
        ):
            best = index[sure[index].topk(min(20, len(index))).indices]
            wide, high = (layout.boxes[index[0], 2:] - layout.boxes[index[0], :2]).tolist()
            yield Stage(
                f"level {width}x{height}",
                boxes=layout.boxes[best],
                scores=sure[best],
                about=f"Of the {len(index):,} windows of {wide:.0f}x{high:.0f} pixels (width x height), which are "
                f"{self.window}x{self.window} in the image resized to {width}x{height}, those most sure of an object.",
            )
        best = sure.topk(min(100, len(sure))).indices
        yield Stage(
            "best windows",
            boxes=layout.boxes[best],
            scores=sure[best],
            about=f"The windows of all {len(layout.sizes)} levels that are most sure of an object, unsuppressed.",
        )
        if self.extra_units:
            moved = boxes[0, best] if boxes.ndim == 3 else boxes[0, best, labels[best]]
            yield Stage(
                "regressed boxes", boxes=moved, scores=sure[best], about="The same with boxes of their own."
            )
        final = self.select(boxes[0], scores[0], (image.shape[2], image.shape[3]))
        yield detections_stage(final)


# The pyramid.


@dataclass(frozen=True)
class Layout:
    """Where the windows of an image of some size lie: A windows, level by level, each row by row.

    Attributes:
        sizes: ``(height, width)`` of each level.
        counts: The windows of each level.
        boxes: float32 ``[A, 4]`` xyxy in pixels of the image.
        starts: int64 ``[A]``: where a window begins among the pixels of all levels, one behind the other.
        pitches: int64 ``[A]``: from one row of a window to the next, among those.
    """

    sizes: list[tuple[int, int]]
    counts: list[int]
    boxes: Tensor
    starts: Tensor
    pitches: Tensor


def level_sizes(
    size: tuple[int, int], window: int, stride: int, scales: Sequence[float], aspects: Sequence[float]
) -> list[tuple[int, int]]:
    """The sizes that an image is resized to, one for each different pair of a scale and an aspect.

    Of each side there are as many windows as come closest to the wanted size and end with the image; a
    window that would be larger than the image is as large as it.

    Args:
        size: ``(height, width)`` of the image.
        window: The side of the window in pixels of the levels.
        stride: From one window to the next, in the same.
        scales: The square roots of the windows' areas as shares of the image's.
        aspects: Their widths over their heights.
    """
    height, width = size
    sizes: dict[tuple[int, int], None] = {}
    for scale in scales:
        for aspect in aspects:
            side = scale * math.sqrt(height * width)
            steps = [
                max(0, round((whole / part - 1) * window / stride))
                for whole, part in ((height, side / math.sqrt(aspect)), (width, side * math.sqrt(aspect)))
            ]
            sizes[window + steps[0] * stride, window + steps[1] * stride] = None
    return list(sizes)


def lay_out(
    size: tuple[int, int], sizes: list[tuple[int, int]], window: int, stride: int, device: torch.device
) -> Layout:
    """The windows of an image of ``size`` (height, width) on levels of ``sizes``."""
    boxes, starts, pitches, pixels = [], [], [], 0
    for high, wide in sizes:
        rows, columns = window_grid((high, wide), window, stride)
        tops, lefts = torch.meshgrid(
            torch.arange(rows, device=device) * stride,
            torch.arange(columns, device=device) * stride,
            indexing="ij",
        )
        corners = torch.stack([lefts, tops], -1).view(-1, 2)
        scale = torch.tensor([size[1] / wide, size[0] / high] * 2, device=device)
        boxes.append(torch.cat([corners, corners + window], 1) * scale)
        starts.append(pixels + corners[:, 1] * wide + corners[:, 0])
        pitches.append(torch.full_like(starts[-1], wide))
        pixels += high * wide
    counts = [len(each) for each in boxes]
    return Layout(sizes, counts, torch.cat(boxes), torch.cat(starts), torch.cat(pitches))


def pyramid(images: Tensor, layout: Layout) -> list[Tensor]:
    """Images ``[B, 3, H, W]`` in the sizes of the levels, channels last in memory."""
    return [
        F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True).contiguous(
            memory_format=torch.channels_last
        )
        for size in layout.sizes
    ]


def pack(levels: list[Tensor]) -> Tensor:
    """The pixels of all levels one behind the other: ``[B, pixels, 3]``."""
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], 1)


def cut(packed: Tensor, layout: Layout, index: Tensor, numbers: Tensor, window: int) -> Tensor:
    """Copies windows ``[N, 3, window, window]``, channels last in memory, out of packed levels.

    Args:
        packed: See `pack`.
        layout: Whose levels they are.
        index: int64 ``[N]``, the image of each window.
        numbers: int64 ``[N]``, which of its windows.
        window: The side.
    """
    images, pixels, channels = packed.shape
    # A window's row is one run of memory, and is copied as such, whichever level it is of.
    runs = packed.as_strided((images * pixels - window + 1, window * channels), (channels, 1))
    rows = torch.arange(window, device=packed.device) * layout.pitches[numbers, None]
    first = index * pixels + layout.starts[numbers]
    return runs[first[:, None] + rows].unflatten(-1, (window, channels)).permute(0, 3, 1, 2)


# Parts.


class _Coarsest(nn.Module):
    """The coarsest map of a backbone."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        coarsest: Tensor = self.body(images)[-1]
        return coarsest


def linear_layers(widths: list[int]) -> nn.Sequential:
    """Linear layers from each of the widths to the next, with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ReLU(inplace=True), nn.Linear(before, after)]
    return nn.Sequential(*layers[1:])


def _top(values: Tensor, count: int) -> Tensor:
    """The places of the greatest values ``[B, A]``: int64 ``[B, count]``, or fewer where there are fewer."""
    return values.topk(min(count, values.shape[1]), dim=1).indices
