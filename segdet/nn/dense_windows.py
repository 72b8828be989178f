"""Dense evaluation of a window classifier: all windows of an image in one pass.

Evaluating a classifier on every window computes the same features again wherever windows overlap. `DensePass`
computes each feature once and returns, for every window, the classifier's output on that window alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.nn.window_layers import BatchNorm, Step, leaves, max_before_activation, read_layers
from segdet.nn.windows import Pair, pair, window_grid
from segdet.util.errors import UserError, check_choice, check_range

Method = Literal["auto", "fragments", "dilation", "shift"]


class DensePass(nn.Module):
    """A window classifier as a fully convolutional network: the outputs of all windows in one pass.

    The module has no weights of its own: ``forward`` receives the classifier. A network that registers both therefore
    has each weight once in its state.

    The classifier is a chain of unpadded convolutions, pooling, pointwise layers, flatten and linear layers. A
    linear layer behind ``C x h x w`` features is a convolution of ``h x w`` (Long, Shelhamer, Darrell, CVPR
    2015, section 3.1; Sermanet et al., OverFeat, ICLR 2014, section 3.5), so that the whole image can go
    through the chain at once. One pass evaluates the windows at the chain's own stride, the product of its layers'
    strides. For all other strides there are three methods, all of them exact:

    - ``shift``: shift-and-stitch. The image is shifted by each offset that the strides skip, and everything is
      computed again. The first layers are computed as many times as the last.
    - ``dilation``: the à-trous method. Strides are removed and the layers behind them are dilated instead. Nothing is
      computed twice.
    - ``fragments``: max-pooling fragments (Giusti et al., ICIP 2013; Masci et al., ICIP 2013). Where a layer's
      stride would skip windows, its output is split into fragments, one per offset, and each goes through the
      remaining layers separately. Nothing is computed twice, and every convolution stays dense.

    A layer is unchanged in every method if its stride divides the requested stride. With three poolings of 2, a stride
    of 4 changes only the last; for multiples of 8 all methods are the same.

    ``auto`` uses dilation if the chain's strides skip up to 4 offsets in each direction, else fragments. The table
    shows the milliseconds of one pass for 64 px windows on 360x480, with 16, 32 and 64 channels and three poolings of
    2. The times are medians of 3 runs, which differ by a tenth. They were measured with one thread in float32, channels
    last, on an AMD EPYC with AVX2 that also ran other processes:

    ====== ========= ======== =====
    stride fragments dilation shift
    ====== ========= ======== =====
    4           52.6     47.8   136
    2          169      148     570
    1          669      668    2435
    ====== ========= ======== =====

    Convolutions with small dilations are fast, whereas many small fragments cost more calls and copies. At stride 1 the
    two are equally fast, and fragments hold only a part of the wide maps in memory at a time.

    Layers that are replaced in the classifier, for example by synchronized batch normalization, are replaced here too.
    The weights of a linear layer are viewed as those of a convolution, and batch normalization with fixed statistics is
    folded into the convolution before it in each pass. The outputs equal those of the classifier in evaluation mode
    only.

    Args:
        classifier: The chain, an ``nn.Sequential`` of layers and further ``nn.Sequential``; maps windows
            ``[N, C, h, w]`` to ``[N, K]``.
        window: The size of the windows.
        stride: The distance between windows; null for the chain's own stride.
        method: See above.

    Attributes:
        method: The method that is used.
        own_stride: The chain's own stride, vertical and horizontal.

    Raises:
        UserError: If a layer cannot be converted with equal outputs: it is padded, pools beyond the window
            (``ceil_mode``), normalizes by the content of the window, or is not supported.
    """

    def __init__(
        self,
        classifier: nn.Sequential,
        window: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        method: Method = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(classifier, nn.Sequential):
            raise UserError(
                f"{type(classifier).__name__}: cannot be converted to evaluate all windows at once; "
                "give an nn.Sequential of its layers"
            )
        self.window = pair(window)
        self._read(classifier)
        self.stride = self.own_stride if stride is None else pair(stride)
        check_range("stride of windows", self.stride, least=1)
        check_choice("method of dense windows", method, Method)
        if method == "auto":
            offsets = (own // math.gcd(own, r) for own, r in zip(self.own_stride, self.stride, strict=True))
            method = "dilation" if max(offsets) <= 4 else "fragments"
        self.method = method
        self._plan_steps()

    def _read(self, classifier: nn.Sequential) -> None:
        self._layers = [layer for _, layer in leaves(classifier)]
        self._steps = max_before_activation(read_layers(classifier, self.window))
        vertical, horizontal = ([step.stride[axis] for step in self._steps] for axis in (0, 1))
        self.own_stride = math.prod(vertical), math.prod(horizontal)

    def _plan_steps(self) -> None:
        plans = [_plan_axis(self._steps, axis, self.stride[axis], self.method) for axis in (0, 1)]
        self._plans = [_StepPlan(vertical, horizontal) for vertical, horizontal in zip(*plans, strict=True)]

    def _update(self, classifier: nn.Sequential) -> None:
        """Convert the classifier again if some of its layers were replaced."""
        layers = [layer for _, layer in leaves(classifier)]
        if list(map(id, layers)) != list(map(id, self._layers)):
            self._read(classifier)
            self._plan_steps()

    def forward(self, images: Tensor, classifier: nn.Sequential) -> Tensor:
        """Map images ``[B, C, H, W]`` to the outputs ``[B, K, rows, columns]`` of all windows (see `window_grid`).

        Args:
            images: Normalized images.
            classifier: The classifier given to ``__init__``, with its current weights.

        Raises:
            UserError: If the images are smaller than a window.
        """
        self._update(classifier)
        counts = window_grid(images.shape[-2:], self.window, self.stride)
        if 0 in counts:
            raise UserError(
                f"image of {images.shape[-2]}x{images.shape[-1]} (height x width): smaller than a window of "
                f"{self.window[0]}x{self.window[1]}; pad it, or use smaller windows"
            )
        height, width = (
            (n - 1) * step + side for n, step, side in zip(counts, self.stride, self.window, strict=True)
        )
        features = images[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
        weights = [_weights(step) if step.kind == "convolution" else None for step in self._steps]
        return self._run(features, 0, counts, weights, in_place=False)

    def _run(
        self,
        features: Tensor,
        first: int,
        counts: Pair,
        weights: list[tuple[Tensor, Tensor | None] | None],
        in_place: bool,
    ) -> Tensor:
        """Return the outputs ``[B, K, *counts]`` from the input of step ``first``, overwritten if ``in_place``."""
        for index in range(first, len(self._steps)):
            step, plan = self._steps[index], self._plans[index]
            if not plan.splits:
                features = _apply(features, step, plan, weights[index], in_place)
                # Pointwise layers and pooling of a single place may return their input itself.
                in_place = in_place or step.kind == "convolution" or step.kernel != (1, 1)
                continue
            # Process one fragment after the other, so that each fits into the processor's cache.
            outputs: Tensor | None = None
            for (top, left), fragment in _fragments(features, step, plan, weights[index]):
                rows, columns = plan.vertical.phases, plan.horizontal.phases
                part = (-(-(counts[0] - top) // rows), -(-(counts[1] - left) // columns))
                if min(part) < 1:
                    continue  # fewer windows than offsets
                output = self._run(fragment, index + 1, part, weights, in_place=False)
                if outputs is None:
                    outputs = output.new_empty((*output.shape[:2], *counts)).contiguous(
                        memory_format=torch.channels_last
                    )
                outputs[:, :, top::rows, left::columns] = output
            assert outputs is not None
            return outputs
        return features[:, :, : counts[0], : counts[1]]


@dataclass(frozen=True)
class _AxisPlan:
    """The stride, dilation and fragments of a step on the whole image, along one axis."""

    stride: int = 1  # in places of the step's input
    dilation: int = 1  # a factor on the step's own dilation
    phases: int = 1  # the number of fragments that the output is split into
    offset: int = 0  # the distance between the first places of two successive fragments
    increment: int = 1  # the distance between successive places of a fragment


@dataclass(frozen=True)
class _StepPlan:
    """The stride, dilation and fragments of a step on the whole image, along both axes."""

    vertical: _AxisPlan
    horizontal: _AxisPlan

    @property
    def splits(self) -> bool:
        """Whether the output is split into fragments."""
        return any(plan.phases > 1 or plan.increment > 1 for plan in (self.vertical, self.horizontal))

    @property
    def stride(self) -> Pair:
        return self.vertical.stride, self.horizontal.stride

    def dilation_of(self, step: Step) -> Pair:
        """Return the dilation of the step's kernel on the whole image."""
        return step.dilation[0] * self.vertical.dilation, step.dilation[1] * self.horizontal.dilation

    def offsets(self) -> Iterator[tuple[Pair, tuple[slice, slice]]]:
        """Yield the row and column of each fragment's first window, and the fragment's places."""
        for top in range(self.vertical.phases):
            for left in range(self.horizontal.phases):
                rows = slice(top * self.vertical.offset, None, self.vertical.increment)
                columns = slice(left * self.horizontal.offset, None, self.horizontal.increment)
                yield (top, left), (rows, columns)


def _plan_axis(steps: list[Step], axis: int, stride: int, method: Method) -> list[_AxisPlan]:
    """Plan the pass along one axis, for windows ``stride`` pixels apart.

    Three distances in pixels change from step to step:

    - ``own``, between neighbouring features of one window;
    - ``spacing``, between neighbouring computed features, a divisor of ``own``;
    - ``distance``, between windows of one fragment, a multiple of ``spacing``.
    """
    spatial = [i for i, step in enumerate(steps) if step.kernel[axis] > 1 or step.stride[axis] > 1]
    last = spatial[-1] if spatial else 0
    total = math.prod(step.stride[axis] for step in steps)
    distance, own, spacing = stride, 1, 1
    plans: list[_AxisPlan] = []
    for index, step in enumerate(steps):
        if index == 0 and (method == "shift" or not spatial):
            phases = total // math.gcd(distance, total)
            plans.append(_AxisPlan(phases=phases, offset=distance, increment=1 if spatial else distance))
            distance *= phases
            spacing = spacing if spatial else distance
            continue
        dilation = own // spacing if index <= last else 1
        own *= step.stride[axis]
        # After the last spatial step only the places of windows are needed.
        after = distance if index >= last else math.gcd(distance, own)
        step_stride, spacing = after // spacing, after
        if method == "fragments" and index < last and spacing < own:
            phases = own // spacing
            plans.append(_AxisPlan(step_stride, dilation, phases, distance // spacing, phases))
            distance *= phases
            spacing = own
        else:
            plans.append(_AxisPlan(step_stride, dilation))
    return plans


def _weights(step: Step) -> tuple[Tensor, Tensor | None]:
    """Return weights and bias of a convolution or linear layer, with the normalization behind it folded in."""
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


def _apply(
    features: Tensor,
    step: Step,
    plan: _StepPlan,
    weights: tuple[Tensor, Tensor | None] | None,
    in_place: bool,
) -> Tensor:
    """Apply a step to features ``[B, C, h, w]`` with the plan's stride and dilation; the output is not split."""
    layer, dilation = step.layer, plan.dilation_of(step)
    if step.kind == "convolution":
        assert weights is not None
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        features = F.conv2d(features, *weights, plan.stride, 0, dilation, groups)
        return _normalize(features, step.norm) if step.norm is not None and step.norm.training else features
    if step.kind == "max":
        if _pools_elementwise(features):
            features = _reduce(features, 0, step.kernel[0], plan.stride[0], dilation[0], torch.maximum)
            return _reduce(features, 1, step.kernel[1], plan.stride[1], dilation[1], torch.maximum)
        return F.max_pool2d(features, step.kernel, plan.stride, 0, dilation)
    if step.kind == "average":
        divisor = getattr(layer, "divisor_override", None) or math.prod(step.kernel)
        if dilation == (1, 1):
            return F.avg_pool2d(features, step.kernel, plan.stride, divisor_override=divisor)
        features = _reduce(features, 0, step.kernel[0], plan.stride[0], dilation[0], torch.add)
        return _reduce(features, 1, step.kernel[1], plan.stride[1], dilation[1], torch.add) / divisor
    if isinstance(layer, nn.ReLU):
        return features.relu_() if in_place else features.relu()
    if isinstance(layer, BatchNorm):
        return _normalize(features, layer)
    if isinstance(layer, nn.Softmax | nn.LogSoftmax):
        return features.softmax(1) if isinstance(layer, nn.Softmax) else features.log_softmax(1)
    if getattr(layer, "inplace", False) and not in_place:
        features = features.clone()
    return layer(features)


def _normalize(features: Tensor, norm: BatchNorm) -> Tensor:
    """Apply batch normalization to features ``[B, C, h, w]``. The layer may be for maps or for ``[N, C]``."""
    if not isinstance(norm, nn.BatchNorm1d):
        return norm(features)
    flat = norm(features.permute(0, 2, 3, 1).flatten(0, 2))
    return flat.view(features.shape[0], *features.shape[2:], -1).permute(0, 3, 1, 2)


def _pools_elementwise(features: Tensor) -> bool:
    """Return whether max pooling is computed as a chain of elementwise maxima."""
    # torch's max pooling also computes the position of each maximum, which only the gradient needs. On a CPU the chain
    # of maxima takes a fraction of the time.
    return not features.is_cuda and not (torch.is_grad_enabled() and features.requires_grad)


def _reduce(
    features: Tensor,
    axis: int,
    kernel: int,
    stride: int,
    dilation: int,
    operation: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Pool along one axis with an elementwise operation."""
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
    features: Tensor, step: Step, plan: _StepPlan, weights: tuple[Tensor, Tensor | None] | None
) -> Iterator[tuple[Pair, Tensor]]:
    """Yield the output of a step in fragments, each with the row and column of its first window."""
    if step.kind == "max" and _pools_elementwise(features):
        # Along the horizontal axis the maxima of each fragment are computed directly, which avoids a copy.
        dilation = plan.dilation_of(step)
        columns = _reduce(features, 0, step.kernel[0], plan.stride[0], dilation[0], torch.maximum)
        horizontal = plan.horizontal
        stride = horizontal.stride * horizontal.increment
        for first, (rows, places) in plan.offsets():
            part = columns[:, :, rows, places.start * horizontal.stride :]
            yield first, _reduce(part, 1, step.kernel[1], stride, dilation[1], torch.maximum)
        return
    features = _apply(features, step, plan, weights, in_place=False)
    for first, (rows, places) in plan.offsets():
        yield first, features[:, :, rows, places].contiguous(memory_format=torch.channels_last)
