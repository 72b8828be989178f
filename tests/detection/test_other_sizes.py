"""Tests that trained families detect equally well in images of other sizes and in views of other scales."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.data.sample import Target
from segdet.detection.base import Detector
from segdet.detection.detr import DETR
from segdet.detection.faster_rcnn import FasterRCNN
from segdet.detection.fcos import FCOS
from segdet.detection.mask_rcnn import MaskRCNN
from segdet.detection.retinanet import RetinaNet
from segdet.detection.ssd import SSD
from segdet.detection.yolo_v1 import YOLOv1
from segdet.detection.yolox import YOLOX
from segdet.task import View

VGG: dict[str, Any] = {
    "backbone": "small_vgg", "backbone_options": {"channels": [16, 24, 32, 48]}, "strides": [8, 16], "width": 32,
}  # fmt: skip
TWO_STAGES: dict[str, Any] = VGG | {
    "norm": True, "anchor_sizes": [[16.0], [32.0], [64.0]], "head_width": 64, "rpn_samples": 64, "regions": 32,
    "before_nms": (100, 100), "proposals": (50, 50), "pool_size": 5,
}  # fmt: skip
ONE_STAGE: dict[str, Any] = VGG | {"norm": True, "extra_levels": 0, "head_convolutions": 1}
SMALL_DETR: dict[str, Any] = {
    "backbone": "small_vgg", "backbone_options": {"channels": [16, 24, 32], "convolutions": 1}, "stride": 8,
    "width": 64, "heads": 4, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 128, "dropout": 0.0,
    "queries": 20, "spatial_prior": True,
}  # fmt: skip
GRID: dict[str, Any] = {
    "backbone": "small_vgg", "backbone_options": {"channels": [16, 24]}, "stride": 4, "grid": 6, "width": 48,
    "hidden": 0, "batch_norm": True,
}  # fmt: skip
FAMILIES: list[Any] = [
    (FasterRCNN, TWO_STAGES, 120, 3e-3),
    pytest.param(
        MaskRCNN, TWO_STAGES | {"mask_width": 16, "mask_convolutions": 1}, 90, 3e-3, marks=pytest.mark.slow
    ),
    (SSD, VGG | {"extra_maps": 0}, 150, 3e-3),
    (RetinaNet, ONE_STAGE, 100, 3e-3),
    (FCOS, ONE_STAGE, 100, 3e-3),
    (YOLOX, VGG | {"width": 24, "head_convolutions": 1}, 100, 3e-3),
    (DETR, SMALL_DETR, 120, 2e-3),
    (YOLOv1, GRID, 300, 3e-3),
]


def resized(images: Tensor, targets: list[Target], size: tuple[int, int]) -> tuple[Tensor, list[Target]]:
    """Resize images ``[N, 3, H, W]`` and their targets."""
    scale = torch.tensor([size[1] / images.shape[3], size[0] / images.shape[2]] * 2)
    new = F.interpolate(images.float(), size, mode="bilinear", align_corners=False).round().to(torch.uint8)
    return new, [
        Target(
            boxes=target["boxes"] * scale,
            labels=target["labels"],
            masks=F.interpolate(target["masks"][None], size, mode="nearest")[0],
        )
        for target in targets
    ]


SIZES = [(64, 96), (80, 112), (64, 112), (80, 96), (80, 128), (96, 144)]
"""The sizes of training images. The strides divide their sides, but not the sides of the test images."""


@pytest.mark.parametrize(("family", "options", "steps", "lr"), FAMILIES)
def test_detects_equally_well_at_other_sizes(
    family: type[Detector], options: dict[str, Any], steps: int, lr: float, few_images: Any, map_50: Any
) -> None:
    torch.manual_seed(0)
    model = family(["red", "green"], **options).train()
    images, targets = few_images(8)
    batches = [resized(images, targets, size) for size in SIZES]
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    for step in range(steps):
        batch, batch_targets = batches[step % len(SIZES)]
        view = View([(64, 96)] * len(batch), (batch.shape[2] / 64, batch.shape[3] / 96))
        optimizer.zero_grad()
        losses = model.losses(model.normalize(batch), batch_targets, **model.loss_inputs(view))
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
    found: dict[Any, float] = {}
    if family is not YOLOv1:  # its cells are relative to the loaded images, which have one size
        found[67, 102] = map_50(model, *resized(images, targets, (67, 102)))
    for scales in ((1.0,), (1.25,), (1.3,), (1.0, 1.25)):
        model.tta_scales = list(scales)
        found[scales] = map_50(model, images, targets)
    assert min(found.values()) >= 0.85, found
