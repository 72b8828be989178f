"""FLOPs of three networks, counted by hand from their shapes; the operators that are not counted."""

from typing import Any

import torch
from torch import nn

from segdet.detection.detr import DETR
from segdet.detection.ssd import SSD
from segdet.localization.box_head import BoxHead
from segdet.runs.operations import Operations, count_operations
from segdet.segmentation.fcn import FCN
from segdet.task import Task

CLASSES = ["a", "b", "c"]
VGG: dict[str, Any] = {"backbone": "small_vgg", "backbone_options": {"channels": [4, 8, 16]}}


def operations_of(model: Task, height: int = 64, width: int = 96) -> Operations:
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    return count_operations(lambda: model.eval().predict_tensors(image), model, model.pass_module)


def convolution(inputs: int, outputs: int, kernel: int, height: int, width: int) -> int:
    """Return the FLOPs of a convolution with an output of this size; a multiply-add is two operations."""
    return 2 * inputs * outputs * kernel * kernel * height * width


def small_vgg(height: int, width: int) -> int:
    """Return the FLOPs of `VGG`: two 3x3 convolutions at each of the strides 2, 4 and 8."""
    total, inputs = 0, 3
    for outputs in (4, 8, 16):
        height, width = height // 2, width // 2
        total += convolution(inputs, outputs, 3, height, width) + convolution(
            outputs, outputs, 3, height, width
        )
        inputs = outputs
    return total


def test_flops_of_an_fcn_equal_a_count_by_hand() -> None:
    model = FCN(CLASSES, **VGG, strides=[4, 8], width=5)
    laterals = convolution(8, 5, 1, 16, 24) + convolution(16, 5, 1, 8, 12)
    head = convolution(5, 5, 3, 16, 24) + convolution(5, 3, 1, 16, 24)
    found = operations_of(model)
    assert found.flops == small_vgg(64, 96) + laterals + head
    assert found.passes == 1


def test_flops_of_a_box_head_equal_a_count_by_hand() -> None:
    model = BoxHead(CLASSES, **VGG, strides=[8], heads="flat", grid=2, width=7)
    class_head = 2 * (2 * 16 * 7 + 7 * 3)
    box_head = 2 * (16 * 2 * 2 * 7 + 7 * 4)
    assert operations_of(model).flops == small_vgg(64, 96) + class_head + box_head


def test_flops_of_an_ssd_equal_a_count_by_hand() -> None:
    model = SSD(CLASSES, **VGG, strides=[8], extra_maps=1, width=6, aspect_ratios=[[2.0], [2.0]])
    extra = convolution(16, 3, 1, 8, 12) + convolution(3, 6, 3, 4, 6)
    outputs = 4 * (len(CLASSES) + 1 + 4)  # four default boxes per cell, each with scores and offsets
    heads = convolution(16, outputs, 3, 8, 12) + convolution(6, outputs, 3, 4, 6)
    assert operations_of(model).flops == small_vgg(64, 96) + extra + heads


def test_flops_include_attention_on_the_cpu() -> None:
    torch.manual_seed(0)
    query, key = torch.rand(1, 2, 10, 8), torch.rand(1, 2, 6, 8)
    attend = nn.Identity()
    found = count_operations(
        lambda: nn.functional.scaled_dot_product_attention(query, key, key), attend, attend
    )
    assert found.flops == 2 * (2 * 10 * 8 * 6) * 2  # two heads, two products


def test_operators_that_compute_are_listed_and_those_that_move_numbers_are_not() -> None:
    from torchvision.ops import nms, roi_align

    features, rois = torch.rand(1, 4, 8, 8), torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]] * 3)
    identity = nn.Identity()

    def predict() -> None:
        pooled = roi_align(features, rois, 2)
        nms(rois[:, 1:], torch.rand(3), 0.5)
        torch.cat([pooled.view(-1), pooled.flatten().clone()]).reshape(2, -1).contiguous()
        nn.functional.grid_sample(features, torch.zeros(1, 5, 5, 2), align_corners=False)
        (features + 1).relu()

    found = count_operations(predict, identity, identity)
    assert found.flops == 0
    assert set(found.uncounted) == {
        "torchvision::roi_align", "torchvision::nms", "aten::grid_sampler_2d", "aten::add", "aten::relu", "aten::rand",
    }  # fmt: skip
    assert found.uncounted["torchvision::roi_align"].elements == 3 * 4 * 2 * 2
    assert found.uncounted["aten::grid_sampler_2d"].elements == 4 * 5 * 5


def test_flops_of_a_detr_depend_on_the_size_of_the_image() -> None:
    model = DETR(CLASSES, **VGG, stride=8, width=16, heads=2, queries=5, feedforward=16)
    flops = [operations_of(model, *size).flops for size in ((64, 64), (64, 96), (96, 96))]
    assert flops == sorted(set(flops))
