"""Tests of the IoU of boxes, the box coder, and the selection of detections."""

import torch
from host_syncs import HostSyncs
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou_loss

from segdet.nn.boxes import (
    BoxCoder,
    Selection,
    paired_giou_loss,
    paired_iou,
    pairwise_iou,
    select_detections,
)


def random_boxes() -> Tensor:
    """Return random boxes ``[2, 9, 4]`` of two images; some overlap."""
    torch.manual_seed(0)
    corners = torch.rand(2, 9, 2) * 50
    return torch.cat([corners, corners + torch.rand(2, 9, 2) * 40], 2)


def test_pairwise_iou_equals_torchvisions_box_iou_per_image() -> None:
    boxes = random_boxes()
    for image, iou in enumerate(pairwise_iou(boxes, boxes[:, :4])):
        torch.testing.assert_close(iou, box_iou(boxes[image], boxes[image, :4]))


def test_paired_iou_is_the_diagonal_of_pairwise_iou() -> None:
    boxes, others = random_boxes(), random_boxes().flip(1)
    assert torch.equal(paired_iou(boxes, others), pairwise_iou(boxes, others).diagonal(dim1=1, dim2=2))
    assert paired_iou(boxes[0, :0], others[0, :0]).shape == (0,)


def test_giou_loss_and_its_gradient_equal_torchvisions_without_a_wait_for_the_device() -> None:
    boxes, others = random_boxes(), random_boxes().flip(1)
    boxes[0, 0] = torch.tensor([90.0, 90, 80, 80])  # an early prediction may be inverted
    assert int((paired_iou(boxes, others) == 0).sum()) > 2
    results = []
    for loss in (paired_giou_loss, generalized_box_iou_loss):
        given = boxes.clone().requires_grad_()
        with HostSyncs() as mode:
            value = loss(given, others)
            value.sum().backward()
        results.append((value.detach(), given.grad, dict(mode.found)))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-7)
    assert results[0][2] == {} and results[1][2]


def test_boxes_without_area_overlap_nothing() -> None:
    empty = torch.zeros(1, 4)
    assert pairwise_iou(empty, torch.cat([empty, random_boxes()[0]])).tolist() == [[0.0] * 10]


def test_a_coder_first_used_in_inference_mode_has_gradients() -> None:
    coder, anchors = BoxCoder(), torch.tensor([[0.0, 0, 10, 20]])
    offsets = torch.zeros(1, 4, requires_grad=True)
    with torch.inference_mode():
        coder.decode(torch.zeros(1, 4), anchors)
    coder.decode(offsets, anchors).sum().backward()
    # A centre offset of 1 (0.1 sides) moves the sum of both corners by 0.2 sides; log sides do not change the sum.
    assert offsets.grad is not None
    torch.testing.assert_close(offsets.grad, torch.tensor([[2.0, 4.0, 0.0, 0.0]]))


def test_all_boxes_of_a_class_are_candidates_without_a_limit() -> None:
    boxes, scores = random_boxes()[0], torch.rand(9, 3)
    for per_class_boxes in (boxes, boxes[:, None] + torch.arange(3.0)[:, None]):
        every = select_detections(per_class_boxes, scores, (60, 70), Selection(0.1, 0.4, None, 99))
        as_many = select_detections(per_class_boxes, scores, (60, 70), Selection(0.1, 0.4, 9, 99))
        assert 3 < len(every["scores"]) < 27
        assert all(torch.equal(every[key], as_many[key]) for key in ("boxes", "scores", "labels"))  # type: ignore[literal-required]


def test_boxes_that_are_thin_after_clipping_are_removed() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [-5, 0, 0.005, 9], [50, 50, 60, 60]])
    found = select_detections(boxes, torch.ones(3, 1), (20, 20), Selection(0.5, 0.5, None, 9, min_side=0.01))
    assert found["boxes"].tolist() == [[0, 0, 9, 9]]
