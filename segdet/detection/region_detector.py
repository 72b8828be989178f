"""The base class of detectors that classify region proposals: R-CNN and Fast R-CNN."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segdet.data.base import DataModule
from segdet.data.cleaning import clip_boxes
from segdet.data.images import read_image
from segdet.data.sample import Batch, Prediction, Sample, Target
from segdet.detection.base import Detector, best_boxes_stage, detections_stage
from segdet.metrics.base import Scores
from segdet.metrics.region_detection import RegionScores
from segdet.nn.backbones import build_backbone
from segdet.nn.roi import TwoLayerHead
from segdet.proposals.base import Proposer
from segdet.task import Stage, View
from segdet.training.load_checkpoint import DESCRIPTION, import_class
from segdet.util.errors import UserError
from segdet.util.saved_arguments import plain
from segdet.util.stage_timing import stage


class RegionDetector(Detector):
    """A detector that classifies each of the hundreds or thousands of region proposals of an image.

    The proposals come from the data module (``--data.proposals``). Samples contain them, transformed like the objects.
    For an image without a sample, the data module's proposer computes them. A family implements `classify`. All
    families share the backbone, two fully connected layers on a region's pooled map, and suppression per class.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See `segdet.nn.backbones.build_backbone`. With torchvision's VGG16, ``fc6`` and ``fc7`` are initialized
            from its classifier when ``width`` is 4096 and ``pool`` 7.
        backbone_options: See `segdet.nn.backbones.build_backbone`.
        stride: The stride of the backbone's map that is pooled.
        pool: The side of the pooled map of a region ("pool5").
        width: The units of ``fc6`` and ``fc7``.
        dropout: The dropout rate after each of these layers.
        detections_per_class: The maximum number of boxes per class before suppression.
        kwargs: See `Detector`.

    Attributes:
        proposer: The data module's proposer, for images without a sample; None if proposals are read from a file.
        max_proposals: The maximum number of proposals per image, from the data module.
    """

    proposer: Proposer | None = None
    max_proposals: int = 2000
    _proposer_error: UserError | None = None

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: bool | str | None = None,
        backbone_options: dict[str, Any] | None = None,
        stride: int = 32,
        pool: int = 7,
        width: int = 1024,
        dropout: float = 0.5,
        nms_threshold: float = 0.3,
        detections_per_class: int = 300,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, nms_threshold=nms_threshold, **kwargs)
        self.detections_per_class = detections_per_class
        self.backbone = build_backbone(backbone, weights, [stride], **(backbone_options or {}))
        self.layers = TwoLayerHead(self.backbone.channels[0] * pool * pool, width, dropout)
        self.layers.start_from(backbone, weights)

    @abstractmethod
    def classify(self, images: Tensor, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Score all proposals of a batch, image by image.

        Args:
            images: Normalized, ``[B, 3, H, W]``.
            proposals: float32 ``[P, 4]`` for each image, xyxy in its pixels.

        Returns:
            Scores ``[R, K]``, column k for label k + 1, and boxes ``[R, K, 4]``, or ``[R, 1, 4]`` if they do not depend
            on the class.
        """

    def predict(self, images: Tensor, proposals: list[Tensor]) -> list[Prediction]:  # type: ignore[override]
        """Return the detections among the proposals of normalized images of one size, in pixels of these images."""
        scores, boxes = self.classify(images, proposals)
        return self._detections(scores, boxes, proposals, (images.shape[2], images.shape[3]))

    def stages(self, image: Tensor, proposals: Tensor | None = None) -> Iterator[Stage]:
        """Yield the proposals, their classification, their regressed boxes, and the detections.

        Args:
            image: Normalized, ``[1, 3, H, W]``.
            proposals: float32 ``[P, 4]``, xyxy in pixels of the image; None to compute them with the proposer.
        """
        if proposals is None:
            pixels = (image + self._shift) / self._scale
            proposals = self.propose(pixels.round().clamp(0, 255).to(torch.uint8))[0]
        shown = proposals[:200]
        caption = f"The best {len(shown)} of {len(proposals)} region proposals, before classification."
        yield Stage("proposals", boxes=shown, caption=caption)
        yield from self.proposal_stages(image, proposals)
        scores, boxes = self.classify(image, [proposals])
        best, label = scores.max(1)
        caption = "The proposals of highest score, before box regression."
        yield best_boxes_stage("classified proposals", proposals, best, caption, 50)
        regressed = boxes.expand(-1, scores.shape[1], -1)[
            torch.arange(len(label), device=label.device), label
        ]
        yield best_boxes_stage("regressed boxes", regressed, best, "The same after box regression.", 50)
        final = self._detections(scores, boxes, [proposals], (image.shape[2], image.shape[3]))[0]
        yield detections_stage(final)

    def proposal_stages(self, image: Tensor, proposals: Tensor) -> Iterator[Stage]:
        """Yield the stages in which the family extracts the features of a proposal; none by default."""
        return iter(())

    def _detections(
        self, scores: Tensor, boxes: Tensor, proposals: list[Tensor], size: tuple[int, int]
    ) -> list[Prediction]:
        counts = [len(each) for each in proposals]
        with stage("nms"):
            boxes = boxes[:, 0] if boxes.shape[1] == 1 else boxes
            return self.select(boxes.split(counts), scores.split(counts), size)

    def predict_inputs(self, targets: list[Target], view: View) -> dict[str, Any]:
        return {"proposals": [target["proposals"] for target in targets]}

    def predict_tensors(
        self,
        images: Tensor,
        original_sizes: list[tuple[int, int]] | None = None,
        targets: list[Target] | None = None,
        originals: list[np.ndarray] | None = None,
    ) -> list[Prediction]:
        """Return predictions for uint8 images of one size, see `Task.predict_tensors`.

        If ``targets`` is None, regions are proposed in ``originals``, see `propose`.
        """
        if targets is None:
            targets = [Target(proposals=boxes) for boxes in self.propose(images, originals)]
        return super().predict_tensors(images, original_sizes, targets)

    def propose(self, images: Tensor, originals: list[np.ndarray] | None = None) -> list[Tensor]:
        """Propose regions for uint8 images ``[B, 3, H, W]``.

        Args:
            images: The images that enter the network.
            originals: The images on disk, uint8 ``[h, w, 3]``, in which regions are proposed; None for ``images``.

        Returns:
            For each image float32 ``[P, 4]``, xyxy in pixels of ``images``, best first.

        Raises:
            UserError: If there is no proposer.
        """
        proposer = self._available_proposer()
        proposals = []
        with stage("proposals"):
            height, width = images.shape[-2:]
            if originals is None:
                originals = list(images.permute(0, 2, 3, 1).contiguous().cpu().numpy())
            for original in originals:
                boxes = torch.from_numpy(proposer(original)[0][: self.max_proposals])
                h, w = original.shape[:2]
                scale = torch.tensor([width / w, height / h] * 2)
                proposals.append((boxes * scale).to(images.device))
        return proposals

    def propose_boxes(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        boxes = clip_boxes(self._available_proposer()(image)[0][: self.max_proposals], (height, width))
        return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]

    def _available_proposer(self) -> Proposer:
        if self.proposer is None:
            if self._proposer_error is not None:
                raise self._proposer_error
            raise UserError(
                f"{type(self).__name__}: a file of proposals covers only the images of the data; give --data.proposals "
                "SelectiveSearch"
            )
        return self.proposer

    def setup(self, stage: str) -> None:
        """Use the proposer of the data module.

        Raises:
            UserError: If the data module has no proposals.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            return
        if data.proposals is None:
            raise UserError(
                f"--data.proposals: {type(self).__name__} needs region proposals and the data has none; give "
                "--data.proposals SelectiveSearch"
            )
        self.proposer = data.proposals if isinstance(data.proposals, Proposer) else None
        self.max_proposals = data.max_proposals

    def benchmark_inputs(self, sample: Sample) -> dict[str, Any]:
        if self.proposer is None:
            sys.stderr.write(
                "segdet: proposals are read from a file; the cost does not include their computation\n"
            )
            return {"targets": [Target(proposals=sample.target["proposals"].to(self.device))]}
        source = sample.source
        original = read_image(source.path, source.original_size, source.upright, max_pixels=None)
        self.proposer(original)  # the first call includes compilation, which is not part of the cost
        return {"originals": [original]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the proposer and its arguments."""
        super().on_save_checkpoint(checkpoint)
        proposer = self.proposer
        description = None
        if proposer is not None:
            path = f"{type(proposer).__module__}.{type(proposer).__qualname__}"
            description = {"class_path": path, "arguments": plain(proposer.arguments)}
        checkpoint[DESCRIPTION] |= {"max_proposals": self.max_proposals, "proposer": description}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Use the proposer of the checkpoint if there is no data module.

        If the proposer cannot be constructed (such as `RPN` without its checkpoint), its first use raises the error.
        """
        super().on_load_checkpoint(checkpoint)
        description = checkpoint.get(DESCRIPTION) or {}
        saved = description.get("proposer")
        if self._trainer is not None or saved is None:
            return
        self.max_proposals = description["max_proposals"]
        try:
            self.proposer = import_class(saved["class_path"], Proposer)(**saved["arguments"])  # type: ignore[type-abstract]
        except UserError as error:
            self._proposer_error = error

    def build_scores(self) -> Scores:
        return RegionScores(self.class_names)

    def update_scores(
        self, scores: Scores, predictions: list[Prediction], batch: Batch, positions: list[int]
    ) -> None:
        assert batch.originals is not None
        targets = [batch.targets[position] for position in positions]
        scores.update(
            predictions,
            [batch.originals[position] for position in positions],
            [batch.sources[position].image_id for position in positions],
            [target["proposals"] for target in targets],
            targets,  # in pixels of the network's images; resizing does not change an IoU
        )
