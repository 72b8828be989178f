"""Small networks of all families, for comparisons that run every family in a few seconds."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segdet.proposals.uniform_windows import UniformWindows

LOG = "SEGDET_PROPOSAL_LOG"
"""The environment variable that names the file in which `LoggedWindows` counts its calls."""

RESNET = {"backbone": "test_resnet"}
VGG = {"backbone": "small_vgg", "backbone_options": {"channels": [8, 16, 24, 24], "convolutions": 1}}
SHORT_VGG = {"backbone": "small_vgg", "backbone_options": {"channels": [8, 16], "convolutions": 1}}
ALL = {"score_threshold": 1e-6}
"""Networks that are hardly trained have low scores."""

WINDOWS = {
    "window": 14, "stride": 4, "channels": [8, 12], "kernels": [3, 3], "pools": [2, 2], "hidden": [16],
    "scales": [0.5, 1.0], "windows_per_image": 32,
}  # fmt: skip
REGIONS = SHORT_VGG | {"stride": 4, "pool": 2, "width": 16}
TWO_STAGE = ALL | {
    "rpn_samples": 32, "regions": 16, "before_nms": [100, 100], "proposals": [30, 30],
}  # fmt: skip


@dataclass(frozen=True)
class LoggedWindows(UniformWindows):
    """Uniform windows that append a line for every computed image to the file that `LOG` names."""

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if os.environ.get(LOG):
            with Path(os.environ[LOG]).open("a", encoding="utf-8") as stream:
                stream.write(f"{os.getpid()}\n")
        return super().__call__(image)


PROPOSALS = {
    "proposals": {
        "class_path": "experiments.families.LoggedWindows",
        "init_args": {"scales": [0.3, 0.5, 0.8]},
    },
    "max_proposals": 150,
}


@dataclass(frozen=True)
class Family:
    """A small network of a family.

    Attributes:
        model: The constructor arguments.
        data: Options of the data module.
        size: The height and width of the images.
        slow: Whether a step takes over half a second, because the family has a network of fixed size.
    """

    model: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (64, 64)
    slow: bool = False

    def arguments(self, name: str) -> list[str]:
        """Return the options of segdet for the model and the data of the family ``name``."""
        options = {f"model.{key}": value for key, value in self.model.items()}
        options |= {f"data.{key}": value for key, value in self.data.items()}
        texts = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in options.items()
        }
        given = [f"--{key}={text}" for key, text in texts.items()]
        return [
            f"--model={name}",
            "--data=ShapesDataModule",
            *given,
            f"--data.recipe={json.dumps(self.recipe)}",
        ]

    @property
    def recipe(self) -> dict[str, Any]:
        """The transforms."""
        return {"class_path": "ScaleJitter", "init_args": {"size": list(self.size), "scale": [0.8, 1.2]}}


FAMILIES: dict[str, Family] = {
    "SlidingWindow": Family({"window": 15, "channels": [8, 12], "kernels": [4, 3], "pools": [2, 2], "hidden": 16}),
    "FullResolutionFCN": Family({"depth": 4, "width": 8, "dilations": [1, 2, 4, 1]}),
    "UpsamplingFCN": Family({"upsampling": "max_unpooling", "channels": [8, 16, 16], "convolutions": 1}),
    "FCN": Family(RESNET | {"width": 8}),
    "VGG16FCN": Family({"width": 0.125, "fc_channels": 32, "pad": 1}),
    "SegNet": Family({"width": 0.125}),
    "SegNetBasic": Family({"channels": 8}),
    "DeconvNet": Family({"width": 0.125, "fc_channels": 32, "fc_kernel": 1}),
    "UNet": Family(RESNET),
    "OriginalUNet": Family({"width": 8, "depth": 2}, size=(92, 92)),
    "TorchvisionFCN": Family({}, slow=True),
    "DeepLabV3": Family({"backbone": "mobilenet_v3_large"}, slow=True),
    "LRASPP": Family({}),
    "SMP": Family({"architecture": "FPN", "encoder": "tu-resnet10t"}),
    "BoxHead": Family(RESNET | {"width": 16}),
    "SlidingWindowDetector": Family(WINDOWS),
    "OverFeat": Family(WINDOWS | {"box_hidden": [16]}),
    "RCNN": Family(
        REGIONS | ALL | {"warp_size": 16, "context": 1, "regions_per_batch": 16, "svm": {"retrain": 40}}, PROPOSALS
    ),
    "FastRCNN": Family(REGIONS | ALL | {"rois_per_image": 16}, PROPOSALS),
    "FasterRCNN": Family(
        VGG | TWO_STAGE
        | {"strides": [8, 16], "width": 16, "anchor_sizes": [[16.0], [32.0], [64.0]], "head_width": 32, "pool_size": 3}
    ),
    "TorchvisionFasterRCNN": Family({}, slow=True),
    "MaskRCNN": Family(
        VGG | TWO_STAGE
        | {"strides": [8, 16], "width": 16, "anchor_sizes": [[16.0], [32.0], [64.0]], "head_width": 32,
           "mask_width": 8, "mask_convolutions": 1},
        {"format": "coco", "masks": True},
    ),
    "TorchvisionMaskRCNN": Family({}, {"format": "coco", "masks": True}, slow=True),
    "YOLOv1": Family(VGG | {"stride": 8, "grid": 4, "width": 16, "hidden": 0, "batch_norm": True} | ALL),
    "SSD": Family(RESNET | {"width": 16} | ALL),
    "SSD300": Family({}, size=(300, 300), slow=True),
    "SSD512": Family({}, size=(512, 512), slow=True),
    "SSDLite": Family({}, size=(320, 320), slow=True),
    "RetinaNet": Family(VGG | {"strides": [8, 16], "extra_levels": 0, "width": 16, "head_convolutions": 1} | ALL),
    "TorchvisionRetinaNet": Family({}, slow=True),
    "FCOS": Family(VGG | {"strides": [8, 16], "extra_levels": 0, "width": 16, "head_convolutions": 1} | ALL),
    "TorchvisionFCOS": Family({}, slow=True),
    "YOLOX": Family(VGG | {"strides": [8, 16], "width": 16, "head_convolutions": 1} | ALL),
    "DETR": Family(
        VGG | {"stride": 16, "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 32,
               "queries": 60, "spatial_prior": True}
    ),
}  # fmt: skip
"""One network for each family of the README."""
