"""One schematic picture for each rung of the ladder, drawn with the symbols of `segdet.report.ladder.symbols`.

Every function returns the content of a picture of 160x100 units: the image on the left, the computation in the middle,
the prediction on the right. Rungs that differ in one idea have pictures that differ in one place.
"""

from segdet.report.ladder.symbols import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    SIDE,
    arc,
    area,
    arrow,
    classes,
    crop,
    detections,
    dot,
    frame,
    ghost,
    grid,
    image,
    kernel,
    line,
    maps,
    mask,
    network,
    object_box,
    plates,
    polygon,
    region,
    text,
)

# Images and predictions are at the same height in all pictures.
_LEFT, _RIGHT, _TOP = 4.0, 112.0, 28.0


# Segmentation.


def sliding_window() -> str:
    """A window moves over the image; each window gives the class of one pixel."""
    return (
        image(_LEFT, _TOP)
        + ghost(6, 44, 18) + ghost(11, 44, 18) + region(16, 44, 18)
        + arrow((52, 50), (61, 50)) + crop(63, 42, 16, 0) + network(82, 50, 11, 18, 6) + arrow((95, 50), (109, 50))
        + mask(_RIGHT, _TOP, cells=9, known=48)
        + frame(_RIGHT + 2 * SIDE / 9, _TOP + 5 * SIDE / 9, SIDE / 9, SIDE / 9, BLUE, 1.6)
        + text(79, 72, "per window")
    )  # fmt: skip


def dense_window() -> str:
    """The same classifier runs once, over the whole image."""
    return (
        image(_LEFT, _TOP)
        + "".join(ghost(6 + 8 * i, 30 + 8 * j, 16) for j in range(4) for i in range(4))
        + arrow((52, 50), (61, 50)) + network(64, 50, 26, 44, 30) + arrow((93, 50), (109, 50))
        + mask(_RIGHT, _TOP, cells=9)
        + text(77, 86, "one pass")
    )  # fmt: skip


def full_resolution() -> str:
    """Layers as large as the image."""
    return image(_LEFT, _TOP) + maps(56, [44] * 5, gap=5) + mask(_RIGHT, _TOP)


def upsampling() -> str:
    """Maps that become smaller, then larger."""
    return image(_LEFT, _TOP) + maps(53, [40, 26, 14, 26, 40], gap=6) + mask(_RIGHT, _TOP)


def skips() -> str:
    """Scores of several strides are added."""
    plus = text(95, 53, "+", 12)
    return (
        image(_LEFT, _TOP) + maps(53, [40, 26, 14], gap=6)
        + line((55.5, 28), (55.5, 18), (95, 18), colour=BLUE) + arrow((95, 18), (95, 41), colour=BLUE)
        + line((66.5, 35), (66.5, 26), (86, 26), (86, 47), colour=BLUE) + arrow((86, 47), (91, 49), colour=BLUE)
        + arrow((82, 52), (91, 50)) + plus + arrow((99, 50), (110, 50)) + mask(_RIGHT, _TOP)
    )  # fmt: skip


def fully_convolutional_vgg() -> str:
    """fc6 and fc7 as convolutions, skips, upsampling by 8."""
    return skips() + text(66, 80, "fc → conv") + text(95, 64, "x 8")


def _switches(x: float, heights: list[float], gap: float, bottleneck: bool = False) -> str:
    """Return an hourglass whose decoder uses the positions of the encoder's maxima."""
    step, half = 5 + gap, len(heights) // 2
    arcs = [
        arc(x + i * step + 2.5, 50 - heights[i] / 2, x + (len(heights) - 1 - i) * step + 2.5, 50 - heights[i] / 2,
            12 - 2.4 * i)
        for i in range(half - (1 if bottleneck else 0))
    ]  # fmt: skip
    return maps(x, heights, gap=gap) + "".join(arcs)


def deconvnet() -> str:
    """An hourglass with a vector in the middle."""
    return (
        image(_LEFT, _TOP) + _switches(51, [44, 32, 20, 4, 20, 32, 44], 3.5)
        + text(79, 86, "one vector") + mask(_RIGHT, _TOP)
    )  # fmt: skip


def segnet_basic() -> str:
    """A short hourglass with pooling switches."""
    return (
        image(_LEFT, _TOP) + _switches(57, [40, 28, 28, 40], 8)
        + text(79, 86, "switches", colour=BLUE) + mask(_RIGHT, _TOP)
    )  # fmt: skip


def segnet() -> str:
    """An hourglass with pooling switches at all levels."""
    return (
        image(_LEFT, _TOP) + _switches(51, [44, 34, 24, 14, 24, 34, 44], 3.5)
        + text(79, 86, "switches", colour=BLUE) + mask(_RIGHT, _TOP)
    )  # fmt: skip


def _u_shape(widths: list[tuple[float, float]]) -> str:
    """Return the levels of a U: ``(size on the left, size on the right)`` from top to bottom."""
    parts = []
    for level, (left, right) in enumerate(widths):
        y, inset = 26 + 17 * level, 7 * level
        x_left, x_right = 54 + inset, 104 - inset
        parts += [
            area(x_left, y - left / 2, 4, left, opacity=0.3),
            area(x_right - 4, y - right / 2, 4, right, BLUE, 0.45),
            area(x_right, y - right / 2, 4, right, opacity=0.3),
        ]
        parts.append(arrow((x_left + 6, y), (x_right - 6, y), colour=BLUE))
        if level:
            parts.append(arrow((x_left - 5, y - 10), (x_left + 1, y - 5)))
            parts.append(arrow((x_right + 2, y - 5), (x_right + 7, y - 10)))
    bottom = area(76, 78, 10, 5, opacity=0.3)
    return "".join(parts) + bottom + arrow((71, 68), (75, 75)) + arrow((87, 75), (91, 68))


def unet() -> str:
    """A U: the encoder's maps are copied to the decoder and concatenated."""
    return image(_LEFT, _TOP) + _u_shape([(22, 22), (16, 16), (11, 11)]) + mask(_RIGHT, _TOP)


def original_unet() -> str:
    """The same U with unpadded convolutions: the mask is smaller than the image."""
    inner = 30
    return (
        image(_LEFT, _TOP) + frame(_LEFT + 7, _TOP + 7, inner, inner, BLUE, 1.2, dashed=True)
        + _u_shape([(22, 14), (16, 10), (11, 6)])
        + mask(_RIGHT + 7, _TOP + 7, inner) + frame(_RIGHT, _TOP, SIDE, SIDE, dashed=True, thick=0.6)
    )  # fmt: skip


def dilation() -> str:
    """Maps that stay at stride 8, with dilated kernels."""
    return (
        image(_LEFT, _TOP) + maps(54, [40, 28, 20, 20, 20], gap=5)
        + kernel(79, 76, 4) + kernel(98, 79, 7) + arrow((102, 50), (110, 50)) + mask(_RIGHT, _TOP)
    )  # fmt: skip


def spatial_pyramid() -> str:
    """One map, kernels of growing dilation in parallel."""
    branches = "".join(
        line((64, 50), (68, 50), (68, y), (72, y)) + kernel(83, y, step) + line((94, y), (101, y), (101, 50))
        for y, step in ((18, 3.5), (44, 5.5), (79, 7.5))
    )
    return (
        image(_LEFT, _TOP) + maps(54, [22, 22], gap=1) + branches + arrow((101, 50), (110, 50))
        + mask(_RIGHT, _TOP)
    )  # fmt: skip


def light_head() -> str:
    """The channels of one map are weighted by the mean of the image."""
    return (
        image(_LEFT, _TOP) + plates(55, 38, 24) + text(67, 82, "mean", colour=BLUE)
        + line((67, 64), (67, 73), colour=BLUE) + line((80, 79), (91, 79), colour=BLUE)
        + arrow((91, 79), (91, 57), colour=BLUE) + arrow((84, 50), (87, 50))
        + line((89, 47), (95, 53)) + line((95, 47), (89, 53))
        + arrow((97, 50), (110, 50)) + mask(_RIGHT, _TOP)
    )  # fmt: skip


def any_decoder() -> str:
    """An encoder and a decoder, both exchangeable."""
    return (
        image(_LEFT, _TOP) + network(54, 50, 20, 44, 16)
        + polygon([(80, 42), (100, 28), (100, 72), (80, 58)], BLUE, 0.4)
        + ghost(78, 22, 24, 56) + text(90, 90, "any decoder", colour=BLUE) + arrow((103, 50), (110, 50))
        + mask(_RIGHT, _TOP)
    )  # fmt: skip


# Localization.


def box_head() -> str:
    """One network, two heads: the class and the box."""
    return (
        image(_LEFT, _TOP) + arrow((50, 50), (58, 50)) + network(60, 50, 18, 44, 20)
        + arrow((80, 46), (106, 20)) + classes(_RIGHT, 18, width=28)
        + arrow((80, 54), (106, 66)) + image(_RIGHT, 42) + object_box(_RIGHT, 42, 0)
    )  # fmt: skip


# Detection.


def _pyramid(x: float = 4) -> str:
    """Return the image at three sizes, one below the other."""
    return image(x, 6, 38) + image(x + 6, 49, 26) + image(x + 11, 80, 16)


def windows_of_pyramid() -> str:
    """A window moves over all sizes of the image; each window is classified."""
    return (
        _pyramid() + ghost(6, 17, 14) + ghost(11, 17, 14) + region(16, 17, 14) + ghost(14, 55, 14) + ghost(12, 81, 14)
        + arrow((46, 50), (57, 50)) + crop(60, 42, 16, 0) + network(80, 50, 14, 20, 8) + arrow((97, 50), (110, 50))
        + classes(_RIGHT + 4, 50, width=30) + text(77, 72, "per window")
    )  # fmt: skip


def dense_windows_of_pyramid() -> str:
    """The same classifier runs once per size and gives a map of classes."""
    passes = "".join(
        network(54, y, 22, size, size * 0.6) + arrow((80, y), (_RIGHT - 4, y))
        for y, size in ((25, 36), (62, 24), (88, 14))
    )
    cells = (
        grid(_RIGHT, 12, 26, 5, marked=[12, 13, 17])
        + grid(_RIGHT, 53, 18, 4, marked=[2, 6])
        + grid(_RIGHT, 83, 10, 2)
    )
    return _pyramid() + passes + cells


def overfeat() -> str:
    """Every window regresses a box; boxes that agree are merged."""
    regressed = "".join(
        object_box(58 + dx, _TOP + dy, 0, colour=BLUE, thick=0.9)
        for dx, dy in ((-3, -2), (2, 2), (1, -3), (-2, 2), (3, -1))
    )
    return (
        image(_LEFT, _TOP) + ghost(6, 40, 16) + ghost(13, 54, 16) + ghost(17, 45, 16) + region(9, 48, 16)
        + arrow((50, 50), (56, 50)) + image(58, _TOP) + regressed
        + arrow((104, 50), (110, 50)) + detections(_RIGHT, _TOP)
        + text(80, 84, "a box per window", colour=BLUE) + text(134, 84, "merged")
    )  # fmt: skip


def _proposals(x: float, y: float) -> str:
    """Return the image with region proposals."""
    return (
        image(x, y)
        + ghost(x + 2, y + 3, 16, 12)
        + ghost(x + 18, y + 2, 24, 18)
        + ghost(x + 1, y + 14, 30, 28)
        + ghost(x + 22, y + 24, 18, 14)
        + region(x + 5, y + 18, 20)
    )


def rcnn() -> str:
    """Each proposal is warped and gets its own pass."""
    rows = "".join(
        crop(60, y, 15, index) + network(79, y + 7.5, 12, 16, 8) + arrow((93, y + 7.5), (110, y + 7.5))
        + classes(_RIGHT + 2, y + 8, (ORANGE, GREEN)[index], 26)
        for y, index in ((14, 1), (42, 0), (70, 0))
    )  # fmt: skip
    fans = "".join(line((40, 56), (57, y), colour=BLUE, dashed=True) for y in (21, 50, 77))
    return _proposals(_LEFT, _TOP) + fans + rows


def fast_rcnn() -> str:
    """One pass; the features of each proposal are pooled from the shared map."""
    return (
        _proposals(_LEFT, _TOP) + network(51, 50, 10, 40, 28) + plates(64, 36, 30)
        + region(68, 48, 13) + line((81, 48), (104, 41), colour=BLUE, dashed=True)
        + line((81, 61), (104, 59), colour=BLUE, dashed=True) + grid(104, 41, 18, 3, BLUE, range(9))
        + arrow((124, 46), (134, 34)) + classes(137, 30, width=18)
        + arrow((124, 54), (134, 64)) + frame(137, 60, 18, 15, ORANGE, 1.8)
    )  # fmt: skip


def _rpn(x: float, y: float, mark: str) -> str:
    """Return the region proposal network as a branch above the feature map at ``(x, y)``."""
    return (
        arrow((x + 12, y - 8), (x + 12, y - 16), colour=BLUE) + text(x + 12, y - 19, mark, 8.5, BLUE)
        + line((x + 24, y - 22), (x + 36, y - 22), colour=BLUE) + arrow((x + 36, y - 22), (x + 36, y + 2), colour=BLUE)
    )  # fmt: skip


def _second_stage(x: float = 118, y: float = 41) -> str:
    """Return the pooled features of one region and the two heads."""
    return (
        grid(x - 14, y, 18, 3, BLUE, range(9))
        + arrow((x + 6, y + 5), (x + 16, y - 7)) + classes(x + 19, y - 11, width=18)
        + arrow((x + 6, y + 13), (x + 16, y + 23)) + frame(x + 19, y + 19, 18, 15, ORANGE, 1.8)
    )  # fmt: skip


def faster_rcnn() -> str:
    """The proposals come from a branch on the same feature map."""
    return (
        image(_LEFT, _TOP) + network(51, 50, 10, 40, 28) + plates(64, 36, 30) + _rpn(76, 37, "RPN")
        + region(68, 48, 13) + line((81, 54), (102, 50), colour=BLUE, dashed=True) + _second_stage()
    )  # fmt: skip


def pyramid_rcnn() -> str:
    """The same two stages on maps of several strides."""
    levels = "".join(
        plates(64 + inset, y, side, side * 0.5, 2)
        for inset, y, side in ((0, 66, 30), (4, 48, 22), (8, 35, 14))
    )
    return (
        image(_LEFT, _TOP) + network(51, 58, 10, 44, 30) + levels + _rpn(67, 38, "RPN")
        + region(72, 69, 9, 8) + line((81, 72), (102, 52), colour=BLUE, dashed=True) + _second_stage()
    )  # fmt: skip


def _mask_branch(y: float = 84) -> str:
    """Return the third head: a mask within the region."""
    cells = "".join(
        area(137 + 3 * i, y - 7 + 3 * j, 3, 3, ORANGE)
        for j in range(6) for i in range(6) if (i - 2.5) ** 2 + (j - 2.5) ** 2 < 8
    )  # fmt: skip
    return (
        line((113, 62), (113, y + 2)) + arrow((113, y + 2), (134, y + 2)) + cells + frame(137, y - 7, 18, 18)
    )


def mask_rcnn() -> str:
    """Faster R-CNN with a third head that predicts a mask."""
    return faster_rcnn() + _mask_branch()


def pyramid_mask_rcnn() -> str:
    """The mask head on a feature pyramid."""
    return pyramid_rcnn() + _mask_branch()


def yolo() -> str:
    """A grid of cells; the cell at the centre of an object predicts its box."""
    return (
        image(_LEFT, _TOP) + grid(_LEFT, _TOP, SIDE, 5, BLUE, [16, 8]) + arrow((50, 50), (59, 50))
        + network(61, 50, 30, 40, 10) + arrow((94, 50), (109, 50)) + detections(_RIGHT, _TOP)
        + dot(_RIGHT + 15, _TOP + 28) + dot(_RIGHT + 31, _TOP + 13)
    )  # fmt: skip


def _default_boxes(x: float, y: float, size: float) -> str:
    """Return default boxes of three shapes around a cell."""
    return (
        frame(x - size / 2, y - size / 2, size, size, BLUE, 0.9)
        + frame(x - size * 0.7, y - size * 0.35, size * 1.4, size * 0.7, BLUE, 0.9)
        + frame(x - size * 0.35, y - size * 0.7, size * 0.7, size * 1.4, BLUE, 0.9)
    )


def _single_shot(levels: int) -> str:
    """Return maps of decreasing size, each with default boxes."""
    sides = {3: (34, 22, 12), 6: (34, 24, 17, 12, 8, 5), 7: (34, 25, 18, 13, 9, 6, 4)}[levels]
    gap, x, parts = {3: 6.0, 6: 2.5, 7: 1.6}[levels], 52.0, []
    for index, side in enumerate(sides):
        width = side * (0.55 if levels == 3 else 0.28) + 2
        parts.append(
            area(x, 50 - side / 2, width, side, opacity=0.14)
            + frame(x, 50 - side / 2, width, side, thick=0.8)
        )
        if levels == 3 or index % 2 == 0:
            parts.append(_default_boxes(x + width / 2, 50, max(width * 0.62, 4)))
        x += width + gap
    return "".join(parts)


def ssd() -> str:
    """Default boxes on maps of several sizes, one pass."""
    return image(_LEFT, _TOP) + _single_shot(3) + detections(_RIGHT, _TOP)


def ssd300() -> str:
    """Six maps with 8,732 default boxes."""
    return (
        image(_LEFT, _TOP)
        + _single_shot(6)
        + text(80, 84, "8732 boxes", colour=BLUE)
        + detections(_RIGHT, _TOP)
    )


def ssd512() -> str:
    """Seven maps with 24,564 default boxes."""
    return (
        image(_LEFT - 2, _TOP - 5, 48, 54) + _single_shot(7) + text(80, 84, "24564 boxes", colour=BLUE)
        + detections(_RIGHT, _TOP)
    )  # fmt: skip


def ssd_lite() -> str:
    """Convolutions of one channel each, then 1x1 convolutions across the channels."""
    slices = "".join(
        area(56 + 4 * i, 36 - 2 * i, 18, 18, (BLUE, INK)[i % 2], 0.25)
        + frame(56 + 4 * i, 36 - 2 * i, 18, 18, thick=0.8)
        for i in reversed(range(4))
    )  # fmt: skip
    return (
        image(_LEFT, _TOP) + slices + text(68, 72, "3x3 each", colour=BLUE) + arrow((90, 44), (97, 44))
        + area(98, 30, 3, 26, BLUE, 0.6)
        + text(99, 84, "1x1", colour=BLUE) + line((99.5, 58), (99.5, 75), colour=BLUE, dashed=True)
        + arrow((103, 44), (110, 46))
        + detections(_RIGHT, _TOP)
    )  # fmt: skip


def _top_down() -> str:
    """Return a feature pyramid with its top-down path."""
    left = maps(52, [40, 26, 14], gap=3)
    levels = "".join(
        area(79, y - side / 4, side, side / 2, opacity=0.15)
        + frame(79, y - side / 4, side, side / 2, thick=0.8)
        for y, side in ((30, 10), (48, 16), (70, 24))
    )
    return left + levels + arrow((84, 34), (84, 42), colour=BLUE) + arrow((86, 54), (86, 62), colour=BLUE)


def retinanet() -> str:
    """A feature pyramid, and a loss that easy anchors do not dominate."""
    curve = "M112 12 C116 30 122 38 148 38"
    focal = (
        line((112, 8), (112, 40), (150, 40))
        + f'<path d="{curve}" fill="none" stroke="{BLUE}" stroke-width="1.6"/>'
        + text(137, 20, "focal loss", colour=BLUE)
    )
    return image(_LEFT, _TOP) + _top_down() + focal + detections(_RIGHT, 50)


def _distances(x: float, y: float) -> str:
    """Return a point in the disc of an image at ``(x, y)`` with the distances to the four sides of its box."""
    px, py = x + 0.3 * SIDE, y + 0.68 * SIDE
    left, top = x + 0.12 * SIDE, y + 0.42 * SIDE
    right, bottom = left + 0.44 * SIDE, top + 0.44 * SIDE
    ends = ((left, py), (right, py), (px, top), (px, bottom))
    return dot(px, py, 2) + "".join(arrow((px, py), end, colour=BLUE) for end in ends)


def fcos() -> str:
    """Every location within an object predicts the distances to the sides of its box."""
    return image(_LEFT, _TOP) + _top_down() + detections(_RIGHT, _TOP) + _distances(_RIGHT, _TOP)


def yolox() -> str:
    """Each object is assigned to the cells with the best current predictions."""
    return (
        image(_LEFT, _TOP) + network(52, 50, 10, 40, 28) + grid(66, 30, 40, 6, marked=[19, 20, 26, 10])
        + object_box(66, 30, 0, 40) + object_box(66, 30, 1, 40) + text(86, 84, "best cells", colour=BLUE)
        + detections(_RIGHT + 2, _TOP, 42)
    )  # fmt: skip


def detr() -> str:
    """Queries attend to all cells of the map; each gives one box or nothing."""
    rows, cells = (29, 43, 57, 71), grid(53, 36, 28, 4)
    attended = ((56, 53, 29), (63, 60, 29), (77, 39, 43), (70, 46, 43), (56, 39, 57), (77, 53, 57), (63, 46, 71),
                (77, 60, 71))  # fmt: skip
    attention = "".join(
        line((x + 0.5, y + 0.5), (92, row), colour=BLUE, thick=0.6) + dot(x + 0.5, y + 0.5, 1.1)
        for x, y, row in attended
    )
    queries = "".join(area(92, row - 3.5, 7, 7, BLUE) for row in rows)
    answers = (
        arrow((100, 29), (_RIGHT + 20, 36), colour=GREEN) + arrow((100, 43), (_RIGHT + 4, 51), colour=ORANGE)
        + text(104, 60, "∅") + text(104, 74, "∅")
    )  # fmt: skip
    return image(_LEFT, _TOP) + cells + attention + queries + detections(_RIGHT, _TOP) + answers


# Families without a rung.


def generic(output: str) -> str:
    """Return a picture of an image, a network and ``output``."""
    return (
        image(_LEFT, _TOP)
        + arrow((50, 50), (60, 50))
        + network(63, 50, 30, 44, 24)
        + arrow((95, 50), (109, 50))
        + output
    )


def generic_segmentation() -> str:
    """An image, a network, a mask."""
    return generic(mask(_RIGHT, _TOP))


def generic_localization() -> str:
    """An image, a network, a box."""
    return generic(image(_RIGHT, _TOP) + object_box(_RIGHT, _TOP, 0))


def generic_detection() -> str:
    """An image, a network, boxes."""
    return generic(detections(_RIGHT, _TOP))
