"""Sliding-window segmentation: a classifier of windows predicts the class of each window's centre pixel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from segdet.data.sample import IGNORE, Target
from segdet.nn.dense_windows import DensePass
from segdet.nn.float32 import at_least_float32
from segdet.nn.windows import Mode, crop_windows, window_batches, window_grid, window_stages
from segdet.segmentation.base import Segmenter, masks_of
from segdet.task import Stage
from segdet.util.errors import check_choice, check_range
from segdet.util.stage_timing import stage

Sampling = Literal["balanced", "uniform"]


class SlidingWindow(Segmenter):
    """A classifier of the centre pixel of a window (Ciresan et al., NIPS 2012; Farabet et al., PAMI 2013).

    A small network of unpadded convolutions and poolings classifies the centre pixel of a window; sliding the window
    over the image classifies all pixels. The network is trained on random windows. The image is padded with the mean
    colour of normalization, so that every pixel can be a centre.

    The cost is proportional to the number of windows: with ``mode: crops``, the features of a pixel are computed again
    for every window that contains it. ``mode: dense`` applies the same weights to the whole image (see
    `DensePass`), which gives the same logits in one pass without repeated computation. A checkpoint can be tested in
    either mode. In cost tables a pass is one window with ``crops`` and one image with ``dense``.

    The centres lie ``stride`` pixels apart; the logits between them are interpolated. The centre of a window is its
    pixel ``window // 2``, and the first centre in an image is the pixel ``stride // 2``.

    Args:
        window: The side of the window in pixels.
        channels: The channels of each stage, which consists of a convolution, normalization, ReLU and max pooling.
        kernels: The side of each stage's convolution.
        pools: The side and stride of each stage's pooling; 1 for none.
        hidden: The units of the layer between features and classes.
        dropout: The dropout rate before and after the hidden layer.
        mode: ``crops`` classifies every window, ``dense`` all windows in one pass; the logits are the same.
        stride: The distance between windows in testing, in pixels.
        crop_batch: The number of windows per batch with ``crops``.
        windows_per_image: The number of windows per image in training.
        sampling: How windows are drawn in training: ``balanced`` draws a class of the batch uniformly, then a pixel of
            this class as the centre; ``uniform`` draws pixels uniformly.
        kwargs: See `Segmenter`.
    """

    def __init__(
        self,
        class_names: list[str],
        window: int = 33,
        channels: list[int] = [16, 32, 64],  # noqa: B006  read only; jsonargparse shows it as the default
        kernels: list[int] = [4, 3, 3],  # noqa: B006
        pools: list[int] = [2, 2, 2],  # noqa: B006
        hidden: int = 64,
        dropout: float = 0.0,
        mode: Mode = "crops",
        stride: int = 4,
        crop_batch: int = 256,
        windows_per_image: int = 128,
        sampling: Sampling = "balanced",
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.mode", mode, Mode)
        check_choice("--model.sampling", sampling, Sampling)
        for name, value in (
            ("window", window), ("stride", stride), ("crop_batch", crop_batch), ("windows_per_image", windows_per_image)
        ):  # fmt: skip
            check_range(f"--model.{name}", value, least=1)
        self.window, self.stride, self.crop_batch = window, stride, crop_batch
        self.windows_per_image, self.sampling, self.mode = windows_per_image, sampling, mode
        self.classifier = patch_classifier(
            window, channels, kernels, pools, hidden, len(class_names), dropout
        )
        self.dense = DensePass(self.classifier, window, stride)

    @property
    def compiled_modules(self) -> list[nn.Module]:
        """The classifier, and its dense form for a whole image."""
        return [*super().compiled_modules, self.dense]

    @property
    def pass_module(self) -> nn.Module:
        """The classifier with ``crops`` (a pass is one window), else the dense network (a pass is one image)."""
        return self.classifier if self.mode == "crops" else self.dense

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        masks = masks_of(targets)
        number = self.windows_per_image * len(images)
        index, rows, columns = sample_pixels(masks, number, self.sampling)
        # The window of a centre (y, x) of the image starts at (y, x) of the padded image.
        before, after = self.window // 2, self.window - 1 - self.window // 2
        padded = F.pad(images, (before, after, before, after))
        logits = self.classifier(crop_windows(padded, index, rows, columns, self.window))
        labels = masks[index, rows, columns]
        # pixel_loss expects images: pass the windows as one image of one column.
        return {"segmentation": self.pixel_loss(logits.t()[None, :, :, None], labels[None, :, None])}

    def predict(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]``: the classifier's logits at the centres, interpolated between them."""
        size = (images.shape[2], images.shape[3])
        with stage("network"):
            logits = at_least_float32(self.logits_at_centres(images))
        return _interpolate_between(logits, _first_centre(size, self.stride), self.stride, size)

    def logits_at_centres(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, rows, columns]`` of all windows. The first centre is at ``stride // 2``."""
        size = (images.shape[2], images.shape[3])
        sides: list[int] = []
        first_centre = _first_centre(size, self.stride)
        for length, first in zip(reversed(size), reversed(first_centre), strict=True):
            last = first + (length - 1 - first) // self.stride * self.stride
            sides += [self.window // 2 - first, last - self.window // 2 + self.window - length]
        padded = F.pad(images, sides)  # negative padding crops pixels that no window contains
        if self.mode == "dense":
            return self.dense(padded, self.classifier)
        rows, columns = window_grid(padded.shape[-2:], self.window, self.stride)
        total = len(images) * rows * columns
        logits: list[Tensor] = []
        with tqdm(total=total, desc="windows", unit="", leave=False, delay=2) as bar:
            batches = window_batches(padded, self.window, self.stride, self.crop_batch)
            while True:
                with stage("warps"):
                    windows = next(batches, None)
                if windows is None:
                    break
                logits.append(self.classifier(windows))
                bar.update(len(windows))
        return torch.cat(logits).view(len(images), rows, columns, -1).permute(0, 3, 1, 2)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        size = (image.shape[2], image.shape[3])
        logits = self.logits_at_centres(image)
        rows, columns = logits.shape[-2:]
        first = _first_centre(size, self.stride)
        # Show about a dozen windows, because all of them would cover the image. If only one row or column is shown, it
        # is in the middle.
        every = max(1, round((rows * columns / 12) ** 0.5))
        shown = (torch.arange(min(every, n) // 2, n, every, device=image.device) for n in (rows, columns))
        cells = torch.cartesian_prod(*shown)
        centres = cells * self.stride + cells.new_tensor(first)
        corners = (centres - self.window // 2).flip(1).float()
        probabilities = logits.float().softmax(1)[0]
        best = probabilities.amax(0)
        yield Stage(
            "windows",
            boxes=torch.cat([corners, corners + self.window], 1),
            scores=best[cells[:, 0], cells[:, 1]],
            caption=f"Some of the {rows * columns:,} windows, {self.stride} pixels apart, each classified separately; "
            "the score is the probability of the predicted class.",
        )
        caption = "The probability of the predicted class at the centre of each window."
        yield Stage("confidence", map=best, caption=caption)
        for name, map_ in zip(self.class_names, probabilities, strict=True):
            yield Stage(name, map=map_, caption=f"The probability of {name} at the centre of each window.")


def patch_classifier(
    window: int,
    channels: list[int],
    kernels: list[int],
    pools: list[int],
    hidden: int,
    classes: int,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return an unpadded classifier of windows, which maps ``[N, 3, window, window]`` to ``[N, classes]``.

    Raises:
        UserError: If the stages have different lengths or do not fit the window.
    """
    layers, features = window_stages(window, channels, kernels, pools)
    layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(hidden, classes))


def sample_pixels(masks: Tensor, number: int, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Draw ``number`` pixels of masks ``[B, H, W]`` with replacement, with torch's random generator.

    Args:
        masks: int64. Pixels with the value 255 are drawn only if there are no others.
        number: The number of pixels.
        sampling: ``uniform`` over the pixels, or ``balanced``: uniform over the classes that occur, and over the
            pixels of each class.

    Returns:
        Image, row and column, int64 ``[number]`` each.
    """
    flat = masks.flatten()
    valid = flat != IGNORE
    if sampling == "balanced":
        counts = torch.zeros(IGNORE + 1, dtype=torch.float64, device=masks.device)
        counts.scatter_add_(0, flat, valid.double())
        weights = torch.where(valid, 1 / counts.clamp(min=1)[flat], 0.0)
    else:
        weights = valid.double()
    # Inverse transform sampling: draw a fraction of the total weight and find its pixel.
    cumulative = weights.cumsum(0)
    drawn = torch.rand(number, dtype=torch.float64, device=masks.device) * cumulative[-1]
    chosen = torch.searchsorted(cumulative, drawn, right=True).clamp(max=len(flat) - 1)
    _, height, width = masks.shape
    return chosen // (height * width), chosen // width % height, chosen % width


def _first_centre(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return row and column of the first centre: ``stride // 2``, or the middle of smaller images."""
    return min(stride // 2, size[0] // 2), min(stride // 2, size[1] // 2)


def _interpolate_between(
    logits: Tensor, first: tuple[int, int], stride: int, size: tuple[int, int]
) -> Tensor:
    """Interpolate logits ``[B, C, rows, columns]`` at pixels ``first``, ``first + stride`` ... to ``[B, C, *size]``.

    The interpolation is bilinear, with replication beyond the first and the last centre. Resizing the grid to the image
    would shift the logits by half a pixel if the stride is even, and by more if it does not divide the image.
    """
    if stride == 1:
        return logits
    padded = F.pad(logits, (1, 1, 1, 1), mode="replicate")
    rows, columns = padded.shape[-2:]
    fine = F.interpolate(
        padded, ((rows - 1) * stride + 1, (columns - 1) * stride + 1), mode="bilinear", align_corners=True
    )
    top, left = stride - first[0], stride - first[1]
    return fine[:, :, top : top + size[0], left : left + size[1]]
