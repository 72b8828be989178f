"""R-CNN: a convolutional network on every region proposal, linear SVMs, and box regression."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.data.sample import Batch, Target
from segdet.detection.rcnn_training import LaterStages, StageOptions
from segdet.detection.region_detector import RegionDetector
from segdet.nn.boxes import BoxCoder
from segdet.nn.roi import rois_of, sample_rois
from segdet.nn.train_eval_mode import evaluating
from segdet.nn.warp import warp, with_context
from segdet.task import Stage
from segdet.training.callback_interfaces import interruptible, request_checkpoint
from segdet.training.ema import averaged
from segdet.training.linear_svm import LinearSVMs, Mining
from segdet.training.ridge import BoxRidge
from segdet.util.errors import UserError, check_choice, check_range
from segdet.util.stage_timing import stage

Classifier = Literal["svm", "softmax"]


class RCNN(RegionDetector):
    """Regions with CNN features (Girshick, Donahue, Darrell, Malik, CVPR 2014) on any backbone.

    Each proposal is warped, with some context, to a fixed size and classified by a network for images of that size. The
    cost is one pass of the backbone per proposal. Proposals overlap, so the same pixels are processed many times.

    Training has three stages within one ``segdet fit``:

    1. The epochs fine-tune the network as a classifier of K + 1 classes. Each batch has 128 regions, sampled from all
       its images: 32 with an IoU of at least 0.5 with an object, 96 with a lower IoU.
    2. Before each validation, features of the training images' proposals are extracted to ``features/`` in the run's
       folder. This is slow: validate rarely (``check_val_every_n_epoch``). One linear SVM per class is trained on the
       features with hard negative mining (section 2.3, appendix B). Positives are the objects themselves; negatives
       have an IoU below 0.3 with every object of the class. Without SVMs, only the regions of the third stage are
       extracted.
    3. For each class a ridge regression predicts the offsets of boxes from the pool5 features of regions with an IoU
       above 0.6 (section 3.5, appendix C).

    Each validation therefore scores the complete R-CNN, and the next checkpoint contains all its parts. A run that is
    interrupted in the second or third stage resumes with the existing features. With several processes, each process
    extracts the features of its share of the images. The first process then trains on all features while the others
    wait.

    Scores are softmax probabilities, or logistic functions of the SVMs' margins. A margin of 0 is a score of 0.5.
    Negatives are trained to a margin below -1, which is a score below 0.27. The default ``score_threshold`` of 0.05 is
    a margin of -2.94, and many detections above it are background. They do not lower AP, but they clutter pictures. For
    pictures use 0.27, or 0.5 for the SVMs' decision. On the 400 test images of Shapes, 0.27 lowered AP at IoU 0.5 by
    0.8 points and COCO AP by 0.4 points (``shapes/rcnn.yaml``, one epoch).

    Args:
        warp_size: The side of a crop in pixels.
        context: The margin of a crop around the proposal, in pixels of the crop.
        crop_batch: The number of crops per pass of the network in evaluation.
        regions_per_batch: The number of regions per batch in training.
        positive_share: The share of positive regions.
        classifier: ``svm``, or ``softmax`` for the classifier of the fine-tuned network.
        box_regression: Whether boxes are regressed.
        svm: The options of SVM training.
        svm_negatives_below: Regions with an IoU below this with all objects of a class are negatives of the class.
        svm_images: The number of training images, evenly spaced, for the second and third stage; null for all.
        ridge_penalty: The regularization of the regression, lambda.
        ridge_above: Regions with an IoU above this with an object are examples of the regression.
        ridge_regions: The maximum number of examples of the regression per image.
        kwargs: See `RegionDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        pool: int = 6,
        width: int = 1024,
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
        super().__init__(class_names, pool=pool, width=width, **kwargs)
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
            if value is not None:
                check_range(f"--model.{name}", value, least=1)
        self.warp_size, self.context, self.crop_batch = warp_size, context, crop_batch
        self.regions_per_batch, self.positive_share = regions_per_batch, positive_share
        self.uses_svms, self.box_regression = classifier == "svm", box_regression
        svm = svm if isinstance(svm, Mining) else Mining(**svm)  # a dictionary when read from a checkpoint
        self.stage_options = StageOptions(
            svm, svm_negatives_below, svm_images, ridge_penalty, ridge_above, ridge_regions
        )
        self.pool = nn.AdaptiveMaxPool2d(pool)
        self.classifier = nn.Linear(width, len(class_names) + 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.svms = LinearSVMs(len(class_names), width)
        self.regressors = BoxRidge(len(class_names), self.backbone.channels[0] * pool * pool)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self._later_stages_step: int | None = None

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Map crops ``[R, 3, S, S]`` to flattened pool5 features ``[R, P]`` and fc7 features ``[R, D]``."""
        pool5 = self.pool(self.backbone(crops)[0]).flatten(1)
        return pool5, self.layers(pool5)

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        count, share = self.regions_per_batch, self.positive_share
        sampled = sample_rois(targets, count, share, background=(0.0, 0.5), pooled=True, fill=False)
        _, fc7 = self(warp(images, sampled.rois, self.warp_size, self.context))
        logits = self.classifier(fc7).float()
        cross_entropy = F.cross_entropy(logits, sampled.labels, ignore_index=-1, reduction="sum")
        return {"class": cross_entropy / (sampled.labels >= 0).sum().clamp(min=1)}

    def classify(self, images: Tensor, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        self._check_fitted()
        rois = rois_of(proposals)
        scores, offsets = [], []
        for part in rois.split(self.crop_batch):
            pool5, fc7 = self._extract_part(images, part)
            with stage("head"):
                if self.uses_svms:
                    scores.append(self.svms(fc7).sigmoid())
                else:
                    scores.append(self.classifier(fc7).float().softmax(1)[:, 1:])
                if self.box_regression:
                    offsets.append(self.regressors(pool5))
        boxes = rois[:, None, 1:]
        return torch.cat(scores), self.coder.decode(torch.cat(offsets), boxes) if offsets else boxes

    def proposal_stages(self, image: Tensor, proposals: Tensor) -> Iterator[Stage]:
        crops = with_context(rois_of([proposals[:12]]), self.warp_size, self.context)[:, 1:]
        yield Stage(
            "crops",
            boxes=crops,
            caption=f"Twelve proposals with their context. Each of the {len(proposals)} is warped to "
            f"{self.warp_size}x{self.warp_size} pixels and goes through the network separately.",
        )

    def extract(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pool5 features ``[R, P]`` and the fc7 features ``[R, D]`` of RoIs ``[R, 5]``."""
        parts = [self._extract_part(images, part) for part in rois.split(self.crop_batch)]
        pool5, fc7 = (torch.cat(each) for each in zip(*parts, strict=True))
        return pool5, fc7

    def _extract_part(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        with stage("warps"):
            crops = warp(images, rois, self.warp_size, self.context)
        with stage("network"):
            pool5, fc7 = self(crops)
            return pool5, fc7

    def _check_fitted(self) -> None:
        if self.uses_svms and not bool(self.svms.fitted):
            missing, option = "linear SVMs", "--model.classifier softmax"
        elif self.box_regression and not bool(self.regressors.fitted):
            missing, option = "box regression", "--model.box_regression false"
        else:
            return
        raise UserError(f"RCNN: this network has no {missing} yet; finish its `segdet fit`, or give {option}")

    def prepare_untrained(self) -> None:
        """Use the initial SVMs and box regression, see `segdet.training.untrained`."""
        self.svms.fitted.fill_(True)
        self.regressors.fitted.fill_(True)

    # The second and the third stage of training.

    def later_stages(self) -> LaterStages:
        """Return the stages of training that follow fine-tuning."""
        return LaterStages(self, self.stage_options, self._trainer)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.trainer.state.fn == "fit" and (self.uses_svms or self.box_regression):
            if self.trainer.sanity_checking:
                return  # there are no SVMs to validate yet
            if batch_idx == 0:
                # The stages run in the first validation step, because a run resumed in a validation starts with this
                # step. The stages may take hours. The checkpoint keeps the fine-tuned network if they are interrupted.
                if request_checkpoint(self.trainer):
                    with interruptible(self.trainer):
                        self._run_later_stages()
                else:
                    self._run_later_stages()
        super().validation_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        """Run the later stages at the end of a training that ends without a validation."""
        trainer = self.trainer
        last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
        last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        if not (self.uses_svms or self.box_regression) or self._later_stages_step == trainer.global_step:
            return
        if last_epoch or last_step or trainer.should_stop:
            # The stages use the averaged weights, if any, because the checkpoint contains these.
            context = trainer.precision_plugin.forward_context()
            with torch.no_grad(), evaluating(self), averaged(trainer, self), context:
                self._run_later_stages()

    def _run_later_stages(self) -> None:
        self.later_stages().run([self.backbone, self.layers], [self.warp_size, self.context])
        self._later_stages_step = self.trainer.global_step
