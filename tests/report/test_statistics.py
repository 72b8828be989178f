"""Intervals and P-values: by hand, in undefined cases, and in simulations with a known truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import kstest
from simulated_evidence import Scenes, detection, draw_pixels, localization, segmentation

from segdet.report.statistics import (
    RESAMPLES,
    Bootstrap,
    bootstrap,
    estimate,
    holm,
    interval,
    paired_difference,
)
from segdet.runs.evidence import Evidence
from segdet.util.errors import UserError

Draw = Callable[[np.random.Generator, int], tuple[Evidence, Evidence]]
"""A function that draws a number of images and tests two networks on them."""


def detectors(random: np.random.Generator, images: int) -> tuple[Evidence, Evidence]:
    scenes = Scenes.draw(random, images)
    return detection(random, scenes, 0.75, 2.5), detection(random, scenes, 0.7, 3.0)


def equal_detectors(random: np.random.Generator, images: int) -> tuple[Evidence, Evidence]:
    scenes = Scenes.draw(random, images)
    return detection(random, scenes), detection(random, scenes)


def segmenters(random: np.random.Generator, images: int) -> tuple[Evidence, Evidence]:
    pixels = draw_pixels(random, images)
    return segmentation(random, pixels), segmentation(random, pixels, (7.0, 5.0, 3.0))


def equal_segmenters(random: np.random.Generator, images: int) -> tuple[Evidence, Evidence]:
    pixels = draw_pixels(random, images)
    return segmentation(random, pixels), segmentation(random, pixels)


def localizers(random: np.random.Generator, images: int) -> tuple[Evidence, Evidence]:
    difficulty = random.normal(0, 1, images)
    first, second = (
        localization(np.ones(images), random.normal(skill, 1, images) > difficulty) for skill in (1.0, 0.8)
    )
    return first, second


def truth_of(draw: Draw, score: str) -> tuple[float, float]:
    """Return the score of both networks on a very large test set."""
    first, second = (bootstrap(each, 1) for each in draw(np.random.default_rng(10**6), 40_000))
    return first.values[score], second.values[score]


def coverage(
    draw: Draw, score: str, images: int, repetitions: int, resamples: int = 400
) -> tuple[float, float]:
    """Return the share of intervals of the score, and of the difference, that contain the truth."""
    truth, other = truth_of(draw, score)
    covered = np.zeros((repetitions, 2), bool)
    for repetition in range(repetitions):
        tests = draw(np.random.default_rng([images, repetition]), images)
        first, second = (bootstrap(each, resamples, seed=repetition) for each in tests)
        single = estimate([first], score).images
        paired = paired_difference([first], [second], score).images
        covered[repetition] = (
            single.low <= truth <= single.high,
            paired.low <= truth - other <= paired.high,
        )
    alone, together = covered.mean(0)
    print(f"{score}, {images} images: {alone:.3f}; paired difference: {together:.3f}")
    return float(alone), float(together)


SCORES = [
    (detectors, "map_50"),
    (detectors, "map"),
    (segmenters, "miou"),
    (segmenters, "pixel_acc"),
    (localizers, "loc_acc"),
]


@pytest.mark.parametrize(("draw", "score"), [(detectors, "map"), (segmenters, "miou"), (localizers, "top1")])
def test_intervals_cover_the_truth_in_a_small_simulation(draw: Draw, score: str) -> None:
    """The interval of plain percentiles covers ``map`` in .85 of the cases and fails here."""
    for share in coverage(draw, score, images=200, repetitions=100, resamples=300):
        assert 0.90 <= share <= 0.99  # .95 plus and minus two standard deviations


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "score"), SCORES)
def test_intervals_cover_the_truth(draw: Draw, score: str) -> None:
    resamples = 400 if draw is detectors else RESAMPLES  # average precision takes longer
    for share in coverage(draw, score, images=300, repetitions=1000, resamples=resamples):
        assert 0.93 <= share <= 0.97


def null_p_values(draw: Draw, score: str, images: int, repetitions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the P-values and the probabilities of being better of two equal networks."""
    differences = []
    for repetition in range(repetitions):
        tests = draw(np.random.default_rng([images, repetition]), images)
        first, second = (bootstrap(each, 400, seed=repetition) for each in tests)
        differences.append(paired_difference([first], [second], score))
    return np.array([each.p_value for each in differences]), np.array([each.p_better for each in differences])


def test_p_values_are_uniform_for_equal_runs_in_a_small_simulation() -> None:
    for values in null_p_values(equal_segmenters, "miou", 200, 120):
        assert kstest(values, "uniform").pvalue > 0.01


@pytest.mark.slow
def test_p_values_are_uniform_for_equal_runs() -> None:
    values, better = null_p_values(equal_detectors, "map_50", 300, 1000)
    shares = {level: float((values <= level).mean()) for level in (0.05, 0.2, 0.5)}
    print(f"map_50, equal runs: {shares}, P(better) {better.mean():.3f}")
    assert 0.03 <= shares[0.05] <= 0.07
    assert 0.46 <= shares[0.5] <= 0.54
    assert kstest(values, "uniform").pvalue > 0.01 and kstest(better, "uniform").pvalue > 0.01


def trainings(
    random: np.random.Generator, image_effect: np.ndarray, seeds: int, spread: float, luck: float
) -> list[Evidence]:
    """Return the tests of several seeds. The mean IoU has variation from images, seeds, and both together."""
    shared = 0.6 + 0.1 * image_effect
    return [
        localization(shared + random.normal(0, spread) + random.normal(0, luck, len(image_effect)))
        for _ in range(seeds)
    ]


def combined_coverage(spread: float, luck: float, repetitions: int) -> tuple[float, float, float]:
    """Return how often the truth is in the combined intervals of a score and a difference, and in that over images.

    Both are those of the average training on the average image.
    """
    covered = np.zeros((repetitions, 3), bool)
    for repetition in range(repetitions):
        random = np.random.default_rng([100, repetition])
        image_effect = random.normal(0, 1, 100)
        first, second = (
            [bootstrap(each, 400, repetition) for each in trainings(random, image_effect, 3, spread, luck)]
            for _ in range(2)
        )
        single, paired = estimate(first, "box_iou"), paired_difference(first, second, "box_iou")
        assert single.combined is not None and paired.combined is not None
        covered[repetition] = (
            single.combined.low <= 0.6 <= single.combined.high,
            paired.combined.low <= 0 <= paired.combined.high,
            single.images.low <= 0.6 <= single.images.high,
        )
    alone, together, images_only = covered.mean(0)
    print(f"seeds {spread}, luck {luck}: {alone:.3f}; paired {together:.3f}; images only {images_only:.3f}")
    return float(alone), float(together), float(images_only)


def test_combined_intervals_cover_images_and_seeds_in_a_small_simulation() -> None:
    alone, together, images_only = combined_coverage(0.03, 0.02, 100)
    assert alone >= 0.9 and together >= 0.9
    assert images_only < 0.8  # the interval over images does not contain the variation over seeds


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.005, 0.03])
@pytest.mark.parametrize("luck", [0.02, 0.2])
def test_combined_intervals_cover_images_and_seeds(spread: float, luck: float) -> None:
    """With three seeds, the interval is wider than necessary where the seeds vary by luck with the images only."""
    alone, together, _ = combined_coverage(spread, luck, 1000)
    assert alone >= 0.93 and together >= 0.93


def test_variation_from_images_and_from_seeds_is_separate() -> None:
    random = np.random.default_rng(0)
    image_effect = random.normal(0, 1, 400)
    runs = [bootstrap(each) for each in trainings(random, image_effect, 20, 0.05, 0.0)]
    found = estimate(runs, "box_iou")
    assert found.images_deviation == pytest.approx(0.1 / 20, rel=0.1)
    assert found.seeds == 20 and found.seeds_deviation == pytest.approx(0.05, rel=0.4)
    difference = paired_difference(runs[:10], runs[10:], "box_iou")
    assert difference.images_deviation == pytest.approx(0, abs=1e-9)  # the images are equally hard for both
    assert difference.seeds_deviation == pytest.approx(0.05 * math.sqrt(2 / 10), rel=0.4)


def test_a_single_seed_has_no_variation_over_seeds() -> None:
    first, second = (bootstrap(each) for each in detectors(np.random.default_rng(0), 60))
    alone = estimate([first], "map")
    assert (alone.seeds_deviation, alone.combined) == (None, None) and alone.images.is_defined
    difference = paired_difference([first, first], [second], "map")
    assert (difference.seeds_deviation, difference.combined, difference.seeds) == (None, None, (2, 1))
    assert difference.interval == difference.images


def test_a_run_equals_itself() -> None:
    run = bootstrap(detectors(np.random.default_rng(0), 60)[0])
    difference = paired_difference([run], [run], "map")
    assert difference.mean == 0 and (difference.images.low, difference.images.high) == (0, 0)
    assert difference.p_better == pytest.approx(0.5) and difference.p_value == pytest.approx(1)


def test_swapped_runs_have_the_opposite_difference() -> None:
    first, second = (bootstrap(each) for each in detectors(np.random.default_rng(0), 100))
    forward, backward = (
        paired_difference([first], [second], "map"),
        paired_difference([second], [first], "map"),
    )
    assert backward.mean == -forward.mean
    assert backward.p_better == pytest.approx(1 - forward.p_better)
    assert backward.p_value == pytest.approx(forward.p_value)
    assert backward.images.low == pytest.approx(-forward.images.high, abs=2e-3)


def test_an_interval_excludes_zero_if_the_p_value_is_small() -> None:
    for seed in range(30):
        first, second = (bootstrap(each, 500) for each in segmenters(np.random.default_rng(seed), 100))
        difference = paired_difference([first], [second], "miou")
        if abs(difference.p_value - 0.05) > 0.005:
            excludes = not difference.images.low <= 0 <= difference.images.high
            assert excludes == (difference.p_value < 0.05)


def test_a_smaller_error_is_better() -> None:
    worse, better = (bootstrap(localization(np.ones(50), np.arange(50) % 10 < k)) for k in (5, 9))
    assert paired_difference([better], [worse], "loc_error_top5").p_better > 0.99
    assert paired_difference([better], [worse], "loc_acc").p_better > 0.99


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    scenes = Scenes(np.zeros(20), np.array([0, *range(20)]), np.array([1, *[2] * 20]), ["rare", "b"])
    run = bootstrap(detection(np.random.default_rng(0), scenes, 0.9, 1.0))
    rare = estimate([run], "ap/rare")
    assert rare.images.is_defined
    assert rare.undefined / 1000 == pytest.approx((1 - 1 / 20) ** 20, abs=0.05)
    assert estimate([run], "map").undefined == 0


def test_undefined_scores_have_no_interval() -> None:
    scenes = Scenes(np.zeros(20), np.arange(20), np.full(20, 2), ["never", "b"])
    runs = [bootstrap(detection(np.random.default_rng(seed), scenes)) for seed in range(3)]
    found = estimate(runs, "ap/never")
    assert math.isnan(found.mean) and not found.images.is_defined and found.combined is None
    difference = paired_difference(runs[:1], runs[1:2], "ap/never")
    assert math.isnan(difference.p_value) and math.isnan(difference.p_better)


def test_a_single_image_has_no_interval() -> None:
    scenes = Scenes.draw(np.random.default_rng(0), 1)
    runs = [bootstrap(detection(np.random.default_rng(seed), scenes)) for seed in range(3)]
    found = estimate(runs, "map_50")
    assert math.isfinite(found.mean) and not found.images.is_defined and found.combined is None
    difference = paired_difference(runs[:1], runs[1:2], "map_50")
    assert math.isfinite(difference.mean) and not difference.interval.is_defined
    assert math.isnan(difference.p_value) and math.isnan(difference.p_better)


def test_a_detector_without_detections_is_worse() -> None:
    scenes = Scenes.draw(np.random.default_rng(0), 30)
    nothing = bootstrap(detection(np.random.default_rng(0), scenes, 1e-12, 0.0))
    something = bootstrap(detection(np.random.default_rng(0), scenes))
    found = estimate([nothing], "map")
    assert (found.mean, found.images.low, found.images.high) == (0, 0, 0)
    assert paired_difference([something], [nothing], "map").p_better > 0.99


def test_tests_of_different_images_are_not_compared() -> None:
    first, second = (bootstrap(detectors(np.random.default_rng(0), images)[0]) for images in (20, 21))
    with pytest.raises(UserError, match=r"different images \(20 and 21\).*test on the same images"):
        paired_difference([first], [second], "map")
    renamed = Bootstrap(first.values, first.resampled, first.image_ids, ["x", *first.file_names[1:]])
    with pytest.raises(UserError, match="different images"):
        estimate([first, renamed], "map")


def test_intervals_are_percentiles_without_a_bias() -> None:
    resampled = np.linspace(0, 1, 1001)
    assert interval(0.5, resampled).low == pytest.approx(0.025, abs=1e-3)
    assert interval(0.5, resampled).high == pytest.approx(0.975, abs=1e-3)
    biased = interval(0.3, resampled)  # most resamples are larger than the score
    assert biased.low < 0.025 and biased.high < 0.9


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]
    with_undefined = holm([0.01, math.nan, 0.02])
    assert with_undefined[0] == pytest.approx(0.02) and math.isnan(with_undefined[1])
    assert holm([]) == []


def test_holm_bounds_the_chance_of_a_wrong_difference() -> None:
    random = np.random.default_rng(0)
    wrong = [min(holm(random.random(20).tolist())) <= 0.05 for _ in range(1000)]
    assert 0.03 <= np.mean(wrong) <= 0.07


def test_p_values_beyond_the_resamples_come_from_a_normal_tail() -> None:
    """A thousand resamples resolve no P-value below .001, which Holm's correction of 190 pairs would raise to .19."""
    worse, better = (bootstrap(localization(np.ones(400), np.arange(400) % 10 < k)) for k in (5, 9))
    difference = paired_difference([better], [worse], "loc_acc")
    assert difference.mean == pytest.approx(0.4)
    assert 1e-80 < difference.p_value < 1e-30
    assert max(holm([difference.p_value] * 190)) < 1e-20
    assert paired_difference([worse], [better], "loc_acc").p_value == pytest.approx(
        difference.p_value, rel=1e-6
    )
