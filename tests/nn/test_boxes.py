"""The IoU of boxes and the choice of detections, which every detector takes from here."""

import torch
from torch import Tensor
from torchvision.ops import box_iou

from segdet.nn.boxes import BoxCoder, paired_iou, pairwise_iou, select_detections, select_from_images


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


def test_detections_of_a_batch_are_those_of_its_images() -> None:
    boxes, scores = some(), torch.rand(2, 9, 3)
    found = select_from_images(boxes, scores, (60, 70), 0.1, 0.4, 5, 4, True)
    assert len(found) == 2
    for each, of_image, said in zip(found, boxes, scores, strict=True):
        alone = select_detections(of_image, said, (60, 70), 0.1, 0.4, 5, 4, class_agnostic=True)
        assert all(torch.equal(each[key], alone[key]) for key in ("boxes", "scores", "labels"))  # type: ignore[literal-required]


def test_all_of_a_class_take_part_where_no_number_is_given() -> None:
    boxes, scores = some()[0], torch.rand(9, 3)
    for per_class_boxes in (boxes, boxes[:, None] + torch.arange(3.0)[:, None]):
        every = select_detections(per_class_boxes, scores, (60, 70), 0.1, 0.4, None, 99)
        as_many = select_detections(per_class_boxes, scores, (60, 70), 0.1, 0.4, 9, 99)
        assert 3 < len(every["scores"]) < 27
        assert all(torch.equal(every[key], as_many[key]) for key in ("boxes", "scores", "labels"))  # type: ignore[literal-required]


def test_what_hardly_reaches_into_the_image_is_dropped() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [-5, 0, 0.005, 9], [50, 50, 60, 60]])
    found = select_detections(boxes, torch.ones(3, 1), (20, 20), 0.5, 0.5, None, 9, min_side=0.01)
    assert found["boxes"].tolist() == [[0, 0, 9, 9]]
