"""Test prediction in tiles: coverage, weights, and equality with the prediction for the whole image."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.metrics import classes_of
from segdet.segmentation.tiling import classes_of_rows, predict_rows, spans


@pytest.mark.parametrize(
    ("length", "tile", "overlap"),
    [
        (100, 40, 8),
        (1000, 256, 64),
        (513, 512, 128),
        (65, 64, 63),
        (97, 32, 0),
        (50, 64, 16),
        (640, 96, 90),
        (5, 3, 1),
    ],
)
def test_tiles_cover_the_side_and_overlap(length: int, tile: int, overlap: int) -> None:
    tiles = spans(length, tile, overlap)
    total = torch.zeros(length)
    for one in tiles:
        assert len(one.weights) == one.stop - one.start and (one.weights >= 0).all()
        total[one.start : one.stop] += one.weights
    torch.testing.assert_close(total, torch.ones(length))
    assert tiles[0].start == 0 and tiles[-1].stop == length
    for before, after in pairwise(tiles):
        assert after.start > before.start and before.stop - after.start >= overlap
    assert all(tile <= one.stop - one.start < tile + 32 for one in tiles) or length <= tile
    if tile - overlap >= 32:
        assert all(one.start % 32 == 0 for one in tiles)


def network(stride: int = 1) -> nn.Module:
    """Return a padded network of four classes with a receptive field of a few pixels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()]
    for _ in range(stride.bit_length() - 1):
        layers += [nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(6, 4, 1), nn.Upsample(scale_factor=stride))


# Without pooling the receptive field extends by 1 pixel. With two poolings it extends by at most 10 pixels: 1, 2 and 4
# for the convolutions, and 3 within a cell of 4 pixels.
@pytest.mark.parametrize(
    ("stride", "size", "tile", "overlap"),
    [
        (1, (50, 71), (16, 24), 4),
        (1, (20, 90), (32, 32), 3),
        (4, (96, 160), (64, 96), 48),
        (4, (200, 64), (96, 64), 40),
    ],
)
def test_merged_tiles_equal_the_whole(
    stride: int, size: tuple[int, int], tile: tuple[int, int], overlap: int
) -> None:
    model = network(stride)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        whole = model(image)[0]
        merged = torch.cat(list(predict_rows(model, image, tile, overlap)), 1)
    torch.testing.assert_close(merged, whole, atol=1e-5, rtol=0)


def test_too_little_overlap_changes_pixels_near_edges_only() -> None:
    model = network(4)
    image = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        whole = model(image)[0]
        difference = (torch.cat(list(predict_rows(model, image, (32, 32), 4)), 1) - whole).abs()
    assert difference.max() > 1e-3
    assert difference.amax(0).lt(1e-5).any()  # the centres of tiles


def test_at_most_one_row_of_tiles_is_in_memory() -> None:
    image = torch.randn(1, 3, 500, 64)
    heights = [rows.shape[1] for rows in predict_rows(network(), image, (64, 64), 16)]
    assert sum(heights) == 500 and max(heights) <= 64 + 31


@pytest.mark.parametrize("original", [(50, 71), (100, 142), (33, 40), (7, 5), (131, 71), (50, 90), (1, 1)])
@pytest.mark.parametrize("parts", [[50], [16, 16, 18], [1] * 50])
def test_classes_of_rows_are_those_of_the_whole(original: tuple[int, int], parts: list[int]) -> None:
    scores = torch.randn(5, 50, 71, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(scores[None], original, mode="bilinear", align_corners=False)
    found = classes_of_rows(iter(scores.split(parts, 1)), (50, 71), original)
    assert found.dtype == torch.int64 and torch.equal(found, classes_of(whole)[0])


def test_the_prediction_is_not_modified() -> None:
    image = torch.randn(1, 3, 40, 40)
    before = image.clone()

    def identity(tile: Tensor) -> Tensor:
        return tile

    assert torch.allclose(torch.cat(list(predict_rows(identity, image, (16, 16), 8)), 1), image[0], atol=1e-6)
    assert torch.equal(image, before)
