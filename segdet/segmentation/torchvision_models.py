"""DeepLabV3, LR-ASPP and FCN of torchvision, with its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from segdet.data.sample import Target
from segdet.nn.float32 import at_least_float32
from segdet.nn.weights import (
    Normalization,
    StateDict,
    download_error,
    is_restoring,
    is_weights_file,
    load_state,
    load_weights,
    published_name,
    read_weights,
)
from segdet.segmentation.base import Segmenter, masks_of
from segdet.segmentation.stage_maps import class_heat_maps, confidence_stage, feature_stage
from segdet.task import Stage
from segdet.util.errors import UserError
from segdet.util.stage_timing import stage
from segdet.util.suggest import did_you_mean


class TorchvisionSegmenter(Segmenter):
    """The base class of torchvision's segmentation networks; use one of the three subclasses.

    The network is torchvision's own module, with the same weights and logits. If the weights were trained for another
    number of classes, the last convolutions are replaced by new ones. All of torchvision's weights expect the default
    ``mean`` and ``std``.

    Args:
        backbone: ``resnet50``, ``resnet101`` or ``mobilenet_v3_large``, if torchvision supports the combination.
        weights: The weights of the whole network: a name of torchvision's (``COCO_WITH_VOC_LABELS_V1``), true for its
            default weights, a local file, or null for random weights.
        weights_backbone: The weights of the backbone, in the same notation (``IMAGENET1K_V1``). Ignored if ``weights``
            are given.
        kwargs: See `Segmenter`. ``auxiliary_weight`` is the loss weight of a second classifier on the second-to-last
            stage of the backbone, used in training only; 0 for no second classifier.

    Attributes:
        family: The prefix of torchvision's names of these networks.
        heads: The names of the convolutions that output the classes.
    """

    family: ClassVar[str]
    heads: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet50",
        weights: bool | str | None = None,
        weights_backbone: bool | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.network = self._build(backbone, weights, weights_backbone)

    @classmethod
    def weights_normalization(cls, arguments: Mapping[str, Any]) -> Normalization | None:
        return None  # all of torchvision's weights expect the default

    @property
    def pass_module(self) -> nn.Module:
        """The backbone."""
        return self.network.backbone

    @property
    def compiled_modules(self) -> list[nn.Module]:
        """The backbone and the classifiers, one by one, because prediction does not run the auxiliary classifier."""
        return list(self.network.children())

    def classify(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits ``[B, C, h, w]`` of the backbone's maps, at the stride of one of them."""
        return self.network.classifier(features["out"])

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        features = self.network.backbone(images)
        with stage("head"):
            logits = at_least_float32(self.classify(features))
            return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        masks = masks_of(targets)
        features = self.network.backbone(images)
        losses = {"segmentation": self.pixel_loss(self.classify(features), masks)}
        if self.auxiliary_weight:
            losses["auxiliary"] = self.auxiliary_loss([self.network.aux_classifier(features["aux"])], masks)
        return losses

    def stages(self, image: Tensor) -> Iterator[Stage]:
        features = self.network.backbone(image)
        yield from self.feature_stages(features)
        if self.auxiliary_weight:
            auxiliary = self.network.aux_classifier(features["aux"])
            caption = "The auxiliary classifier's probability."
            yield confidence_stage("auxiliary confidence", auxiliary, caption)
        yield from class_heat_maps(self.classify(features), self.class_names)

    def feature_stages(self, features: dict[str, Tensor]) -> Iterator[Stage]:
        """Yield the inputs of the classifier."""
        yield feature_stage("features", features["out"], "The strength of the backbone's last map.")

    def _build(self, backbone: str, weights: bool | str | None, weights_backbone: bool | str | None) -> Any:
        """Return torchvision's module with the given weights and one output per class."""
        kind, name = type(self).__name__, f"{self.family}_{backbone}"
        known = torchvision.models.list_models(module=torchvision.models.segmentation)
        backbones = [k.removeprefix(self.family + "_") for k in known if k.startswith(self.family + "_")]
        if backbone not in backbones:
            hint = did_you_mean(backbone, backbones, cutoff=0)
            raise UserError(f"--model.backbone {backbone}: torchvision has no such {kind}; {hint}")
        options: dict[str, Any] = {"weights": None, "weights_backbone": None}
        if self.family != "lraspp":  # LR-ASPP has no such argument
            options["aux_loss"] = self.auxiliary_weight > 0
        options["num_classes"] = len(self.class_names)
        source = ""
        state: StateDict = {}
        if weights and is_weights_file(weights):
            source, state = read_weights(weights, kind)
            options["num_classes"] = len(state.get(f"{self.heads[0]}.weight", self.class_names))
        elif weights and not is_restoring():
            options = {"weights": _published("weights", name, weights)}
        elif weights_backbone and not is_weights_file(weights_backbone) and not is_restoring():
            options["weights_backbone"] = _published("weights_backbone", backbone, weights_backbone)
        try:
            network = torchvision.models.get_model(name, **options)
        except (OSError, RuntimeError) as error:
            raise download_error(f"{kind} {backbone}", error) from error
        if not self.auxiliary_weight and self.family != "lraspp":
            network.aux_classifier = None  # torchvision adds one with its weights
        if state:
            if not any(key.startswith("aux_classifier.") for key in state):
                # The auxiliary head, which only training needs, may be missing; it stays random.
                own = network.state_dict()
                state |= {key: own[key] for key in own if key.startswith("aux_classifier.")}
            load_state(network, state, source, f"{kind} {backbone}")
        elif weights_backbone and not weights and is_weights_file(weights_backbone):
            load_weights(
                network.backbone, weights_backbone, f"backbone {backbone}", convert=_remove_features_prefix
            )
        for head in self.heads:
            _set_outputs(network, head, len(self.class_names))
        return network


class TorchvisionFCN(TorchvisionSegmenter):
    """torchvision's FCN: a dilated ResNet and two convolutions at stride 8 (Long et al., CVPR 2015).

    Dilation replaces the strides of the backbone's last two stages, so no map is coarser than stride 8, and skip
    connections are less necessary. The cost is one pass of the backbone, with 4 and 16 times as many cells in its last
    two stages.

    Args:
        backbone: ``resnet50`` or ``resnet101``.
    """

    family = "fcn"
    heads = ("classifier.4", "aux_classifier.4")


class DeepLabV3(TorchvisionSegmenter):
    """torchvision's DeepLabV3 (Chen, Papandreou, Schroff, Adam, 2017, "Rethinking Atrous Convolution").

    Dilations replace the backbone's last strides. Atrous spatial pyramid pooling follows: a 1x1 convolution, three 3x3
    convolutions of dilations 12, 24 and 36, and the mean of the whole image, in parallel. Each pixel is thus classified
    with context of several sizes (section 3.3). The cost is one pass of a backbone at stride 8 (16 for MobileNet).

    Args:
        backbone: ``resnet50``, ``resnet101`` or ``mobilenet_v3_large``.
    """

    family = "deeplabv3"
    heads = ("classifier.4", "aux_classifier.4")

    def feature_stages(self, features: dict[str, Tensor]) -> Iterator[Stage]:
        yield from super().feature_stages(features)
        for branch in self.network.classifier[0].convs[:-1]:
            convolution = branch[0]
            rate, side = convolution.dilation[0], convolution.kernel_size[0]
            name = f"dilation {rate}" if side > 1 else "1x1"
            caption = f"The feature strength of the {side}x{side} convolution of dilation {rate}."
            yield feature_stage(name, branch(features["out"]), caption)


class LRASPP(TorchvisionSegmenter):
    """torchvision's Lite R-ASPP on MobileNetV3 (Howard et al., ICCV 2019, section 6.4), designed for phones.

    The channels of the map of stride 16 are weighted by a function of the mean of the whole image. A 1x1 convolution
    classifies the result, another one classifies the map of stride 8, and the scores are added. The cost is little more
    than one pass of a small backbone. By torchvision's count, `DeepLabV3` on ResNet-50 needs 85 times as many
    operations.

    Args:
        backbone: ``mobilenet_v3_large``.
        kwargs: See `Segmenter`.
    """

    family = "lraspp"
    heads = ("classifier.low_classifier", "classifier.high_classifier")

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "mobilenet_v3_large",
        weights: bool | str | None = None,
        weights_backbone: bool | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, backbone, weights, weights_backbone, auxiliary_weight=0.0, **kwargs)

    def classify(self, features: dict[str, Tensor]) -> Tensor:
        return self.network.classifier(features)

    def feature_stages(self, features: dict[str, Tensor]) -> Iterator[Stage]:
        yield feature_stage("low features", features["low"], "The strength of the map of stride 8.")
        yield feature_stage("high features", features["high"], "The strength of the map of stride 16.")
        head = self.network.classifier
        weighted = head.cbr(features["high"]) * head.scale(features["high"])
        caption = "The strength of the map of stride 16 with weighted channels, after a convolution."
        yield feature_stage("weighted features", weighted, caption)


def _published(option: str, model: str, weights: bool | str) -> str:
    """Return the name of torchvision's weights of ``model``."""
    return published_name(weights, model, [torchvision.models.get_model_weights(model)], f"--model.{option}")


def _remove_features_prefix(state: StateDict) -> StateDict:
    """Return a MobileNet's weights without the prefix ``features.``, as in the backbone of a segmentation network."""
    return {key.removeprefix("features."): value for key, value in state.items()}


def _set_outputs(network: nn.Module, name: str, classes: int) -> None:
    """Replace the convolution ``name`` if it has another number of outputs than ``classes``."""
    parent_name, _, child = name.rpartition(".")
    parent = dict(network.named_modules()).get(parent_name)
    if parent is None:  # no auxiliary head
        return
    old = parent.get_submodule(child)
    assert isinstance(old, nn.Conv2d)
    if old.out_channels != classes:
        setattr(parent, child, nn.Conv2d(old.in_channels, classes, 1))
