"""SSD300 and SSD512 as published, on VGG16, with 8,732 and 24,564 default boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torchvision.models import VGG16_Weights
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD300_VGG16_Weights, SSDFeatureExtractorVGG, SSDHead
from torchvision.models.vgg import cfgs, make_layers

from segdet.detection.ssd import DefaultBoxDetector
from segdet.nn.vgg16 import init_he, vgg16_normalization
from segdet.nn.weights import Normalization, is_weights_file, load_state, read_weights
from segdet.util.errors import UserError, check_choice

Sizes = Literal["voc", "coco"]
"""The dataset that the default boxes were designed for. COCO's boxes are smaller (sections 3.1 and 3.4)."""

VGG_MEAN = (0.48235, 0.45882, 0.40784)
"""The mean colour of the original VGG16. Its normalization does not divide by a standard deviation."""

VGG_STD = (1 / 255, 1 / 255, 1 / 255)


class VGG16SSD(DefaultBoxDetector):
    """The common base of `SSD300` and `SSD512`.

    The network is VGG16 up to conv5_3, with ceil mode in its third pooling and a fifth pooling of 3x3 with stride 1.
    fc6 is a 3x3 convolution of dilation 6, and fc7 is a 1x1 convolution. Both have 1,024 channels. Pairs of extra
    convolutions follow, and each pair reduces the resolution. The maps with default boxes are conv4_3, fc7 and all
    extra maps (section 3). The features of conv4_3 are L2-normalized with a learned scale that starts at 20. The
    modules and their names are torchvision's. Images are normalized as for the original VGG16, except with weights of
    torchvision's own VGG16 (``IMAGENET1K_V1``).

    Args:
        weights: ``COCO_V1`` or true loads torchvision's weights of the whole network (only for SSD300).
            ``IMAGENET1K_FEATURES`` (the paper's initialization) or ``IMAGENET1K_V1`` loads VGG16 alone. A local file
            may contain either kind. If VGG16 has a classifier, fc6 and fc7 are subsampled from it as in the paper:
            every fourth channel, and every third row and column. For another number of classes see
            `DefaultBoxDetector.load_torchvision`.
        sizes: The dataset that the default boxes were designed for. For COCO, SSD300 uses torchvision's boxes, which
            are clipped to the image.
        kwargs: See `DefaultBoxDetector`.

    Attributes:
        size: The side of the images in pixels. Images of other sizes are not supported.
        steps: The strides of the default boxes' centres, one per map.
        aspect_ratios: The aspect ratios of each map's boxes in addition to 1.
        scales: The side of each map's default boxes relative to the image, and one final value for the larger square
            box of the last map.
    """

    size: ClassVar[int]
    steps: ClassVar[list[int]]
    aspect_ratios: ClassVar[list[list[int]]]
    scales: ClassVar[dict[str, list[float]]]

    default_lr_factor = 0.1  # training from scratch diverges or stalls with the default rate

    def __init__(
        self,
        class_names: list[str],
        weights: bool | str | None = None,
        sizes: Sizes = "voc",
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.sizes", sizes, Sizes)
        self.input_size = (self.size, self.size)
        name = type(self).__name__
        for option, scales in (("multi_scale", self.multi_scale), ("tta_scales", self.tta_scales)):
            if scales not in (None, [1.0]):
                raise UserError(
                    f"--model.{option} {scales}: {name} supports only images of {self.size}x{self.size}; leave it out, "
                    "or use SSD, which supports all sizes"
                )
        self.default_boxes = DefaultBoxGenerator(
            self.aspect_ratios,
            scales=self.scales[sizes],
            steps=self.steps,
            clip=name == "SSD300" and sizes == "coco",
        )
        self.backbone = self._network()
        channels = [512, 1024, 512, *[256] * (len(self.steps) - 3)]
        self.head = SSDHead(channels, self.default_boxes.num_anchors_per_location(), len(class_names) + 1)
        if weights:
            self._load_weights(weights, sizes)

    @classmethod
    def weights_normalization(cls, arguments: Mapping[str, Any]) -> Normalization | None:
        weights = arguments.get("weights")
        if weights in VGG16_Weights.__members__ or _has_classifier(weights):
            return vgg16_normalization(weights, batch_norm=False)
        return Normalization(VGG_MEAN, VGG_STD)

    def _network(self) -> nn.Module:
        features = make_layers(cfgs["D"])
        init_he(features)
        return SSDFeatureExtractorVGG(features, highres=False)

    def _maps(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        if (height, width) != (self.size, self.size):
            raise UserError(
                f"{type(self).__name__} needs images of {self.size}x{self.size}, and these are {width}x{height}; "
                f"give --data.recipe SSDAugmentation --data.recipe.size [{self.size},{self.size}], "
                "or another recipe of that size"
            )
        return list(self.backbone(images).values())

    def _load_weights(self, weights: bool | str, sizes: Sizes) -> None:
        name = type(self).__name__
        published = [SSD300_VGG16_Weights] if isinstance(self, SSD300) else []
        source, state = read_weights(weights, name, [*published, VGG16_Weights])
        if source in SSD300_VGG16_Weights.__members__ and sizes != "coco":
            raise UserError(
                f"--model.weights {source}: they were trained with COCO's default boxes; add --model.sizes coco"
            )
        if "features.0.weight" in state:
            added = ("scale_weight", "extra.0.7.", *(f"extra.{i}." for i in range(1, len(self.steps) - 1)))
            new = {k: v for k, v in self.backbone.state_dict().items() if k.startswith(added)}
            load_state(
                self.backbone, new | self._convert_vgg16(state), source, f"{name}'s VGG16", given=state
            )
        else:
            self.load_torchvision(state, source)

    def _convert_vgg16(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the weights of torchvision's VGG16 to the parameters of the backbone."""
        ours: dict[str, Tensor] = {}
        for key, value in state.items():
            if key.startswith("features."):
                _, index, rest = key.split(".")
                # torchvision splits the network at the fourth pooling, layer 23.
                place = f"features.{index}" if int(index) < 23 else f"extra.0.{int(index) - 23}"
                ours[f"{place}.{rest}"] = value
        fc6, fc7 = state.get("classifier.0.weight"), state.get("classifier.3.weight")
        # The classifier of IMAGENET1K_FEATURES is NaN, because its weights were never published.
        if fc6 is not None and fc7 is not None and bool(fc6.isfinite().all()):
            ours["extra.0.7.1.weight"] = fc6.unflatten(1, (512, 7, 7))[::4, :, ::3, ::3]
            ours["extra.0.7.1.bias"] = state["classifier.0.bias"][::4]
            ours["extra.0.7.3.weight"] = fc7[::4, ::4, None, None]
            ours["extra.0.7.3.bias"] = state["classifier.3.bias"][::4]
        return ours


class SSD300(VGG16SSD):
    """SSD300 (Liu et al., ECCV 2016): 8,732 default boxes on maps of side 38, 19, 10, 5, 3 and 1.

    It takes the arguments of `VGG16SSD`.
    """

    size = 300
    steps = [8, 16, 32, 64, 100, 300]
    aspect_ratios = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
    scales = {
        "voc": [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05],
        "coco": [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
    }


class SSD512(VGG16SSD):
    """SSD512 (Liu et al., ECCV 2016): 24,564 default boxes on maps of side 64, 32, 16, 8, 4, 2 and 1.

    It has one more pair of extra convolutions than SSD300. All pairs except the last halve the map. It takes the
    arguments of `VGG16SSD`.
    """

    size = 512
    steps = [8, 16, 32, 64, 128, 256, 512]
    aspect_ratios = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]
    scales = {
        "voc": [0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05],
        "coco": [0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06],
    }

    def _network(self) -> nn.Module:
        network = super()._network()
        # After the map of side 8, torchvision's version for 512 pixels has maps of side 6, 4 and 1. Its default boxes
        # also differ from the paper's.
        last = [_extra(3, 2), _extra(3, 2), _extra(4, 1)]
        network.extra = nn.ModuleList([*list(network.extra)[:3], *last])  # type: ignore[arg-type]
        return network


def _extra(kernel: int, stride: int) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(256, 128, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(128, 256, kernel, stride, 1),
        nn.ReLU(inplace=True),
    )
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return layers


def _has_classifier(weights: bool | str | None) -> bool:
    """Return whether ``weights`` is a file of a VGG16 with its classifier, which IMAGENET1K_FEATURES lacks."""
    if not is_weights_file(weights):
        return False
    first = read_weights(str(weights), "VGG16")[1].get("classifier.0.weight")
    return first is not None and bool(first.isfinite().all())
