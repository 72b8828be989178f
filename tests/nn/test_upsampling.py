"""Test upsampling layers: examples from the papers, odd sizes, and adjointness to the downsampling they invert."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.nn.upsampling import (
    BedOfNails,
    Bilinear,
    MaxUnpooling,
    Nearest,
    TransposedConvolution,
    Upsampling,
    bilinear_convolution,
    bilinear_kernel,
    build_upsampler,
    upsample_to,
)
from segdet.util.errors import UserError

NAMES = get_args(Upsampling)
SIZES = [(8, 8), (7, 9), (6, 5), (1, 1)]
SMALL = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])


def _pooled(size: tuple[int, int], factor: int = 2) -> tuple[Tensor, Tensor]:
    """Random maxima ``[2, 3, h, w]`` of a map of ``size``, in double precision, and their indices."""
    torch.manual_seed(0)
    large = torch.randn(2, 3, *size, dtype=torch.float64)
    return F.max_pool2d(large, factor, ceil_mode=True, return_indices=True)


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a * b).detach().sum())


# Examples from the papers.


def test_nearest_repeats_values_and_bed_of_nails_puts_them_at_the_top_left() -> None:
    repeated = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])
    nails = torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]])
    assert torch.equal(Nearest()(SMALL, (4, 4))[0, 0], repeated)
    assert torch.equal(BedOfNails()(SMALL, (4, 4))[0, 0], nails)


def test_max_unpooling_restores_the_positions_of_the_maxima() -> None:
    image = torch.tensor([[[[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]]]])
    maxima, indices = F.max_pool2d(image, 2, ceil_mode=True, return_indices=True)
    assert maxima.flatten().tolist() == [5, 6, 7, 8]
    assert indices.flatten().tolist() == [5, 2, 12, 15]
    expected = torch.tensor([[0.0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]])
    assert torch.equal(MaxUnpooling()(SMALL, (4, 4), indices)[0, 0], expected)


def test_a_transposed_convolution_sums_overlapping_kernels() -> None:
    layer = TransposedConvolution(1)
    with torch.no_grad():
        layer.weight.zero_()[0, 0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        line = layer(torch.tensor([[[[1.0, 10.0]]]]), (2, 4))[0, 0, 0]
    # The kernels 1 2 3 4 and, two pixels further, 10 20 30 40 sum to 1 2 13 24 30 40; the ends are cropped.
    assert line.tolist() == [2, 13, 24, 30]


def test_bilinear_kernel() -> None:
    row = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(bilinear_kernel(4), row[:, None] * row)
    assert torch.equal(bilinear_kernel(3)[1], torch.tensor([0.5, 1.0, 0.5]))
    assert torch.equal(bilinear_kernel(1), torch.ones(1, 1))
    assert bilinear_kernel(64).shape == (64, 64)
    torch.testing.assert_close(bilinear_kernel(64).sum(), torch.tensor(32.0**2))


# Bilinear interpolation as a transposed convolution.


def _equal_inside(kernel: Tensor, factor: int) -> bool:
    """Return whether a transposed convolution with this kernel interpolates bilinearly, apart from the border."""
    torch.manual_seed(0)
    features = torch.randn(2, 3, 6, 5)
    layer = TransposedConvolution(3, factor)
    with torch.no_grad():
        layer.weight.zero_()[torch.arange(3), torch.arange(3)] = kernel
        ours = layer(features, (6 * factor, 5 * factor))
    theirs = F.interpolate(features, scale_factor=float(factor), mode="bilinear", align_corners=False)
    border = factor // 2
    ours, theirs = (
        m[..., border : m.shape[2] - border, border : m.shape[3] - border] for m in (ours, theirs)
    )
    return torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_the_bilinear_kernel_interpolates_inside_the_border(factor: int) -> None:
    assert _equal_inside(bilinear_kernel(2 * factor - factor % 2), factor)


def test_other_kernels_do_not_interpolate() -> None:
    kernel = bilinear_kernel(4)
    assert not _equal_inside(kernel.roll(1, 0), 2)
    assert not _equal_inside(F.pad(bilinear_kernel(3), (0, 1, 0, 1)), 2)  # centred on a pixel
    assert not _equal_inside(kernel * 1.01, 2)


@pytest.mark.parametrize(("factor", "side"), [(2, 4), (2, 8), (3, 5), (8, 16), (32, 64)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_an_uncropped_layer_equals_the_upsampler_inside(factor: int, side: int, depthwise: bool) -> None:
    features = torch.randn(2, 3, 4, 5)
    layer = bilinear_convolution(3, factor, side, depthwise=depthwise)
    assert layer.weight.shape == (3, 1 if depthwise else 3, side, side) and layer.bias is None
    ours = layer(features)
    assert ours.shape == (2, 3, 3 * factor + side, 4 * factor + side)
    crop = (side - factor) // 2
    expected = TransposedConvolution(3, factor, depthwise=depthwise)(features, (4 * factor, 5 * factor))
    torch.testing.assert_close(ours[..., crop : crop + 4 * factor, crop : crop + 5 * factor], expected)
    cropped = bilinear_convolution(3, factor, side, padding=1, depthwise=depthwise)(features)
    torch.testing.assert_close(cropped, ours[..., 1:-1, 1:-1])


def test_only_the_border_of_one_pixel_differs() -> None:
    features = torch.ones(1, 1, 4, 4)
    difference = TransposedConvolution(1)(features, (8, 8)) - Bilinear()(features, (8, 8))
    assert torch.equal(difference[0, 0, 1:-1, 1:-1], torch.zeros(6, 6))
    assert (difference[0, 0, 0] < 0).all() and (difference[0, 0, :, -1] < 0).all()


def test_learned_and_frozen_start_as_the_same_function() -> None:
    features = torch.randn(2, 3, 4, 5)
    learned, frozen = build_upsampler("transposed", 3), build_upsampler("transposed_frozen", 3)
    torch.testing.assert_close(learned(features, (8, 9)), frozen(features, (8, 9)))
    assert [p.requires_grad for p in learned.parameters()] == [True]
    assert [p.requires_grad for p in frozen.parameters()] == [False]
    assert sum(p.numel() for p in learned.parameters()) == 3 * 3 * 16


# Adjoints: <Ax, g> = <x, A'g>, with A' implemented independently.


def _bilinear_matrix(size: int, factor: int = 2) -> Tensor:
    """Return the interpolation of a line as a matrix ``[size, ceil(size / factor)]``."""
    count = -(-size // factor)
    matrix = torch.zeros(size, count, dtype=torch.float64)
    for pixel in range(size):
        at = min(max((pixel + 0.5) / factor - 0.5, 0), count - 1)
        low = int(at)
        matrix[pixel, low] += 1 - (at - low)
        matrix[pixel, min(low + 1, count - 1)] += at - low
    return matrix


def _adjoint(name: str, g: Tensor, indices: Tensor, weight: Tensor | None) -> Tensor:
    if name == "bed_of_nails":
        return g[..., ::2, ::2]
    if name == "max_unpooling":
        return g.flatten(2).gather(2, indices.flatten(2)).view_as(indices)
    if name == "bilinear":
        rows, columns = _bilinear_matrix(g.shape[2]), _bilinear_matrix(g.shape[3])
        return rows.T @ g @ columns
    g = F.pad(g, (0, g.shape[3] % 2, 0, g.shape[2] % 2))  # cropped pixels have no gradient
    if name == "nearest":
        return 4 * F.avg_pool2d(g, 2)
    assert weight is not None
    return F.conv2d(g, weight, stride=2, padding=1, groups=3 // weight.shape[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_each_upsampler_is_the_adjoint_of_the_downsampling_that_it_inverts(
    name: Upsampling, size: tuple[int, int]
) -> None:
    x, indices = _pooled(size)
    layer = build_upsampler(name, 3).double()
    weight = next(layer.parameters(), None)
    if name == "transposed":
        torch.nn.init.normal_(weight)  # type: ignore[arg-type]
    up = layer(x, size, indices)
    assert up.shape == (2, 3, *size)
    g = torch.randn_like(up)
    with torch.no_grad():
        down = _adjoint(name, g, indices, weight)
    assert down.shape == x.shape
    assert _inner(up, g) == pytest.approx(_inner(x, down), rel=1e-12, abs=1e-12)
    # The backward pass of autograd is the same adjoint.
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x, size, indices), x, g)
    torch.testing.assert_close(gradient, down)


def test_a_wrong_adjoint_is_detected() -> None:
    x, indices = _pooled((7, 9))
    up = MaxUnpooling()(x, (7, 9), indices)
    g = torch.randn_like(up)
    assert _inner(up, g) != pytest.approx(_inner(x, g[..., ::2, ::2]), rel=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_a_transposed_convolution_is_the_gradient_of_a_convolution_by_its_input(
    size: tuple[int, int],
) -> None:
    x, _ = _pooled(size)
    layer = TransposedConvolution(3).double()
    torch.nn.init.normal_(layer.weight)
    image = torch.zeros(2, 3, *(side + side % 2 for side in size), dtype=torch.float64, requires_grad=True)
    F.conv2d(image, layer.weight.detach(), stride=2, padding=1).backward(x)
    assert image.grad is not None
    torch.testing.assert_close(layer(x, size).detach(), image.grad[..., : size[0], : size[1]])


# Sizes.


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_output_has_the_requested_size(name: Upsampling, factor: int) -> None:
    layer = build_upsampler(name, 3, factor).double()
    for size in [(12, 13), (11, 10)]:
        x, indices = _pooled(size, factor)
        assert layer(x, size, indices).shape == (2, 3, *size)


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_map_equals_the_cropped_even_map(name: Upsampling) -> None:
    x, _ = _pooled((8, 10))
    _, odd = _pooled((7, 9))
    rows, columns = odd // 9, odd % 9
    layer = build_upsampler(name, 3).double()
    whole = layer(x, (8, 10), rows * 10 + columns)
    assert torch.equal(layer(x, (7, 9), odd), whole[..., :7, :9])


def test_unpooling_restores_the_maxima_of_an_odd_map() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 2, 7, 5)
    maxima, indices = F.max_pool2d(image, 2, ceil_mode=True, return_indices=True)
    back = MaxUnpooling()(maxima, (7, 5), indices)
    assert torch.equal(back, torch.where(back > 0, image, 0.0))
    assert int((back > 0).sum()) == maxima.numel()


@pytest.mark.parametrize("name", NAMES)
def test_a_size_that_does_not_fit_the_features_is_an_error(name: Upsampling) -> None:
    x, indices = _pooled((8, 8))
    layer = build_upsampler(name, 3).double()
    for size in [(9, 8), (8, 6), (4, 4)]:
        with pytest.raises(ValueError, match=f"cannot be cropped to {size[0]}x{size[1]}"):
            layer(x, size, indices)


def test_max_unpooling_needs_indices_of_the_same_shape() -> None:
    x, indices = _pooled((8, 8))
    with pytest.raises(ValueError, match="needs the indices"):
        MaxUnpooling()(x, (8, 8))
    with pytest.raises(ValueError, match=r"need indices of the same shape, not \[2, 1, 4, 4\]"):
        MaxUnpooling()(x, (8, 8), indices[:, :1])


@pytest.mark.parametrize("name", NAMES)
def test_memory_format_and_precision_are_preserved(name: Upsampling) -> None:
    x, indices = _pooled((8, 10))
    last = torch.channels_last
    layer = build_upsampler(name, 3).to(torch.bfloat16, memory_format=last)  # type: ignore[call-overload]
    features = x.bfloat16().contiguous(memory_format=last)
    up = layer(features, (8, 10), indices.contiguous(memory_format=last))
    assert up.dtype == torch.bfloat16
    assert up.is_contiguous(memory_format=last)


def test_no_upsampler_draws_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name in NAMES:
        build_upsampler(name, 4)
    assert torch.equal(before, torch.get_rng_state())


def test_mistakes() -> None:
    with pytest.raises(
        UserError, match=r"bilinaer: must be one of nearest, bilinear, .*; did you mean bilinear"
    ):
        build_upsampler("bilinaer", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Nearest(0)


# Alignment of a coarse map with a finer one.


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (35, 50), (61, 31)])
@pytest.mark.parametrize("factor", [2, 4])
def test_a_coarse_map_is_aligned_with_the_fine_one(size: tuple[int, int], factor: int) -> None:
    """Upsampling a map of pixel positions, in pixels of the fine map, gives the positions of the fine pixels."""
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in size)
    coarse = [(torch.arange(-(-side // factor), dtype=torch.float64) + 0.5) * factor - 0.5 for side in size]
    positions = torch.stack(torch.meshgrid(*coarse, indexing="ij"))[None]
    large = upsample_to(positions, size, factor)
    assert large.shape == (1, 2, *size)
    inner = slice(factor, -factor)
    expected = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
    torch.testing.assert_close(large[..., inner, inner], expected[..., inner, inner], atol=1e-9, rtol=0)
    repeated = upsample_to(positions, size, factor, "nearest")
    assert (repeated - expected).abs().max() <= factor / 2
    stretched = F.interpolate(positions, size, mode="bilinear", align_corners=False)
    off = (stretched - expected)[..., inner, inner].abs().max()
    assert (off > 0.3) == any(side % factor for side in size)


def test_a_side_that_was_rounded_down_is_extended_by_replication() -> None:
    large = upsample_to(SMALL, (5, 4), 2, "nearest")
    assert torch.equal(large[0, 0, :, 0], torch.tensor([1.0, 1, 3, 3, 3]))
