"""Tests of graph-based segmentation against a direct implementation of the paper."""

import numpy as np
import pytest

from segdet.proposals.graph import edges_of, segment


def brute_force(image: np.ndarray, k: float, min_size: int) -> np.ndarray:
    """Segment with sets of pixels, with differences in 1/64 of a grey level and without smoothing."""
    height, width = image.shape[:2]
    edges = []
    for y in range(height):
        for x in range(width):
            for direction, (dy, dx) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
                v, u = y + dy, x + dx
                if v < height and 0 <= u < width:
                    difference = image[y, x].astype(float) - image[v, u]
                    weight = int(np.sqrt((difference**2).sum()) * 64 + 0.5)
                    edges.append((weight, 4 * (y * width + x) + direction, y * width + x, v * width + u))
    edges.sort()
    component = {pixel: frozenset([pixel]) for pixel in range(height * width)}
    inner = dict.fromkeys(component.values(), 0)

    def join(one: frozenset, other: frozenset, weight: int) -> None:
        both = one | other
        inner[both] = weight
        component.update(dict.fromkeys(both, both))

    for weight, _, p, q in edges:
        one, other = component[p], component[q]
        if one is not other and all(weight <= inner[c] + 64 * k / len(c) for c in (one, other)):
            join(one, other, weight)
    for weight, _, p, q in edges:
        one, other = component[p], component[q]
        if one is not other and min(len(one), len(other)) < min_size:
            join(one, other, weight)
    return np.array([min(component[pixel]) for pixel in range(height * width)]).reshape(height, width)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("k", "min_size"), [(3, 0), (30, 4), (200, 10)])
def test_equals_the_paper_step_by_step(channels: int, k: int, min_size: int) -> None:
    for seed in range(4):
        random = np.random.default_rng(seed)
        coarse = random.integers(0, 255, (3, 4, channels)).repeat(4, 0).repeat(4, 1)[:11, :14]
        image = np.clip(coarse + random.integers(-12, 13, coarse.shape), 0, 255).astype(np.uint8)
        labels, count = segment(edges_of(image, sigma=0), k, min_size)
        expected = brute_force(image, k, min_size)
        # The direct implementation labels a region by its first pixel; ours numbers regions in that order.
        assert (np.unique(expected, return_inverse=True)[1].reshape(labels.shape) == labels).all()
        assert count == labels.max() + 1


def test_regions_have_the_minimum_size_and_a_larger_k_gives_fewer(scene: np.ndarray) -> None:
    edges = edges_of(scene)
    counts = []
    for k in (20, 100, 400):
        labels, count = segment(edges, k, k)
        assert np.bincount(labels.ravel()).min() >= min(k, labels.size)
        counts.append(count)
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (9, 1, 1), (2, 2, 3)])
def test_thin_and_tiny_images(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    labels, count = segment(edges_of(image), 1e6, 1)
    assert labels.shape == shape[:2] and count == 1 and not labels.any()
