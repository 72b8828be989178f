"""What the bases of all three tasks have in common: normalization, the training step, optimizer and logging."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from segdet.data.sample import Batch, Prediction, Sample, Target
from segdet.metrics.base import Scores
from segdet.training.ema import EMA
from segdet.training.freezing import freeze as freeze_parts
from segdet.training.multi_scale import rescale, scaled_size
from segdet.training.optim import Optimization
from segdet.util.errors import UserError
from segdet.util.seeds import global_seed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_ONE_VALUE = "Expected more than 1 value per channel when training"
"""How torch begins to say that a normalization layer was given a single number a channel."""


@dataclass
class Stage:
    """An intermediate result of a forward pass, to be drawn over the image.

    Attributes:
        name: Its name: windows, proposals, anchors, grid cells, a heat map ...
        boxes: float32 ``[N, 4]`` xyxy in pixels of the image, or None.
        scores: float32 ``[N]``, one per box, or None.
        map: float32 ``[h, w]``, to be drawn as a heat map over the image, or None.
        about: A caption of one sentence.
    """

    name: str
    boxes: Tensor | None = None
    scores: Tensor | None = None
    map: Tensor | None = None
    about: str = ""


@dataclass(frozen=True)
class View:
    """How the images that enter the network relate to the images that the data module loaded.

    Attributes:
        sizes: ``(height, width)`` of each image without padding.
        scale: Height and width of the images divided by those of the loaded images: other than ``(1, 1)`` in
            multi-scale training and in test-time augmentation at other scales.
    """

    sizes: list[tuple[int, int]]
    scale: tuple[float, float] = (1.0, 1.0)


class Task(L.LightningModule):
    """The base of the bases: a family derives from `Segmenter`, `Localizer` or `Detector`.

    A family owns its network and says three things: ``losses``, ``predict`` and ``stages``.

    Args:
        class_names: The classes; linked from the data by the command.
        optim: Optimizer and schedule.
        mean: The mean of the images' channels, of 0..1, which normalization takes away.
        std: Their standard deviation, which it divides by.
        channels_last: Whether weights and images lie in memory with a pixel's channels side by side, as images are
            decoded and convolutions run fastest; false for channel after channel.
        compile: Whether ``torch.compile`` compiles the parts of the network, or its options, such as
            ``{mode: reduce-overhead}``.
        ema: The decay of a moving average of the weights, such as 0.999, which is validated, saved and tested in
            place of those that are learned; see `segdet.training.ema.EMA`. None when null.
        freeze: Names of modules that are not learned and stay in evaluation mode, such as ``[backbone]``.
        frozen_batch_norm: Whether all batch normalization is frozen likewise, for pretrained networks.
        multi_scale: Trains on batches resized by a factor drawn from these, to multiples of 32 pixels (YOLOv2,
            Redmon, Farhadi, CVPR 2017, section 2); on batches as they are when null.
        multi_scale_every: For how many steps a factor stays.

    Attributes:
        task: The task's name, as data modules know it.
        monitor: The score by which the best checkpoint is chosen.
        monitor_mode: ``max`` or ``min``.
        step_losses: The losses of the last training step, on the device.
    """

    task: ClassVar[str]
    monitor: ClassVar[str]
    monitor_mode: ClassVar[str] = "max"

    def __init__(
        self,
        class_names: list[str],
        optim: Optimization = Optimization(),  # noqa: B008  read only; the configuration shows its values
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        channels_last: bool = True,
        compile: bool | dict[str, Any] = False,
        ema: float | None = None,
        freeze: list[str] | None = None,
        frozen_batch_norm: bool = False,
        multi_scale: list[float] | None = None,
        multi_scale_every: int = 10,
    ) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.optim = optim
        self.channels_last = channels_last
        if ema is not None and not 0 < ema < 1:
            raise UserError(f"--model.ema {ema}: must be above 0 and below 1, such as 0.999")
        if multi_scale is not None and (not multi_scale or min(multi_scale) <= 0):
            raise UserError(f"--model.multi_scale {multi_scale}: give one or more numbers above 0, or null")
        if multi_scale_every < 1:
            raise UserError(f"--model.multi_scale_every {multi_scale_every}: must be at least 1")
        self.compiling: dict[str, Any] | None = {} if compile is True else (compile or None)
        self.ema = ema
        self.freezing = (list(freeze or []), frozen_batch_norm)
        self._frozen: list[str] = []
        self.multi_scale = multi_scale
        self.multi_scale_every = multi_scale_every
        scale = torch.tensor([1 / (255 * s) for s in std])
        self.register_buffer("_scale", scale.view(1, 3, 1, 1), persistent=False)
        shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)])
        self.register_buffer("_shift", shift.view(1, 3, 1, 1), persistent=False)
        self.step_losses: dict[str, Tensor] = {}
        self.scores = nn.ModuleDict({"val_": self.build_scores(), "test_": self.build_scores()})

    # Implemented by a family.

    @abstractmethod
    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the parts of the loss of a batch; the base class sums them.

        Args:
            images: Normalized, float ``[B, 3, H, W]``; padding is zero.
            targets: One per image, in pixels of ``images``.
        """

    @abstractmethod
    def predict(self, images: Tensor) -> Any:
        """Return the network's output for normalized images ``[B, 3, H, W]`` without padding, in their pixels.

        The base class of each task documents the type.
        """

    def stages(self, image: Tensor) -> Iterator[Stage]:
        """Yield intermediate results for one normalized image ``[1, 3, H, W]``."""
        return iter(())

    def loss_inputs(self, view: View) -> dict[str, Any]:
        """Return additional keyword arguments for `losses`; none for most families."""
        return {}

    def predict_inputs(self, targets: list[Target], view: View) -> dict[str, Any]:
        """Return additional keyword arguments for `predict`; none for most families.

        Args:
            targets: One per image, in pixels of the images that enter the network. They hold region proposals if the
                data has them.
            view: How these images relate to the loaded ones.
        """
        return {}

    def benchmark_inputs(self, sample: Sample) -> dict[str, Any]:
        """Return additional keyword arguments for `predict_tensors` when the cost of ``sample`` is measured."""
        return {}

    @property
    def pass_module(self) -> nn.Module:
        """The module whose forward on one sample is one network pass; the cost of an image counts these."""
        return self.backbone  # type: ignore[return-value]

    @property
    def compiled_modules(self) -> list[nn.Module]:
        """The modules that ``torch.compile`` compiles: those that the family calls as a whole.

        By default these are the children that have parameters; of a ``ModuleList``, its members.
        """
        children = [child if isinstance(child, nn.ModuleList) else [child] for child in self.children()]
        modules = [module for group in children for module in group]
        return [module for module in modules if next(module.parameters(), None) is not None]

    # Implemented by the base class of each task.

    @abstractmethod
    def build_scores(self) -> Scores:
        """Return new metrics of the task."""

    @abstractmethod
    def postprocess(
        self, output: Any, original_sizes: list[tuple[int, int]], size: tuple[int, int]
    ) -> list[Prediction]:
        """Convert the output of `predict` for images of ``size`` to predictions in pixels of the original images."""

    @abstractmethod
    def score(
        self, scores: Scores, predictions: list[Prediction], batch: Batch, positions: list[int]
    ) -> None:
        """Update ``scores`` with the predictions for the images at ``positions`` of the batch."""

    # Prediction.

    def normalize(self, images: Tensor, sizes: list[tuple[int, int]] | None = None) -> Tensor:
        """uint8 ``[B, 3, H, W]`` to float, normalized; beyond the valid ``sizes`` zero."""
        normal = images * self._scale - self._shift  # type: ignore[operator]
        if sizes is not None and any(size != tuple(images.shape[-2:]) for size in sizes):
            for image, (h, w) in zip(normal, sizes, strict=True):
                image[:, h:] = 0
                image[:, :, w:] = 0
        # Channels last are kept from the batch. A convolution follows its images too, not only its weights.
        return normal if self.channels_last else normal.contiguous()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets, sizes = self._scaled(
            self.normalize(batch.images, batch.sizes), batch.targets, batch.sizes
        )
        scale = images.shape[2] / batch.images.shape[2], images.shape[3] / batch.images.shape[3]
        try:
            losses = self.losses(images, targets, **self.loss_inputs(View(sizes, scale)))
        except ValueError as error:
            if not str(error).startswith(_ONE_VALUE):
                raise
            raise UserError(
                f"--data.batch_size {len(batch)}: a BatchNorm layer has a single value a channel, what an image of "
                f"{images.shape[3]}x{images.shape[2]} shrinks to or its mean, and cannot learn from that; give a "
                "larger --data.batch_size (or larger images, where they shrink to it)"
            ) from error
        total = torch.stack(list(losses.values())).sum()
        self.step_losses = {"loss": total.detach()} | {f"loss_{k}": v.detach() for k, v in losses.items()}
        return total

    def _scaled(
        self, images: Tensor, targets: list[Target], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, list[Target], list[tuple[int, int]]]:
        """The batch in the size of this step, which all processes draw, and draw again when training goes on."""
        if self.multi_scale is None:
            return images, targets, sizes
        seed = [global_seed(), self.global_step // self.multi_scale_every]
        factor = self.multi_scale[int(np.random.default_rng(seed).integers(len(self.multi_scale)))]
        if factor == 1:
            return images, targets, sizes
        height, width = images.shape[2:]
        new = scaled_size((height, width), factor)
        images, targets = rescale(images, targets, new)
        return (
            images,
            targets,
            [(math.ceil(h * new[0] / height), math.ceil(w * new[1] / width)) for h, w in sizes],
        )

    def predict_batch(self, batch: Batch) -> list[Prediction]:
        """Return one prediction per image of the batch, in pixels of the original images.

        Images of the same size go through the network together, without padding. A prediction therefore does not
        depend on the other images of its batch.
        """
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, size in enumerate(batch.sizes):
            by_size[size].append(position)
        predictions: list[Prediction | None] = [None] * len(batch)
        for (h, w), positions in by_size.items():
            images = batch.images if len(positions) == len(batch) else batch.images[positions]
            found = self.predict_tensors(
                images[:, :, :h, :w],
                [batch.sources[position].original_size for position in positions],
                [batch.targets[position] for position in positions],
            )
            for position, prediction in zip(positions, found, strict=True):
                predictions[position] = prediction
        return predictions  # type: ignore[return-value]

    def predict_tensors(
        self,
        images: Tensor,
        original_sizes: list[tuple[int, int]] | None = None,
        targets: list[Target] | None = None,
    ) -> list[Prediction]:
        """Return predictions for uint8 images ``[B, 3, H, W]`` of one size, as the evaluation transforms yield them.

        Args:
            images: On the model's device.
            original_sizes: ``(height, width)`` of each original image, in whose pixels predictions are returned; the
                images' own when None.
            targets: One per image, in pixels of ``images``; of use are the region proposals that they hold.
        """
        size = (images.shape[2], images.shape[3])
        targets = [Target()] * len(images) if targets is None else targets
        output = self.predict_views(self.normalize(images), targets)
        return self.postprocess(output, original_sizes or [size] * len(images), size)

    def predict_views(self, images: Tensor, targets: list[Target]) -> Any:
        """Return the output for normalized images; test-time augmentation overrides this to combine several views."""
        view = View([(images.shape[2], images.shape[3])] * len(images))
        return self.predict(images, **self.predict_inputs(targets, view))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val_")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test_")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        return self.predict_batch(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/...``."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs ``test/...``."""
        self._log_scores("test")

    def configure_optimizers(self) -> Any:
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError("--model.freeze: nothing is left to be learned; freeze less")
        trainer = self.trainer
        trainer.fit_loop.setup_data()  # without it there is no number of batches yet
        total = trainer.estimated_stepping_batches
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        optimizer, schedule = self.optim.build(self, total, per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_model(self) -> None:
        """Freezes what is not to be learned, lays weights out in memory, and compiles if that is asked for."""
        self.optim.freeze(self)
        self._frozen = freeze_parts(self, *self.freezing)
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        if self.compiling is not None:
            self._compile(self.compiling)

    def _compile(self, options: dict[str, Any]) -> None:
        try:
            for part in self.compiled_modules:
                part.compile(**options)  # in place, so that the names of the weights stay
        except (TypeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--model.compile {options}: {reason}; give true, or options of torch.compile"
            ) from error

    def configure_callbacks(self) -> list[Callback]:
        """The moving average of the weights, in training."""
        # Last of all but those that save checkpoints: what is drawn after a validation is drawn with the average.
        return [EMA(self.ema)] if self.ema is not None and self.trainer.state.fn == "fit" else []

    def train(self, mode: bool = True) -> Self:
        """Training mode for all that is not frozen."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def _evaluate(self, batch: Batch, key: str) -> None:
        predictions = self.predict_batch(batch)
        positions = [i for i, source in enumerate(batch.sources) if not source.duplicate]
        if positions:
            self.score(self.scores[key], [predictions[i] for i in positions], batch, positions)  # type: ignore[arg-type]

    def _log_scores(self, stage: str) -> None:
        scores: Scores = self.scores[f"{stage}_"]  # type: ignore[assignment]
        values = {f"{stage}/{name}": value for name, value in scores.compute().items()}
        scores.reset()
        # A class or a size that does not occur has no score, which is not a score of zero.
        present = {name: value for name, value in values.items() if not math.isnan(float(value))}
        # Nor has it that of an earlier epoch, which the trainer would go on to show and the record to keep.
        for name in values.keys() - present.keys():
            self.trainer.callback_metrics.pop(name, None)
        headline = {k: v for k, v in present.items() if k == self.monitor}
        rest = {k: v for k, v in present.items() if k not in headline}
        # All processes computed the same numbers from the gathered states; nothing is left to reduce.
        self.log_dict(headline, prog_bar=True, sync_dist=True)
        self.log_dict(rest, sync_dist=True)
