"""The sliding window: the class of a pixel from a window around it, one window at a time or all at once."""

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
from segdet.nn.windows import Mode, crop_windows, window_batches, window_features, window_grid
from segdet.segmentation.base import Segmenter, masks_of
from segdet.task import Stage
from segdet.util.errors import UserError, check_choice

Sampling = Literal["balanced", "uniform"]


class SlidingWindow(Segmenter):
    """A classifier of the centre pixel of a window (Ciresan et al., NIPS 2012; Farabet et al., PAMI 2013).

    A small network of unpadded convolutions and poolings looks at a window and names the class of the pixel in
    its middle; sliding it over the image names all of them. It is trained on windows cut out of images at
    random. Beyond the border of the image there is its mean colour, so that every pixel can be a centre.

    What it costs is the windows: a pixel is looked at by every window that holds it, and each of them computes its
    features anew (``mode: crops``). ``mode: dense`` runs the same weights on the whole image at once (see
    `DensePass`), which gives the same logits in one pass; a checkpoint can be tested either way. A pass of the
    cost tables is one window there, and one image here, in fragments or not: none of its computation is done twice.

    The logits between the centres, which lie ``stride`` pixels apart, are interpolated. The centre of a window
    is its pixel ``window // 2``, the first centre in an image the pixel ``stride // 2``.

    Args:
        window: The side of the window in pixels.
        channels: Of the stages, each a convolution, normalization, ReLU and max pooling.
        kernels: The side of each stage's convolution.
        pools: The side and stride of each stage's pooling; 1 for none.
        hidden: The width of the layer between the features and the classes.
        dropout: The rate before and behind it.
        mode: ``crops`` cuts out every window, ``dense`` takes all at once: the logits are the same.
        stride: From one window to the next in testing, in pixels.
        crop_batch: How many windows go through the network at a time in ``crops``.
        windows_per_image: How many to train on, times the images of the batch.
        sampling: Where to cut them out: ``balanced`` draws the centre's class first, each that the batch shows being as
            likely as the others, ``uniform`` draws pixels.
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
            if value < 1:
                raise UserError(f"--model.{name}: {value}; give at least 1")
        self.window, self.stride, self.crop_batch = window, stride, crop_batch
        self.windows_per_image, self.sampling, self.mode = windows_per_image, sampling, mode
        self.classifier = patch_classifier(
            window, channels, kernels, pools, hidden, len(class_names), dropout
        )
        self.dense = DensePass(self.classifier, window, stride)

    @property
    def compiled_modules(self) -> list[nn.Module]:
        """The classifier, and the network of its layers that goes over a whole image."""
        return [*super().compiled_modules, self.dense]

    @property
    def pass_module(self) -> nn.Module:
        """The classifier, one window a pass; or the dense network, one image a pass."""
        return self.classifier if self.mode == "crops" else self.dense

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        masks = masks_of(targets)
        number = self.windows_per_image * len(images)
        index, rows, columns = sample_pixels(masks, number, self.sampling)
        # A centre's window begins, in the padded image, where the centre is in the image.
        before, after = self.window // 2, self.window - 1 - self.window // 2
        padded = F.pad(images, (before, after, before, after))
        logits = self.classifier(crop_windows(padded, index, rows, columns, self.window))
        labels = masks[index, rows, columns]
        # As one image of one column, since the loss is one of images.
        return {"segmentation": self.pixel_loss(logits.t()[None, :, :, None], labels[None, :, None])}

    def predict(self, images: Tensor) -> Tensor:
        """Logits ``[B, C, H, W]``: the classifier's at the centres, interpolated between them."""
        size = (images.shape[2], images.shape[3])
        logits = at_least_float32(self.at_centres(images))
        return _between_centres(logits, _first(size, self.stride), self.stride, size)

    def at_centres(self, images: Tensor) -> Tensor:
        """Logits ``[B, C, rows, columns]`` of the windows alone, whose centres begin at ``stride // 2``."""
        size = (images.shape[2], images.shape[3])
        sides: list[int] = []
        for whole, first in zip(reversed(size), reversed(_first(size, self.stride)), strict=True):
            last = first + (whole - 1 - first) // self.stride * self.stride
            sides += [self.window // 2 - first, last - self.window // 2 + self.window - whole]
        padded = F.pad(images, sides)  # at a great stride it cuts off what no window needs
        if self.mode == "dense":
            return self.dense(padded, self.classifier)
        rows, columns = window_grid(padded.shape[-2:], self.window, self.stride)
        total = len(images) * rows * columns
        logits: list[Tensor] = []
        with tqdm(total=total, desc="windows", unit="", leave=False, delay=2) as bar:
            for windows in window_batches(padded, self.window, self.stride, self.crop_batch):
                logits.append(self.classifier(windows))
                bar.update(len(windows))
        return torch.cat(logits).view(len(images), rows, columns, -1).permute(0, 3, 1, 2)

    def stages(self, image: Tensor) -> Iterator[Stage]:
        size = (image.shape[2], image.shape[3])
        logits = self.at_centres(image)
        rows, columns = logits.shape[-2:]
        first = _first(size, self.stride)
        # About a dozen windows tell more than all of them, which would cover the image.
        every = max(1, round((rows * columns / 12) ** 0.5))
        # Also in an image with fewer rows than that: then the middle one.
        tops = torch.arange(min(every, rows) // 2, rows, every, device=image.device)
        lefts = torch.arange(min(every, columns) // 2, columns, every, device=image.device)
        places = torch.stack(torch.meshgrid(tops, lefts, indexing="ij")).flatten(1)
        probabilities = logits.float().softmax(1)[0]
        centres = torch.stack([places[1] * self.stride + first[1], places[0] * self.stride + first[0]], 1)
        corners = (centres - self.window // 2).float()
        best = probabilities.amax(0)
        yield Stage(
            "windows",
            boxes=torch.cat([corners, corners + self.window], 1),
            scores=best[places[0], places[1]],
            about=f"Some of the {rows * columns:,} windows, {self.stride} pixels apart, each of which is "
            "classified by itself; the score is how sure it is of its centre.",
        )
        yield Stage(
            "confidence",
            map=best,
            about="How sure the classifier is of the pixel in the middle of each window.",
        )
        for name, map_ in zip(self.class_names, probabilities, strict=True):
            yield Stage(name, map=map_, about=f"How probable {name} is in the middle of each window.")


def patch_classifier(
    window: int,
    channels: list[int],
    kernels: list[int],
    pools: list[int],
    hidden: int,
    classes: int,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A classifier of windows ``[N, 3, window, window]`` into ``[N, classes]``, without any padding.

    Raises:
        UserError: If the stages do not fit each other or the window.
    """
    layers, features = window_features(window, channels, kernels, pools)
    layers += [
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(features, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    ]
    return nn.Sequential(*layers)


def sample_pixels(masks: Tensor, number: int, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Draws ``number`` pixels of masks ``[B, H, W]``, with replacement, by torch's random numbers.

    Args:
        masks: int64; pixels of 255 are never drawn, unless there are no others.
        number: How many.
        sampling: ``uniform`` over the pixels; ``balanced`` over the classes that occur, and over the pixels of each.

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
    # The n-th part of the total weight lies in the pixel that is drawn: no list of pixels a class is needed.
    reached = weights.cumsum(0)
    drawn = torch.rand(number, dtype=torch.float64, device=masks.device) * reached[-1]
    chosen = torch.searchsorted(reached, drawn, right=True).clamp(max=len(flat) - 1)
    _, height, width = masks.shape
    return chosen // (height * width), chosen // width % height, chosen % width


def _first(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The row and the column of the first centre; images smaller than half a stride have it in their middle."""
    return min(stride // 2, size[0] // 2), min(stride // 2, size[1] // 2)


def _between_centres(logits: Tensor, first: tuple[int, int], stride: int, size: tuple[int, int]) -> Tensor:
    """Logits ``[B, C, rows, columns]`` at pixels ``first``, ``first + stride`` ... as ``[B, C, *size]``.

    At the centres they stay as they are; between them they are interpolated bilinearly, and beyond the first and the
    last one the nearest holds. Resizing the grid to the image would do nearly that, but half a pixel beside it where
    the stride is even, and more where it does not divide the image.
    """
    if stride == 1:
        return logits
    around = F.pad(logits, (1, 1, 1, 1), mode="replicate")
    rows, columns = around.shape[-2:]
    fine = F.interpolate(
        around, ((rows - 1) * stride + 1, (columns - 1) * stride + 1), mode="bilinear", align_corners=True
    )
    top, left = stride - first[0], stride - first[1]
    return fine[:, :, top : top + size[0], left : left + size[1]]
