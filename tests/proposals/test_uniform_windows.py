"""Tests of uniform windows: within the image, evenly spaced, and valid settings."""

from itertools import pairwise

import numpy as np
import pytest

from segdet.metrics.proposals import best_overlaps
from segdet.proposals import UniformWindows
from segdet.util.errors import UserError

IMAGE = np.zeros((240, 320, 3), np.uint8)


def test_windows_are_inside_distinct_and_repeatable() -> None:
    boxes, scores = UniformWindows()(IMAGE)
    assert boxes.dtype == scores.dtype == np.float32 and len(boxes) == len(scores) > 500
    assert boxes.min() >= 0 and (boxes[:, 2:] <= (320 + 1e-3, 240 + 1e-3)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert (np.diff(scores) < 0).all() and scores.min() > 0
    assert (UniformWindows()(IMAGE)[0] == boxes).all()
    assert (UniformWindows(seed=1)(IMAGE)[0] != boxes).any()


def test_neighbours_have_the_given_overlap() -> None:
    boxes, _ = UniformWindows(scales=(0.25,), aspects=(1.0,), overlap=0.6)(IMAGE)
    row = boxes[boxes[:, 1] == 0]
    row = row[np.argsort(row[:, 0])]
    for one, other in pairwise(row):
        assert 0.6 <= best_overlaps(one[None], other[None], [1]).item() < 0.65


def test_objects_of_the_window_size_are_covered() -> None:
    boxes, _ = UniformWindows(scales=(0.25,), aspects=(1.0,), overlap=0.5)(IMAGE)
    side = 0.25 * (320 * 240) ** 0.5
    corner = np.random.default_rng(0).uniform(0, (320 - side, 240 - side), (50, 2))
    objects = np.concatenate([corner, corner + side], 1)
    assert best_overlaps(boxes, objects, [len(boxes)]).min() > 0.5


@pytest.mark.parametrize("change", [{"scales": ()}, {"aspects": (0.0,)}, {"overlap": 1.0}, {"seed": -1}])
def test_mistakes_are_reported_in_one_line(change: dict) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        UniformWindows(**change)
