"""DeepLabV3, LR-ASPP and FCN as torchvision has them, with its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from segdet.data.sample import Target
from segdet.nn.float32 import at_least_float32
from segdet.nn.weights import (
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
from segdet.segmentation.stage_maps import class_heat_maps, feature_strength
from segdet.task import Stage
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean


class TorchvisionSegmenter(Segmenter):
    """What torchvision's segmentation networks have in common; use one of the three below.

    The network is torchvision's own module, so that its weights fit and its logits come out. Where
    weights are of another number of classes than the data, the last convolutions, which alone depend on it,
    are replaced by new ones and all the rest is kept. The normalization of all of torchvision's weights is
    the default of ``mean`` and ``std``.

    Args:
        backbone: ``resnet50``, ``resnet101`` or ``mobilenet_v3_large``, as far as torchvision combines it.
        weights: Of the whole network: the name of torchvision's (``COCO_WITH_VOC_LABELS_V1``) or true for its
            default ones, a local file, or null for none.
        weights_backbone: Of the backbone alone, likewise (``IMAGENET1K_V1``); not looked at when there
            are ``weights``.
        kwargs: See `Segmenter`. ``auxiliary_weight`` is of a second classifier on the backbone's last but one
            stage, which helps training and is not run in prediction; 0 for none.

    Attributes:
        family: How torchvision's names of these networks begin.
        heads: The convolutions whose outputs are the classes, by name.
    """

    family: ClassVar[str]
    heads: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet50",
        weights: str | bool | None = None,
        weights_backbone: str | bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.network = self._network(backbone, weights, weights_backbone)

    @property
    def pass_module(self) -> nn.Module:
        """The backbone."""
        return self.network.backbone

    @property
    def compiled_modules(self) -> list[nn.Module]:
        """The network's parts: in prediction the auxiliary one is left out."""
        return list(self.network.children())

    def classify(self, features: dict[str, Tensor]) -> Tensor:
        """The backbone's maps to logits ``[B, C, h, w]`` of a stride of the backbone's."""
        return self.network.classifier(features["out"])

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of images ``[B, 3, H, W]``."""
        logits = at_least_float32(self.classify(self.network.backbone(images)))
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
        yield from self.looks(features)
        if self.auxiliary_weight:
            auxiliary = self.network.aux_classifier(features["aux"])
            confidence = auxiliary[0].float().softmax(0).amax(0)
            yield Stage("auxiliary confidence", map=confidence, about="How sure the second classifier is.")
        yield from class_heat_maps(self.classify(features), self.class_names)

    def looks(self, features: dict[str, Tensor]) -> Iterator[Stage]:
        """What the classifier stands on."""
        yield Stage(
            "features",
            map=feature_strength(features["out"]),
            about="The backbone's last map, which is classified.",
        )

    def _network(self, backbone: str, weights: str | bool | None, weights_backbone: str | bool | None) -> Any:
        """torchvision's module with the weights asked for and as many outputs as there are classes."""
        kind, name = type(self).__name__, f"{self.family}_{backbone}"
        known = torchvision.models.list_models(module=torchvision.models.segmentation)
        backbones = [k.removeprefix(self.family + "_") for k in known if k.startswith(self.family + "_")]
        if backbone not in backbones:
            hint = did_you_mean(backbone, backbones, cutoff=0)
            raise UserError(f"--model.backbone {backbone}: torchvision has no such {kind}; {hint}")
        options: dict[str, Any] = {"weights": None, "weights_backbone": None}
        if self.family != "lraspp":  # which refuses even to hear of an auxiliary head
            options["aux_loss"] = self.auxiliary_weight > 0
        options["num_classes"] = len(self.class_names)
        source, state = "", None
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
            network.aux_classifier = None  # torchvision's weights bring one
        if state is not None:
            if not any(key.startswith("aux_classifier.") for key in state):
                # A file without the auxiliary head, which only training needs, leaves it new.
                own = network.state_dict()
                state |= {key: own[key] for key in own if key.startswith("aux_classifier.")}
            load_state(network, state, source, f"{kind} {backbone}")
        elif weights_backbone and not weights and is_weights_file(weights_backbone):
            load_weights(network.backbone, weights_backbone, f"backbone {backbone}", convert=_of_features)
        for head in self.heads:
            _give_outputs(network, head, len(self.class_names))
        return network


class TorchvisionFCN(TorchvisionSegmenter):
    """torchvision's FCN: a dilated ResNet and two convolutions at stride 8 (Long et al., CVPR 2015).

    No skips, as fine maps are missed less where nothing is coarser than stride 8: dilation keeps the resolution that
    strides of 16 and 32 would lose, and costs one pass of a backbone whose last stages run on 4 and 16 times as
    many cells.

    Args:
        backbone: ``resnet50`` or ``resnet101``.
        weights: As for `TorchvisionSegmenter`.
        weights_backbone: See there.
        kwargs: See there.
    """

    family = "fcn"
    heads = ("classifier.4", "aux_classifier.4")


class DeepLabV3(TorchvisionSegmenter):
    """DeepLabV3 (Chen, Papandreou, Schroff, Adam, 2017, "Rethinking Atrous Convolution"), torchvision's.

    The backbone's last strides are replaced by dilations, and on its map stands atrous spatial pyramid pooling:
    a 1x1 convolution, three 3x3 ones of dilations 12, 24 and 36, and the mean of the whole image, side by
    side, so that each pixel is judged by surroundings of several sizes (section 3.3). It costs one pass of a
    backbone that stays at stride 8 (MobileNet: 16).

    Args:
        backbone: ``resnet50``, ``resnet101`` or ``mobilenet_v3_large``.
        weights: As for `TorchvisionSegmenter`.
        weights_backbone: See there.
        kwargs: See there.
    """

    family = "deeplabv3"
    heads = ("classifier.4", "aux_classifier.4")

    def looks(self, features: dict[str, Tensor]) -> Iterator[Stage]:
        yield Stage("features", map=feature_strength(features["out"]), about="The backbone's last map.")
        for branch in self.network.classifier[0].convs[:-1]:
            convolution = branch[0]
            rate, side = convolution.dilation[0], convolution.kernel_size[0]
            name = f"dilation {rate}" if side > 1 else "1x1"
            about = (
                f"What it finds with {side}x{side} taps, {rate} cells apart." if side > 1 else "Cell by cell."
            )
            yield Stage(name, map=feature_strength(branch(features["out"])), about=about)


class LRASPP(TorchvisionSegmenter):
    """Lite R-ASPP on MobileNetV3 (Howard et al., ICCV 2019, section 6.4), torchvision's.

    Made for phones: the map of stride 16, weighted channel by channel by what the mean of the whole
    image says, is classified by a 1x1 convolution, and so is the map of stride 8; the two are added. It costs one
    pass of a small backbone and little more; by torchvision's count of operations `DeepLabV3` on
    ResNet-50 takes 85 times as many.

    Args:
        backbone: ``mobilenet_v3_large``.
        weights: As for `TorchvisionSegmenter`.
        weights_backbone: See there.
        kwargs: See `Segmenter`.
    """

    family = "lraspp"
    heads = ("classifier.low_classifier", "classifier.high_classifier")

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "mobilenet_v3_large",
        weights: str | bool | None = None,
        weights_backbone: str | bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, backbone, weights, weights_backbone, auxiliary_weight=0.0, **kwargs)

    def classify(self, features: dict[str, Tensor]) -> Tensor:
        return self.network.classifier(features)

    def looks(self, features: dict[str, Tensor]) -> Iterator[Stage]:
        yield Stage(
            "low features",
            map=feature_strength(features["low"]),
            about="The map of stride 8: where things are.",
        )
        yield Stage(
            "high features",
            map=feature_strength(features["high"]),
            about="The map of stride 16: what things are.",
        )
        head = self.network.classifier
        weighted = head.cbr(features["high"]) * head.scale(features["high"])
        yield Stage(
            "weighted features",
            map=feature_strength(weighted),
            about="The same after the image as a whole has had its say.",
        )


def _published(option: str, model: str, weights: str | bool) -> str:
    """The name of weights that torchvision has for ``model``."""
    return published_name(weights, model, [torchvision.models.get_model_weights(model)], f"--model.{option}")


def _of_features(state: StateDict) -> StateDict:
    """The weights by the names of torchvision's segmentation networks, which take a MobileNet's ``features`` alone."""
    return {key.removeprefix("features."): value for key, value in state.items()}


def _give_outputs(network: nn.Module, name: str, classes: int) -> None:
    """Replaces the convolution ``name`` where it has not as many outputs as there are classes."""
    parent_name, _, child = name.rpartition(".")
    parent = dict(network.named_modules()).get(parent_name)
    if parent is None:  # no auxiliary head
        return
    old = parent.get_submodule(child)
    assert isinstance(old, nn.Conv2d)
    if old.out_channels != classes:
        setattr(parent, child, nn.Conv2d(old.in_channels, classes, 1))
