"""FCN-32s, FCN-16s and FCN-8s: VGG16 converted to a fully convolutional network, as in the paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from segdet.nn.upsampling import bilinear_convolution
from segdet.nn.vgg16 import VGG16, init_he, load_vgg16_weights, vgg16_normalization
from segdet.nn.weights import Normalization
from segdet.segmentation.base import Segmenter
from segdet.segmentation.stage_maps import class_heat_maps, confidence_stage
from segdet.task import Stage
from segdet.util.errors import check_choice

Learned = Literal["none", "intermediate", "all"]
Stride = Literal[32, 16, 8]
Pad = Literal[100, 1]


class VGG16FCN(Segmenter):
    """FCN-32s, FCN-16s, FCN-8s (Long, Shelhamer, Darrell, CVPR 2015; Shelhamer et al., PAMI 2017) on VGG16.

    A fully connected layer is a convolution with a kernel as large as its input (section 3.1). With VGG16's fc6 and
    fc7 as convolutions, the network classifies every 32nd pixel of an image of any size in one pass, with
    ImageNet's weights. A 1x1 convolution computes class scores, and a transposed convolution that is
    initialized to bilinear interpolation upsamples them to the image's size (FCN-32s). Two skip connections add
    scores of pool4 and pool3 (FCN-16s, FCN-8s): fine maps contribute location, coarse maps semantics (section 4.2).

    The image is padded by 100 pixels, so that an image of any size is large enough for fc6, and the output is cropped
    to the image. The crop offsets follow from the positions of the maps' cells in the image: 19 for FCN-32s; 5 and 27
    for FCN-16s; 5, 9 and 31 for FCN-8s, as in the released networks. The cost is one pass, on about twice as many
    pixels for an image of 500x500: FCN-32s took 210 ms on a K40c. Three quarters of the 134 M parameters are in fc6.

    The network can be trained at once or in stages. Training at once uses both skip connections from the start; pool4
    and pool3 are scaled down so that their gradients do not dominate (``skip_scales`` .01 and .0001). Training in
    stages starts with FCN-32s, continues with FCN-16s (``weights: runs/fcn32s``, ``skip_scales: [1, 1]``), and ends
    with FCN-8s from FCN-16s. The scores of each new skip connection are initialized to zero, so each stage starts at
    the result of the previous one.

    Args:
        stride: 32, 16 or 8: the stride of the finest map that is scored.
        weights: The name of torchvision's VGG16 weights (``IMAGENET1K_V1``), true for its default weights, a weights
            file, or the run folder or checkpoint of the previous stage; null for random weights.
        pad: The padding of the image: 100 as in the paper, or 1 as in VGG16, with a padding of 3 in fc6 instead. With
            100, a small image would consist mostly of padding.
        upsampling: The transposed convolutions to train: ``none`` (the released networks), ``intermediate``
            (the paper: all except the last) or ``all``. Each class has its own kernel.
        skip_scales: The factors of pool4 and pool3.
        dropout: The dropout rate after fc6 and fc7.
        width: The fraction of VGG16's channels in its convolutions.
        fc_channels: The channels of fc6 and fc7.
        batch_norm: Whether batch normalization follows VGG16's convolutions. The paper has none; training from
            scratch needs it.
        kwargs: See `Segmenter`.
    """

    default_lr_factor = 0.1  # training from scratch diverges or stalls with the default rate

    def __init__(
        self,
        class_names: list[str],
        stride: Stride = 8,
        weights: bool | str | None = None,
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
        self.score_fr = _init_zero(nn.Conv2d(fc_channels, classes, 1))
        intermediate, last = upsampling != "none", upsampling == "all"
        if stride <= 16:
            self.upscore2 = _upsampling(classes, 2, intermediate)
            self.score_pool4 = _init_zero(nn.Conv2d(pool4, classes, 1))
        if stride == 8:
            self.upscore_pool4 = _upsampling(classes, 2, intermediate)
            self.score_pool3 = _init_zero(nn.Conv2d(pool3, classes, 1))
        self.upscore = _upsampling(classes, stride, last)
        self.offsets = crop_offsets(stride, pad, fc6_padding)
        if weights:
            load_vgg16_weights(self, weights)

    @classmethod
    def weights_normalization(cls, arguments: Mapping[str, Any]) -> Normalization | None:
        return vgg16_normalization(arguments.get("weights"), bool(arguments.get("batch_norm")))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        h, w = images.shape[-2:]
        return _crop(self.upscore(self._scores(images)[-1]), self.offsets[-1], (h, w))

    def stages(self, image: Tensor) -> Iterator[Stage]:
        for stride, scores in zip((32, 16, 8), self._scores(image), strict=False):
            caption = f"The probability of the predicted class from the scores down to stride {stride}, with padding."
            yield confidence_stage(f"stride {stride}", scores, caption)
        yield from class_heat_maps(self(image), self.class_names)

    def _scores(self, images: Tensor) -> list[Tensor]:
        """Return the class scores of stride 32, then their sums with those of pool4 and pool3, if any."""
        _, _, pool3, pool4, pool5 = (pooled.features for pooled in self.encoder(images))
        fc6 = self.dropout(F.relu(self.fc6(pool5)))
        fc7 = self.dropout(F.relu(self.fc7(fc6)))
        scores = [self.score_fr(fc7)]
        if self.stride <= 16:
            coarse = self.upscore2(scores[-1])
            scores.append(coarse + self._skip(self.score_pool4, pool4, 0, coarse))
        if self.stride == 8:
            coarse = self.upscore_pool4(scores[-1])
            scores.append(coarse + self._skip(self.score_pool3, pool3, 1, coarse))
        return scores

    def _skip(self, score: nn.Module, features: Tensor, index: int, coarse: Tensor) -> Tensor:
        """Return the scores of a finer map, cropped to the size of the upsampled ``coarse`` scores."""
        h, w = coarse.shape[-2:]
        return _crop(score(features * self.skip_scales[index]), self.offsets[index], (h, w))


def crop_offsets(stride: int, pad: int = 100, fc6_padding: int = 0) -> list[int]:
    """Return the crop offsets: first for the scores of pool4 and pool3, if they are used, then for the output.

    A cell of a map lies at the centre of its receptive field. Cell ``i`` of a pooled map of stride ``s`` lies at pixel
    ``s * i + (s - 1) / 2 - (pad - 1)``. The first cell of fc6 lies at cell ``3 - fc6_padding`` of pool5. Upsampling by
    ``s`` with a kernel of ``2 * s`` moves cell ``i`` of the input to ``s * i + s - 1 / 2``. An offset is the distance
    of the first cells of the two maps, in cells. With a negative offset the finer map must be padded.
    """
    # The position of the first cell of the coarse map, in pixels of the image.
    origin = 32 * (3 - fc6_padding) + 15.5 - (pad - 1)
    offsets: list[float] = []
    for skip in (16, 8):
        if skip < stride:
            break
        origin -= 1.5 * skip  # after upsampling by 2
        offsets.append((origin - ((skip - 1) / 2 - (pad - 1))) / skip)
    offsets.append(stride - 0.5 - origin)
    assert all(offset == int(offset) for offset in offsets)
    return [int(offset) for offset in offsets]


def _crop(scores: Tensor, offset: int, size: tuple[int, int]) -> Tensor:
    """Return ``size`` pixels of ``scores``, starting at ``offset`` in both directions, padded with zeros."""
    h, w = scores.shape[-2:]
    if offset >= 0 and h >= offset + size[0] and w >= offset + size[1]:
        return scores[..., offset : offset + size[0], offset : offset + size[1]]
    return F.pad(scores, (-offset, offset + size[1] - w, -offset, offset + size[0] - h))


def _init_zero(layer: nn.Conv2d) -> nn.Conv2d:
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _upsampling(classes: int, factor: int, learned: bool) -> nn.ConvTranspose2d:
    """Return upsampling by ``factor`` with one kernel of side ``2 * factor`` per class, initially bilinear."""
    return bilinear_convolution(classes, factor, 2 * factor, depthwise=True).requires_grad_(learned)
