"""Sliding windows: cutting them out of images, and running their classifier on all of them at once.

A classifier that is applied to every window of an image computes the same things again and again where
windows overlap. `DenseWindows` turns it into a network that computes each of them once and yet says of every
window what the classifier says of it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.util.errors import UserError, check_choice

Pair = tuple[int, int]
"""Height or vertical first."""

Mode = Literal["crops", "dense"]
"""How a family of sliding windows looks at an image: window by window, or at all of them in one pass."""

Method = Literal["auto", "fragments", "dilation", "shift"]


def pair(value: int | Sequence[int]) -> Pair:
    """One number for both directions, or two as they are."""
    if isinstance(value, int):
        return value, value
    vertical, horizontal = value
    return vertical, horizontal


# Windows.


def grid(size: Sequence[int], window: int | Sequence[int], stride: int | Sequence[int]) -> Pair:
    """How many windows there are in a column and in a row: all that lie within an image of ``size``.

    The first is at the top left; 0 where the image is smaller than a window.
    """
    counts = [
        max(0, (whole - side) // step + 1)
        for whole, side, step in zip(size, pair(window), pair(stride), strict=True)
    ]
    return counts[0], counts[1]


def all_windows(images: Tensor, window: int | Sequence[int], stride: int | Sequence[int]) -> Tensor:
    """All windows of images ``[B, C, H, W]`` as a view ``[B, rows, columns, C, h, w]``: nothing is copied."""
    (height, width), (down, right) = pair(window), pair(stride)
    return images.unfold(2, height, down).unfold(3, width, right).permute(0, 2, 3, 1, 4, 5)


def crop(images: Tensor, index: Tensor, tops: Tensor, lefts: Tensor, window: int | Sequence[int]) -> Tensor:
    """Copies windows out of images ``[B, C, H, W]`` to ``[N, C, h, w]``, channels last in memory.

    Args:
        images: Copied as a whole unless they are channels last in memory.
        index: int64 ``[N]``, the image of each window.
        tops: int64 ``[N]``, its first row.
        lefts: int64 ``[N]``, its first column.
        window: Its size, which must fit into the image from there.
    """
    high, wide = pair(window)
    pixels = images.permute(0, 2, 3, 1).contiguous()
    count, height, width, channels = pixels.shape
    # A window's row is one run of memory with channels last, and is copied as such.
    runs = pixels.as_strided(
        (count, height - high + 1, width - wide + 1, high, wide * channels),
        (height * width * channels, width * channels, channels, width * channels, 1),
    )
    return runs[index, tops, lefts].unflatten(-1, (wide, channels)).permute(0, 3, 1, 2)


def batches(
    images: Tensor, window: int | Sequence[int], stride: int | Sequence[int], size: int
) -> Iterator[Tensor]:
    """All windows of images ``[B, C, H, W]``, image by image and row by row, in batches of up to ``size``."""
    rows, columns = grid(images.shape[-2:], window, stride)
    down, right = pair(stride)
    images = images.contiguous(memory_format=torch.channels_last)
    total = len(images) * rows * columns
    for start in range(0, total, size):
        number = torch.arange(start, min(start + size, total), device=images.device)
        place = number % (rows * columns)
        yield crop(
            images, number // (rows * columns), place // columns * down, place % columns * right, window
        )


# The classifier of windows.


def window_features(
    window: int,
    channels: Sequence[int],
    kernels: Sequence[int],
    pools: Sequence[int],
    strides: Sequence[int] | None = None,
) -> tuple[list[nn.Module], int]:
    """The layers of a classifier of windows that come before its linear ones: stages without any padding.

    A stage is a convolution, normalization, ReLU and, unless its pool is 1, max pooling.

    Args:
        window: The side of the windows.
        channels: Of the stages.
        kernels: The side of each stage's convolution.
        pools: The side and stride of each stage's pooling.
        strides: Of each stage's convolution; 1 when null.

    Returns:
        The layers, and how many numbers of a window they leave.

    Raises:
        UserError: If the stages do not fit each other or the window.
    """
    if not len(channels) == len(kernels) == len(pools):
        raise UserError(
            f"--model.channels, --model.kernels and --model.pools: {len(channels)}, {len(kernels)} and {len(pools)} "
            "numbers; give each one a stage"
        )
    strides = [1] * len(channels) if strides is None else strides
    if len(strides) != len(channels):
        raise UserError(
            f"--model.conv_strides: {len(strides)} numbers for {len(channels)} stages; give one a stage"
        )
    layers: list[nn.Module] = []
    side, before = window, 3
    for stage, (width, kernel, pool, stride) in enumerate(
        zip(channels, kernels, pools, strides, strict=True)
    ):
        if min(width, kernel, pool, stride) < 1 or side < kernel or (side - kernel) // stride + 1 < pool:
            raise UserError(
                f"--model.window {window}: {side} pixels are left before stage {stage + 1}, too few for a kernel of "
                f"{kernel} and pooling by {pool}; take a larger window, or fewer or smaller stages"
            )
        layers += [
            nn.Conv2d(before, width, kernel, stride, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        ]  # fmt: skip
        if pool > 1:
            layers.append(nn.MaxPool2d(pool))
        side, before = ((side - kernel) // stride + 1) // pool, width
    return layers, before * side * side


# The classifier of windows as one network.


class DenseWindows(nn.Module):
    """A classifier of windows as a fully convolutional network: its answers for all windows in one pass.

    The classifier is a chain of unpadded convolutions, pooling, pointwise layers, flatten and linear layers. A
    linear layer behind ``C x h x w`` features is a convolution of ``h x w`` (Long, Shelhamer, Darrell, CVPR
    2015, section 3.1; Sermanet et al., OverFeat, ICLR 2014, section 3.5), so that the whole image can go
    through the chain at once. That gives the windows at the chain's own stride, the product of its layers'
    strides. For windows that lie closer (or at any other stride) there are three ways, all of them exact:

    - ``shift``: shift-and-stitch. The image is shifted, by each offset that the strides leave out, and
      everything is computed anew. The first layers are computed as often as the last.
    - ``dilation``: a trous. Strides are taken out and the layers behind them are dilated instead. Nothing is
      computed twice.
    - ``fragments``: max-pooling fragments (Giusti et al., ICIP 2013; Masci et al., ICIP 2013). Where a layer's
      stride would leave windows out, its output is split into fragments, one an offset, and each goes
      through the rest alone. Nothing is computed twice, either, and every convolution stays dense.

    Layers whose stride divides the wanted one keep it in any case: of three poolings of 2, a stride of 4
    concerns the last alone, and with a multiple of 8 all ways are the same.

    ``auto`` dilates while the chain's strides leave out up to 4 offsets in each direction, and takes fragments beyond.
    With 64 px windows on 360x480, 16, 32 and 64 channels and three poolings of 2, the processor milliseconds of
    a pass were (one thread, float32, channels last, AMD EPYC with AVX2, busy with other work; medians of 3 turns,
    which differ by a tenth from run to run):

    ====== ========= ======== =====
    stride fragments dilation shift
    ====== ========= ======== =====
    4           52.6     47.8   136
    2          169      148     570
    1          669      668    2435
    ====== ========= ======== =====

    Dilated convolutions are not slow there as long as they are few places apart; many small fragments cost more calls
    and copies. At stride 1 the two are level, and fragments hold but a part of the wide maps in memory at a time.

    The weights are the classifier's own, not copies: what trains or loads the one changes the other, and what puts
    other layers into it, as synchronized batch normalization does, puts them here. A linear
    layer's weights are looked at as a convolution's, and batch normalization with fixed statistics is
    multiplied into the convolution before it, anew in each pass. Both this network and the classifier
    must be in evaluation mode to be equal.

    Args:
        classifier: The chain, ``nn.Sequential`` of layers and further ``nn.Sequential``; maps windows
            ``[N, C, h, w]`` to ``[N, K]``.
        window: The windows' size.
        stride: From window to window; null for the chain's own.
        method: See above.

    Attributes:
        method: The one that was chosen.
        own_stride: The chain's own stride, vertical and horizontal.

    Raises:
        UserError: If a layer cannot be converted so that the answers are equal: it is padded, rounds up
            (``ceil_mode``) where that matters, normalizes by what is in the window, or is not known.
    """

    def __init__(
        self,
        classifier: nn.Sequential | Sequence[nn.Module],
        window: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        method: Method = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(classifier, nn.Sequential):
            if isinstance(classifier, nn.Module):
                raise UserError(
                    f"{type(classifier).__name__}: cannot be converted to run on all windows at once; "
                    "give an nn.Sequential of its layers"
                )
            classifier = nn.Sequential(*classifier)
        self.classifier = classifier
        self.window = pair(window)
        self._read()
        self.stride = self.own_stride if stride is None else pair(stride)
        if min(self.stride) < 1:
            raise UserError(f"stride of windows {self.stride}: give at least 1")
        check_choice("method of dense windows", method, Method)
        if method == "auto":
            offsets = (own // math.gcd(own, r) for own, r in zip(self.own_stride, self.stride, strict=True))
            method = "dilation" if max(offsets) <= 4 else "fragments"
        self.method = method
        self._schedule()

    def _read(self) -> None:
        """Takes the classifier's layers as they are now."""
        self._layers = [layer for _, layer in _leaves(self.classifier)]
        self._steps = _reordered(_read(self.classifier, self.window))
        vertical, horizontal = ([step.stride[axis] for step in self._steps] for axis in (0, 1))
        self.own_stride = math.prod(vertical), math.prod(horizontal)

    def _schedule(self) -> None:
        schedules = [_schedule(self._steps, axis, self.stride[axis], self.method) for axis in (0, 1)]
        self._turns = [_Turn(vertical, horizontal) for vertical, horizontal in zip(*schedules, strict=True)]

    def _follow(self) -> None:
        """Reads the classifier anew if other layers have taken the place of some."""
        layers = [layer for _, layer in _leaves(self.classifier)]
        if list(map(id, layers)) != list(map(id, self._layers)):
            self._read()
            self._schedule()

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` to the classifier's answers ``[B, K, rows, columns]``, see `grid`.

        Raises:
            UserError: If the images are smaller than a window.
        """
        self._follow()
        counts = grid(images.shape[-2:], self.window, self.stride)
        if 0 in counts:
            raise UserError(
                f"image of {images.shape[-2]}x{images.shape[-1]} (height x width): smaller than a window of "
                f"{self.window[0]}x{self.window[1]}; pad it, or take smaller windows"
            )
        # What no window reaches is left out.
        height, width = (
            (n - 1) * step + side for n, step, side in zip(counts, self.stride, self.window, strict=True)
        )
        features = images[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
        weights = [_weights(step) if step.kind == "convolution" else None for step in self._steps]
        return self._rest(features, 0, counts, weights, owned=False)

    def _rest(
        self,
        features: Tensor,
        first: int,
        counts: Pair,
        weights: list[tuple[Tensor, Tensor | None] | None],
        owned: bool,
    ) -> Tensor:
        """The answers ``[B, K, *counts]`` from what goes into step ``first``.

        ``owned`` tells that nobody else holds the features, so that they may be written over.
        """
        for index in range(first, len(self._steps)):
            step, turn = self._steps[index], self._turns[index]
            if not turn.splits:
                features = _applied(features, step, turn, weights[index], owned)
                # What looks at one place alone, or pools but one, may give back what it was given.
                owned = owned or step.kind == "convolution" or step.kernel != (1, 1)
                continue
            # One fragment after the other: the cache holds one of them where it would not hold all.
            answers: Tensor | None = None
            for (top, left), fragment in _fragments(features, step, turn, weights[index]):
                rows, columns = turn.vertical.phases, turn.horizontal.phases
                part = (-(-(counts[0] - top) // rows), -(-(counts[1] - left) // columns))
                if min(part) < 1:
                    continue  # fewer windows than offsets
                of_fragment = self._rest(fragment, index + 1, part, weights, owned=False)
                if answers is None:
                    answers = of_fragment.new_empty((*of_fragment.shape[:2], *counts)).contiguous(
                        memory_format=torch.channels_last
                    )
                answers[:, :, top::rows, left::columns] = of_fragment
            assert answers is not None
            return answers
        return features[:, :, : counts[0], : counts[1]]


# Reading the classifier.

BatchNorm = nn.BatchNorm2d | nn.BatchNorm1d | nn.SyncBatchNorm


@dataclass(frozen=True)
class _Step:
    """A layer as the conversion sees it.

    Attributes:
        layer: The classifier's own.
        kind: How to apply it; ``pointwise`` is everything that looks at one place.
        kernel: The places that it looks at; with a linear layer those that were flattened.
        stride: 1 where a window gives it room for one output only: then no stride is ever taken.
        dilation: From one place of the kernel to the next.
        norm: The batch normalization behind it, if it can be multiplied into the weights.
    """

    layer: nn.Module
    kind: Literal["convolution", "max", "average", "pointwise"]
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    norm: BatchNorm | None = None


_ELEMENTWISE = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink,
    nn.Softplus, nn.Softsign, nn.Threshold, nn.RReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout,
)  # fmt: skip


def _read(classifier: nn.Sequential, window: Pair) -> list[_Step]:
    """The steps of a classifier of windows; the first is the identity, behind which the image can be shifted."""
    steps = [_Step(nn.Identity(), "pointwise")]
    size, channels, flat = window, None, False
    for name, layer in _leaves(classifier):
        where = f"layer {name} ({type(layer).__name__}) of the classifier of windows"
        if flat and isinstance(
            layer, nn.Conv2d | nn.modules.pooling._MaxPoolNd | nn.modules.pooling._AvgPoolNd
        ):
            raise UserError(f"{where}: it stands behind a flatten; put it before")
        if isinstance(layer, nn.Conv2d):
            _refuse_padding(layer, where)
            step = _Step(
                layer, "convolution", pair(layer.kernel_size), pair(layer.stride), pair(layer.dilation)
            )
            channels = layer.out_channels
        elif isinstance(layer, nn.Linear):
            if not flat:
                raise UserError(f"{where}: there is no nn.Flatten before it; put one there")
            if layer.in_features % math.prod(size) or channels not in (
                None,
                layer.in_features // math.prod(size),
            ):
                raise UserError(
                    f"{where}: it takes {layer.in_features} numbers, where a window of {window[0]}x{window[1]} gives "
                    f"{'' if channels is None else f'{channels}x'}{size[0]}x{size[1]}; mend one of the two"
                )
            step = _Step(layer, "convolution", size)
            channels = layer.out_features
        elif isinstance(layer, nn.MaxPool2d):
            _refuse_padding(layer, where)
            if layer.return_indices:
                raise UserError(
                    f"{where}: it returns indices, for which there is no use; leave return_indices out"
                )
            step = _Step(layer, "max", pair(layer.kernel_size), pair(layer.stride), pair(layer.dilation))
            _refuse_ceiling(layer, step, size, where)
        elif isinstance(layer, nn.AvgPool2d):
            _refuse_padding(layer, where)
            step = _Step(layer, "average", pair(layer.kernel_size), pair(layer.stride))
            _refuse_ceiling(layer, step, size, where)
        elif isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            step = _fixed_pooling(layer, size, where)
        elif isinstance(layer, nn.Flatten):
            if flat or (layer.start_dim, layer.end_dim) not in ((1, -1), (1, 3)):
                raise UserError(
                    f"{where}: only flattening all but the first dimension, once, can be converted"
                )
            flat = True
            continue
        else:
            _refuse_unknown(layer, flat, size, where)
            before = steps[-1]
            if isinstance(layer, BatchNorm) and before.kind == "convolution" and before.norm is None:
                steps[-1] = replace(before, norm=layer)
            elif not isinstance(layer, nn.Identity):
                steps.append(_Step(layer, "pointwise"))
            continue
        rooms = [(room - span) for room, span in zip(size, _spans(step), strict=True)]
        if min(rooms) < 0:
            raise UserError(
                f"{where}: it looks at {_spans(step)[0]}x{_spans(step)[1]}, but of a window of "
                f"{window[0]}x{window[1]} only {size[0]}x{size[1]} are left there; take larger windows"
            )
        size = rooms[0] // step.stride[0] + 1, rooms[1] // step.stride[1] + 1
        taken = [1 if n == 1 else r for n, r in zip(size, step.stride, strict=True)]
        steps.append(replace(step, stride=pair(taken)))
    if size != (1, 1):
        raise UserError(
            f"the classifier of windows of {window[0]}x{window[1]} ends with {size[0]}x{size[1]} places instead of "
            "one answer a window; end it with nn.Flatten and nn.Linear, or take other windows"
        )
    return steps


def _leaves(module: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, layer in module.named_children():
        if isinstance(layer, nn.Sequential):
            yield from _leaves(layer, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer


def _spans(step: _Step) -> Pair:
    """From the first place that a step looks at to the last."""
    return tuple((k - 1) * d + 1 for k, d in zip(step.kernel, step.dilation, strict=True))  # type: ignore[return-value]


def _refuse_padding(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, where: str) -> None:
    padding = layer.padding
    if padding == "valid" or (padding == "same" and set(pair(layer.kernel_size)) == {1}):
        return
    if isinstance(padding, str) or any(pair(padding)):
        raise UserError(
            f"{where}: padding={padding!r} puts zeros around each window, where the image goes on in the whole; "
            "take padding=0"
        )


def _refuse_ceiling(layer: nn.MaxPool2d | nn.AvgPool2d, step: _Step, size: Pair, where: str) -> None:
    rests = [(n - span) % r for n, span, r in zip(size, _spans(step), step.stride, strict=True)]
    if layer.ceil_mode and any(rests):
        raise UserError(
            f"{where}: ceil_mode pools beyond the edge of {size[0]}x{size[1]}, where a window ends and the image does "
            "not; take ceil_mode=False, or windows that divide evenly"
        )


def _fixed_pooling(layer: nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d, size: Pair, where: str) -> _Step:
    """A window's size is fixed, and so adaptive pooling is pooling, if all its cells are of one size."""
    wanted = layer.output_size
    both = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    cells = [n if w is None else w for n, w in zip(size, both, strict=True)]
    if any(n % w for n, w in zip(size, cells, strict=True)):
        raise UserError(
            f"{where}: {cells[0]}x{cells[1]} cells over {size[0]}x{size[1]} places are not of one size; take a number "
            "that divides, or leave the layer out"
        )
    kernel = size[0] // cells[0], size[1] // cells[1]
    return _Step(layer, "max" if isinstance(layer, nn.AdaptiveMaxPool2d) else "average", kernel, kernel)


def _refuse_unknown(layer: nn.Module, flat: bool, size: Pair, where: str) -> None:
    """Lets pass what does the same at every place, whatever lies around it."""
    unmixed = flat and size != (1, 1)  # flattened, but not yet seen by a linear layer
    if isinstance(layer, BatchNorm):
        if layer.running_mean is None:
            raise UserError(
                f"{where}: it keeps no running statistics, so each window has its own; let it track them"
            )
        if not unmixed:
            return
    elif isinstance(layer, nn.Softmax | nn.LogSoftmax):
        if not unmixed and (layer.dim == 1 or (flat and layer.dim == -1)):
            return
    elif isinstance(layer, nn.PReLU):
        if not unmixed or layer.num_parameters == 1:
            return
    elif isinstance(layer, nn.LocalResponseNorm):
        if not flat:
            return
    elif isinstance(layer, _ELEMENTWISE):
        return
    raise UserError(
        f"{where}: a layer of its kind cannot be converted at its place so that each window's answer is the same; "
        "there may be unpadded convolutions, max and average pooling, batch normalization, activations, dropout, "
        "flatten and linear layers"
    )


def _reordered(steps: list[_Step]) -> list[_Step]:
    """Rising activations behind the max pooling that follows them, where there is less to do: max(f) = f(max)."""
    for index in range(len(steps) - 1):
        layer = steps[index].layer
        rises = isinstance(layer, nn.ReLU | nn.Hardtanh | nn.Sigmoid | nn.Tanh) or (
            isinstance(layer, nn.LeakyReLU) and layer.negative_slope >= 0
        )
        if rises and steps[index + 1].kind == "max":
            steps[index], steps[index + 1] = steps[index + 1], steps[index]
    return steps


# Planning the pass.


@dataclass(frozen=True)
class _Turn1d:
    """How a step is done in the pass over the whole image, in one direction.

    Attributes:
        stride: In places of the features that go in.
        dilation: By how much the step's own dilation is multiplied.
        phases: The fragments that its output is split into.
        offset: From the first place of a fragment to that of the next.
        increment: From one place of a fragment to its next one.
    """

    stride: int = 1
    dilation: int = 1
    phases: int = 1
    offset: int = 0
    increment: int = 1


@dataclass(frozen=True)
class _Turn:
    """How a step is done, in both directions."""

    vertical: _Turn1d
    horizontal: _Turn1d

    @property
    def splits(self) -> bool:
        """Whether only a part of the output's places goes on together."""
        return any(turn.phases > 1 or turn.increment > 1 for turn in (self.vertical, self.horizontal))

    @property
    def stride(self) -> Pair:
        return self.vertical.stride, self.horizontal.stride

    def dilation_of(self, step: _Step) -> Pair:
        """The kernel's dilation in the pass."""
        return step.dilation[0] * self.vertical.dilation, step.dilation[1] * self.horizontal.dilation

    def offsets(self) -> Iterator[tuple[Pair, tuple[slice, slice]]]:
        """The fragments: which window is the first of each, and its places."""
        for top in range(self.vertical.phases):
            for left in range(self.horizontal.phases):
                yield (
                    (top, left),
                    (
                        slice(top * self.vertical.offset, None, self.vertical.increment),
                        slice(left * self.horizontal.offset, None, self.horizontal.increment),
                    ),
                )


def _schedule(steps: list[_Step], axis: int, wanted: int, method: Method) -> list[_Turn1d]:
    """The pass in one direction, for windows at a stride of ``wanted`` pixels.

    Three lengths in pixels are followed through the steps: ``own``, from place to place of the features of one
    window; ``spacing``, from place to place of the features computed here, which divides it; and ``wanted``, from
    window to window of the same fragment, which is a multiple of ``spacing``.
    """
    looks = [i for i, step in enumerate(steps) if step.kernel[axis] > 1 or step.stride[axis] > 1]
    last = looks[-1] if looks else 0
    whole = math.prod(step.stride[axis] for step in steps)
    own = spacing = 1
    turns: list[_Turn1d] = []
    for index, step in enumerate(steps):
        if index == 0 and (method == "shift" or not looks):
            phases = whole // math.gcd(wanted, whole)
            turns.append(_Turn1d(phases=phases, offset=wanted, increment=1 if looks else wanted))
            wanted *= phases
            spacing = spacing if looks else wanted
            continue
        dilation = own // spacing if index <= last else 1
        own *= step.stride[axis]
        # Behind the last that looks at neighbours only the windows' own places are needed.
        after = wanted if index >= last else math.gcd(wanted, own)
        stride, spacing = after // spacing, after
        if method == "fragments" and index < last and spacing < own:
            phases = own // spacing
            turns.append(_Turn1d(stride, dilation, phases, wanted // spacing, phases))
            wanted *= phases
            spacing = own
        else:
            turns.append(_Turn1d(stride, dilation))
    return turns


# The pass.


def _weights(step: _Step) -> tuple[Tensor, Tensor | None]:
    """Weights and bias of a convolution or linear layer, with the normalization behind it multiplied in."""
    layer, norm = step.layer, step.norm
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if isinstance(layer, nn.Linear):
        weight = weight.view(len(weight), -1, *step.kernel)
    if norm is not None and not norm.training:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight
        shift = (0 if bias is None else bias) - norm.running_mean
        weight = weight * scale.view(-1, 1, 1, 1)
        bias = shift * scale + norm.bias if norm.affine else shift * scale
    return weight.contiguous(memory_format=torch.channels_last), bias


def _applied(
    features: Tensor, step: _Step, turn: _Turn, weights: tuple[Tensor, Tensor | None] | None, owned: bool
) -> Tensor:
    """The output of a step on features ``[B, C, h, w]`` at the turn's stride and dilation, not yet split."""
    layer, dilation = step.layer, turn.dilation_of(step)
    if step.kind == "convolution":
        assert weights is not None
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        features = F.conv2d(features, *weights, turn.stride, 0, dilation, groups)
        return _normalized(features, step.norm) if step.norm is not None and step.norm.training else features
    if step.kind == "max":
        if _without_indices(features):
            features = _reduced(features, 0, step.kernel[0], turn.stride[0], dilation[0], torch.maximum)
            return _reduced(features, 1, step.kernel[1], turn.stride[1], dilation[1], torch.maximum)
        return F.max_pool2d(features, step.kernel, turn.stride, 0, dilation)
    if step.kind == "average":
        divisor = getattr(layer, "divisor_override", None) or math.prod(step.kernel)
        if dilation == (1, 1):
            return F.avg_pool2d(features, step.kernel, turn.stride, divisor_override=divisor)
        features = _reduced(features, 0, step.kernel[0], turn.stride[0], dilation[0], torch.add)
        return _reduced(features, 1, step.kernel[1], turn.stride[1], dilation[1], torch.add) / divisor
    if isinstance(layer, nn.ReLU):
        return features.relu_() if owned else features.relu()
    if isinstance(layer, BatchNorm):
        return _normalized(features, layer)
    if isinstance(layer, nn.Softmax | nn.LogSoftmax):
        return features.softmax(1) if isinstance(layer, nn.Softmax) else features.log_softmax(1)
    if getattr(layer, "inplace", False) and not owned:
        features = features.clone()
    return layer(features)


def _normalized(features: Tensor, norm: BatchNorm) -> Tensor:
    """Batch normalization of features ``[B, C, h, w]``, also by a layer that expects ``[N, C]``."""
    if not isinstance(norm, nn.BatchNorm1d):
        return norm(features)
    flat = norm(features.permute(0, 2, 3, 1).flatten(0, 2))
    return flat.view(features.shape[0], *features.shape[2:], -1).permute(0, 3, 1, 2)


def _without_indices(features: Tensor) -> bool:
    """Whether to pool by comparing neighbours.

    torch's max pooling also finds where each maximum came from, which only the gradient needs; on a CPU a
    chain of elementwise maxima takes a fraction of its time.
    """
    return not features.is_cuda and not (torch.is_grad_enabled() and features.requires_grad)


def _reduced(
    features: Tensor,
    axis: int,
    kernel: int,
    stride: int,
    dilation: int,
    operation: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Pools in one direction with an elementwise operation."""
    dim = axis + 2
    if kernel == 1:
        return features if stride == 1 else _strided(features, dim, 0, None, stride)
    room = features.shape[dim] - (kernel - 1) * dilation
    return reduce(
        operation, (_strided(features, dim, k * dilation, k * dilation + room, stride) for k in range(kernel))
    )


def _strided(features: Tensor, dim: int, start: int, end: int | None, step: int) -> Tensor:
    return features[(slice(None),) * dim + (slice(start, end, step),)]


def _fragments(
    features: Tensor, step: _Step, turn: _Turn, weights: tuple[Tensor, Tensor | None] | None
) -> Iterator[tuple[Pair, Tensor]]:
    """The output of a step in fragments, each with the number of its first row and column of windows."""
    if step.kind == "max" and _without_indices(features):
        # Horizontally, each fragment's maxima are computed by themselves instead of being gathered afterwards.
        dilation = turn.dilation_of(step)
        columns = _reduced(features, 0, step.kernel[0], turn.stride[0], dilation[0], torch.maximum)
        horizontal = turn.horizontal
        for first, (rows, places) in turn.offsets():
            part = columns[:, :, rows, places.start * horizontal.stride :]
            yield (
                first,
                _reduced(
                    part,
                    1,
                    step.kernel[1],
                    horizontal.stride * horizontal.increment,
                    dilation[1],
                    torch.maximum,
                ),
            )
        return
    features = _applied(features, step, turn, weights, owned=False)
    for first, (rows, places) in turn.offsets():
        yield first, features[:, :, rows, places].contiguous(memory_format=torch.channels_last)
