"""The pictures of validation images."""

import torch

from segdet.data.sample import Prediction
from segdet.runs.panels import ImagePanels

FOUND = Prediction(
    boxes=torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 2, 2]]),
    scores=torch.tensor([0.4, 0.3, 0.1]),
    labels=torch.tensor([2, 1, 3]),
)


def test_localization_shows_the_box_of_the_best_class() -> None:
    visible = ImagePanels(min_score=0.9)._visible(FOUND, "localization")
    assert visible["labels"].tolist() == [2]


def test_detection_shows_the_best_boxes_above_the_minimum_score() -> None:
    assert ImagePanels(min_score=0.2)._visible(FOUND, "detection")["labels"].tolist() == [2, 1]
    assert ImagePanels(min_score=0.2, most_boxes=1)._visible(FOUND, "detection")["labels"].tolist() == [2]


def test_segmentation_shows_the_mask() -> None:
    mask = Prediction(mask=torch.zeros(2, 2, dtype=torch.int64))
    assert ImagePanels()._visible(mask, "segmentation") is mask
