"""The base of the detectors that classify region proposals: R-CNN and Fast R-CNN."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segdet.data.datamodule import DataModule
from segdet.data.images import read_image
from segdet.data.sample import Batch, Prediction, Sample, Target
from segdet.detection.base import Detector, detections_stage
from segdet.metrics.base import Scores
from segdet.metrics.region_detection import RegionScores
from segdet.proposals.base import Proposer
from segdet.task import Stage, View
from segdet.util.errors import UserError
from segdet.util.stages import stage


class RegionDetector(Detector):
    """Says of each of a few hundred or thousand proposed boxes what it holds.

    The proposals come with the data (``--data.proposals``): with the samples, transformed as their objects are, or,
    for a bare image, from the data's proposer on the spot. A family says how it scores them (`classify`);
    suppression is the same for all, class by class.

    Args:
        score_threshold: Detections must exceed this score.
        nms_threshold: Of two boxes of a class with a greater IoU, the worse is dropped.
        detections_per_class: How many of a class take part in that.
        detections_per_image: How many remain.
        kwargs: As for `Detector`.

    Attributes:
        proposer: What proposes regions of a bare image; taken from the data, None where those are read from a file.
        max_proposals: So many of the best are looked at; likewise.
    """

    proposer: Proposer | None = None
    max_proposals: int = 2000

    def __init__(
        self,
        class_names: list[str],
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        detections_per_class: int = 300,
        detections_per_image: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_class = detections_per_class
        self.detections_per_image = detections_per_image

    @abstractmethod
    def classify(self, images: Tensor, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What the network says of all proposals, image after image.

        Args:
            images: Normalized, ``[B, 3, H, W]``.
            proposals: Of each image float32 ``[P, 4]``, xyxy in its pixels.

        Returns:
            Scores ``[R, K]``, column k of label k + 1, and the boxes of each class ``[R, K, 4]`` (or ``[R, 1, 4]``
            where all classes have the same).
        """

    def setup(self, stage: str) -> None:
        """Takes the proposer from the data.

        Raises:
            UserError: If the data has no proposals.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            return
        if data.proposals is None:
            raise UserError(
                f"--data.proposals: {type(self).__name__} classifies region proposals and the data has none; give "
                "--data.proposals SelectiveSearch"
            )
        self.proposer = data.proposals if isinstance(data.proposals, Proposer) else None
        self.max_proposals = data.max_proposals

    def predict_inputs(self, targets: list[Target], view: View) -> dict[str, Any]:
        return {"proposals": [target["proposals"] for target in targets]}

    def benchmark_inputs(self, sample: Sample) -> dict[str, Any]:
        if self.proposer is None:
            sys.stderr.write(
                "segdet: the cost is without that of the proposals, which are read from a file\n"
            )
            return {"targets": [Target(proposals=sample.target["proposals"].to(self.device))]}
        source = sample.source
        original = read_image(source.path, source.original_size, source.upright)
        self.proposer(original)  # the first call loads what is compiled, which no image is to be charged with
        return {"originals": [original]}

    def build_scores(self) -> Scores:
        return RegionScores(self.class_names, self.category_ids)

    def score(
        self, scores: Scores, predictions: list[Prediction], batch: Batch, positions: list[int]
    ) -> None:
        assert batch.originals is not None
        here = [batch.targets[position] for position in positions]
        scores.update(
            predictions,
            [batch.originals[position] for position in positions],
            [batch.sources[position].image_id for position in positions],
            [target["proposals"] for target in here],
            here,  # resizing changes no IoU, so that the pixels of the network will do
        )

    def propose(self, images: Tensor, originals: list[np.ndarray] | None = None) -> list[Tensor]:
        """The proposals of uint8 images ``[B, 3, H, W]``: of each float32 ``[P, 4]``, xyxy in its pixels, best first.

        Args:
            images: The images as the network is to see them.
            originals: The images as they are on disk, uint8 ``[h, w, 3]``, if the boxes are to be found in those.

        Raises:
            UserError: If nothing is known that proposes regions.
        """
        if self.proposer is None:
            raise UserError(
                f"{type(self).__name__}: proposals that are read from a file are there for the images of the data "
                "alone; give --data.proposals SelectiveSearch"
            )
        found = []
        with stage("proposals"):
            height, width = images.shape[-2:]
            if originals is None:
                originals = list(images.permute(0, 2, 3, 1).contiguous().cpu().numpy())
            for original in originals:
                boxes = torch.from_numpy(self.proposer(original)[0][: self.max_proposals])
                h, w = original.shape[:2]
                scale = torch.tensor([width / w, height / h] * 2)
                found.append((boxes * scale).to(images.device))
        return found

    def predict(self, images: Tensor, proposals: list[Tensor]) -> list[Prediction]:  # type: ignore[override]
        """What the network says of the proposals of normalized images of one size, in their pixels."""
        scores, boxes = self.classify(images, proposals)
        return self._detections(scores, boxes, proposals, (images.shape[2], images.shape[3]))

    def predict_tensors(
        self,
        images: Tensor,
        original_sizes: list[tuple[int, int]] | None = None,
        targets: list[Target] | None = None,
        originals: list[np.ndarray] | None = None,
    ) -> list[Prediction]:
        """Return predictions for uint8 images of one size; regions are proposed here if ``targets`` is None.

        Args:
            images: As for `Task.predict_tensors`.
            original_sizes: As there.
            targets: One per image, with ``proposals`` in the pixels of ``images``.
            originals: The images to propose regions in; see `propose`.
        """
        if targets is None:
            targets = [Target(proposals=boxes) for boxes in self.propose(images, originals)]
        return super().predict_tensors(images, original_sizes, targets)

    def _detections(
        self, scores: Tensor, boxes: Tensor, proposals: list[Tensor], size: tuple[int, int]
    ) -> list[Prediction]:
        counts = [len(each) for each in proposals]
        with stage("nms"):
            boxes = boxes[:, 0] if boxes.shape[1] == 1 else boxes
            return self.selected(boxes.split(counts), scores.split(counts), size)

    def stages(self, image: Tensor, proposals: Tensor | None = None) -> Iterator[Stage]:
        """The proposals, what the network says of them, and what suppression leaves.

        Args:
            image: Normalized, ``[1, 3, H, W]``.
            proposals: float32 ``[P, 4]``, xyxy in its pixels; found on the spot when null.
        """
        if proposals is None:
            whole = (image + self._shift) / self._scale  # type: ignore[operator]
            proposals = self.propose(whole.round().clamp(0, 255).to(torch.uint8))[0]
        yield Stage(
            "proposals",
            boxes=proposals[:200],
            about=f"The best {min(200, len(proposals))} of the {len(proposals)} regions that are looked at: no class "
            "is known yet.",
        )
        yield from self.regions(image, proposals)
        scores, boxes = self.classify(image, [proposals])
        best, label = scores.max(1)
        order = best.topk(min(50, len(best))).indices
        yield Stage(
            "classified proposals",
            boxes=proposals[order],
            scores=best[order],
            about="Those that the classifier is most sure of, where they were proposed.",
        )
        moved = boxes.expand(-1, scores.shape[1], -1)[order, label[order]]
        yield Stage("moved boxes", boxes=moved, scores=best[order], about="The same after box regression.")
        final = self._detections(scores, boxes, [proposals], (image.shape[2], image.shape[3]))[0]
        yield detections_stage(final)

    def regions(self, image: Tensor, proposals: Tensor) -> Iterator[Stage]:
        """How the family looks at a proposal, to be drawn; nothing when it has nothing to show."""
        return iter(())
