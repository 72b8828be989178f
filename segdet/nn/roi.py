"""Regions of interest: which of them to learn from, their features from the map of the whole image, and the
two layers that look at those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from segdet.data.sample import Target
from segdet.nn.boxes import pad_targets, pairwise_iou
from segdet.nn.weights import read_weights

Pooling = Literal["max", "align"]


def rois_of(boxes: list[Tensor]) -> Tensor:
    """The boxes ``[N, 4]`` of each image of a batch as regions ``[R, 5]``: the image's position, then xyxy."""
    counts = torch.tensor([len(each) for each in boxes])
    images = torch.arange(len(boxes)).repeat_interleave(counts).to(boxes[0].device, non_blocking=True)
    together = torch.cat(boxes).float()
    return torch.cat([images[:, None].to(together.dtype), together], 1)


@dataclass
class Sampled:
    """Regions to learn from.

    Attributes:
        rois: ``[R, 5]``: the image's position in the batch, then xyxy.
        labels: int64 ``[R]``: the class, 0 for background, -1 for a place that nothing could be found for.
        boxes: ``[R, 4]``: of the object that the region overlaps most.
    """

    rois: Tensor
    labels: Tensor
    boxes: Tensor


def sample_rois(
    targets: list[Target],
    number: int,
    share: float,
    foreground: float = 0.5,
    background: tuple[float, float] = (0.1, 0.5),
    pooled: bool = False,
    fill: bool = True,
) -> Sampled:
    """Draws regions from the proposals of a batch, and from its objects, by torch's random numbers.

    All has fixed sizes, so that a GPU is never waited for: where there are not enough regions of a kind, some of
    ``labels`` are -1.

    Args:
        targets: One per image, with ``boxes``, ``labels`` and ``proposals``.
        number: How many regions of an image; with ``pooled`` of the whole batch.
        share: The share of them that is foreground, at most.
        foreground: Regions of at least this IoU with an object are of its class.
        background: Regions of at least the first and less than the second are background.
        pooled: Whether the images' regions are drawn from together.
        fill: Whether background takes the places that foreground leaves.
    """
    device = targets[0]["boxes"].device
    candidates = [torch.cat([target["boxes"], target["proposals"]]) for target in targets]
    present = [
        Target(boxes=each, labels=torch.ones(len(each), dtype=torch.int64, device=device))
        for each in candidates
    ]
    regions, there = pad_targets(present, device)
    objects, classes = pad_targets(targets, device)
    overlap, matched = pairwise_iou(regions, objects).masked_fill(classes[:, None] == 0, 0.0).max(2)
    labels = classes.gather(1, matched)
    goals = objects.gather(1, matched[..., None].expand(-1, -1, 4))
    images = torch.arange(len(targets), device=device, dtype=regions.dtype)[:, None, None]
    rois = torch.cat([images.expand(-1, regions.shape[1], 1), regions], 2)
    valid = there > 0
    if pooled:
        overlap, labels, goals, rois, valid = (
            value.flatten(0, 1)[None] for value in (overlap, labels, goals, rois, valid)
        )
    positive = valid & (overlap >= foreground)
    negative = valid & ~positive & (overlap >= background[0]) & (overlap < background[1])
    most = round(number * share)
    key = torch.rand(overlap.shape, device=device)
    positive &= _rank(key, positive) < most
    room = number - positive.sum(1, keepdim=True) if fill else number - most
    negative &= _rank(key, negative) < room
    # What is drawn comes first, and what is no region at all last.
    order = (
        (2 * (positive | negative).float() + valid.float()).topk(min(number, overlap.shape[1]), dim=1).indices
    )
    labels = torch.where(positive, labels, torch.where(negative, 0, -1)).gather(1, order)
    rois = rois.gather(1, order[..., None].expand(-1, -1, 5))
    goals = goals.gather(1, order[..., None].expand(-1, -1, 4))
    return Sampled(rois.flatten(0, 1), labels.flatten(), goals.flatten(0, 1))


def _rank(key: Tensor, among: Tensor) -> Tensor:
    """The place of each of ``among`` in the order of ``key``, row by row; of the others a later one."""
    return key.masked_fill(~among, torch.inf).argsort(1).argsort(1)


class RoIPooling(nn.Module):
    """The features of regions, from the feature map of the whole image, as maps of one size.

    ``max`` is Fast R-CNN's RoI max pooling (Girshick, ICCV 2015, section 2.1) with its released code's rounding: a
    region's corners are rounded to cells, its last pixel belongs to it, and bins overlap where they do not
    divide it. ``align`` samples the map at four points a bin without any rounding (He et al., ICCV 2017).

    Args:
        size: The side of a region's map.
        stride: Of the feature map, in pixels.
        kind: ``max`` or ``align``.
    """

    def __init__(self, size: int = 7, stride: int = 16, kind: Pooling = "max") -> None:
        super().__init__()
        self.size, self.stride, self.kind = size, stride, kind
        # Our boxes end behind their last pixel, the released code's with it.
        self.register_buffer("_last", torch.tensor([0.0, 0, 0, 1, 1]), persistent=False)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """A map ``[B, C, h, w]`` and regions ``[R, 5]`` in pixels of the image to ``[R, C, size, size]``.

        Regions are pooled in float32 or better, and come in the map's own type: bfloat16 would move them by pixels.
        """
        dtype = torch.promote_types(features.dtype, torch.float32)
        maps, rois = features.to(dtype), rois.to(dtype)
        if self.kind == "align":
            pooled = roi_align(maps, rois, self.size, 1 / self.stride, sampling_ratio=2, aligned=True)
        else:
            pooled = roi_pool(maps, rois - self._last.to(dtype), self.size, 1 / self.stride)  # type: ignore[operator]
        return pooled.to(features.dtype)


class TwoLayers(nn.Module):
    """``fc6`` and ``fc7`` on a region's flattened map, as in AlexNet and VGG16.

    Args:
        features: The numbers of a map.
        width: The units of both layers; 4096 in the papers.
        dropout: The rate behind either.
    """

    fc6: nn.Module
    fc7: nn.Module

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.fc6 = nn.Linear(features, width)
        self.fc7 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Flattened maps ``[R, features]`` to ``[R, width]``."""
        hidden = self.dropout(F.relu(self.fc6(features)))
        return self.dropout(F.relu(self.fc7(hidden)))

    def start_from(self, backbone: str, weights: str | bool | None) -> bool:
        """Takes over the two layers of a pretrained network of torchvision's whose shapes they have.

        Args:
            backbone: Its name, such as ``torchvision:vgg16``; of others there is nothing to take.
            weights: As for `segdet.nn.backbones.backbone`, which has told of weights that cannot be had.

        Returns:
            Whether there was something to take.
        """
        if not weights or not backbone.startswith("torchvision:"):
            return False
        published = torchvision.models.get_model_weights(backbone.removeprefix("torchvision:"))
        _, state = read_weights(weights, f"backbone {backbone}", [published])
        own = self.state_dict()
        named = {f"fc{number}.{part}": f"classifier.{layer}.{part}"
                 for number, layer in ((6, 0), (7, 3)) for part in ("weight", "bias")}  # fmt: skip
        fits = all(
            # IMAGENET1K_FEATURES has NaN there, for those layers were never published.
            theirs in state
            and state[theirs].shape == own[ours].shape
            and bool(state[theirs].isfinite().all())
            for ours, theirs in named.items()
        )
        if fits:
            self.load_state_dict({ours: state[theirs] for ours, theirs in named.items()})
        return fits

    def compress(self, ranks: tuple[int, int]) -> None:
        """Replaces both layers by truncated singular value decompositions of these ranks.

        (Girshick, ICCV 2015, section 3.1.) What the layers were is lost.
        """
        self.fc6, self.fc7 = (
            truncated(layer, rank) for layer, rank in zip((self.fc6, self.fc7), ranks, strict=True)
        )


def truncated(layer: nn.Module, rank: int) -> nn.Module:
    """A linear layer as two thinner ones: ``W = U S V'`` with the ``rank`` largest singular values."""
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.detach()
    if rank >= min(weight.shape):
        return layer
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    thin = factorized(layer.in_features, layer.out_features, rank).to(weight)
    first, second = values[:rank, None] * right[:rank], left[:, :rank]
    state = {"0.weight": first, "1.weight": second, "1.bias": layer.bias}
    thin.load_state_dict(state)
    return thin


def factorized(features: int, out: int, rank: int) -> nn.Sequential:
    """The layers of `truncated`: the first without a bias, which the second has."""
    return nn.Sequential(nn.Linear(features, rank, bias=False), nn.Linear(rank, out))
