"""How much of the objects the proposals cover, beside the scores of detection."""

import math

import torch

from segdet.data.sample import Prediction, Target
from segdet.metrics.detection import DetectionScores
from segdet.metrics.regions import RegionScores


def test_recall_of_proposals_beside_the_scores() -> None:
    scores, plain = RegionScores(["a"]), DetectionScores(["a"])
    objects = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    # IoU 1, 0.6 and 0.25 with one of them each.
    proposals = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 32], [50, 50, 55, 55], [0, 0, 60, 60]])
    found = Prediction(boxes=objects[:2], scores=torch.tensor([0.9, 0.8]), labels=torch.tensor([1, 1]))
    target = Target(boxes=objects, labels=torch.ones(3, dtype=torch.int64))
    scores.cover(proposals, objects)
    scores.cover(proposals[:0], objects[:1])
    for each in (scores, plain):
        each.update([found], [target], [1])
    values = scores.compute()
    assert float(values["proposal_recall_50"]) == 2 / 4
    assert float(values["proposal_recall_70"]) == 1 / 4
    assert float(values["proposals"]) == 2
    assert all(torch.equal(values[k], v) or math.isnan(v) for k, v in plain.compute().items())


def test_without_an_image_they_are_undefined() -> None:
    values = RegionScores(["a"]).compute()
    assert math.isnan(values["proposal_recall_50"]) and math.isnan(values["proposals"])
