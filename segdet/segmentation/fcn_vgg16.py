"""FCN-32s, FCN-16s and FCN-8s: VGG16 made fully convolutional, as in the paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from segdet.nn.upsampling import bilinear_convolution
from segdet.nn.vgg16 import VGG16, init_he, load_vgg16_weights
from segdet.segmentation.base import Segmenter
from segdet.segmentation.pictures import heat_maps
from segdet.task import Stage
from segdet.util.errors import check_choice

Learned = Literal["none", "intermediate", "all"]
Stride = Literal[32, 16, 8]
Pad = Literal[100, 1]


class VGG16FCN(Segmenter):
    """FCN-32s, FCN-16s, FCN-8s (Long, Shelhamer, Darrell, CVPR 2015; Shelhamer et al., PAMI 2017) on VGG16.

    A fully connected layer is a convolution whose kernel is as large as its input. Seen so, VGG16's fc6 and
    fc7 classify every 32nd pixel of an image of any size at once, with ImageNet's own weights; a 1x1
    convolution scores the classes, and a transposed convolution that begins as bilinear interpolation brings
    the scores back to the image's size (FCN-32s). Two skips score pool4 and pool3 as well and add them
    to what comes from above (FCN-16s, FCN-8s): where from fine maps, what from coarse ones.

    The image is padded by 100 pixels, so that an image of any size reaches fc6, and what comes out is cropped to
    the image. The crops' offsets follow from where the maps' cells lie in the image: 19 for FCN-32s; 5 and 27 for
    16s; 5, 9 and 31 for 8s, as in the released networks. It costs one pass, over twice the pixels where the
    image has 500x500: FCN-32s took 210 ms on a K40c. Of its 134 M parameters three quarters are in fc6.

    Two ways to train it. At once: all skips from the start, with pool4 and pool3 scaled down so that their
    gradients do not drown the rest (``skip_scales`` .01 and .0001). Staged: FCN-32s first, then FCN-16s with
    ``weights: runs/fcn32s`` and ``skip_scales: [1, 1]``, then FCN-8s from that. The scores of each new
    skip begin at zero, so every stage begins about where the former one ended.

    Args:
        class_names: See `Task`.
        stride: 32, 16 or 8: the stride of the finest map that is scored.
        weights: The name of torchvision's VGG16 weights (``IMAGENET1K_V1``) or true for its default ones, a
            file of them, or the former stage's run folder or checkpoint; null starts at random.
        pad: How far the image is padded: 100 as in the paper, or 1, as VGG16 itself does, where fc6 pads by
            3 instead: of a small image, 100 would make mostly border.
        upsampling: Which transposed convolutions are learned: ``none`` (the released networks), ``intermediate``
            (the paper: all but the last) or ``all``. Each class has its own kernel.
        skip_scales: What pool4 and pool3 are scaled by.
        dropout: The rate behind fc6 and fc7.
        width: The share of VGG16's channels in its convolutions.
        fc_channels: Of fc6 and fc7.
        batch_norm: Whether batch normalization follows VGG16's convolutions, which the paper does not have and
            training from scratch needs.
        kwargs: As for `Segmenter`.
    """

    def __init__(
        self,
        class_names: list[str],
        stride: Stride = 8,
        weights: str | bool | None = None,
        pad: Pad = 100,
        upsampling: Learned = "none",
        skip_scales: tuple[float, float] = (0.01, 0.0001),
        dropout: float = 0.5,
        width: float = 1.0,
        fc_channels: int = 4096,
        batch_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.stride", stride, Stride)
        check_choice("--model.pad", pad, Pad)
        check_choice("--model.upsampling", upsampling, Learned)
        self.stride = stride
        self.skip_scales = skip_scales
        classes = len(class_names)
        self.encoder = VGG16(width, batch_norm, pad)
        *_, pool3, pool4, pool5 = self.encoder.channels
        fc6_padding = 0 if pad == 100 else 3
        self.fc6 = nn.Conv2d(pool5, fc_channels, 7, padding=fc6_padding)
        self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
        self.dropout = nn.Dropout(dropout)
        init_he(self.fc6)
        init_he(self.fc7)
        self.score_fr = _zeroed(nn.Conv2d(fc_channels, classes, 1))
        intermediate, last = upsampling != "none", upsampling == "all"
        if stride <= 16:
            self.upscore2 = _upsampling(classes, 2, intermediate)
            self.score_pool4 = _zeroed(nn.Conv2d(pool4, classes, 1))
        if stride == 8:
            self.upscore_pool4 = _upsampling(classes, 2, intermediate)
            self.score_pool3 = _zeroed(nn.Conv2d(pool3, classes, 1))
        self.upscore = _upsampling(classes, stride, last)
        self.offsets = crop_offsets(stride, pad, fc6_padding)
        if weights:
            load_vgg16_weights(self, weights)

    @property
    def pass_module(self) -> nn.Module:
        return self.encoder

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to logits ``[B, C, H, W]``."""
        h, w = images.shape[-2:]
        return _cropped(self.upscore(self._scores(images)[-1]), self.offsets[-1], (h, w))

    def stages(self, image: Tensor) -> Iterator[Stage]:
        for stride, scores in zip((32, 16, 8), self._scores(image), strict=False):
            yield Stage(
                f"stride {stride}",
                map=scores[0].float().softmax(0).amax(0),
                about=f"How sure it is of the best class with the scores down to stride {stride}, border included.",
            )
        yield from heat_maps(self(image), self.class_names)

    def _scores(self, images: Tensor) -> list[Tensor]:
        """The class scores of stride 32, then with pool4 added, then with pool3, as far as the network goes."""
        _, _, pool3, pool4, pool5 = (pooled.features for pooled in self.encoder(images))
        fc6 = self.dropout(F.relu(self.fc6(pool5)))
        fc7 = self.dropout(F.relu(self.fc7(fc6)))
        scores = [self.score_fr(fc7)]
        if self.stride <= 16:
            above = self.upscore2(scores[-1])
            scores.append(above + self._skip(self.score_pool4, pool4, 0, above))
        if self.stride == 8:
            above = self.upscore_pool4(scores[-1])
            scores.append(above + self._skip(self.score_pool3, pool3, 1, above))
        return scores

    def _skip(self, score: nn.Module, features: Tensor, index: int, above: Tensor) -> Tensor:
        """The scores of a finer map where those from above lie."""
        h, w = above.shape[-2:]
        return _cropped(score(features * self.skip_scales[index]), self.offsets[index], (h, w))


def crop_offsets(stride: int, pad: int = 100, fc6_padding: int = 0) -> list[int]:
    """Where the crops begin: of pool4's scores, of pool3's, and last of the upsampled ones, as many as there are.

    A cell of a map lies at the centre of what it sees. Pooling of stride ``s`` puts its cell ``i`` at
    pixel ``s * i + (s - 1) / 2 - (pad - 1)``; fc6's first cell lies 3 cells of pool5 further in, less its
    padding; upsampling by ``s`` with a kernel of ``2 * s`` puts the input's cell ``i`` at ``s * i + s - 1 / 2``.
    An offset is how many cells the two maps are apart; a negative one means that the finer map is to be
    extended.
    """
    # Where the first cell of the map that goes on upwards lies, in pixels of the image.
    origin = 32 * (3 - fc6_padding) + 15.5 - (pad - 1)
    offsets: list[float] = []
    for skip in (16, 8):
        if skip < stride:
            break
        origin -= 1.5 * skip  # the cells of the map that is upsampled by 2
        offsets.append((origin - ((skip - 1) / 2 - (pad - 1))) / skip)
    offsets.append(stride - 0.5 - origin)
    assert all(offset == int(offset) for offset in offsets)
    return [int(offset) for offset in offsets]


def _cropped(scores: Tensor, offset: int, size: tuple[int, int]) -> Tensor:
    """``size`` pixels of ``scores`` from ``offset`` on in both directions, with zeros where there are none."""
    h, w = scores.shape[-2:]
    if offset >= 0 and h >= offset + size[0] and w >= offset + size[1]:
        return scores[..., offset : offset + size[0], offset : offset + size[1]]
    return F.pad(scores, (-offset, offset + size[1] - w, -offset, offset + size[0] - h))


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _upsampling(classes: int, factor: int, learned: bool) -> nn.ConvTranspose2d:
    """Upsampling by ``factor`` with a kernel of ``2 * factor`` for each class, bilinear at first."""
    return bilinear_convolution(classes, factor, 2 * factor, depthwise=True).requires_grad_(learned)
