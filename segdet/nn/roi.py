"""Regions of interest (RoIs): sampling for training, pooling of their features, and two fully connected layers."""

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
    """Return the boxes ``[N, 4]`` of a batch's images as RoIs ``[R, 5]``: the image's position, then xyxy."""
    counts = torch.tensor([len(each) for each in boxes])
    images = torch.arange(len(boxes)).repeat_interleave(counts).to(boxes[0].device, non_blocking=True)
    joined = torch.cat(boxes).float()
    return torch.cat([images[:, None].to(joined.dtype), joined], 1)


@dataclass
class SampledRoIs:
    """RoIs for training."""

    rois: Tensor  # [R, 5]: the image's position in the batch, then xyxy
    labels: Tensor  # int64 [R]: the class, 0 for background, -1 for places that could not be filled
    boxes: Tensor  # [R, 4]: the object of highest IoU


def sample_rois(
    targets: list[Target],
    number: int,
    share: float,
    foreground: float = 0.5,
    background: tuple[float, float] = (0.1, 0.5),
    pooled: bool = False,
    fill: bool = True,
) -> SampledRoIs:
    """Sample RoIs from the proposals and objects of a batch, with torch's random numbers.

    All sizes are fixed, so that the CPU does not wait for the GPU. If there are too few RoIs of a kind, some of
    ``labels`` are -1.

    Args:
        targets: One per image, with ``boxes``, ``labels`` and ``proposals``.
        number: The number of RoIs per image; with ``pooled`` per batch.
        share: The maximum share of foreground.
        foreground: RoIs with at least this IoU with an object are foreground and get its class.
        background: The range of IoU of background, ``(from, below)``: RoIs whose highest IoU is in it are background.
        pooled: Whether RoIs are sampled from all images of the batch together.
        fill: Whether background fills the places that foreground leaves empty.
    """
    device = targets[0]["boxes"].device
    candidates = [torch.cat([target["boxes"], target["proposals"]]) for target in targets]
    present = [
        Target(boxes=each, labels=torch.ones(len(each), dtype=torch.int64, device=device))
        for each in candidates
    ]
    regions, valid_labels = pad_targets(present, device)
    objects, classes = pad_targets(targets, device)
    overlap, matched = pairwise_iou(regions, objects).masked_fill(classes[:, None] == 0, 0.0).max(2)
    labels = classes.gather(1, matched)
    target_boxes = objects.gather(1, matched[..., None].expand(-1, -1, 4))
    images = torch.arange(len(targets), device=device, dtype=regions.dtype)[:, None, None]
    rois = torch.cat([images.expand(-1, regions.shape[1], 1), regions], 2)
    valid = valid_labels > 0
    if pooled:
        overlap, labels, target_boxes, rois, valid = (
            value.flatten(0, 1)[None] for value in (overlap, labels, target_boxes, rois, valid)
        )
    positive = valid & (overlap >= foreground)
    negative = valid & ~positive & (overlap >= background[0]) & (overlap < background[1])
    most = round(number * share)
    key = torch.rand(overlap.shape, device=device)
    positive &= _rank(key, positive) < most
    room = number - positive.sum(1, keepdim=True) if fill else number - most
    negative &= _rank(key, negative) < room
    # Sampled RoIs come first, padding last.
    order = (
        (2 * (positive | negative).float() + valid.float()).topk(min(number, overlap.shape[1]), dim=1).indices
    )
    labels = torch.where(positive, labels, torch.where(negative, 0, -1)).gather(1, order)
    rois = rois.gather(1, order[..., None].expand(-1, -1, 5))
    target_boxes = target_boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return SampledRoIs(rois.flatten(0, 1), labels.flatten(), target_boxes.flatten(0, 1))


def _rank(key: Tensor, among: Tensor) -> Tensor:
    """Rank the entries where ``among`` is true by ``key``, in each row; all other entries have higher ranks."""
    return key.masked_fill(~among, torch.inf).argsort(1).argsort(1)


class RoIPooling(nn.Module):
    """Pool the features of RoIs from the feature map of the whole image to a fixed size.

    ``max`` is Fast R-CNN's RoI max pooling (Girshick, ICCV 2015, section 2.1) with the rounding of the released code.
    Corners are rounded to cells, the last pixel is inclusive, and bins overlap if the RoI cannot be divided evenly.
    ``align`` samples the map at four points per bin without any rounding (RoI Align; He et al., ICCV 2017).

    Args:
        size: The side of the pooled map.
        stride: The stride of the feature map in pixels.
        kind: ``max`` or ``align``.
    """

    def __init__(self, size: int = 7, stride: int = 16, kind: Pooling = "max") -> None:
        super().__init__()
        self.size, self.stride, self.kind = size, stride, kind
        # The last pixel of our boxes is exclusive; in the released code it is inclusive.
        self.register_buffer("_last", torch.tensor([0.0, 0, 0, 1, 1]), persistent=False)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Pool a map ``[B, C, h, w]`` for RoIs ``[R, 5]`` in pixels of the image: ``[R, C, size, size]``.

        Pooling runs in float32 or better, because bfloat16 moves RoIs by pixels. The result has the map's type.
        """
        dtype = torch.promote_types(features.dtype, torch.float32)
        maps, rois = features.to(dtype), rois.to(dtype)
        if self.kind == "align":
            pooled = roi_align(maps, rois, self.size, 1 / self.stride, sampling_ratio=2, aligned=True)
        else:
            pooled = roi_pool(maps, rois - self._last.to(dtype), self.size, 1 / self.stride)  # type: ignore[operator]
        return pooled.to(features.dtype)


class TwoLayerHead(nn.Module):
    """The fully connected layers ``fc6`` and ``fc7`` on flattened RoI features, as in AlexNet and VGG16.

    Args:
        features: The number of flattened features.
        width: The units of both layers; 4096 in the papers.
        dropout: The dropout rate after each layer.
    """

    fc6: nn.Module
    fc7: nn.Module

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.fc6 = nn.Linear(features, width)
        self.fc7 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Map flattened features ``[R, features]`` to ``[R, width]``."""
        hidden = self.dropout(F.relu(self.fc6(features)))
        return self.dropout(F.relu(self.fc7(hidden)))

    def start_from(self, backbone: str, weights: bool | str | None) -> bool:
        """Copy both layers from a pretrained torchvision network if the shapes match.

        Args:
            backbone: The network, such as ``torchvision:vgg16``; other backbones have no such layers.
            weights: See `segdet.nn.backbones.build_backbone`, which has already reported missing weights.

        Returns:
            Whether the layers were copied.
        """
        if not weights or not backbone.startswith("torchvision:"):
            return False
        published = torchvision.models.get_model_weights(backbone.removeprefix("torchvision:"))
        _, state = read_weights(weights, f"backbone {backbone}", [published])
        own = self.state_dict()
        named = {f"fc{number}.{part}": f"classifier.{layer}.{part}"
                 for number, layer in ((6, 0), (7, 3)) for part in ("weight", "bias")}  # fmt: skip
        new = {ours: state[theirs] for ours, theirs in named.items() if theirs in state}
        # IMAGENET1K_FEATURES has NaN there: these layers were never published.
        fits = [
            own[name].shape == value.shape and bool(value.isfinite().all()) for name, value in new.items()
        ]
        if len(new) < len(named) or not all(fits):
            return False
        self.load_state_dict(new)
        return True

    def compress(self, ranks: tuple[int, int]) -> None:
        """Replace both layers by truncated singular value decompositions of these ranks.

        See Girshick, ICCV 2015, section 3.1. The original weights are lost.
        """
        self.fc6, self.fc7 = (
            truncated_svd(layer, rank) for layer, rank in zip((self.fc6, self.fc7), ranks, strict=True)
        )


def truncated_svd(layer: nn.Module, rank: int) -> nn.Module:
    """Factorize a linear layer into two thinner ones: ``W = U S V'`` with the ``rank`` largest singular values."""
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
    """Return the two layers of `truncated_svd`: the first without a bias, the second with one."""
    return nn.Sequential(nn.Linear(features, rank, bias=False), nn.Linear(rank, out))
