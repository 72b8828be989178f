"""Tests of Selective Search as a whole: the settings of the paper, the ranking, and unusual images."""

import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from segdet.metrics.proposals import best_overlaps
from segdet.proposals import SelectiveSearch
from segdet.proposals.selective_search import to_colour_space
from segdet.util.errors import UserError

TRUTH = np.array([[15, 10, 50, 40], [60, 50, 110, 85], [76, 11, 105, 40]])
"""The objects of the scene."""


@pytest.mark.parametrize(("strategy", "runs"), [("single", 1), ("fast", 8), ("quality", 80)])
def test_number_of_runs_equals_the_papers(scene: np.ndarray, strategy: str, runs: int) -> None:
    hierarchies = SelectiveSearch(strategy).hierarchies(scene)
    assert len(hierarchies) == runs
    assert all(h[-1].tolist() == [0, 0, 120, 90] for h in hierarchies)


def test_finds_salient_objects(scene: np.ndarray) -> None:
    boxes, _ = SelectiveSearch()(scene)
    assert best_overlaps(boxes, TRUTH, [len(boxes)]).min() > 0.8


def test_boxes_are_ranked_distinct_inside_and_not_small(scene: np.ndarray) -> None:
    boxes, scores = SelectiveSearch()(scene)
    assert boxes.dtype == scores.dtype == np.float32 and boxes.shape == (len(scores), 4)
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert (np.diff(scores) <= 0).all() and (scores > 0).all()
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 20
    assert boxes.min() >= 0 and (boxes[:, 2:] <= (120, 90)).all()
    everything, _ = SelectiveSearch(min_width=0)(scene)
    assert len(everything) > len(boxes)
    assert {*map(tuple, boxes)} < {*map(tuple, everything)}


def test_the_seed_changes_only_the_order(scene: np.ndarray) -> None:
    one, again, other = (SelectiveSearch(seed=seed)(scene) for seed in (3, 3, 4))
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert (one[0] != other[0]).any()
    assert {*map(tuple, one[0])} == {*map(tuple, other[0])}


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 3), (40, 30, 3)])
def test_an_image_of_one_colour_is_one_box(shape: tuple[int, int, int]) -> None:
    boxes, _ = SelectiveSearch("quality", min_width=0)(np.full(shape, 130, np.uint8))
    assert boxes.tolist() == [[0, 0, shape[1], shape[0]]]


def test_colour_spaces() -> None:
    image = np.array([[[255, 0, 0], [0, 0, 0], [100, 100, 100], [10, 20, 30]]], np.uint8)
    assert to_colour_space(image, "rgI").tolist() == [
        [[255, 0, 76], [85, 85, 0], [85, 85, 100], [42, 85, 18]]
    ]
    assert (to_colour_space(image, "H")[..., 0] == to_colour_space(image, "HSV")[..., 0]).all()
    assert to_colour_space(image, "I").shape == (1, 4, 1)
    assert (to_colour_space(image, "Lab") == cv2.cvtColor(image, cv2.COLOR_RGB2LAB)).all()


def test_settings_make_the_key() -> None:
    search = SelectiveSearch()
    assert search.key == SelectiveSearch("fast", seed=0).key
    changed = [{"strategy": "single"}, {"sigma": 0.5}, {"min_width": 10}, {"seed": 1}]
    assert len({search.key, *(replace(search, **change).key for change in changed)}) == 5


def test_mistakes_are_reported_in_one_line() -> None:
    with pytest.raises(UserError, match=r"strategy slow: must be one of single, fast, quality"):
        SelectiveSearch("slow")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="min_width -1"):
        SelectiveSearch(min_width=-1)
    with pytest.raises(ValueError, match=r"not float32 \(4, 4, 3\)"):
        SelectiveSearch()(np.zeros((4, 4, 3), np.float32))


def test_neither_torch_nor_numba_is_loaded_before_it_is_needed() -> None:
    code = "import segdet.proposals, sys; print([m for m in ('torch', 'numba') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_compiles_on_a_read_only_file_system() -> None:
    code = """
from numba.core import caching
def refuse(self):
    raise OSError("read-only file system")
for locator in vars(caching).values():
    if isinstance(locator, type) and issubclass(locator, caching._CacheLocator):
        locator.ensure_cache_path = refuse
from segdet.util.numba_compile import compiled
import segdet.proposals.graph as graph, numpy as np
print(graph._find(np.array([0, 0, 1], np.int32), 2))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr
