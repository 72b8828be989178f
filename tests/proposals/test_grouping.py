"""Tests of regions and their grouping against loops over all pixels and all pairs."""

import numpy as np
import pytest

from segdet.proposals import grouping
from segdet.proposals.graph import edges_of, segment
from segdet.proposals.grouping import Measures, Regions, bins_of, group, regions_of

ALL = Measures(True, True, True, True)


def regions(image: np.ndarray, k: int = 30, min_size: int = 8) -> tuple[np.ndarray, Regions]:
    labels, count = segment(edges_of(image), k, min_size)
    return labels, regions_of(labels, count, bins_of(image))


def similarity(one: dict, other: dict, measures: Measures, pixels: int) -> float:
    low = np.minimum(one["box"][:2], other["box"][:2])
    high = np.maximum(one["box"][2:], other["box"][2:])
    joint = one["size"] + other["size"]
    total = 0.0
    if measures.colour:
        total += np.minimum(one["colour"], other["colour"]).sum()
    if measures.texture:
        total += np.minimum(one["texture"], other["texture"]).sum()
    if measures.size:
        total += 1 - joint / pixels
    if measures.fill:
        total += 1 - ((high - low).prod() - joint) / pixels
    return float(total)


def brute_force(given: Regions, measures: Measures) -> tuple[np.ndarray, list[float]]:
    """Return the boxes of the hierarchy, and the similarity of each merge."""
    nodes = [
        {"size": s, "box": b.astype(int), "colour": c.astype(float), "texture": t.astype(float)}
        for s, b, c, t in zip(given.sizes, given.boxes, given.colours, given.textures, strict=True)
    ]
    near = {frozenset(pair) for pair in given.pairs.tolist()}
    similarities = []
    while near:
        best = max(near, key=lambda pair: similarity(*(nodes[i] for i in pair), measures, given.pixels))
        one, other = (nodes[i] for i in best)
        similarities.append(similarity(one, other, measures, given.pixels))
        size = one["size"] + other["size"]
        node = {"size": size}
        low, high = np.minimum(one["box"], other["box"]), np.maximum(one["box"], other["box"])
        node["box"] = np.concatenate([low[:2], high[2:]])
        for name in ("colour", "texture"):
            node[name] = (one["size"] * one[name] + other["size"] * other[name]) / size
        new = len(nodes)
        nodes.append(node)
        renamed = (frozenset(new if i in best else i for i in pair) for pair in near)
        near = {pair for pair in renamed if len(pair) == 2}
    return np.array([node["box"] for node in nodes]), similarities


@pytest.mark.parametrize("letters", ["CTSF", "TSF", "CT", "C"])
def test_the_most_similar_neighbours_are_merged(scene: np.ndarray, letters: str) -> None:
    _, given = regions(scene)
    assert len(given.sizes) > 20
    measures = Measures(*(letter in letters for letter in "CTSF"))
    boxes, similarities = brute_force(given, measures)
    # There are no near ties, so that the order does not depend on rounding.
    assert len(similarities) == len(given.sizes) - 1
    assert (group(given, measures) == boxes).all()


@pytest.mark.parametrize("letters", ["CTSF", "TSF", "F", "S"])
def test_a_hierarchy_of_r_regions_has_r_minus_one_merges(scene: np.ndarray, letters: str) -> None:
    _, given = regions(scene)
    count = len(given.sizes)
    measures = Measures(*(letter in letters for letter in "CTSF"))
    boxes = group(given, measures)
    assert len(boxes) == 2 * count - 1
    assert (boxes[:count] == given.boxes).all()
    assert boxes[-1].tolist() == [0, 0, 120, 90]
    histograms = np.concatenate([given.colours, given.textures], 1)
    again, joined = grouping._group(given.sizes, given.boxes, histograms, given.pairs, 1.0, 1.0, given.pixels)
    # Every region except the last is merged once; the merged box is the union of the two.
    assert sorted(joined.ravel().tolist()) == list(range(2 * count - 2))
    assert (again[count:, :2] == again[joined, :2].min(1)).all()
    assert (again[count:, 2:] == again[joined, 2:].max(1)).all()


def test_similarity_is_symmetric(scene: np.ndarray) -> None:
    _, given = regions(scene)
    histograms, rows = np.concatenate([given.colours, given.textures], 1), np.arange(len(given.sizes))
    for one, other in given.pairs[:40]:
        both = [
            grouping._similarity(*pair, given.sizes, given.boxes, histograms, rows, 1.0, 1.0, given.pixels)
            for pair in ((one, other), (other, one))
        ]
        assert both[0] == both[1]
        assert 0 <= both[0] <= 4


def test_region_features_equal_those_of_their_pixels(scene: np.ndarray) -> None:
    labels, given = regions(scene)
    bins = bins_of(scene).reshape(90, 120, 15).astype(int)
    touching = set()
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        touching |= {(min(p), max(p)) for p in zip(a.ravel(), b.ravel(), strict=True) if p[0] != p[1]}
    assert {tuple(pair) for pair in given.pairs.tolist()} == touching
    assert len(given.pairs) == len(touching)
    for region in range(len(given.sizes)):
        inside = labels == region
        y, x = np.nonzero(inside)
        assert given.sizes[region] == len(y)
        assert given.boxes[region].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        colour = [np.histogram(scene[inside][:, c], 25, (0, 256))[0] for c in range(3)]
        np.testing.assert_allclose(given.colours[region], np.concatenate(colour) / (3 * len(y)), atol=1e-6)
        signed = bins[inside][:, 3:] - 9
        texture = [
            np.bincount(np.clip(sign * signed[:, i], 0, None), minlength=10)
            for i in range(12)
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(given.textures[region], np.concatenate(texture) / (24 * len(y)), atol=1e-6)
    np.testing.assert_allclose(given.textures.sum(1), 1, atol=1e-4)


def test_texture_depends_on_the_direction_of_an_edge() -> None:
    image = np.zeros((21, 21, 1), np.uint8)
    image[:, 11:] = 200
    signed = bins_of(image).reshape(21, 21, 5)[10, 10, 1:].astype(int) - 9
    assert signed[0] == 9 and signed[1] == 0
    assert signed[2] == signed[3] == 7  # cos 45 degrees times ten bins is 7.07
    turned = bins_of(np.ascontiguousarray(image[:, ::-1])).reshape(21, 21, 5)[10, 10, 1:].astype(int) - 9
    assert (turned == -signed)[0]


def test_a_single_region_is_the_whole_hierarchy() -> None:
    _, given = regions(np.full((8, 9, 3), 7, np.uint8))
    assert group(given, ALL).tolist() == [[0, 0, 9, 8]]
