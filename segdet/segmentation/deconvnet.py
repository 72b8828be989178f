"""DeconvNet: VGG16 with its fully connected layers, and its mirror image as a decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segdet.nn.pooling import Pooled
from segdet.nn.upsampling import MaxUnpooling
from segdet.nn.vgg16 import CONVOLUTIONS, VGG16, load_vgg16_weights, vgg16_normalization
from segdet.nn.weights import Normalization
from segdet.segmentation.base import Segmenter
from segdet.segmentation.stage_maps import class_heat_maps, encoder_stages, feature_stage
from segdet.task import Stage
from segdet.util.errors import UserError
from segdet.util.stage_timing import stage


class DeconvNet(Segmenter):
    """DeconvNet (Noh, Hong, Han, ICCV 2015): a convolution network and a mirrored deconvolution network.

    VGG16 up to fc7 maps an image of 224x224 to one vector. A 7x7 deconvolution expands the vector to 7x7 pixels. Five
    stages then reconstruct the objects (section 3). Each stage consists of max unpooling, with the switches of the
    mirrored pooling, and deconvolutions of stride 1. The switches restore locations, and the learned deconvolutions
    fill in shapes. Batch normalization and ReLU follow every layer except the last. The paper reports that such a deep
    network converges to a poor optimum without batch normalization.

    The network has 251,772,245 parameters with 21 classes (and 33,408 of batch normalization), four fifths of them in
    fc6 and its mirror image. SegNet's authors measured 475 ms per forward pass at 360x480 on a Titan, with the
    fully connected layers reduced to ``fc_channels: 1024``.

    The paper segments up to 50 object proposals per image and takes the maximum of their scores. Here the network is
    applied to the whole image, with sides of at least ``32 * fc_kernel``. The paper trains in two stages: on crops
    centred at objects, then on proposals. The stages differ only in their images. For the second stage, set ``weights``
    to the run of the first stage.

    Args:
        weights: The name of torchvision's weights of VGG16 with batch normalization (``IMAGENET1K_V1``); true for the
            default ones; a file of VGG16 weights, with or without batch normalization; the run folder or a checkpoint
            of the previous stage; null for random weights.
        width: The fraction of VGG16's channels in the convolutions and their mirror image.
        fc_channels: The channels of fc6 and fc7.
        fc_kernel: The side of fc6 and of its mirror image: 7, which is 224 / 32, or less for smaller images.
        init_std: The standard deviation of the initial weights of all layers except the encoder: .01 in the paper; null
            for the initialization of He et al. (ICCV 2015). With .01, narrow networks fail to overfit four images.
        kwargs: See `Segmenter`.
    """

    def __init__(
        self,
        class_names: list[str],
        weights: bool | str | None = None,
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
        for level in reversed(range(len(channels))):
            width_in = channels[level]
            layers: list[nn.Module] = []
            for out in [width_in] * (CONVOLUTIONS[level] - 1) + [channels[max(level - 1, 0)]]:
                layers += [
                    nn.ConvTranspose2d(width_in, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
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

    @classmethod
    def weights_normalization(cls, arguments: Mapping[str, Any]) -> Normalization | None:
        return vgg16_normalization(arguments.get("weights"), batch_norm=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        pooled = self.encoder(images)
        with stage("head"):
            return self._decode(pooled)[-1]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        pooled = self.encoder(image)
        decoded = self._decode(pooled)
        yield from encoder_stages(pooled)
        names = ["fc6 deconvolution", *(f"deconvolution {n}" for n in range(len(pooled), 0, -1))]
        for name, features in zip(names, decoded, strict=False):
            yield feature_stage(name, features, f"The feature strength after {name}.")
        yield from class_heat_maps(decoded[-1], self.class_names)

    def _decode(self, pooled: list[Pooled]) -> list[Tensor]:
        """Return the maps of fc6's mirror image and of each decoder, coarse to fine, then the logits."""
        features = pooled[-1].features
        side = self.fc6.kernel_size[0]
        if min(features.shape[-2:]) < side:
            h, w = pooled[0].size
            raise UserError(
                f"--model.fc_kernel: images of {h}x{w} pixels are smaller than the receptive field of fc6, "
                f"{32 * side}x{32 * side}; give {min(features.shape[-2:])} or less, or larger images"
            )
        features = F.relu(self.fc6_norm(self.fc6(features)))
        features = F.relu(self.fc7_norm(self.fc7(features)))
        decoded = [F.relu(self.fc6_deconv_norm(self.fc6_deconv(features)))]
        for decoder, below in zip(self.decoders, reversed(pooled), strict=True):
            decoded.append(decoder(self.unpooling(decoded[-1], below.size, below.switches)))
        return [*decoded, self.classifier(decoded[-1])]
