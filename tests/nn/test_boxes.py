"""The IoU of boxes, which every detector takes from here."""

import torch
from torch import Tensor
from torchvision.ops import box_iou

from segdet.nn.boxes import BoxCoder, paired_iou, pairwise_iou


def some() -> Tensor:
    """Two images' boxes ``[2, 9, 4]``, some of which overlap and some do not."""
    torch.manual_seed(0)
    corners = torch.rand(2, 9, 2) * 50
    return torch.cat([corners, corners + torch.rand(2, 9, 2) * 40], 2)


def test_every_pair_of_a_batch_is_torchvisions_image_by_image() -> None:
    boxes = some()
    for image, iou in enumerate(pairwise_iou(boxes, boxes[:, :4])):
        torch.testing.assert_close(iou, box_iou(boxes[image], boxes[image, :4]))


def test_boxes_in_pairs_are_the_diagonal_of_that() -> None:
    boxes, others = some(), some().flip(1)
    assert torch.equal(paired_iou(boxes, others), pairwise_iou(boxes, others).diagonal(dim1=1, dim2=2))
    assert paired_iou(boxes[0, :0], others[0, :0]).shape == (0,)


def test_what_only_stands_in_for_a_box_overlaps_nothing() -> None:
    empty = torch.zeros(1, 4)
    assert pairwise_iou(empty, torch.cat([empty, some()[0]])).tolist() == [[0.0] * 10]


def test_a_coder_that_predicted_first_can_be_learned_through() -> None:
    coder, anchors = BoxCoder(), torch.tensor([[0.0, 0, 10, 20]])
    offsets = torch.zeros(1, 4, requires_grad=True)
    with torch.inference_mode():
        coder.decode(torch.zeros(1, 4), anchors)
    coder.decode(offsets, anchors).sum().backward()
    # The sum of both corners moves by twice the side for each unit of 0.1; log sides move them apart, their sum not.
    assert offsets.grad is not None
    torch.testing.assert_close(offsets.grad, torch.tensor([[2.0, 4.0, 0.0, 0.0]]))
