"""The base class of semantic segmentation: losses, class weights, test-time augmentation, tiles and scores."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.data.base import DataModule
from segdet.data.frequency import class_frequency
from segdet.data.sample import Batch, Prediction, Target
from segdet.metrics.base import Scores
from segdet.metrics.boundary import BoundaryScores
from segdet.metrics.confusion import SegmentationScores, classes_of
from segdet.segmentation import losses
from segdet.segmentation.losses import PixelLoss, Weighting
from segdet.segmentation.tiling import classes_of_rows, predict_rows
from segdet.task import Task, View
from segdet.training.multi_scale import at_scale
from segdet.util.distributed import run_on_all_ranks
from segdet.util.errors import UserError, check_choice, check_range
from segdet.util.stage_timing import stage

BoundaryStages = Literal["never", "test", "validation"]

_WEIGHTS = "class_weights"
"""The key of computed class weights in a checkpoint."""


class Segmenter(Task):
    """A network that computes logits ``[B, C, h, w]`` of images ``[B, 3, H, W]``.

    A family defines ``forward``, which returns logits at the images' resolution or a coarser one. It overrides
    ``predict`` if prediction differs from ``forward``, and ``losses`` if the loss is not just the `pixel_loss` of
    ``forward``. Logits are resized to the original image before the argmax, so that scores refer to the pixels on disk.

    Args:
        loss: cross_entropy; focal (Lin et al., 2017), which emphasizes misclassified pixels; dice, which measures the
            overlap of each class; or cross_entropy_dice, the sum of cross_entropy and dice.
        class_weights: The weights of the classes in the loss: null for equal weights, one number per class, or a
            formula for weights from the class frequencies of the training set: median_frequency (Eigen, Fergus, 2015)
            or inverse_sqrt_frequency, whose weights differ less.
        focal_gamma: The exponent of the focal loss; 0 is the cross entropy.
        auxiliary_weight: The weight of the losses of auxiliary heads, in families that have them.
        tta_flip: Whether the softmax probabilities of each image and its mirror image are averaged in prediction.
        tta_scales: The scales at which each image is predicted; the softmax probabilities are averaged.
        tile: The size of tiles in pixels, a number or [height, width]. Larger images are predicted in tiles to limit
            the device memory (see `segdet.segmentation.tiling`). Multiples of 32 work best.
        tile_overlap: The smallest overlap of neighbouring tiles in pixels; null for a quarter of the tile.
        boundary_scores: When boundary F1 and boundary IoU are computed: ``test`` for tests only, ``validation`` for
            validation and tests, or ``never``. They take more CPU time than all other scores together (see
            `BoundaryScores`).
        kwargs: See `Task`.
    """

    task = "segmentation"
    monitor = "val/miou"

    def __init__(
        self,
        class_names: list[str],
        loss: PixelLoss = "cross_entropy",
        class_weights: list[float] | Weighting | None = None,
        focal_gamma: float = 2.0,
        auxiliary_weight: float = 0.5,
        tta_flip: bool = False,
        tta_scales: list[float] = [1.0],  # noqa: B006  read only; jsonargparse shows it as the default
        tile: int | tuple[int, int] | None = None,
        tile_overlap: int | None = None,
        boundary_scores: BoundaryStages = "test",
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.boundary_scores", boundary_scores, BoundaryStages)
        for prefix in {"never": ["val_", "test_"], "test": ["val_"], "validation": []}[boundary_scores]:
            self.scores[prefix] = SegmentationScores(self.class_names)
        check_choice("--model.loss", loss, PixelLoss)
        if isinstance(class_weights, str):
            check_choice("--model.class_weights", class_weights, Weighting)
        self.loss = loss
        self.weighting: Weighting | None = class_weights if isinstance(class_weights, str) else None
        self._weights_known = self.weighting is None
        weights = None if class_weights is None else torch.ones(len(class_names))
        if isinstance(class_weights, list | tuple):
            weights = torch.tensor(_checked_weights(class_weights, self.class_names))
        # Not part of the state, so that a checkpoint does not override the argument.
        self.register_buffer("class_weights", weights, persistent=False)
        check_range("--model.focal_gamma", focal_gamma, least=0)
        check_range("--model.auxiliary_weight", auxiliary_weight, least=0)
        check_range("--model.tta_scales", tta_scales, above=0)
        self.focal_gamma = focal_gamma
        self.auxiliary_weight = auxiliary_weight
        self.tta_flip = tta_flip
        self.tta_scales = list(tta_scales)
        self.tile, self.tile_overlap = _checked_tile(tile, tile_overlap)

    # Defaults that suit most families.

    @property
    def pass_module(self) -> nn.Module:
        """The encoder, in families that have one, or else the backbone."""
        return getattr(self, "encoder", None) or super().pass_module

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        return {"segmentation": self.pixel_loss(self(images), masks_of(targets))}

    def predict(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, h, w]`` of images ``[B, 3, H, W]``."""
        with stage("network"):
            logits: Tensor = self(images)
            return logits

    # Helpers for the losses of families.

    def pixel_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return the loss selected by ``loss``, with class weights. Pixels with the mask value 255 are ignored.

        The loss is zero, not NaN, if all pixels are ignored.

        Args:
            logits: ``[B, C, h, w]``. Coarser logits are resized to the masks.
            masks: int64 ``[B, H, W]``.
        """
        weights = self.known_weights()
        logits = _resized(logits.float(), (masks.shape[-2], masks.shape[-1]))
        return losses.pixel_loss(logits, masks, self.loss, weights, self.focal_gamma)

    def known_weights(self) -> Tensor | None:
        """Return the class weights, float32 ``[C]``, or None for equal weights.

        Raises:
            UserError: If the class frequencies have not been counted yet.
        """
        if not self._weights_known:
            raise UserError(
                f"--model.class_weights {self.weighting}: not counted yet; train with one of segdet's data modules, "
                "or give one number per class"
            )
        weights: Tensor | None = self.class_weights  # type: ignore[assignment]
        # The buffer is bfloat16 if the whole network was converted.
        return None if weights is None else weights.float()

    def auxiliary_loss(self, auxiliary: Sequence[Tensor], masks: Tensor) -> Tensor:
        """Return the sum of the `pixel_loss` of auxiliary heads, multiplied by ``auxiliary_weight``.

        Families return this sum from ``losses`` as ``auxiliary``; it is logged as ``train/loss_auxiliary``.

        Args:
            auxiliary: The logits of each head, see `pixel_loss`.
            masks: int64 ``[B, H, W]``.
        """
        parts = [self.pixel_loss(logits, masks) for logits in auxiliary]
        return self.auxiliary_weight * torch.stack(parts).sum()

    # Class weights from class frequencies.

    def on_fit_start(self) -> None:
        """Compute class weights from the training set, in one process, unless a checkpoint contains them."""
        if self._weights_known:
            return
        weights: list[float] = []

        def count() -> None:
            if self.trainer.is_global_zero:
                weights.extend(self._count_weights())

        run_on_all_ranks(count)
        self._set_weights(self.trainer.strategy.broadcast(weights))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save computed class weights, so that a resumed run does not count the training set again."""
        super().on_save_checkpoint(checkpoint)
        if self.weighting is not None and self._weights_known:
            weights: Tensor = self.class_weights  # type: ignore[assignment]
            checkpoint[_WEIGHTS] = {"weighting": self.weighting, "weights": weights.tolist()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore computed class weights if they were computed with the same formula."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(_WEIGHTS) or {}
        same_formula = self.weighting is not None and saved.get("weighting") == self.weighting
        if same_formula and len(saved["weights"]) == len(self.class_names):
            self._set_weights(saved["weights"])

    def prepare_untrained(self) -> None:
        """Use equal class weights instead of counting the training set, see `segdet.training.untrained`."""
        self._weights_known = True

    def _count_weights(self) -> list[float]:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule) or data.task != "segmentation":
            raise UserError(
                f"--model.class_weights {self.weighting}: there are no masks to count; train with one of segdet's data "
                "modules, or give one number per class"
            )
        weights = losses.class_weights(class_frequency(data.dataset("train")), self.weighting)  # type: ignore[arg-type]
        by_weight = sorted(zip(weights.tolist(), self.class_names, strict=True))
        present = [(weight, name) for weight, name in by_weight if weight > 0]
        if not present:
            raise UserError(f"{data.root}: all pixels of the training masks are ignored; fix the masks")
        absent = [name for weight, name in by_weight if weight == 0]
        (smallest, frequent), (largest, rare) = present[0], present[-1]
        sys.stderr.write(
            f"segdet: class weights by {self.weighting}: {smallest:.3g} ({frequent}) to {largest:.3g} ({rare})"
            f"{'; not in the training set: ' + ', '.join(absent) if absent else ''}\n"
        )
        return weights.tolist()

    def _set_weights(self, weights: list[float]) -> None:
        buffer: Tensor = self.class_weights  # type: ignore[assignment]
        buffer.copy_(torch.tensor(weights))
        self._weights_known = True

    # Prediction.

    def predict_tensors(
        self,
        images: Tensor,
        original_sizes: list[tuple[int, int]] | None = None,
        targets: list[Target] | None = None,
    ) -> list[Prediction]:
        size = (images.shape[2], images.shape[3])
        if self.tile is None or (size[0] <= self.tile[0] and size[1] <= self.tile[1]):
            return super().predict_tensors(images, original_sizes, targets)
        predictions = []
        for image, original in zip(images, original_sizes or [size] * len(images), strict=True):
            rows = predict_rows(self._predict_tile, image[None], self.tile, self.tile_overlap)
            mask = classes_of_rows(rows, size, original)
            predictions.append(Prediction(mask=mask.to(images.device)))
        return predictions

    def _predict_tile(self, images: Tensor) -> Tensor:
        """Return logits or probabilities ``[1, C, H, W]`` of a uint8 tile."""
        scores = self.predict_views(self.normalize(images), [Target()]).float()
        return _resized(scores, (images.shape[2], images.shape[3]))

    def predict_views(self, images: Tensor, targets: list[Target]) -> Tensor:
        """Return logits of normalized images, or with test-time augmentation the mean softmax probabilities."""
        if not self.tta_flip and self.tta_scales == [1.0]:
            logits: Tensor = super().predict_views(images, targets)
            return logits
        size = (images.shape[2], images.shape[3])
        total: Tensor | None = None
        for scale in self.tta_scales:
            scaled = at_scale(images, scale)
            new = (scaled.shape[2], scaled.shape[3])
            view = View([new] * len(images), (new[0] / size[0], new[1] / size[1]))
            inputs = self.predict_inputs(targets, view)
            views = [self.predict(scaled, **inputs)]
            if self.tta_flip:
                views.append(self.predict(scaled.flip(3), **inputs).flip(3))
            for logits in views:
                probabilities = _resized(logits.float(), size).softmax(1)
                total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        return total / (len(self.tta_scales) * (1 + self.tta_flip))

    def postprocess(
        self, output: Tensor, original_sizes: list[tuple[int, int]], size: tuple[int, int]
    ) -> list[Prediction]:
        with stage("upsampling"):
            logits = output.float()
            if len(set(original_sizes)) == 1:
                return [Prediction(mask=mask) for mask in classes_of(_resized(logits, original_sizes[0]))]
            return [
                Prediction(mask=classes_of(_resized(one[None], original))[0])
                for one, original in zip(logits, original_sizes, strict=True)
            ]

    # Scores.

    def build_scores(self) -> Scores:
        return BoundaryScores(self.class_names)

    def update_scores(
        self, scores: Scores, predictions: list[Prediction], batch: Batch, positions: list[int]
    ) -> None:
        assert batch.originals is not None
        for prediction, position in zip(predictions, positions, strict=True):
            target = batch.originals[position]["mask"]
            scores.update(prediction["mask"], target, batch.sources[position].image_id)


def masks_of(targets: Sequence[Target]) -> Tensor:
    """Return the masks of a batch, int64 ``[B, H, W]``."""
    return torch.stack([target["mask"] for target in targets])


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _checked_weights(weights: Sequence[float], class_names: list[str]) -> list[float]:
    if len(weights) != len(class_names):
        raise UserError(
            f"--model.class_weights: {len(weights)} numbers for {len(class_names)} classes "
            f"({', '.join(class_names)}); give one per class"
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise UserError(
            f"--model.class_weights {list(weights)}: give numbers of at least 0, with at least one above 0"
        )
    return [float(weight) for weight in weights]


def _checked_tile(
    tile: int | tuple[int, int] | None, overlap: int | None
) -> tuple[tuple[int, int] | None, int]:
    """Return the size of tiles, (height, width) or None, and their overlap."""
    if tile is None:
        if overlap is not None:
            raise UserError(f"--model.tile_overlap {overlap}: there are no tiles; give --model.tile too")
        return None, 0
    height, width = (tile, tile) if isinstance(tile, int) else tile
    least = min(height, width)
    check_range("--model.tile", tile, least=1)
    overlap = least // 4 if overlap is None else overlap
    check_range("--model.tile_overlap", overlap, least=0, below=least)
    return (height, width), overlap
