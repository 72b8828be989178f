"""Palette, boxes, masks, legends, sheets and confusion matrices."""

import numpy as np
import pytest

from segdet.util.colours import class_colour, distinct_colours, mask_colours, voc_palette
from segdet.util.drawing import draw_boxes, draw_legend, draw_mask, draw_matrix, draw_sheet, mask_legend

GREY = np.full((120, 160, 3), 128, np.uint8)


def test_voc_palette():
    colours = voc_palette()
    assert colours.shape == (256, 3)
    assert colours.dtype == np.uint8
    # Colours published for VOC: background, aeroplane, bicycle, bird, boat, cat (8), person, tvmonitor, border.
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {value: tuple(colours[value].tolist()) for value in known} == known
    assert len(np.unique(colours, axis=0)) == 256


def test_class_colours_differ():
    colours = np.array([class_colour(label) for label in range(1, 81)], int)
    assert len(np.unique(colours, axis=0)) == 80
    distances = np.abs(colours[:12, None] - colours[None, :12]).sum(axis=2) + 999 * np.eye(12, dtype=int)
    assert distances.min() > 60


def test_only_the_background_class_is_black():
    assert mask_colours(["background", "cat"])[0].tolist() == [0, 0, 0]
    assert mask_colours(["Sky", "Road"])[0].tolist() == [128, 0, 0]


def test_boxes_are_drawn_at_their_coordinates():
    boxes = np.array([[40.0, 50.0, 100.0, 90.0]])
    before = GREY.copy()
    picture = draw_boxes(GREY, boxes, np.array([2]), ["cat", "dog"])
    assert (before == GREY).all()
    assert picture.shape == GREY.shape
    assert picture.dtype == np.uint8
    for y, x in ((50, 70), (89, 70), (70, 40), (70, 99)):
        assert tuple(picture[y, x]) == class_colour(2)
    assert (picture[60:80, 50:90] == 128).all()
    assert (picture[100:] == 128).all()
    changed = (picture != 128).any(axis=2)
    assert changed[36:48, 40:60].any(), "the tag is above the box"
    plain = draw_boxes(GREY, boxes, np.array([2]), ["cat", "dog"], tags=False)
    assert (plain[:48] == 128).all()


def test_drawing_is_deterministic_and_accepts_invalid_boxes():
    boxes = np.array([[0, 0, 160, 120], [-50, -50, 500, 500], [np.nan, 0, 1, 1], [5, 5, 5, 5]])
    labels = np.array([1, 2, 1, 9])
    first = draw_boxes(GREY, boxes, labels, ["a", "b"], scores=np.array([0.9, 0.5, 0.1, 0.2]))
    second = draw_boxes(GREY, boxes, labels, ["a", "b"], scores=np.array([0.9, 0.5, 0.1, 0.2]))
    assert (first == second).all()
    assert (draw_boxes(GREY, np.zeros((0, 4)), np.zeros(0), ["a"]) == GREY).all()


def test_small_images_are_enlarged_with_their_boxes():
    small = np.full((12, 16, 3), 128, np.uint8)
    picture = draw_boxes(small, np.array([[4, 4, 12, 10]]), np.array([1]), ["cat"], longest=320, tags=False)
    assert picture.shape == (240, 320, 3)
    assert tuple(picture[80, 160]) == class_colour(1)
    assert (picture[100:180, 100:220] == 128).all()


def test_crowds_are_hatched():
    box = np.array([[20, 30, 120, 100]])
    picture = draw_boxes(GREY, box, np.array([1]), ["person"], crowd=np.array([True]), tags=False)
    inside = picture[40:90, 30:110]
    share = (inside != 128).any(axis=2).mean()
    assert 0.1 < share < 0.4
    edge = {tuple(pixel) for pixel in picture[30, 20:120].tolist()}
    assert class_colour(1) in edge
    assert len(edge) > 1, "the outline is dashed"


def test_masks_tint_classes_and_hatch_ignored_pixels():
    mask = np.zeros((120, 160), np.uint8)
    mask[:, 80:] = 1
    mask[80:] = 255
    picture = draw_mask(GREY, mask, ["background", "cat"], alpha=0.5, legend=False)
    assert picture.shape == GREY.shape
    assert (picture[10:70, 10:70] == 128).all()
    assert np.unique(picture[10:70, 90:150].reshape(-1, 3), axis=0).tolist() == [[128, 64, 64]]
    ignored = np.unique(picture[85:, 5:75].reshape(-1, 3), axis=0)
    assert len(ignored) == 2
    assert ignored.max() > 200
    with_legend = draw_mask(GREY, mask, ["background", "cat"])
    assert with_legend.shape[0] > 120
    assert with_legend.shape[1] == 160
    assert (with_legend[:120] == picture).all()


def test_a_mask_that_differs_in_size_from_its_image_is_an_error():
    with pytest.raises(ValueError, match="mask of"):
        draw_mask(GREY, np.zeros((5, 5), np.uint8), ["a"])


def test_the_legend_lists_the_classes_in_the_mask():
    mask = np.array([[0, 2, 2], [255, 2, 1]], np.uint8)
    assert mask_legend(mask, ["background", "cat", "dog"]) == [
        ("dog", (0, 128, 0)),
        ("cat", (128, 0, 0)),
        ("ignored", None),
    ]
    assert draw_legend([], 100).shape == (0, 100, 3)
    entries = [(f"class {number}", (9, 9, 9)) for number in range(20)]
    assert draw_legend(entries, 200).shape[0] > draw_legend(entries, 2000).shape[0]


def test_boxes_with_given_colours():
    boxes, labels = np.array([[20.0, 20, 60, 60], [80, 20, 120, 60]]), np.array([1, 1])
    drawn = draw_boxes(GREY, boxes, labels, ["a"], tags=False, colours=[(255, 0, 0), (0, 0, 255)])
    assert drawn[40, 20].tolist() == [255, 0, 0] and drawn[40, 80].tolist() == [0, 0, 255]


def test_a_matrix_is_blue_on_the_diagonal_and_red_elsewhere():
    counts = np.array([[9, 1, 0], [0, 0, 0], [0, 5, 5]])
    names = ["a", "$b_c$", "nothing"]
    picture = draw_matrix(counts, names, names, heading="all of it")
    height, width = picture.shape[:2]
    # Read each of the 3x3 cells near its corner, because its centre shows the count. Cells have sides of 58 pixels.
    # The positions are relative to the lower right corner, because the margins there do not depend on the names.
    corner = {
        (row, column): picture[height - 14 - 58 * (3 - row) + 5, width - 14 - 58 * (3 - column) + 5].astype(
            int
        )
        for row in range(3)
        for column in range(3)
    }
    for place, (red, _, blue) in corner.items():
        if not counts[place]:
            assert min(corner[place]) > 240, place
        else:
            assert (blue > red + 60) if place[0] == place[1] else (red > blue + 10), place
    assert corner[2, 1][1] < corner[0, 1][1]  # the cell with 1/2 of its row is darker than the cell with 1/10
    assert np.array_equal(picture, draw_matrix(counts, names, names, heading="all of it"))


@pytest.mark.parametrize(("classes", "most"), [(0, 200), (1, 400), (81, 2000), (1204, 2600)])
def test_the_picture_of_a_matrix_has_a_limited_size(classes, most):
    names = ["the name of a class that is longer than the names of other classes"] * classes
    picture = draw_matrix(np.ones((classes, classes), int), names, names)
    assert picture.dtype == np.uint8 and classes < min(picture.shape[:2]) <= max(picture.shape[:2]) < most


def test_a_matrix_with_a_wrong_number_of_names_is_an_error():
    with pytest.raises(ValueError, match="2 and 1 names"):
        draw_matrix(np.zeros((2, 2), int), ["a", "b"], ["a"])


def test_a_sheet_contains_every_image():
    images = [np.full((30 + 40 * i, 100, 3), 40 * i, np.uint8) for i in range(5)]
    page = draw_sheet(images, [f"image {i}" for i in range(5)], columns=3, cell=100, heading="five")
    assert page.shape[1] == 14 + 3 * 114
    for i, image in enumerate(images[:4]):
        assert (page == image[0, 0]).all(axis=2).sum() >= 0.9 * min(image.shape[0], 150) * 50, i
    with pytest.raises(ValueError, match="1 images with 2 titles"):
        draw_sheet(images[:1], ["a", "b"])


def test_distinct_colours_differ():
    colours = distinct_colours(40).astype(int)
    assert colours.shape == (40, 3)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(40, dtype=int)
    assert distances.min() > 0
    assert distances[:7, :7].min() > 80
    assert distinct_colours(0).shape == (0, 3)
