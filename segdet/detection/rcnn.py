"""R-CNN: a network looks at every proposal by itself; then linear machines classify, and a regression moves boxes."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou
from tqdm import tqdm

from segdet.data.datamodule import DataModule
from segdet.data.dataset import TaskDataset
from segdet.data.sample import Batch, Target
from segdet.detection.rcnn_features import FeatureFolder, ImageFeatures, bytes_of, key_of_network
from segdet.detection.region_detector import RegionDetector
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import BoxCoder, paired_iou
from segdet.nn.roi import TwoLayerHead, rois_of, sample_rois
from segdet.nn.warp import warp, with_context
from segdet.proposals.base import Proposer
from segdet.task import Stage
from segdet.training.ema import averaged
from segdet.training.linear_svm import LinearSVMs, Mining, Round, mine
from segdet.training.ridge import BoxRidge, norm_scale
from segdet.util.distributed import run_on_all_ranks
from segdet.util.errors import BadSample, UserError, check_choice
from segdet.util.stages import stage

Classifier = Literal["svm", "softmax"]


class RCNN(RegionDetector):
    """Regions with CNN features (Girshick, Donahue, Darrell, Malik, CVPR 2014) on any backbone.

    Each proposal, with some of its surroundings, is warped to one size, and a network for images of that size looks at
    it. An image costs as many passes of the backbone as it has proposals, most of which see the same pixels.

    Training has three stages within one ``segdet fit``:

    1. The epochs fine-tune the network as a classifier of K + 1 classes, on 128 regions a batch, drawn from all images
       of the batch: 32 with an IoU of at least 0.5 with an object, 96 below that.
    2. Before each validation (so validate seldom: ``check_val_every_n_epoch``) the network describes the proposals of
       the training images; the features are kept in the run's folder, ``features/``. One linear support vector
       machine a class is trained on them: positives are the objects themselves, negatives the regions of an IoU
       below 0.3 with any object of the class, of which the hard ones are mined (section 2.3, appendix B). Without
       machines only the few regions are described that the third stage learns from.
    3. For each class a ridge regression learns the offsets of boxes from the last map of regions with an IoU above
       0.6 (section 3.5, appendix C).

    A validation thus scores the whole of R-CNN, and a checkpoint that follows it holds the whole. Where a run is
    interrupted in the second or third stage, it goes on with the features that are there. With several processes each
    describes its share of the images and the first one does the rest, which the others wait for.

    Scores are softmax probabilities, or the logistic function of the machines' margins, 0.5 on their boundary. A margin
    below -1, which negatives are to have, is a score below 0.27. The ``score_threshold`` of 0.05 is a margin of
    -2.94: what is found includes much that the machines take for background, which average precision is not harmed by,
    but eyes are. To look at predictions, give 0.27, or 0.5 for what they take for objects; on the 400 test images of
    Shapes 0.27 cost 0.8 points of AP at IoU 0.5 and 0.4 of COCO's AP (``shapes/rcnn.yaml``, one epoch).

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: See there. Of torchvision's VGG16, ``fc6`` and ``fc7`` start from its classifier when ``width`` is 4096
            and ``pool`` 7.
        backbone_options: See there.
        stride: Of the backbone's map that the layers stand on.
        pool: The side that it is pooled to.
        width: The units of the two layers.
        dropout: The rate behind either.
        warp_size: The side of a crop in pixels.
        context: How many pixels of its rim lie around the proposal.
        crop_batch: How many crops go through the network at a time in tests.
        regions_per_batch: Regions of a batch in training.
        positive_share: The share of them with an object.
        classifier: ``svm``, or ``softmax`` for that of the fine-tuned network.
        box_regression: Whether boxes are moved.
        svm: How the machines are trained.
        svm_negatives_below: The IoU with all objects of a class below which a region is a negative of the class.
        svm_images: So many of the training images, evenly chosen, are described for the second and third stage; all
            when null.
        ridge_penalty: The regression's lambda.
        ridge_above: The IoU with an object above which a region is learned from.
        ridge_regions: How many of an image are, at most.
        kwargs: As for `RegionDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet18",
        weights: str | bool | None = None,
        backbone_options: dict[str, Any] | None = None,
        stride: int = 32,
        pool: int = 6,
        width: int = 1024,
        dropout: float = 0.5,
        warp_size: int = 227,
        context: int = 16,
        crop_batch: int = 256,
        regions_per_batch: int = 128,
        positive_share: float = 0.25,
        classifier: Classifier = "svm",
        box_regression: bool = True,
        svm: Mining = Mining(),  # noqa: B008  frozen; the configuration shows its values
        svm_negatives_below: float = 0.3,
        svm_images: int | None = None,
        ridge_penalty: float = 1000.0,
        ridge_above: float = 0.6,
        ridge_regions: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        check_choice("--model.classifier", classifier, Classifier)
        if not 0 <= 2 * context < warp_size:
            raise UserError(
                f"--model.context {context}: leaves nothing of a crop of {warp_size} pixels; give less than half of "
                "--model.warp_size"
            )
        for name, value in (
            ("crop_batch", crop_batch), ("regions_per_batch", regions_per_batch), ("svm_images", svm_images),
            ("ridge_regions", ridge_regions),
        ):  # fmt: skip
            if value is not None and value < 1:
                raise UserError(f"--model.{name} {value}: must be at least 1")
        self.warp_size, self.context, self.crop_batch = warp_size, context, crop_batch
        self.regions_per_batch, self.positive_share = regions_per_batch, positive_share
        self.classified_by, self.box_regression = classifier, box_regression
        self.mining, self.svm_negatives_below, self.svm_images = svm, svm_negatives_below, svm_images
        self.ridge_penalty, self.ridge_above, self.ridge_regions = ridge_penalty, ridge_above, ridge_regions
        self.backbone = build_backbone(backbone, weights, [stride], **(backbone_options or {}))
        self.pool = nn.AdaptiveMaxPool2d(pool)
        features = self.backbone.channels[0] * pool * pool
        self.layers = TwoLayerHead(features, width, dropout)
        self.layers.start_from(backbone, weights)
        self.classifier = nn.Linear(width, len(class_names) + 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.svms = LinearSVMs(len(class_names), width)
        self.regressors = BoxRidge(len(class_names), features)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self._learned_at: int | None = None

    # The network and the first stage.

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Crops ``[R, 3, S, S]`` to the flattened last map ``[R, P]`` ("pool5") and the layers' output ``[R, D]``."""
        last = self.pool(self.backbone(crops)[0]).flatten(1)
        return last, self.layers(last)

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        drawn = sample_rois(
            targets,
            self.regions_per_batch,
            self.positive_share,
            background=(0.0, 0.5),
            pooled=True,
            fill=False,
        )
        _, seen = self(warp(images, drawn.rois, self.warp_size, self.context))
        logits = self.classifier(seen).float()
        cross_entropy = F.cross_entropy(logits, drawn.labels, ignore_index=-1, reduction="sum")
        return {"class": cross_entropy / (drawn.labels >= 0).sum().clamp(min=1)}

    # What it says of proposals.

    def classify(self, images: Tensor, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        self._check_learned()
        rois = rois_of(proposals)
        scores, offsets = [], []
        for part in rois.split(self.crop_batch):
            last, seen = self._described(images, part)
            with stage("classifier"):
                if self.classified_by == "svm":
                    scores.append(self.svms(seen).sigmoid())
                else:
                    scores.append(self.classifier(seen).float().softmax(1)[:, 1:])
                if self.box_regression:
                    offsets.append(self.regressors(last))
        boxes = rois[:, None, 1:]
        return torch.cat(scores), self.coder.decode(torch.cat(offsets), boxes) if offsets else boxes

    def _described(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        with stage("warps"):
            crops = warp(images, rois, self.warp_size, self.context)
        with stage("network"):
            last, seen = self(crops)
            return last, seen

    def regions(self, image: Tensor, proposals: Tensor) -> Iterator[Stage]:
        grown = with_context(rois_of([proposals[:12]]), self.warp_size, self.context)[:, 1:]
        yield Stage(
            "crops",
            boxes=grown,
            about=f"A dozen proposals with their surroundings; each of the {len(proposals)} is warped to "
            f"{self.warp_size}x{self.warp_size} pixels and goes through the network by itself.",
        )

    def _check_learned(self) -> None:
        missing = None
        if self.classified_by == "svm" and not bool(self.svms.fitted):
            missing = "support vector machines yet", "--model.classifier softmax"
        elif self.box_regression and not bool(self.regressors.fitted):
            missing = "box regression yet", "--model.box_regression false"
        if missing:
            raise UserError(
                f"RCNN: this network has no {missing[0]}; finish its `segdet fit`, or give {missing[1]}"
            )

    # The second and the third stage.

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.trainer.state.fn == "fit" and (self.classified_by == "svm" or self.box_regression):
            if self.trainer.sanity_checking:
                return  # there is nothing yet to check
            if batch_idx == 0:
                # In the first step and not before it: this is where Lightning knows how to go on with validating.
                self._save()
                self._learn_from_features()
        super().validation_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        """Does the later stages at the end of a training that ends without a validation."""
        trainer = self.trainer
        epochs = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
        steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        wanted = self.classified_by == "svm" or self.box_regression
        if wanted and (epochs or steps or trainer.should_stop) and self._learned_at != trainer.global_step:
            self.eval()
            # Of the weights that are saved, beside which the machines are to stand.
            with torch.no_grad(), averaged(trainer, self), trainer.precision_plugin.forward_context():
                self._learn_from_features()
            self.train()

    def _save(self) -> None:
        """Saves ``last.ckpt``: what has been fine-tuned is not to be lost in the stages that follow."""
        for callback in self.trainer.checkpoint_callbacks:
            if getattr(callback, "filename", None) == "last" and getattr(callback, "dirpath", None):
                self.trainer.save_checkpoint(Path(callback.dirpath) / "last.ckpt")  # type: ignore[attr-defined]
                return

    def _learn_from_features(self) -> None:
        trainer, data = self.trainer, self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DataModule)
        dataset = data.plain_training()
        count = min(len(dataset), self.svm_images or len(dataset))
        positions = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)).tolist()
        proposer = data.proposals.key if isinstance(data.proposals, Proposer) else repr(data.proposals)
        settings = [self.warp_size, self.context, self.classified_by, self.box_regression, self.ridge_above,
                    self.ridge_regions, data.max_proposals, proposer, type(data.recipe).__name__, data.recipe.size,
                    data.fingerprint()]  # fmt: skip
        key = key_of_network([self.backbone, self.layers], json.dumps(settings))
        folder = FeatureFolder(Path(trainer.default_root_dir) / "features", key, positions)

        def describe() -> None:
            mine = folder.missing(trainer.global_rank, trainer.world_size)
            self._describe_all(folder, data, dataset, mine)

        def learn() -> None:
            if trainer.is_global_zero:
                if trainer.world_size > 1:  # what another machine wrote may lie on its own disk
                    self._describe_all(folder, data, dataset, folder.missing())
                self.learn(folder)

        run_on_all_ranks(folder.prepare)
        run_on_all_ranks(describe)
        run_on_all_ranks(learn)
        for module in (self.svms, self.regressors):
            state = {name: value.cpu() for name, value in module.state_dict().items()}
            module.load_state_dict(trainer.strategy.broadcast(state))
        self._learned_at = trainer.global_step

    def _describe_all(
        self, folder: FeatureFolder, data: DataModule, dataset: TaskDataset, missing: list[int]
    ) -> None:
        """Writes the features of the images at ``missing``."""
        done = iter(missing)
        first = self.trainer.is_global_zero
        if first and missing:
            everyone = len(folder.missing())
            folder.tell(self._expected(dataset, everyone), everyone)
        bar = tqdm(
            total=len(missing), desc="features", unit=" images", leave=False, delay=2, disable=not first
        )
        with bar:
            for batch in data.loader_of(dataset, missing) if missing else ():
                batch = batch.to(self.device)
                images = self.normalize(batch.images, batch.sizes)
                for number, (target, source) in enumerate(zip(batch.targets, batch.sources, strict=True)):
                    position = next(done)
                    bar.update()
                    if source.duplicate:
                        continue  # it stands in for one that cannot be read
                    folder.write(position, self.describe(images[number : number + 1], target))

    def _expected(self, dataset: TaskDataset, images: int) -> int:
        """About how many bytes ``images`` images take at most, by the objects and proposals of fifty of them."""
        assert dataset.proposals is not None
        counts = []
        for place in np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), 50)).round().astype(int)):
            index = int(dataset.indices[place])
            with contextlib.suppress(BadSample):  # which speaks up, or is skipped, when its turn comes
                proposals = min(len(dataset.proposals.boxes(index)), dataset.max_proposals)
                counts.append(len(dataset.reader.objects(index)) + proposals)
        regions = np.array(counts or [0])
        (classes, width), last = self.svms.weight.shape, self.regressors.weight.shape[2]
        described = regions * (self.classified_by == "svm")
        # How many pairs there will be is not known; this is the most.
        pairs = np.minimum(regions, self.ridge_regions) * self.box_regression
        return int(images * bytes_of(described, pairs, width, classes, last).mean())

    def describe(self, image: Tensor, target: Target) -> ImageFeatures:
        """The features of an image's objects and proposals, of those that the stages to come learn from.

        Args:
            image: Normalized, ``[1, 3, H, W]``.
            target: Its objects, crowds and difficult ones included, and its proposals.
        """
        boxes, labels = target["boxes"], target["labels"]
        ordinary = ~(target["iscrowd"] | target["difficult"])
        objects, own = boxes[ordinary], labels[ordinary]
        regions = torch.cat([objects, target["proposals"]])
        pairs = torch.zeros(0, dtype=torch.int64, device=image.device)
        matched = pairs
        if self.box_regression and len(objects):
            overlap, matched = box_iou(regions, objects).max(1)
            pairs = (overlap > self.ridge_above).nonzero()[:, 0]
            if len(pairs) > self.ridge_regions:
                pairs = pairs[
                    torch.linspace(0, len(pairs) - 1, self.ridge_regions, device=pairs.device).long()
                ]
        offsets = self.coder.encode(objects[matched[pairs]], regions[pairs])
        # The machines learn from all regions, the regression alone from its own.
        machines = self.classified_by == "svm"
        looked_at = regions if machines else regions[pairs]
        parts = [self._described(image, part) for part in rois_of([looked_at]).split(self.crop_batch)]
        last, seen = (torch.cat(each) for each in zip(*parts, strict=True))
        if machines:
            last = last[pairs]
        else:
            regions, seen = regions[:0], seen[:0]
        # Crowds and difficult objects are no positives, but what lies on them is no negative either.
        overlaps = torch.zeros(len(regions), len(self.class_names), device=image.device)
        columns = (labels - 1).expand(len(regions), -1)
        overlaps.scatter_reduce_(1, columns, box_iou(regions, boxes), "amax")
        return ImageFeatures(
            features=seen.half().cpu().numpy(),
            overlaps=overlaps.half().cpu().numpy(),
            labels=own.cpu().numpy(),
            pairs=pairs.cpu().numpy(),
            pair_features=last.half().cpu().numpy(),
            pair_labels=own[matched[pairs]].cpu().numpy(),
            pair_offsets=offsets.float().cpu().numpy(),
        )

    def learn(self, folder: FeatureFolder) -> None:
        """The second and the third stage: learns the machines and the regressions from the features in ``folder``."""
        if self.classified_by == "svm":
            self._learn_svms(folder)
        if self.box_regression:
            self._learn_boxes(folder)

    def _learn_svms(self, folder: FeatureFolder) -> None:
        classes = range(len(self.class_names))
        positives: list[list[np.ndarray]] = [[] for _ in classes]
        total, count = 0.0, 0
        for features, labels in folder.read("features", "labels"):
            whole = features.astype(np.float32)
            total, count = total + float(np.linalg.norm(whole, axis=1).sum()), count + len(whole)
            for row, label in zip(whole, labels - 1, strict=False):  # the objects come first
                # A row alone, for a view would hold the regions of every image in memory.
                positives[label].append(row.copy())
        scale = norm_scale(total / max(1, count))
        width = self.svms.weight.shape[1]
        examples = [scale * np.array(rows, np.float32).reshape(-1, width) for rows in positives]

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            read = folder.read("features", "overlaps")
            for features, overlaps in tqdm(
                read, "hard negatives", len(folder.positions), leave=False, delay=2
            ):
                yield scale * features.astype(np.float32), overlaps < self.svm_negatives_below

        rounds: list[Round] = []

        def tell(done: Round) -> None:
            rounds.append(done)
            name = self.class_names[done.label]
            self._log(
                {
                    f"train/svm_hard_negatives/{name}": done.added,
                    f"train/svm_negatives/{name}": done.negatives,
                    f"train/svm_acc/{name}": done.accuracy,
                    f"train/svm_loss/{name}": done.objective,
                }
            )

        weight, bias = mine(examples, blocks(), self.mining, tell)
        self.svms.set(weight, bias, scale)
        last = {done.label: done for done in rounds}.values()
        accuracy = np.average(
            [done.accuracy for done in last], weights=[1 + done.positives + done.negatives for done in last]
        )
        self._say(
            f"support vector machines: {sum(map(len, examples)):,} objects; {len(rounds)} trainings with "
            f"{sum(done.added for done in rounds):,} hard negatives of {count:,} regions; in the end {accuracy:.1%} of "
            f"the examples on their right side; features {folder.size() / 1e6:,.1f} MB"
        )

    def _learn_boxes(self, folder: FeatureFolder) -> None:
        total, count = 0.0, 0
        for (features,) in folder.read("pair_features"):
            total, count = (
                total + float(np.linalg.norm(features.astype(np.float32), axis=1).sum()),
                count + len(features),
            )
        self.regressors.scale.fill_(norm_scale(total / max(1, count)))
        unit = torch.tensor([0.0, 0, 1, 1])
        before, after = 0.0, 0.0
        for label in range(1, len(self.class_names) + 1):
            features, offsets = folder.pairs(label)
            self.regressors.fit(label, features, offsets, self.ridge_penalty)
            if len(features):
                # An offset is relative to its region, and so is an IoU: any region will do.
                true = self.coder.decode(torch.from_numpy(offsets), unit)
                rows = torch.from_numpy(features).to(self.regressors.weight.device).split(4096)
                said = torch.cat([self.regressors(part)[:, label - 1].cpu() for part in rows])
                before += float(paired_iou(unit.expand_as(true), true).sum())
                after += float(paired_iou(self.coder.decode(said, unit), true).sum())
        self.regressors.fitted.fill_(True)
        before, after = before / max(1, count), after / max(1, count)
        self._log(
            {"train/ridge_pairs": count, "train/ridge_iou_before": before, "train/ridge_iou_after": after}
        )
        self._say(
            f"box regression: {count:,} regions with an object, of mean IoU {before:.3f} before and {after:.3f} after"
        )

    def _log(self, values: dict[str, float]) -> None:
        if self._trainer is not None:
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=self.trainer.global_step - 1)  # Lightning counts from 0

    def _say(self, line: str) -> None:
        if self._trainer is not None:
            sys.stderr.write(f"segdet: {line}\n")
