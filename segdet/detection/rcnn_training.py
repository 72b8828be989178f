"""The training stages of R-CNN after fine-tuning: feature extraction, linear SVMs, and box regression."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou
from tqdm import tqdm

from segdet.data.base import DataModule
from segdet.data.dataset import TaskDataset
from segdet.data.fingerprint import fingerprint
from segdet.data.sample import Target
from segdet.detection.rcnn_features import (
    FeatureFolder,
    ImageFeatures,
    file_bytes,
    key_of_network,
    region_counts,
)
from segdet.nn.boxes import BoxCoder, paired_iou
from segdet.nn.roi import rois_of
from segdet.proposals.base import Proposer
from segdet.training.linear_svm import LinearSVMs, Mining, Round, mine
from segdet.training.ridge import BoxRidge, norm_scale
from segdet.util.distributed import run_on_all_ranks
from segdet.util.errors import UserError


class RegionNetwork(Protocol):
    """The parts of `segdet.detection.rcnn.RCNN` that the later stages use."""

    class_names: list[str]
    uses_svms: bool
    box_regression: bool
    svms: LinearSVMs
    regressors: BoxRidge
    coder: BoxCoder

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    def normalize(self, images: Tensor, sizes: list[tuple[int, int]] | None = None) -> Tensor:
        """Normalize uint8 images ``[B, 3, H, W]``."""

    def extract(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pool5 features ``[R, P]`` and the fc7 features ``[R, D]`` of RoIs ``[R, 5]``."""


@dataclass(frozen=True)
class StageOptions:
    """Options of the later stages; `segdet.detection.rcnn.RCNN` documents them."""

    svm: Mining
    svm_negatives_below: float
    svm_images: int | None
    ridge_penalty: float
    ridge_above: float
    ridge_regions: int


class LaterStages:
    """The training of a network's linear SVMs and box regression, on features stored on disk.

    Args:
        model: The fine-tuned network; its SVMs and its regression are trained in place.
        options: See `segdet.detection.rcnn.RCNN`.
        trainer: The trainer of the run. `run` needs a trainer; without one, `fit` does not log.
    """

    def __init__(
        self, model: RegionNetwork, options: StageOptions, trainer: pl.Trainer | None = None
    ) -> None:
        self.model = model
        self.options = options
        self.trainer = trainer

    def run(self, modules: Sequence[nn.Module], settings: list[object]) -> None:
        """Extract the features of the training images and train on them, in all processes of the run.

        Args:
            modules: The modules that compute the features.
            settings: Further values that the features depend on.

        Raises:
            UserError: If the trainer has no `DataModule`, or the disk space does not suffice.
        """
        trainer = self.trainer
        assert trainer is not None
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            raise UserError(
                "RCNN: its SVMs and box regression are trained on the images of a segdet.data.DataModule; pass one to "
                "Trainer.fit, or give --model.classifier softmax and --model.box_regression false"
            )
        dataset = data.dataset("train").without_augmentation()
        count = min(len(dataset), self.options.svm_images or len(dataset))
        positions = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)).tolist()
        proposer = data.proposals.key if isinstance(data.proposals, Proposer) else repr(data.proposals)
        settings = [
            *settings, self.model.uses_svms, self.model.box_regression, self.options.ridge_above,
            self.options.ridge_regions, data.max_proposals, proposer, type(data.recipe).__name__, data.recipe.size,
            fingerprint(data),
        ]  # fmt: skip
        key = key_of_network(modules, json.dumps(settings))
        folder = FeatureFolder(Path(trainer.default_root_dir) / "features", key, positions)

        def extract() -> None:
            share = folder.missing(trainer.global_rank, trainer.world_size)
            self._extract_images(folder, data, dataset, share)

        def fit() -> None:
            if trainer.is_global_zero:
                if trainer.world_size > 1:  # other machines may have written to their own disks
                    self._extract_images(folder, data, dataset, folder.missing())
                self.fit(folder)

        run_on_all_ranks(folder.prepare)
        run_on_all_ranks(extract)
        run_on_all_ranks(fit)
        for module in (self.model.svms, self.model.regressors):
            state = {name: value.cpu() for name, value in module.state_dict().items()}
            module.load_state_dict(trainer.strategy.broadcast(state))

    def fit(self, folder: FeatureFolder) -> None:
        """Train the SVMs and the box regression on the features in ``folder``."""
        if self.model.uses_svms:
            self.fit_svms(folder)
        if self.model.box_regression:
            self.fit_regressors(folder)

    # Features.

    def _extract_images(
        self, folder: FeatureFolder, data: DataModule, dataset: TaskDataset, missing: list[int]
    ) -> None:
        """Write the features of the images at the positions ``missing``."""
        if not missing:
            return
        assert self.trainer is not None
        first = self.trainer.is_global_zero
        if first:
            images = len(folder.missing())
            folder.check_space(self.estimate_bytes(dataset, images), images)
        positions = iter(missing)
        with tqdm(
            total=len(missing), desc="features", unit=" images", leave=False, delay=2, disable=not first
        ) as bar:
            for batch in data.loader_of(dataset, missing):
                batch = batch.to(self.model.device)
                normalized = self.model.normalize(batch.images, batch.sizes)
                for number, (target, source) in enumerate(zip(batch.targets, batch.sources, strict=True)):
                    position = next(positions)
                    bar.update()
                    if source.duplicate:
                        continue  # a substitute for an image that cannot be read
                    folder.write(position, self.image_features(normalized[number : number + 1], target))

    def estimate_bytes(self, dataset: TaskDataset, images: int) -> int:
        """Estimate an upper bound, in bytes, of the disk space that the features of ``images`` images need."""
        model = self.model
        (classes, width), pair_width = model.svms.weight.shape, model.regressors.weight.shape[2]
        regions = region_counts(dataset)
        # The number of pairs is not known before extraction; this is its maximum.
        pairs = np.minimum(regions, self.options.ridge_regions) * model.box_regression
        return int(images * file_bytes(regions * model.uses_svms, pairs, width, classes, pair_width).mean())

    def image_features(self, image: Tensor, target: Target) -> ImageFeatures:
        """Return the features of an image's objects and proposals for the SVMs and the regression.

        Args:
            image: Normalized, ``[1, 3, H, W]``.
            target: All objects, including crowds and difficult objects, and the proposals.
        """
        boxes, labels = target["boxes"], target["labels"]
        ordinary = ~(target["iscrowd"] | target["difficult"])
        objects, object_labels = boxes[ordinary], labels[ordinary]
        regions = torch.cat([objects, target["proposals"]])
        pairs = torch.zeros(0, dtype=torch.int64, device=image.device)
        matched = pairs
        if self.model.box_regression and len(objects):
            overlap, matched = box_iou(regions, objects).max(1)
            pairs = (overlap > self.options.ridge_above).nonzero()[:, 0]
            limit = self.options.ridge_regions
            if len(pairs) > limit:
                pairs = pairs[torch.linspace(0, len(pairs) - 1, limit, device=pairs.device).long()]
        offsets = self.model.coder.encode(objects[matched[pairs]], regions[pairs])
        # The SVMs are trained on all regions, the regression only on its pairs.
        if self.model.uses_svms:
            pool5, fc7 = self.model.extract(image, rois_of([regions]))
            pool5 = pool5[pairs]
        else:
            pool5, fc7 = self.model.extract(image, rois_of([regions[pairs]]))
            regions, fc7 = regions[:0], fc7[:0]
        # Crowds and difficult objects are not positives, but regions that overlap them are not negatives either.
        overlaps = torch.zeros(len(regions), len(self.model.class_names), device=image.device)
        columns = (labels - 1).expand(len(regions), -1)
        overlaps.scatter_reduce_(1, columns, box_iou(regions, boxes), "amax")
        return ImageFeatures(
            features=fc7.half().cpu().numpy(),
            overlaps=overlaps.half().cpu().numpy(),
            labels=object_labels.cpu().numpy(),
            pairs=pairs.cpu().numpy(),
            pair_features=pool5.half().cpu().numpy(),
            pair_labels=object_labels[matched[pairs]].cpu().numpy(),
            pair_offsets=offsets.float().cpu().numpy(),
        )

    # Linear SVMs.

    def fit_svms(self, folder: FeatureFolder) -> None:
        """Train a linear SVM per class with hard negative mining."""
        svms, class_names = self.model.svms, self.model.class_names
        positives: list[list[np.ndarray]] = [[] for _ in class_names]
        total, count = 0.0, 0
        for half, labels in folder.read("features", "labels"):
            features = half.astype(np.float32)
            total, count = total + float(np.linalg.norm(features, axis=1).sum()), count + len(features)
            for row, label in zip(features, labels - 1, strict=False):  # the objects come first
                # The row is copied, because a view would keep the features of the whole image in memory.
                positives[label].append(row.copy())
        scale = norm_scale(total / max(1, count))
        width = svms.weight.shape[1]
        examples = [scale * np.array(rows, np.float32).reshape(-1, width) for rows in positives]

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            images = folder.read("features", "overlaps")
            for half, overlaps in tqdm(images, "hard negatives", len(folder.positions), leave=False, delay=2):
                yield scale * half.astype(np.float32), overlaps < self.options.svm_negatives_below

        rounds: list[Round] = []

        def log_round(done: Round) -> None:
            rounds.append(done)
            values = {
                "hard_negatives": done.added, "negatives": done.negatives, "acc": done.accuracy, "loss": done.objective
            }  # fmt: skip
            self._log({f"train/svm_{key}/{class_names[done.label]}": value for key, value in values.items()})

        weight, bias = mine(examples, blocks(), self.options.svm, log_round)
        svms.set(weight, bias, scale)
        last = {done.label: done for done in rounds}.values()
        accuracy = np.average(
            [done.accuracy for done in last], weights=[1 + done.positives + done.negatives for done in last]
        )
        self._print(
            f"linear SVMs: {sum(map(len, examples)):,} objects; {len(rounds)} trainings with "
            f"{sum(done.added for done in rounds):,} hard negatives of {count:,} regions; final accuracy "
            f"{accuracy:.1%} on the examples; features {folder.size() / 1e6:,.1f} MB"
        )

    # Box regression.

    def fit_regressors(self, folder: FeatureFolder) -> None:
        """Train the box regression of each class."""
        regressors, coder = self.model.regressors, self.model.coder
        total, count = 0.0, 0
        for (features,) in folder.read("pair_features"):
            norms = np.linalg.norm(features.astype(np.float32), axis=1)
            total, count = total + float(norms.sum()), count + len(features)
        regressors.scale.fill_(norm_scale(total / max(1, count)))
        # Offsets are relative to the region, so that the IoU can be computed with the unit square as the region.
        unit = torch.tensor([0.0, 0, 1, 1])
        before, after = 0.0, 0.0
        for label in range(1, len(self.model.class_names) + 1):
            features, offsets = folder.pairs(label)
            regressors.fit(label, features, offsets, self.options.ridge_penalty)
            if len(features):
                objects = coder.decode(torch.from_numpy(offsets), unit)
                parts = torch.from_numpy(features).to(regressors.weight.device).split(4096)
                predicted = torch.cat([regressors(part)[:, label - 1].cpu() for part in parts])
                before += float(paired_iou(unit.expand_as(objects), objects).sum())
                after += float(paired_iou(coder.decode(predicted, unit), objects).sum())
        regressors.fitted.fill_(True)
        before, after = before / max(1, count), after / max(1, count)
        self._log(
            {"train/ridge_pairs": count, "train/ridge_iou_before": before, "train/ridge_iou_after": after}
        )
        self._print(
            f"box regression: {count:,} regions with an object, mean IoU {before:.3f} before and {after:.3f} after"
        )

    def _log(self, values: dict[str, float]) -> None:
        if self.trainer is not None:
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=self.trainer.global_step - 1)  # Lightning counts from 0

    def _print(self, line: str) -> None:
        if self.trainer is not None:
            sys.stderr.write(f"segdet: {line}\n")
