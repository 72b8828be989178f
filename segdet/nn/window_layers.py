"""The layers of a window classifier as steps of a fully convolutional network.

`read_layers` checks that every layer can be applied to a whole image with the results of each window unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from segdet.nn.windows import Pair, pair
from segdet.util.errors import UserError

BatchNorm = nn.BatchNorm2d | nn.BatchNorm1d | nn.SyncBatchNorm


@dataclass(frozen=True)
class Step:
    """One layer of the classifier, as a convolution, a pooling or a pointwise operation."""

    layer: nn.Module  # the classifier's own
    kind: Literal[
        "convolution", "max", "average", "pointwise"
    ]  # pointwise: any layer without a spatial extent
    kernel: Pair = (1, 1)  # for a linear layer the size of the features that were flattened
    stride: Pair = (
        1,
        1,
    )  # 1 where the layer has a single output per window, so that the stride has no effect
    dilation: Pair = (1, 1)  # the distance between the places of the kernel
    norm: BatchNorm | None = None  # the batch normalization behind it, if it can be folded into the weights


_ELEMENTWISE = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink,
    nn.Softplus, nn.Softsign, nn.Threshold, nn.RReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout,
)  # fmt: skip


def leaves(module: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of nested ``nn.Sequential``s with their names."""
    for name, layer in module.named_children():
        if isinstance(layer, nn.Sequential):
            yield from leaves(layer, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer


def read_layers(classifier: nn.Sequential, window: Pair) -> list[Step]:
    """Return the steps of a window classifier. The first is the identity, so that the image itself can be shifted.

    Raises:
        UserError: If a layer cannot be converted so that the results of each window stay the same.
    """
    steps = [Step(nn.Identity(), "pointwise")]
    size, channels, flat = window, None, False
    for name, layer in leaves(classifier):
        where = f"layer {name} ({type(layer).__name__}) of the window classifier"
        if flat and isinstance(
            layer, nn.Conv2d | nn.modules.pooling._MaxPoolNd | nn.modules.pooling._AvgPoolNd
        ):
            raise UserError(f"{where}: it follows a flatten; put it before")
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            _check_padding(layer, where)
        if isinstance(layer, nn.Conv2d):
            step = Step(
                layer, "convolution", pair(layer.kernel_size), pair(layer.stride), pair(layer.dilation)
            )
            channels = layer.out_channels
        elif isinstance(layer, nn.Linear):
            if not flat:
                raise UserError(f"{where}: there is no nn.Flatten before it; add one")
            inputs, rest = divmod(layer.in_features, math.prod(size))
            if rest or channels not in (None, inputs):
                raise UserError(
                    f"{where}: it takes {layer.in_features} features, but a window of {window[0]}x{window[1]} gives "
                    f"{'' if channels is None else f'{channels}x'}{size[0]}x{size[1]}; change one of the two"
                )
            step = Step(layer, "convolution", size)
            channels = layer.out_features
        elif isinstance(layer, nn.MaxPool2d):
            if layer.return_indices:
                raise UserError(f"{where}: indices of maxima are not supported; leave return_indices out")
            step = Step(layer, "max", pair(layer.kernel_size), pair(layer.stride), pair(layer.dilation))
            _check_ceil_mode(layer, step, size, where)
        elif isinstance(layer, nn.AvgPool2d):
            step = Step(layer, "average", pair(layer.kernel_size), pair(layer.stride))
            _check_ceil_mode(layer, step, size, where)
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
            _check_pointwise(layer, flat, size, where)
            before = steps[-1]
            if isinstance(layer, BatchNorm) and before.kind == "convolution" and before.norm is None:
                steps[-1] = replace(before, norm=layer)
            elif not isinstance(layer, nn.Identity):
                steps.append(Step(layer, "pointwise"))
            continue
        span = _span(step)
        room = size[0] - span[0], size[1] - span[1]
        if min(room) < 0:
            raise UserError(
                f"{where}: its extent is {span[0]}x{span[1]}, but its input for a window of {window[0]}x{window[1]} is "
                f"only {size[0]}x{size[1]}; use larger windows"
            )
        size = room[0] // step.stride[0] + 1, room[1] // step.stride[1] + 1
        stride = [1 if n == 1 else r for n, r in zip(size, step.stride, strict=True)]
        steps.append(replace(step, stride=pair(stride)))
    if size != (1, 1):
        raise UserError(
            f"the classifier of windows of {window[0]}x{window[1]} ends with {size[0]}x{size[1]} places instead of "
            "one output per window; end it with nn.Flatten and nn.Linear, or use windows of another size"
        )
    return steps


def max_before_activation(steps: list[Step]) -> list[Step]:
    """Move increasing activations behind the max pooling that follows them: max(f(x)) = f(max(x)), on fewer values."""
    for index in range(len(steps) - 1):
        layer = steps[index].layer
        increasing = isinstance(layer, nn.ReLU | nn.Hardtanh | nn.Sigmoid | nn.Tanh) or (
            isinstance(layer, nn.LeakyReLU) and layer.negative_slope >= 0
        )
        if increasing and steps[index + 1].kind == "max":
            steps[index], steps[index + 1] = steps[index + 1], steps[index]
    return steps


def _span(step: Step) -> Pair:
    """Return the extent of a step's kernel with its dilation."""
    (height, width), (down, right) = step.kernel, step.dilation
    return (height - 1) * down + 1, (width - 1) * right + 1


def _check_padding(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, where: str) -> None:
    padding = layer.padding
    if padding == "valid" or (padding == "same" and set(pair(layer.kernel_size)) == {1}):
        return
    if isinstance(padding, str) or any(pair(padding)):
        raise UserError(
            f"{where}: padding={padding!r} adds zeros around each window, which a dense pass cannot do; use padding=0"
        )


def _check_ceil_mode(layer: nn.MaxPool2d | nn.AvgPool2d, step: Step, size: Pair, where: str) -> None:
    rests = [(n - span) % r for n, span, r in zip(size, _span(step), step.stride, strict=True)]
    if layer.ceil_mode and any(rests):
        raise UserError(
            f"{where}: ceil_mode pools beyond the edge of {size[0]}x{size[1]}, where the window ends but the image "
            "does not; use ceil_mode=False, or windows that divide evenly"
        )


def _fixed_pooling(layer: nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d, size: Pair, where: str) -> Step:
    """Convert adaptive pooling to ordinary pooling, which is equal for a fixed input size and cells of one size."""
    output = layer.output_size
    both = output if isinstance(output, tuple) else (output, output)
    cells = [n if w is None else w for n, w in zip(size, both, strict=True)]
    if any(n % w for n, w in zip(size, cells, strict=True)):
        raise UserError(
            f"{where}: {cells[0]}x{cells[1]} cells over {size[0]}x{size[1]} places are not of one size; use a divisor "
            "of the number of places, or leave the layer out"
        )
    kernel = size[0] // cells[0], size[1] // cells[1]
    return Step(layer, "max" if isinstance(layer, nn.AdaptiveMaxPool2d) else "average", kernel, kernel)


def _check_pointwise(layer: nn.Module, flat: bool, size: Pair, where: str) -> None:
    """Raise `UserError` unless ``layer`` applies the same function at every place, independently of neighbours."""
    # Flattened features are still spatial until the first linear layer.
    spatial = flat and size != (1, 1)
    if isinstance(layer, BatchNorm):
        if layer.running_mean is None:
            raise UserError(
                f"{where}: it keeps no running statistics, so that each window has its own; use "
                "track_running_stats=True"
            )
        if not spatial:
            return
    elif isinstance(layer, nn.Softmax | nn.LogSoftmax):
        if not spatial and (layer.dim == 1 or (flat and layer.dim == -1)):
            return
    elif isinstance(layer, nn.PReLU):
        if not spatial or layer.num_parameters == 1:
            return
    elif isinstance(layer, nn.LocalResponseNorm):
        if not flat:
            return
    elif isinstance(layer, _ELEMENTWISE):
        return
    raise UserError(
        f"{where}: this layer cannot be converted here without changing the results of windows; supported are unpadded "
        "convolutions, max and average pooling, batch normalization, activations, dropout, flatten and linear layers"
    )
