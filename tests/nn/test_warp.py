"""Tests of R-CNN's crops: the context of the paper, exact pixels without scaling, zeros outside the image."""

import pytest
import torch

from segdet.nn.warp import warp, with_context


def test_the_context_matches_the_paper() -> None:
    """With 16 of the crop's 227 pixels as context on each side, regions grow by 227 / 195 about their centres."""
    roi = torch.tensor([[3.0, 100, 50, 295, 440]])
    grown = with_context(roi, 227, 16)
    torch.testing.assert_close(grown, torch.tensor([[3.0, 84, 18, 311, 472]]), atol=0.1, rtol=0)
    sides = (grown[:, 3:] - grown[:, 1:3]) / (roi[:, 3:] - roi[:, 1:3])
    torch.testing.assert_close(sides, torch.full((1, 2), 227 / 195))


def test_a_region_that_is_not_scaled_keeps_its_pixels() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 60, 70)
    (crop,) = warp(images, torch.tensor([[1.0, 14, 10, 38, 34]]), size=32, context=4)
    torch.testing.assert_close(crop, images[1, :, 6:38, 10:42])


@pytest.mark.parametrize("left", [-8.0, -8.25])
def test_pixels_outside_the_image_are_zero(left: float) -> None:
    images = torch.ones(1, 3, 40, 40)
    (crop,) = warp(images, torch.tensor([[0.0, left, -8, left + 32, 24]]), size=32, context=0)
    assert not crop[:, :7].any() and not crop[:, :, :7].any()
    torch.testing.assert_close(crop[:, 9:, 9:], torch.ones(3, 23, 23))
    if left == -8:
        assert not crop[:, :8].any() and torch.equal(crop[:, 8:, 8:], torch.ones(3, 24, 24))


def test_a_large_region_is_averaged_and_a_small_one_interpolated() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1.0
    (crop,) = warp(stripes, torch.tensor([[0.0, 0, 0, 64, 64]]), size=16, context=0)
    torch.testing.assert_close(crop[:, 1:-1, 1:-1], torch.full((3, 14, 14), 0.5))
    ramp = torch.arange(64.0).expand(1, 3, 64, 64)
    (crop,) = warp(ramp, torch.tensor([[0.0, 20, 20, 28, 44]]), size=16, context=0)
    torch.testing.assert_close(crop[0, 5], 20 - 0.25 + torch.arange(16.0) / 2)


def test_crops_do_not_depend_on_the_other_regions_of_the_batch() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 50, 40)
    rois = torch.tensor([[0.0, 3, 4, 20, 44], [1, -5, 0, 39, 20], [0, 10, 10, 11, 12]])
    crops = warp(images, rois, 24, 3)
    for roi, crop in zip(rois, crops, strict=True):
        torch.testing.assert_close(warp(images, roi[None], 24, 3)[0], crop)
    assert warp(images, rois[:0], 24, 3).shape == (0, 3, 24, 24)
