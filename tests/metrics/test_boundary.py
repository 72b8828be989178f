"""Test boundary F1 and boundary IoU against loops over pixels, OpenCV and the authors' definitions."""

import math

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter

from segdet.metrics.boundary import BF_TOLERANCE, BoundaryScores, _extremes, boundary_f1, fill_strips
from segdet.metrics.confusion import SegmentationScores

NAMES = ["sky", "road", "car", "tree"]


def blobs(seed: int, size: tuple[int, int] = (37, 61)) -> tuple[np.ndarray, np.ndarray]:
    """Return a prediction and a target with patches of four classes and ignored patches."""
    rng = np.random.default_rng(seed)

    def patches(classes: int) -> np.ndarray:
        return cv2.resize(
            rng.integers(0, classes, (5, 7)).astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST
        )

    target = patches(4)
    prediction = np.roll(target, rng.integers(-3, 4, 2), (0, 1))
    prediction = np.where(patches(5) == 0, patches(4), prediction)
    target = np.where(patches(6) == 0, 255, target)
    return prediction.astype(np.int64), target.astype(np.int64)


def filled_by_hand(target: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the target with ignored strips filled with the nearest class."""
    limit = 2 * tolerance * math.hypot(*target.shape)
    filled = target.copy()
    pixels = {number: np.argwhere(target == number) for number in range(4) if (target == number).any()}
    for y, x in np.argwhere(target == 255):
        nearest = sorted((np.hypot(*(each - (y, x)).T).min(), number) for number, each in pixels.items())
        if len(nearest) > 1 and nearest[0][0] + nearest[1][0] < limit:
            filled[y, x] = nearest[0][1]
    return filled


def f1_by_hand(prediction: np.ndarray, target: np.ndarray, tolerance: float) -> dict[int, float]:
    """Return the F1 of each class by comparing every pair of boundary pixels."""
    height, width = target.shape
    limit = tolerance * math.hypot(height, width)
    target = filled_by_hand(target, tolerance)

    def boundary(labels: np.ndarray, number: int) -> list[tuple[int, int]]:
        found = []
        for y in range(height):
            for x in range(width):
                if labels[y, x] != number or target[y, x] == 255:
                    continue
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    inside = 0 <= v < height and 0 <= u < width
                    if inside and target[v, u] != 255 and labels[v, u] != number:
                        found.append((y, x))
                        break
        return found

    def near(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        hits = sum(any(math.dist(one, other) < limit for other in others) for one in some)
        return hits / len(some) if some else 0.0

    scores = {}
    for number in range(4):
        found, truth = boundary(prediction, number), boundary(target, number)
        if (target == number).any() and (found or truth):
            precision, recall = near(found, truth), near(truth, found)
            both = precision + recall
            scores[number] = 2 * precision * recall / both if both else 0.0
    return scores


def bands_by_hand(prediction: np.ndarray, target: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the pixels of each class's intersection and union by visiting every pixel's neighbourhood."""
    height, width = target.shape
    steps = max(1, round(0.02 * math.hypot(height, width)))
    counts = target != 255
    target = filled_by_hand(target, tolerance)

    def band(labels: np.ndarray, number: int) -> set[tuple[int, int]]:
        found = set()
        for y in range(height):
            for x in range(width):
                if labels[y, x] != number or not counts[y, x]:
                    continue
                rows, columns = range(y - steps, y + steps + 1), range(x - steps, x + steps + 1)
                for v, u in ((v, u) for v in rows for u in columns):
                    outside = not (0 <= v < height and 0 <= u < width)
                    if outside or (target[v, u] != 255 and labels[v, u] != number):
                        found.add((y, x))
        return found

    pairs = [(band(prediction, number), band(target, number)) for number in range(4)]
    return np.array([[len(a & b) for a, b in pairs], [len(a | b) for a, b in pairs]])


def scores_of(*pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    scores = BoundaryScores(NAMES)
    for prediction, target in pairs:
        scores.update(torch.from_numpy(prediction), torch.from_numpy(target))
    return {name: value.item() for name, value in scores.compute().items()}


@pytest.mark.parametrize("tolerance", [0.0075, 0.045])
def test_scores_equal_counts_by_hand(tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small images the paper's tolerance is below one pixel; a larger one tests the shape of the disk too."""
    pairs = [blobs(seed) for seed in range(3)]
    monkeypatch.setattr("segdet.metrics.boundary.BF_TOLERANCE", tolerance)
    by_image = [f1_by_hand(*pair, tolerance) for pair in pairs]
    found = scores_of(*pairs)
    assert found["bf"] == pytest.approx(np.mean([np.mean(list(f1.values())) for f1 in by_image]), abs=1e-9)
    assert 0.05 < found["bf"] < 0.95
    for number, name in enumerate(NAMES):
        of_class = [f1[number] for f1 in by_image if number in f1]
        assert found[f"bf/{name}"] == pytest.approx(np.mean(of_class), abs=1e-9)
    strips = [(filled_by_hand(target, tolerance) != target).mean() for _, target in pairs]
    assert (min(strips) > 0.02) == (tolerance == 0.045)
    common, either = sum(bands_by_hand(*pair, tolerance) for pair in pairs)
    assert found["boundary_iou"] == pytest.approx((common / either).mean(), abs=1e-12)
    assert [found[f"boundary_iou/{name}"] for name in NAMES] == pytest.approx((common / either).tolist())


def distances(where: np.ndarray) -> np.ndarray:
    """Return every pixel's distance to the nearest one of ``where``; its square is an integer."""
    away = cv2.distanceTransform((~where).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.sqrt(np.rint(away**2))


def filled_by_transforms(
    truth: np.ndarray, ignored: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the result of `fill_strips`, by the distances of the whole image to each class."""
    numbers = np.unique(truth[~ignored])
    if len(numbers) < 2:
        return truth, ignored
    away = np.stack([distances(~ignored & (truth == number)) for number in numbers])
    nearest, second = np.partition(away, 1, axis=0)[:2]
    strip = ignored & (nearest + second < 2 * BF_TOLERANCE * math.hypot(*truth.shape))
    return np.where(strip, numbers[away.argmin(0)], truth).astype(np.uint8), ignored & ~strip


def f1_by_transforms(found: np.ndarray, truth: np.ndarray, ignored: np.ndarray, classes: int) -> np.ndarray:
    """Return the result of `boundary_f1`, by the distances of the whole image to each class's boundary."""
    tolerance = BF_TOLERANCE * math.hypot(*truth.shape)

    def boundary(labels: np.ndarray, number: int) -> np.ndarray:
        here = (labels == number) & ~ignored
        other = (labels != number) & ~ignored
        beside = cv2.dilate(other.view(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
        return here & (beside > 0)

    f1 = np.full(classes, np.nan)
    for number in range(classes):
        edges = [boundary(labels, number) for labels in (found, truth)]
        if not (~ignored & (truth == number)).any() or not (edges[0].any() or edges[1].any()):
            continue
        hits = [
            (distances(other)[one] < tolerance).mean() if one.any() and other.any() else 0.0
            for one, other in (edges, edges[::-1])
        ]
        f1[number] = 2 * hits[0] * hits[1] / sum(hits) if sum(hits) else 0.0
    return f1


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return curved regions of some classes, partly with ignored strips between them, and ignored regions."""
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(60, 420)), int(rng.integers(60, 420))
    classes = int(rng.integers(2, 20))

    def regions(number: int) -> np.ndarray:
        """Return ``number`` numbered regions."""
        best, which = np.full((height, width), np.inf), np.zeros((height, width), np.uint8)
        y, x = np.mgrid[:height, :width] + 6 * np.sin(np.mgrid[:height, :width][::-1] / 9)
        for index in range(number):
            away = (y - rng.uniform(0, height)) ** 2 + (x - rng.uniform(0, width)) ** 2
            which[away < best] = index
            best = np.minimum(best, away)
        return which

    def classified(number: int) -> np.ndarray:
        return rng.integers(0, classes, number).astype(np.uint8)[regions(number)]

    truth = classified(int(rng.integers(2, 40)))
    found = np.where(regions(5) == 0, classified(9), np.roll(truth, rng.integers(-4, 5, 2), (0, 1)))
    edges = np.zeros_like(truth)
    edges[1:] |= truth[1:] != truth[:-1]
    edges[:, 1:] |= truth[:, 1:] != truth[:, :-1]
    side = int(rng.integers(1, 9))
    strips = (cv2.dilate(edges, np.ones((side, side), np.uint8)) > 0) & (regions(3) > 0)
    return found, np.where(strips | (regions(7) == 0), np.uint8(255), truth), classes


@pytest.mark.parametrize("seed", range(12))
def test_tiles_equal_the_whole_image(seed: int) -> None:
    found, truth, classes = scene(seed)
    ignored = truth == 255
    expected = filled_by_transforms(truth, ignored, classes)
    filled, unfilled = fill_strips(truth, ignored, classes)
    np.testing.assert_array_equal(filled, expected[0])
    np.testing.assert_array_equal(unfilled, expected[1])
    np.testing.assert_allclose(
        boundary_f1(found, filled, unfilled, classes), f1_by_transforms(found, filled, unfilled, classes)
    )


def test_the_first_of_equally_near_classes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's distances of the same length can differ in the last digit."""
    exact = cv2.distanceTransform
    calls: list[int] = []

    def rounded_up_at_first(*args: object) -> np.ndarray:
        calls.append(1)
        away = exact(*args)  # type: ignore[call-overload]
        return np.nextafter(away, np.float32(np.inf)) if len(calls) == 1 else away

    monkeypatch.setattr(cv2, "distanceTransform", rounded_up_at_first)
    truth = np.full((900, 1200), 255, np.uint8)
    truth[500 - 2, 600 - 6], truth[500 + 6, 600 + 2] = 7, 3
    filled, unfilled = fill_strips(truth, truth == 255, 8)
    assert filled[500, 600] == 3 and not unfilled[500, 600] and filled[499, 599] == 7
    assert len(calls) >= 2


@pytest.mark.parametrize("width", [1, 2, 5, 16, 46])
def test_extremes_equal_scipys_filters(width: int) -> None:
    rng = np.random.default_rng(width)
    values, ignored = rng.integers(0, 255, (61, 87)).astype(np.uint8), rng.random((61, 87)) < 0.9
    smallest, largest = _extremes(values, ignored, width)
    side = 2 * width + 1
    expected = minimum_filter(np.where(ignored, 255, values), side, mode="constant", cval=255)
    np.testing.assert_array_equal(smallest, expected)
    expected = maximum_filter(np.where(ignored, 0, values), side, mode="constant", cval=0)
    np.testing.assert_array_equal(largest, expected)


def test_a_band_is_the_mask_minus_its_erosion_as_in_the_authors_code() -> None:
    prediction, target = (np.where(labels == 255, 0, labels) for labels in blobs(5, (200, 300)))
    bands = []
    for labels in (prediction, target):
        mask = (labels == 2).astype(np.uint8)
        framed = np.pad(mask, 1)
        core = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=round(0.02 * math.hypot(200, 300)))
        bands.append(mask - core[1:-1, 1:-1])
    iou = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    assert scores_of((prediction, target))["boundary_iou/car"] == pytest.approx(iou)


def test_a_perfect_prediction_scores_1_and_pixel_scores_are_unchanged() -> None:
    prediction, target = blobs(1)
    perfect = np.where(target == 255, prediction, target)
    found = scores_of((perfect, target))
    assert found["bf"] == found["boundary_iou"] == found["miou"] == 1
    whole = SegmentationScores(NAMES)
    whole.update(torch.from_numpy(prediction), torch.from_numpy(target))
    both = scores_of((prediction, target))
    assert {name: both[name] for name in whole.compute()} == pytest.approx(
        {name: value.item() for name, value in whole.compute().items()}, nan_ok=True
    )


def test_scores_do_not_depend_on_batches_and_order() -> None:
    pairs = [blobs(seed) for seed in range(5)]
    expected = scores_of(*pairs)
    assert scores_of(*pairs[::-1]) == pytest.approx(expected, abs=0, rel=0)
    batch = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
    assert scores_of(tuple(batch)) == pytest.approx(expected, abs=0, rel=0)  # type: ignore[arg-type]


def bordered(strip: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a car with an ignored strip around it, as in VOC, and the car with the assumed contour."""
    target = np.zeros((240, 320), np.int64)
    target[80:160, 100:200] = 2
    filled = target.copy()
    side = strip // 2
    target[80 - side : 160 + side, 100 - side : 200 + side] = 255
    target[80 + side : 160 - side, 100 + side : 200 - side] = 2
    return target, filled


@pytest.mark.parametrize(("moved", "found"), [(0, 1.0), (2, 1.0), (12, 0.0)])
def test_a_contour_is_assumed_in_the_middle_of_an_ignored_strip(moved: int, found: float) -> None:
    """The strip is four pixels wide and the tolerance is three pixels: only contours within the strip match."""
    target, car = bordered(4)
    prediction = np.zeros_like(car)
    prediction[80 - moved : 160 + moved, 100 - moved : 200 + moved] = 2
    scores = scores_of((prediction, target))
    assert scores["bf"] == scores["bf/car"] == scores["bf/sky"] == found
    assert scores["miou"] == 1 if moved < 3 else scores["miou"] < 1
    nothing = scores_of((np.zeros_like(car), target))
    assert nothing["bf"] == 0 and nothing["boundary_iou/car"] == 0


def test_the_band_along_a_strip_is_that_of_the_assumed_contour() -> None:
    target, car = bordered(4)
    everything = scores_of((car, target))
    assert everything["boundary_iou"] == everything["boundary_iou/car"] == 1
    smaller = np.zeros_like(car)
    smaller[85:155, 105:195] = 2
    # The band has 8 pixels on each side, of which the outer 2 are ignored. The smaller car loses 3 and gains 3 inside.
    both, either = 90 * 70 - 84 * 64, 96 * 76 - 74 * 54
    assert scores_of((smaller, target))["boundary_iou/car"] == pytest.approx(both / either)


def test_a_wide_ignored_region_has_no_boundary() -> None:
    target, car = bordered(20)
    moved = np.roll(car, 5, 1)
    found = scores_of((moved, target))
    assert math.isnan(found["bf"]) and math.isnan(found["bf/sky"])
    # The only contour is the edge of the image, of the class sky.
    assert found["boundary_iou/sky"] == 1 and math.isnan(found["boundary_iou/car"])
    moved[120, 150] = 0
    assert scores_of((moved, target))["bf"] == 0


def test_bf_leaves_out_classes_that_are_not_in_the_target() -> None:
    target = np.zeros((30, 30), np.int64)
    target[:, 15:] = 1
    prediction = target.copy()
    prediction[2:5, 2:5] = 2
    found = scores_of((prediction, target))
    assert math.isnan(found["bf/car"]) and found["bf/road"] == 1 and found["bf/sky"] < 1
    assert found["boundary_iou/car"] == 0


def test_more_classes_than_bits() -> None:
    """Stripes of 65 classes, predicted exactly and shifted by half a stripe, more than the tolerance."""
    target = np.arange(65).repeat(160)[None].repeat(2, 0)
    scores = BoundaryScores([str(number) for number in range(65)])
    for shift in (0, 80):
        scores.update(torch.from_numpy(np.roll(target, shift, 1)), torch.from_numpy(target))
    found = scores.compute()
    assert found["bf"].item() == 0.5
    assert all(found[f"bf/{number}"].item() == 0.5 for number in range(65))


def test_scores_are_nan_after_reset_and_without_pixels() -> None:
    scores = BoundaryScores(NAMES)
    scores.update(*map(torch.from_numpy, blobs(0)))
    scores.reset()
    assert all(value.isnan() for value in scores.compute().values())
    scores.update(torch.zeros(0, 3, 3).long(), torch.zeros(0, 3, 3).long())
    scores.update(torch.zeros(1, 3, 3).long(), torch.full((1, 3, 3), 255))
    assert all(value.isnan() for value in scores.compute().values())


def test_values_are_checked() -> None:
    scores = BoundaryScores(NAMES)
    with pytest.raises(ValueError, match="the target holds 7"):
        scores.update(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), 7))
    assert scores.bands.sum() == 0
