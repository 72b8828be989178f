"""SSD's augmentation of pixels, boxes and masks."""

import colorsys
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest

from segdet.data.sample import IGNORE
from segdet.data.ssd_transforms import MIN_IOUS, ExpandAndCrop, PhotometricDistort, contains_centres, iou
from segdet.data.transforms import MEAN_COLOUR, Pipeline, SSDAugmentation
from segdet.util.errors import UserError

NEUTRAL: dict[str, Any] = {
    "added": 0.0,
    "contrast": 1.0,
    "contrast_first": True,
    "saturation": 1.0,
    "shift": 0.0,
}

OBJECTS = np.array([[10, 20, 50, 40], [60, 5, 78, 30]], np.float32)


def _scene() -> tuple[np.ndarray, np.ndarray]:
    """Return two white rectangles on black, and their mask."""
    image = np.zeros((60, 80, 3), np.uint8)
    for x0, y0, x1, y1 in OBJECTS.astype(int):
        image[y0:y1, x0:x1] = 255
    return image, (image[..., 0] > 0).astype(np.uint8)


def _params(transform: A.BasicTransform, shape: tuple[int, int], seed: int, **data: Any) -> dict[str, Any]:
    transform.set_random_seed(seed)
    return transform.get_params_dependent_on_data({"shape": shape}, data)  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(20))
def test_boxes_and_mask_follow_the_pixels(seed: int) -> None:
    image, mask = _scene()
    recipe = SSDAugmentation(size=(90, 120), photometric=False, expand=2.0)
    out, sets, out_mask = recipe.train()(image, {"objects": OBJECTS}, mask, seed=seed)
    assert out.shape == (90, 120, 3) and out_mask is not None and out_mask.shape == (90, 120)
    boxes, kept = sets["objects"]
    assert len(boxes) == len(kept)
    white = out.min(-1) > 200
    for box in boxes:
        x0, y0, x1, y1 = np.rint(box).astype(int)
        inner = white[y0 + 4 : y1 - 4, x0 + 4 : x1 - 4]
        assert inner.all()
    everywhere = np.ones_like(white)
    for x0, y0, x1, y1 in boxes:
        # Other white pixels belong to objects whose centre is outside the crop.
        everywhere[int(max(0, y0 - 3)) : int(y1 + 4), int(max(0, x0 - 3)) : int(x1 + 4)] = False
    if len(boxes) == 2:
        assert not (white & everywhere).any()
    assert (((out_mask == 1) == white) | (out_mask == IGNORE)).mean() > 0.93
    canvas = (out == MEAN_COLOUR).all(-1)
    assert (out_mask[canvas] == IGNORE).mean() > 0.9 if canvas.any() else not (out_mask == IGNORE).any()


def test_the_whole_image_is_resized() -> None:
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8), (5, 5), 0)
    transform = ExpandAndCrop((90, 100), p=1.0)
    whole: dict[str, Any] = {"crop": np.array([0.0, 0, 80, 60]), "colours": None}
    expected = cv2.resize(image, (100, 90), interpolation=cv2.INTER_LINEAR)
    assert (transform.apply(image, flip=False, **whole) == expected).all()
    assert (transform.apply(image, flip=True, **whole) == expected[:, ::-1]).all()


def test_an_expanded_image_is_resized() -> None:
    """The image covers the lower right quarter of a canvas of twice its size. Pixels at its edge are interpolated."""
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8), (5, 5), 0)
    crop = np.array([-80.0, -60, 80, 60])
    out = ExpandAndCrop((90, 120)).apply(image, flip=False, crop=crop, colours=None).astype(int)
    expected = cv2.resize(image, (60, 45), interpolation=cv2.INTER_LINEAR)
    assert np.abs(out[46:-1, 61:-1] - expected[1:-1, 1:-1]).max() <= 3
    assert (out[:45] == MEAN_COLOUR).all() and (out[:, :60] == MEAN_COLOUR).all()


def test_colours_of_the_canvas_are_not_distorted() -> None:
    image = np.full((60, 80, 3), 100, np.uint8)
    crop = np.array([-80.0, -60, 80, 60])
    transform = ExpandAndCrop((90, 120), distort=PhotometricDistort())
    for flip in (False, True):
        out = transform.apply(image, flip=flip, crop=crop, colours=NEUTRAL | {"added": 30.0})
        out = out[:, ::-1] if flip else out
        assert (out[45:, 60:] == 130).all()
        assert (out[:45] == MEAN_COLOUR).all() and (out[:, :60] == MEAN_COLOUR).all()


def test_crops_have_valid_sizes_and_contain_the_centre_of_an_object() -> None:
    transform = ExpandAndCrop((30, 30), expand_p=0.0, hflip=0.0)
    normalized = OBJECTS / np.array([80, 60, 80, 60], np.float32)
    whole = 0
    for seed in range(300):
        crop = _params(transform, (60, 80), seed, bboxes=normalized)["crop"]
        if crop.tolist() == [0, 0, 80, 60]:
            whole += 1
            continue
        sides = crop[2:] - crop[:2]
        assert ((sides >= (24, 18)) & (sides <= (80, 60))).all()
        assert 0.5 <= sides[0] / sides[1] <= 2
        assert contains_centres(crop[None], OBJECTS).any()
        assert (crop >= 0).all() and (crop[2:] <= (80, 60)).all()
    # The whole canvas is one of seven choices. It is also used if no crop reaches a minimum IoU of .7 or .9.
    assert 300 / 7 < whole < 200


@pytest.mark.parametrize("least", MIN_IOUS[:4])
def test_the_first_crop_that_reaches_the_minimum_iou_is_used(
    least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with a loop that stops at the first crop that fulfils all conditions."""
    objects = np.array([[8, 6, 72, 56]], np.float64)
    transform = ExpandAndCrop((30, 30), hflip=0.0)
    canvas = np.array([0.0, 0, 80, 60])

    class Drawn:
        """Generator whose permutation starts with ``least``. NumPy's generator draws all other numbers."""

        def __init__(self, seed: int) -> None:
            self.rng = np.random.default_rng(seed)

        def permutation(self, choices: list[float]) -> np.ndarray:
            return np.array([least, *(c for c in choices if c != least)])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.rng, name)

    for seed in range(10):
        monkeypatch.setattr(transform, "random_generator", Drawn(seed))
        crop = transform._crop(canvas, objects)
        again = np.random.default_rng(seed)
        sides = np.rint(np.array([80, 60]) * again.uniform(0.3, 1.0, (50, 2)))
        corners = np.rint((np.array([80, 60]) - sides) * again.random((50, 2)))
        expected = None
        for (w, h), (x, y) in zip(sides, corners, strict=True):
            x0, y0, x1, y1 = max(x, 8), max(y, 6), min(x + w, 72), min(y + h, 56)
            common = max(0.0, x1 - x0) * max(0.0, y1 - y0)
            reached = common / (w * h + 64 * 50 - common)
            if 0.5 <= w / h <= 2 and x < 40 < x + w and y < 31 < y + h and reached >= least:
                expected = [x, y, x + w, y + h]
                break
        assert expected is not None
        np.testing.assert_allclose(crop, expected)


def test_boxes_whose_centre_is_outside_are_dropped() -> None:
    transform = ExpandAndCrop((60, 80), hflip=0.0)
    boxes = np.array([[0, 0, 30, 30, 0], [16, 16, 60, 50, 1], [50, 40, 60, 60, 2]], np.float32)
    boxes[:, :4] /= (80, 60, 80, 60)
    crop = np.array([20.0, 20, 60, 60])
    out = transform.apply_to_bboxes(boxes, shape=(60, 80), crop=crop, flip=False)
    assert out[:, 4].tolist() == [1, 2]
    np.testing.assert_allclose(out[0, :4], [-4 / 40, -4 / 40, 1, 30 / 40], atol=1e-6)
    flipped = transform.apply_to_bboxes(boxes, shape=(60, 80), crop=crop, flip=True)
    np.testing.assert_allclose(flipped[1, :4], [0, 20 / 40, 10 / 40, 1], atol=1e-6)


def test_proposals_do_not_influence_the_crop() -> None:
    image, _ = _scene()
    rng = np.random.default_rng(0)
    corners = rng.random((500, 2)) * (60, 45)
    proposals = np.concatenate([corners, corners + 2 + rng.random((500, 2)) * 12], 1).astype(np.float32)
    train = SSDAugmentation(size=(60, 80), photometric=False).train()
    for seed in range(8):
        alone = train(image, {"objects": OBJECTS}, seed=seed)
        both = train(image, {"objects": OBJECTS, "proposals": proposals}, seed=seed)
        assert (alone[0] == both[0]).all()
        np.testing.assert_allclose(alone[1]["objects"][0], both[1]["objects"][0], atol=1e-4)
        moved, kept = both[1]["proposals"]
        assert len(moved) == len(kept) <= 500
    assert len(moved)


def test_without_objects_any_crop_or_the_whole_image_is_used() -> None:
    transform = ExpandAndCrop((30, 30), expand_p=0.0)
    crops = [_params(transform, (60, 80), seed, bboxes=np.zeros((0, 5)))["crop"] for seed in range(40)]
    whole = sum(crop.tolist() == [0, 0, 80, 60] for crop in crops)
    assert 0 < whole < 40


def test_an_expanded_canvas_contains_the_image() -> None:
    transform = ExpandAndCrop((30, 30), hflip=0.0)
    ratios = []
    for seed in range(400):
        transform.set_random_seed(seed)
        x0, y0, x1, y1 = transform._canvas(60, 80)
        assert x0 <= 0 and y0 <= 0 and x1 >= 80 and y1 >= 60
        assert (x1 - x0) / 80 == pytest.approx((y1 - y0) / 60, abs=0.02)
        ratios.append((x1 - x0) / 80)
    assert 0.4 < np.mean(np.array(ratios) == 1) < 0.6
    assert 3.9 < max(ratios) <= 4


def test_flip_probability() -> None:
    transform = ExpandAndCrop((30, 30))
    flips = [_params(transform, (60, 80), seed, bboxes=None)["flip"] for seed in range(400)]
    assert 0.4 < np.mean(flips) < 0.6


def test_iou_and_centres() -> None:
    crops, boxes = (
        np.array([[0.0, 0, 10, 10]]),
        np.array([[5.0, 0, 15, 10], [20, 20, 30, 30], [9, 9, 13, 13]]),
    )
    np.testing.assert_allclose(iou(crops, boxes), [[1 / 3, 0, 1 / 115]])
    assert contains_centres(crops, boxes).tolist() == [[False, False, False]]
    assert contains_centres(crops, np.array([[4.0, 4, 14, 6]])).tolist() == [[True]]


def _distorted(colour: tuple[int, int, int], **params: Any) -> list[int]:
    image = np.full((2, 3, 3), colour, np.uint8)
    return list(PhotometricDistort().apply(image, **(NEUTRAL | params))[1, 1])


def test_brightness_is_added_and_contrast_is_multiplied() -> None:
    assert _distorted((10, 100, 250), added=20.0) == [30, 120, 255]
    assert _distorted((10, 100, 250), added=-20.0) == [0, 80, 230]
    assert _distorted((10, 100, 250), contrast=1.5) == [15, 150, 255]
    assert _distorted((10, 100, 250), contrast=0.5, contrast_first=False) == [5, 50, 125]


def test_saturation_and_hue_are_changed_in_hsv() -> None:
    colour = (200, 120, 80)
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    less = [255 * c for c in colorsys.hsv_to_rgb(hue, saturation / 2, value)]
    np.testing.assert_allclose(_distorted(colour, saturation=0.5), less, atol=3)
    for shift in (15.0, -15.0):  # 30 degrees; the second shift crosses a hue of 0
        turned = [255 * c for c in colorsys.hsv_to_rgb((hue + shift / 180) % 1, saturation, value)]
        np.testing.assert_allclose(_distorted(colour, shift=shift), turned, atol=5)


def test_each_distortion_has_a_probability_of_one_half() -> None:
    transform = PhotometricDistort()
    drawn = []
    for seed in range(300):
        transform.set_random_seed(seed)
        drawn.append(transform.get_params())
    for name, neutral in NEUTRAL.items():
        assert 0.4 < np.mean([params[name] != neutral for params in drawn]) < 0.6, name
    assert all(0.5 <= params["contrast"] <= 1.5 and abs(params["added"]) <= 32 for params in drawn)


def test_the_seed_determines_the_result() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    train = SSDAugmentation(size=(50, 50)).train()
    one, again, other = (train(image, {"objects": OBJECTS}, seed=s)[0] for s in (5, 5, 6))
    assert (one == again).all()
    assert (one != other).any()


def test_in_a_plain_albumentations_pipeline() -> None:
    """Without box sets, all boxes are objects."""
    image, _ = _scene()
    compose = A.Compose(
        [PhotometricDistort(), ExpandAndCrop((40, 40))], bbox_params=A.BboxParams("pascal_voc", clip=True)
    )
    out = compose(image=image, bboxes=OBJECTS)
    assert out["image"].shape == (40, 40, 3)
    assert Pipeline([ExpandAndCrop((40, 40))])(image)[0].shape == (40, 40, 3)


def test_an_invalid_size_is_an_error() -> None:
    with pytest.raises(UserError, match=r"data\.recipe\.size 300: .*give \[height, width\]"):
        SSDAugmentation(size=300)
