"""Tests of pyramids and anchors against torchvision and the released code of Faster R-CNN, also in bfloat16."""

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from segdet.nn.float32 import output_float32
from segdet.nn.pyramid import ExtraLevels, FeaturePyramid, GridAnchors, RoundedAnchors, pad_to_stride


def test_the_nine_anchors_of_faster_rcnn() -> None:
    """The output of py-faster-rcnn's generate_anchors, with inclusive last pixels."""
    expected = [
        [-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199],
        [-56, -56, 71, 71], [-120, -120, 135, 135], [-248, -248, 263, 263],
        [-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359],
    ]  # fmt: skip
    anchors = RoundedAnchors()
    assert (anchors.cell_anchors[0] - torch.tensor([0, 0, 1, 1])).tolist() == expected
    images = ImageList(torch.zeros(2, 3, 48, 64), [(48, 64)] * 2)
    one, other = anchors(images, [torch.zeros(2, 8, 3, 4)])
    assert torch.equal(one, other)
    assert one.shape == (3 * 4 * 9, 4)
    # By row, column and anchor: here the second cell of the third row.
    shift = torch.tensor([16, 32, 16, 32])
    assert torch.equal(one[(2 * 4 + 1) * 9 :][:9], anchors.cell_anchors[0] + shift)


def test_anchors_equal_torchvisions_and_are_exact_in_bfloat16() -> None:
    sizes, ratios = [[16, 20], [32, 40]], [[0.5, 1.0, 2.0]] * 2
    ours, theirs = (
        GridAnchors(sizes, ratios),
        AnchorGenerator(tuple(map(tuple, sizes)), tuple(map(tuple, ratios))),
    )
    for size in ((64, 96), (64, 64), (64, 96)):
        images = ImageList(torch.zeros(2, 3, *size), [size] * 2)
        maps = [torch.zeros(2, 4, size[0] // stride, size[1] // stride) for stride in (4, 8)]
        expected = theirs(images, maps)
        for dtype in (torch.float32, torch.bfloat16):
            for mine, other in zip(ours(images, [each.to(dtype) for each in maps]), expected, strict=True):
                assert torch.equal(mine, other)


def test_extra_levels_equal_torchvisions() -> None:
    theirs, ours = LastLevelP6P7(8, 8), ExtraLevels(8, 2)
    ours.convolutions[0].load_state_dict(theirs.p6.state_dict())
    ours.convolutions[1].load_state_dict(theirs.p7.state_dict())
    p5 = torch.randn(1, 8, 12, 10)
    expected, _ = theirs([p5], [p5], ["p5"])
    found, names = ours([p5], [p5], ["p5"])
    assert len(set(names)) == 3
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


def test_maps_have_the_declared_strides() -> None:
    maps = [
        torch.randn(1, channels, 64 // stride, 96 // stride) for channels, stride in ((4, 4), (6, 8), (8, 16))
    ]
    for options in ({"extra_levels": 2}, {"subsampled": True, "norm": True}, {}):
        pyramid = FeaturePyramid([4, 6, 8], [4, 8, 16], 12, **options)  # type: ignore[arg-type]
        found = pyramid(maps)
        assert list(found) == [str(place) for place in range(len(pyramid.strides))]
        for features, stride in zip(found.values(), pyramid.strides, strict=True):
            assert features.shape == (1, 12, -(-64 // stride), -(-96 // stride))
        assert any(isinstance(module, nn.BatchNorm2d) for module in pyramid.modules()) == ("norm" in options)


def test_images_are_padded_to_whole_cells() -> None:
    images = torch.randn(2, 3, 30, 50)
    grid = pad_to_stride(images, 16)
    assert grid.tensors.shape == (2, 3, 32, 64)
    assert grid.image_sizes == [(30, 50)] * 2
    assert torch.equal(grid.tensors[:, :, :30, :50], images)
    assert not grid.tensors[:, :, 30:].any() and not grid.tensors[..., 50:].any()
    whole = torch.randn(1, 3, 32, 64)
    assert pad_to_stride(whole, 16).tensors is whole


def test_outputs_are_converted_to_float32() -> None:
    class Head(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
            return [x, x], {"a": x}

    head = Head()
    output_float32(head)
    listed, named = head(torch.zeros(1, dtype=torch.bfloat16))
    assert {each.dtype for each in (*listed, *named.values())} == {torch.float32}
