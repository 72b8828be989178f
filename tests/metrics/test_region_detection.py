"""Test the recall of proposals and the detection scores with it."""

import math

import pytest
import torch

from segdet.data.sample import Prediction, Target
from segdet.metrics.detection import DetectionScores
from segdet.metrics.proposals import ProposalScores
from segdet.metrics.region_detection import COUNTS, IOUS, RegionScores


def test_recall_of_proposals_and_detection_scores() -> None:
    scores, plain = RegionScores(["a"]), DetectionScores(["a"])
    objects = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    # The first three proposals overlap one object each, with an IoU of 1, 0.6 and 0.25.
    proposals = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 32], [50, 50, 55, 55], [0, 0, 60, 60]])
    found = Prediction(boxes=objects[:2], scores=torch.tensor([0.9, 0.8]), labels=torch.tensor([1, 1]))
    target = Target(
        boxes=objects, labels=torch.ones(3, dtype=torch.int64), iscrowd=torch.zeros(3, dtype=torch.bool)
    )
    other = Target(  # only the first object of the second image is scored
        boxes=objects,
        labels=torch.ones(3, dtype=torch.int64),
        iscrowd=torch.tensor([False, True, False]),
        difficult=torch.tensor([False, False, True]),
    )
    nothing = Prediction(boxes=objects[:0], scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))
    given = [found, nothing], [target, other], [1, 2]
    scores.update(*given, [proposals, proposals[:0]])
    plain.update(*given)
    # Objects and proposals in the pixels of resized images.
    half = [Target(**{**each, "boxes": each["boxes"] / 2}) for each in (target, other)]
    resized = RegionScores(["a"])
    resized.update(*given, [proposals / 2, proposals[:0]], half)
    assert {k: v.item() for k, v in resized.compute().items() if "proposal" in k} == {
        k: v.item() for k, v in scores.compute().items() if "proposal" in k
    }
    values = scores.compute()
    assert float(values["proposal_recall_50"]) == 2 / 4
    assert float(values["proposal_recall_70"]) == 1 / 4
    assert float(values["proposals"]) == 2
    assert all(torch.equal(values[k], v) or math.isnan(v) for k, v in plain.compute().items())


def test_scores_without_an_image_are_nan() -> None:
    values = RegionScores(["a"]).compute()
    assert math.isnan(values["proposal_recall_50"]) and math.isnan(values["proposals"])


def test_proposals_and_detections_must_have_the_same_images() -> None:
    nothing = Prediction(
        boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64)
    )
    target = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    scores = RegionScores(["a"])
    with pytest.raises(TypeError, match="proposals"):
        scores.update([nothing], [target], [1])
    with pytest.raises(ValueError, match="1 predictions, proposals of 2 images"):
        scores.update([nothing], [target], [1], [torch.zeros(0, 4)] * 2)
    assert math.isnan(scores.compute()["proposals"])  # nothing was counted


def test_recall_by_number_of_proposals_and_iou() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = RegionScores(["a"])
    corners = [torch.rand(count, 2, generator=generator) * 60 for count in (5, 4, 0, 130, 7, 3)]
    boxes = [
        torch.cat([each, each + 10 + 30 * torch.rand(len(each), 2, generator=generator)], 1)
        for each in corners
    ]
    objects, proposals = boxes[:3], [boxes[3], boxes[4], boxes[5]]
    nothing = Prediction(
        boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64)
    )
    targets = [Target(boxes=each, labels=torch.ones(len(each), dtype=torch.int64)) for each in objects]
    scores.update([nothing] * 3, targets, [1, 2, 3], proposals)
    recall = scores.proposal_recall()
    assert (recall.images, recall.objects, recall.per_image) == (3, 9, 140 / 3)
    reference = ProposalScores([*COUNTS, 100_000])
    for found, truth in zip(proposals, objects, strict=True):
        reference.update(found.numpy(), truth.numpy(), torch.ones(len(truth)).numpy())
    for column, iou in enumerate(IOUS):
        assert recall.recall[:, column].tolist() == reference.recall(iou).tolist()
    assert recall.recall[0, 0] < recall.recall[-1, 0]
    assert float(scores.compute()["proposal_recall_70"]) == pytest.approx(recall.recall[-1, IOUS.index(0.7)])
