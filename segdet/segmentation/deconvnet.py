"""DeconvNet: VGG16 with its fully connected layers, and the whole of it mirrored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segdet.nn.pooling import Pooled
from segdet.nn.upsampling import MaxUnpooling
from segdet.nn.vgg16 import CONVOLUTIONS, VGG16, load_vgg16_weights
from segdet.segmentation.base import Segmenter
from segdet.segmentation.pictures import heat_maps, strength
from segdet.segmentation.segnet import encoder_stages
from segdet.task import Stage
from segdet.util.errors import UserError


class DeconvNet(Segmenter):
    """DeconvNet (Noh, Hong, Han, ICCV 2015): a convolution network and a deconvolution network, mirrored.

    VGG16 down to fc7 turns an image of 224x224 into one vector; a 7x7 deconvolution unfolds it to 7x7 pixels, and
    five times max unpooling, with the switches of the pooling that it undoes, and stride-1 deconvolutions draw
    the object back: switches keep where, the learned deconvolutions fill in the form. Batch normalization
    and ReLU follow every layer but the last, without which, the paper says, so deep a network ends in a bad
    optimum.

    It costs 251,772,245 parameters with 21 classes (and 33,408 of batch normalization), four fifths of which are
    in fc6 and its mirror image; and 475 ms forward at 360x480 on a Titan, where SegNet's authors measured it with
    the fully connected layers shrunk to ``fc_channels: 1024``.

    The paper cuts up to 50 object proposals out of an image, segments each, and takes the maximum of all; here the
    network goes over the image as a whole, of any size from ``32 * fc_kernel`` on, which its convolutions
    allow. Its first stage of training, on crops centred at objects, and its second, on proposals, differ in their
    images alone: the second starts with ``weights`` from the first one's run.

    Args:
        class_names: See `Task`.
        weights: The name of torchvision's weights for VGG16 with batch normalization (``IMAGENET1K_V1``) or true
            for its default ones, a file of them (of VGG16 without it, too), or the folder or a checkpoint of
            the former stage's run; null starts at random.
        width: The share of VGG16's channels in the convolutions and their mirror image.
        fc_channels: Of fc6 and fc7.
        fc_kernel: The side of fc6 and of its mirror image: 7, which is 224 / 32, or less for smaller images.
        init_std: The standard deviation of the first weights of all but the encoder: .01 in the paper; null draws
            as He et al. (ICCV 2015) do, with which narrow networks learn four images that they do not with .01.
        kwargs: As for `Segmenter`.
    """

    def __init__(
        self,
        class_names: list[str],
        weights: str | bool | None = None,
        width: float = 1.0,
        fc_channels: int = 4096,
        fc_kernel: int = 7,
        init_std: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.encoder = VGG16(width, batch_norm=True)
        channels = self.encoder.channels
        self.fc6 = nn.Conv2d(channels[-1], fc_channels, fc_kernel)
        self.fc6_norm = nn.BatchNorm2d(fc_channels)
        self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
        self.fc7_norm = nn.BatchNorm2d(fc_channels)
        self.fc6_deconv = nn.ConvTranspose2d(fc_channels, channels[-1], fc_kernel)
        self.fc6_deconv_norm = nn.BatchNorm2d(channels[-1])
        self.unpooling = MaxUnpooling(2)
        self.decoders = nn.ModuleList()
        for stage in reversed(range(len(channels))):
            here = channels[stage]
            after = channels[stage - 1] if stage else here
            layers: list[nn.Module] = []
            for into in [here] * (CONVOLUTIONS[stage] - 1) + [after]:
                layers += [
                    nn.ConvTranspose2d(here, into, 3, padding=1), nn.BatchNorm2d(into), nn.ReLU(inplace=True)
                ]  # fmt: skip
            self.decoders.append(nn.Sequential(*layers))
        self.classifier = nn.Conv2d(channels[0], len(class_names), 1)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not name.startswith("encoder"):
                fan_in = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
                nn.init.normal_(layer.weight, std=init_std or math.sqrt(2 / fan_in))
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        if weights:
            load_vgg16_weights(self, weights)

    @property
    def pass_module(self) -> nn.Module:
        return self.encoder

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to logits ``[B, C, H, W]``."""
        return self._decoded(self.encoder(images))[-1]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        pooled = self.encoder(image)
        decoded = self._decoded(pooled)
        yield from encoder_stages(pooled)
        names = ["fc6 deconvolution", *(f"deconvolution {n}" for n in range(len(pooled), 0, -1))]
        for name, features in zip(names, decoded, strict=False):
            yield Stage(name, map=strength(features), about=f"How strongly it responds after {name}.")
        yield from heat_maps(decoded[-1], self.class_names)

    def _decoded(self, pooled: list[Pooled]) -> list[Tensor]:
        """What comes out of fc6's mirror image and of each stage's, from the coarsest on, and last the logits."""
        features = pooled[-1].features
        side = self.fc6.kernel_size[0]
        if min(features.shape[-2:]) < side:
            h, w = pooled[0].size
            raise UserError(
                f"--model.fc_kernel: images of {h}x{w} pixels are smaller than fc6, which sees "
                f"{32 * side}x{32 * side}; give {min(features.shape[-2:])} or less, or larger images"
            )
        features = F.relu(self.fc6_norm(self.fc6(features)))
        features = F.relu(self.fc7_norm(self.fc7(features)))
        decoded = [F.relu(self.fc6_deconv_norm(self.fc6_deconv(features)))]
        for decoder, here in zip(self.decoders, reversed(pooled), strict=True):
            decoded.append(decoder(self.unpooling(decoded[-1], here.size, here.switches)))
        return [*decoded, self.classifier(decoded[-1])]
