"""Pipelines: box sets and masks follow the pixels."""

import albumentations as A
import numpy as np
import pytest

from segdet.data.transforms import Pipeline, Plain, Recipe, ScaleJitter, SSDAugmentation, resize


def _scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a white rectangle on black, its box and its mask."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:40, 10:50] = 255
    return image, np.array([[10, 20, 50, 40]], np.float32), (image[..., 0] > 0).astype(np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_and_mask_follow_the_pixels(seed: int) -> None:
    image, boxes, mask = _scene()
    recipe = ScaleJitter(size=(60, 80), scale=(0.8, 1.3), vflip=0.5, brightness=0, contrast=0, saturation=0)
    out, sets, out_mask = recipe.train()(image, {"objects": boxes}, mask, seed=seed)
    assert out.shape == (60, 80, 3) and out_mask is not None
    white = (out.min(-1) > 200) & (out_mask != 255)
    ys, xs = np.nonzero(white)
    np.testing.assert_allclose(
        sets["objects"][0][0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=2
    )
    inner = (out_mask == 1) == white
    assert inner[out_mask != 255].mean() > 0.97


def test_the_seed_determines_the_result() -> None:
    image, boxes, _ = _scene()
    image = np.random.default_rng(0).integers(0, 255, image.shape, np.uint8)
    train = ScaleJitter(size=(60, 80)).train()
    one, again, other = (train(image, {"objects": boxes}, seed=s)[0] for s in (5, 5, 6))
    assert (one == again).all()
    assert (one != other).any()


def test_boxes_are_clipped_and_dropped_with_their_indices() -> None:
    image, _, _ = _scene()
    crop = Pipeline([A.Crop(0, 0, 40, 60)], min_visibility=0.25)
    objects = np.array([[60, 0, 80, 10], [10, 20, 50, 40], [38, 0, 78, 40]], np.float32)
    proposals = np.array([[0, 0, 10, 10]], np.float32)
    _, sets, _ = crop(image, {"objects": objects, "proposals": proposals})
    boxes, kept = sets["objects"]
    assert kept.tolist() == [1]  # the first left the image; 5% of the third are visible
    np.testing.assert_allclose(boxes, [[10, 20, 40, 40]], atol=1e-3)
    np.testing.assert_allclose(sets["proposals"][0], proposals, atol=1e-3)
    assert sets["proposals"][1].tolist() == [0]


def test_no_boxes_stay_an_empty_array() -> None:
    image, _, _ = _scene()
    _, sets, _ = Plain(size=(30, 40)).train()(image, {"objects": np.zeros((0, 4), np.float32)})
    assert sets["objects"][0].shape == (0, 4)
    assert sets["objects"][1].shape == (0,)


@pytest.mark.parametrize("size,expected", [(None, (60, 80)), (30, (30, 40)), ((20, 50), (20, 50))])
def test_evaluation_only_resizes(size: int | tuple[int, int] | None, expected: tuple[int, int]) -> None:
    image, boxes, _ = _scene()
    out, sets, _ = ScaleJitter(size=size, crop=(16, 16)).evaluation()(image, {"objects": boxes})
    assert out.shape[:2] == expected
    ratio = np.array([expected[1] / 80, expected[0] / 60] * 2)
    np.testing.assert_allclose(sets["objects"][0][0], boxes[0] * ratio, atol=1e-3)


def test_padding_of_masks_is_ignored() -> None:
    image, _, mask = _scene()
    recipe = ScaleJitter(size=(60, 80), scale=(0.5, 0.5))
    _, _, out = recipe.train()(image, mask=mask, seed=0)
    assert out is not None
    assert (out == 255).sum() == 60 * 80 - 30 * 40


def test_resizing_masks_creates_no_classes() -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 7, 255], np.uint8), (60, 80))
    _, _, out = Pipeline(resize((33, 47)))(np.zeros((60, 80, 3), np.uint8), mask=mask)
    assert out is not None
    assert set(np.unique(out)) <= {0, 7, 255}


@pytest.mark.parametrize("count", [129, 130, 300])
@pytest.mark.parametrize(
    "recipe",
    [
        Plain((100, 90)),
        ScaleJitter((96, 96), scale=(0.5, 1.5), vflip=0.5, rotate90=0.5),
        SSDAugmentation((100, 90)),
        Plain((64, 64), extra=[A.Affine(rotate=(-30, 30), p=1.0)]),
    ],
    ids=["plain", "jitter", "ssd", "affine"],
)
def test_more_masks_than_opencv_transforms_at_once(recipe: Recipe, count: int) -> None:
    """The result equals that of several calls with fewer masks."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (60, 80, 3), np.uint8)
    corners = generator.integers(0, (50, 30), (count, 2))
    boxes = np.concatenate([corners, corners + 30], 1).astype(np.float32)
    masks = np.zeros((60, 80, count), np.uint8)
    for place, (x, y) in enumerate(corners):
        masks[y : y + 30, x : x + 30, place] = 1
    train = recipe.train()
    for seed in range(6):
        out, sets, whole = train(image, {"objects": boxes}, masks, seed)
        parts = [
            train(image, {"objects": boxes}, masks[:, :, at : at + 50], seed) for at in range(0, count, 50)
        ]
        assert whole is not None and whole.shape == (*out.shape[:2], count)
        assert np.array_equal(whole == 1, np.concatenate([part[2] for part in parts], 2) == 1)  # type: ignore[misc]
        for part in parts:
            assert np.array_equal(out, part[0])
            assert np.array_equal(sets["objects"][1], part[1]["objects"][1])
    assert (whole == 1).any()
