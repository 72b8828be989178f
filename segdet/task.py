"""The base classes of all families: `Model` predicts, and `Task` also trains, evaluates and saves.

A family implements three methods: `losses`, `predict` and `stages`. The base classes call them:

- Training: `Task.training_step` normalizes a batch, rescales it in multi-scale training, and sums and logs `losses`.
- Evaluation: `Task.validation_step` and `Task.test_step` predict a batch and update the metrics of the task. The scores
  are logged after the last batch.
- Prediction: `Model.predict_image` resizes an image as in evaluation. `Model.predict_tensors` normalizes images, calls
  `predict`, and converts the output to pixels of the original images.
- Checkpoints: `Task.on_save_checkpoint` adds all that `Task.load_from_checkpoint` needs to build the trained model.

`Segmenter`, `Localizer` and `Detector`, one base class per task, define the metrics and convert outputs to predictions.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from segdet.data.base import Classes, DataModule
from segdet.data.image_input import ImageLike, as_rgb
from segdet.data.sample import Batch, Prediction, Sample, Target
from segdet.data.transforms import Plain, Size
from segdet.metrics.base import Scores
from segdet.nn.backbones import backbone_normalization
from segdet.nn.train_eval_mode import evaluating
from segdet.nn.weights import DESCRIPTION, Normalization, restoring
from segdet.training.callback_interfaces import pass_scores
from segdet.training.divergence import LossHistory, check_checkpoint
from segdet.training.fine_tune import ClassRows, FineTunable, find_start
from segdet.training.load_checkpoint import import_class, read_checkpoint, saved_model
from segdet.training.module_setup import compile_modules, freeze
from segdet.training.multi_scale import rescale, scaled_size
from segdet.training.normalization import choose_normalization, register_normalization
from segdet.training.optim import Optimization, elapsed_share
from segdet.training.progress import is_logged
from segdet.training.resumed_optimizer import ResumedSettings
from segdet.training.schedule_length import schedule_length
from segdet.training.settable_rate import SettableRate
from segdet.training.torch_messages import is_single_value
from segdet.util.errors import UserError, check_range
from segdet.util.saved_arguments import (
    check_unknown_arguments,
    constructor_arguments,
    plain,
    plain_arguments,
)
from segdet.util.seeds import global_seed, seed_step


@dataclass
class Stage:
    """An intermediate result of a forward pass, to be drawn over the image.

    Attributes:
        name: A short name, such as windows, proposals, anchors, grid cells or a heat map.
        boxes: float32 ``[N, 4]`` xyxy in pixels of the image, or None.
        scores: float32 ``[N]``, one per box, or None.
        map: float32 ``[h, w]``, to be drawn as a heat map over the image, or None.
        caption: One sentence.
    """

    name: str
    boxes: Tensor | None = None
    scores: Tensor | None = None
    map: Tensor | None = None
    caption: str = ""


@dataclass(frozen=True)
class View:
    """The sizes of the network's input images, and their scale relative to the images that the data module loaded.

    Attributes:
        sizes: ``(height, width)`` of each image without padding.
        scale: Height and width of the images divided by those of the loaded images. The scale differs from 1 in
            multi-scale training and in test-time augmentation at several scales.
    """

    sizes: list[tuple[int, int]]
    scale: tuple[float, float] = (1.0, 1.0)


class Model(L.LightningModule):
    """A network with the methods of its family, and prediction of boxes or masks in pixels of the original images.

    Attributes:
        class_names: Names of the classes.
        input_size: The ``(height, width)`` that the network needs, or None for any size.
        trained_image_size: The evaluation size of the data that the model was trained on, or None if images are not
            resized.
    """

    input_size: Size = None

    channels_last: bool
    class_names: list[str]
    _scale: Tensor
    _shift: Tensor
    trained_image_size: Size

    # A family implements three methods.

    @abstractmethod
    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the parts of the loss of a batch; the base class sums them.

        Args:
            images: Normalized, float ``[B, 3, H, W]``; padding is zero.
            targets: One per image, in pixels of ``images``.
        """

    @abstractmethod
    def predict(self, images: Tensor) -> Any:
        """Return the network's output for normalized images ``[B, 3, H, W]`` without padding, in pixels of the images.

        The base class of each task documents the type.
        """

    def stages(self, image: Tensor) -> Iterator[Stage]:
        """Yield intermediate results for one normalized image ``[1, 3, H, W]``."""
        return iter(())

    # The base class of each task implements one method.

    @abstractmethod
    def postprocess(
        self, output: Any, original_sizes: list[tuple[int, int]], size: tuple[int, int]
    ) -> list[Prediction]:
        """Convert the output of `predict` for images of ``size`` to predictions in pixels of the original images."""

    # Prediction, from an image file down to the call of `predict`.

    def predict_image(self, image: ImageLike) -> Prediction:
        """Return boxes or a mask for one image, in its own pixels, on the CPU.

        The image is resized as in the evaluation of the training data. The result equals that of ``segdet predict``.

        Args:
            image: A path, a PIL image, an array uint8 ``[H, W, 3]`` (RGB), or a tensor uint8 ``[3, H, W]``. A photo
                that is read from a path is rotated by its EXIF orientation.

        Returns:
            ``boxes`` float32 ``[M, 4]`` xyxy, ``scores`` and ``labels`` (1..K), best first; or ``mask`` int64
            ``[H, W]`` for segmentation. ``class_names`` names the labels from 1, or the mask's values from 0.

        Raises:
            UserError: If the image cannot be read or is of another type.
        """
        pixels = as_rgb(image)
        with evaluating(self), torch.no_grad():
            proposals = self.propose_boxes(pixels)
            boxes = {} if proposals is None else {"proposals": proposals}
            resized, transformed, _ = Plain(self.image_size).evaluation()(pixels, boxes)
            images = torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)[None].to(self.device)
            target = Target()
            if "proposals" in transformed:
                target["proposals"] = torch.from_numpy(transformed["proposals"][0]).to(self.device)
            height, width = pixels.shape[:2]
            (prediction,) = self.predict_tensors(images, [(height, width)], [target])
        return Prediction(**{key: value.cpu() for key, value in prediction.items()})  # type: ignore[attr-defined,typeddict-item]

    @property
    def image_size(self) -> Size:
        """The size of images in evaluation: height and width, the shorter side, or None if they are not resized.

        The size comes from the trainer's data module, or else from the checkpoint.
        """
        data = getattr(self._trainer, "datamodule", None)
        return data.recipe.size if isinstance(data, DataModule) else self.trained_image_size

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[Prediction]:
        return self.predict_batch(batch)

    def predict_batch(self, batch: Batch) -> list[Prediction]:
        """Return one prediction per image of the batch, in pixels of the original images.

        Images of the same size go through the network together, without padding. A prediction therefore does not
        depend on the other images of its batch.
        """
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, size in enumerate(batch.sizes):
            by_size[size].append(position)
        predictions: dict[int, Prediction] = {}
        for (h, w), positions in by_size.items():
            images = batch.images if len(positions) == len(batch) else batch.images[positions]
            found = self.predict_tensors(
                images[:, :, :h, :w],
                [batch.sources[position].original_size for position in positions],
                [batch.targets[position] for position in positions],
            )
            predictions.update(zip(positions, found, strict=True))
        return [predictions[position] for position in range(len(batch))]

    def predict_tensors(
        self,
        images: Tensor,
        original_sizes: list[tuple[int, int]] | None = None,
        targets: list[Target] | None = None,
    ) -> list[Prediction]:
        """Return predictions for uint8 images ``[B, 3, H, W]`` of one size, as the evaluation transforms return them.

        Args:
            images: On the model's device.
            original_sizes: ``(height, width)`` of each original image. Predictions are in pixels of these images; None
                for pixels of ``images``.
            targets: One per image, in pixels of ``images``. Only their region proposals are used.
        """
        size = (images.shape[2], images.shape[3])
        targets = [Target()] * len(images) if targets is None else targets
        output = self.predict_views(self.normalize(images), targets)
        return self.postprocess(output, original_sizes or [size] * len(images), size)

    def predict_views(self, images: Tensor, targets: list[Target]) -> Any:
        """Return the output for normalized images. Base classes with test-time augmentation combine several views."""
        view = View([(images.shape[2], images.shape[3])] * len(images))
        return self.predict(images, **self.predict_inputs(targets, view))

    def normalize(self, images: Tensor, sizes: list[tuple[int, int]] | None = None) -> Tensor:
        """Normalize uint8 images ``[B, 3, H, W]`` to float; set padding outside the valid ``sizes`` to zero."""
        normal = images * self._scale - self._shift
        if sizes is not None and any(size != tuple(images.shape[-2:]) for size in sizes):
            for image, (h, w) in zip(normal, sizes, strict=True):
                image[:, h:] = 0
                image[:, :, w:] = 0
        # Batches are channels last. The memory format of a convolution follows both its weights and its images.
        return normal if self.channels_last else normal.contiguous()

    @classmethod
    def weights_normalization(cls, arguments: Mapping[str, Any]) -> Normalization | None:
        """Return the normalization of images that pretrained weights expect; None if it is unknown.

        Args:
            arguments: The constructor arguments.
        """
        weights = arguments.get("weights") or arguments.get("weights_backbone")
        backbone = arguments.get("backbone")
        return backbone_normalization(backbone, weights) if backbone else None

    # Additional inputs; most families have none.

    def loss_inputs(self, view: View) -> dict[str, Any]:
        """Return additional keyword arguments for `losses`."""
        return {}

    def predict_inputs(self, targets: list[Target], view: View) -> dict[str, Any]:
        """Return additional keyword arguments for `predict`.

        Args:
            targets: One per image, in pixels of the network's input, with region proposals if the data has any.
            view: The sizes of the network's input.
        """
        return {}

    def propose_boxes(self, image: np.ndarray) -> np.ndarray | None:
        """Return region proposals float32 ``[P, 4]`` for an image uint8 ``[H, W, 3]``; None if the family uses none."""
        return None

    def benchmark_inputs(self, sample: Sample) -> dict[str, Any]:
        """Return additional keyword arguments for `predict_tensors` when the cost of ``sample`` is measured."""
        return {}

    # Modules for the measurement of cost and for compilation.

    @property
    def pass_module(self) -> nn.Module:
        """The module whose passes are counted in the cost of an image. Each sample in a call of it is one pass."""
        return self.backbone  # type: ignore[return-value]

    @property
    def compiled_modules(self) -> list[nn.Module]:
        """The modules that ``torch.compile`` compiles: those that the family calls as a whole.

        By default these are the children that have parameters, and the members of each ``ModuleList``.
        """
        children = [child if isinstance(child, nn.ModuleList) else [child] for child in self.children()]
        modules = [module for group in children for module in group]
        return [module for module in modules if next(module.parameters(), None) is not None]


class Task(FineTunable, SettableRate, Model):
    """The base class of `Segmenter`, `Localizer` and `Detector`: training, evaluation, logging and checkpoints.

    Before each training batch torch's random numbers are seeded with the seed of ``lightning.seed_everything`` (0 if
    it was not called), the epoch, the batch and the process. A resumed training therefore draws the same numbers as one
    that was not interrupted.

    Args:
        class_names: The classes; the command takes them from the data.
        weights: The run or checkpoint of segdet to start from. Its classes may differ (see
            `segdet.training.fine_tune`). It is loaded when the model is first used: by a trainer, by a prediction,
            or when its state dict is read or loaded. Families with a backbone also accept names and files.
        optim: Optimizer and schedule.
        mean: The mean of each channel, 0..1, which normalization subtracts; null for the mean that the weights expect,
            or else ImageNet's.
        std: The standard deviation of each channel, by which normalization divides; null as for ``mean``.
        channels_last: Whether weights and images have the channels-last memory format. Images are decoded in this
            format, and convolutions are fastest with it.
        compile: Whether to compile the parts of the network with ``torch.compile``; or the options of
            ``torch.compile``, such as ``{mode: reduce-overhead}``.
        freeze: Names of modules that are not trained and stay in evaluation mode, such as ``[backbone]``.
        frozen_batch_norm: Whether all batch normalization is frozen too, for pretrained networks.
        multi_scale: The factors of multi-scale training (YOLOv2, Redmon, Farhadi, CVPR 2017, section 2). Batches are
            resized by a random factor, to multiples of 32 pixels. Null does not resize batches.
        multi_scale_every: The number of steps for which a factor is kept.
        unknown: Unknown arguments, which raise an error.

    Attributes:
        task: The task's name, as data modules use it.
        monitor: The score by which the best checkpoint is chosen.
        monitor_mode: ``max`` or ``min``.
        class_rows: The `ClassRows` of layers that differ from its defaults, by a part of the layer's name.
        default_lr_factor: The factor of the optimizer's default learning rate for this family.
        cpu_network: Arguments of a smaller network, which `segdet fit` chooses on a CPU.
        step_losses: The losses of the last training step, on the device: ``loss_<part>``, and their sum ``loss``.
        loss_history: The step at which the losses became NaN or infinite, if they did.
    """

    task: ClassVar[str]
    monitor: ClassVar[str]
    monitor_mode: ClassVar[str] = "max"
    class_rows: Mapping[str, ClassRows] = {}
    default_lr_factor: ClassVar[float] = 1.0
    cpu_network: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        class_names: list[str],
        weights: bool | str | None = None,
        optim: Optimization = Optimization(),  # noqa: B008  read only; the configuration shows its values
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        channels_last: bool = True,
        compile: bool | dict[str, Any] = False,
        freeze: list[str] | None = None,
        frozen_batch_norm: bool = False,
        multi_scale: list[float] | None = None,
        multi_scale_every: int = 10,
        **unknown: Any,
    ) -> None:
        arguments = constructor_arguments(self)
        check_unknown_arguments(type(self), unknown)
        super().__init__()
        self._start = find_start(type(self).__name__, arguments, weights)
        given = {"mean": mean, "std": std}
        normalized = choose_normalization(arguments | given, self._start, self.weights_normalization)
        (mean, std), self._normalization_note = normalized
        # A class may pass its own mean and std to this constructor instead of taking them as arguments.
        chosen = {k: v for k, v in (("mean", mean), ("std", std)) if k in arguments or given[k] is None}
        saved_arguments = plain_arguments(arguments | chosen)
        self.save_hyperparameters(saved_arguments)
        self._unsaved_arguments = sorted(arguments.keys() - saved_arguments.keys())
        if isinstance(class_names, str) or not class_names:
            raise UserError(
                f"class_names {class_names!r}: must be a list of one or more names, as in [cat, dog]"
            )
        if multi_scale is not None:
            check_range("--model.multi_scale", multi_scale, above=0)
        check_range("--model.multi_scale_every", multi_scale_every, least=1)
        self.class_names = list(class_names)
        self.optim = Optimization.from_saved(optim).with_default_lr_factor(self.default_lr_factor)
        self.channels_last = channels_last
        self.compile_options: dict[str, Any] | None = {} if compile is True else (compile or None)
        self.freeze_options = (list(freeze or []), frozen_batch_norm)
        self._frozen: list[str] = []
        self.multi_scale = multi_scale
        self.multi_scale_every = multi_scale_every
        register_normalization(self, mean, std)
        self.trained_image_size = None
        self.step_losses: dict[str, Tensor] = {}
        self.loss_history = LossHistory()
        self._resumed_settings = ResumedSettings(self.optim)
        self.scores = nn.ModuleDict({"val_": self.build_scores(), "test_": self.build_scores()})

    # The base class of each task implements two methods.

    @abstractmethod
    def build_scores(self) -> Scores:
        """Return new metrics of the task."""

    @abstractmethod
    def update_scores(
        self, scores: Scores, predictions: list[Prediction], batch: Batch, positions: list[int]
    ) -> None:
        """Update ``scores`` with the predictions for the images at ``positions`` of the batch."""

    # Training.

    def configure_model(self) -> None:
        """Load the checkpoint to start from, freeze modules, set the memory format and compile."""
        self.prepare_start()
        self.optim.freeze(self)
        self._frozen = freeze(self, *self.freeze_options)
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        if self.compile_options is not None:
            compile_modules(self.compiled_modules, self.compile_options)

    def configure_optimizers(self) -> Any:
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError("--model.freeze: all parameters are frozen; freeze fewer modules")
        trainer = self.trainer
        try:
            trainer.fit_loop.setup_data()  # the number of batches is unknown until then
        except ValueError as error:  # Lightning compares val_check_interval with the number of batches
            raise UserError(
                f"--trainer.val_check_interval {trainer.val_check_interval}: {' '.join(str(error).split())}"
            ) from error
        total, per_epoch = schedule_length(trainer)
        optimizer, schedule = self.optim.build(self, total, per_epoch, elapsed_share(trainer))
        self._resumed_settings.configure(optimizer, (total, per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules that are not frozen."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def on_train_start(self) -> None:
        """Apply the settings of a resumed training to the optimizer; keep the size of images for later tests."""
        if self.trainer.optimizers and self.trainer.lr_scheduler_configs:
            schedule = self.trainer.lr_scheduler_configs[0].scheduler
            self._resumed_settings.apply(self.trainer.optimizers[0], schedule, self.trainer.max_steps)  # type: ignore[arg-type]
        self.trained_image_size = self.image_size

    def on_train_epoch_start(self) -> None:
        """Reset Lightning's count of batches, so that a checkpoint saved now resumes with all batches of the epoch.

        Lightning resets the count slightly later. A checkpoint saved before that, on SLURM's signal, would hold the
        count of the previous epoch, and the resumed training would skip this epoch.
        """
        loop = self.trainer.fit_loop
        loop.epoch_loop.batch_progress.reset_on_run()
        epochs = loop.epoch_progress.current
        epochs.ready = epochs.started + 1  # type: ignore[attr-defined]  # Lightning increases `started` after this hook

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed torch's random numbers, such as those of dropout."""
        seed_step(global_seed(), self.current_epoch, batch_idx, self.global_rank, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses; log it as ``train/loss``, and its parts as ``train/loss_<part>`` when due."""
        images, targets, view = self._rescale(batch)
        try:
            losses = self.losses(images, targets, **self.loss_inputs(view))
        except ValueError as error:
            if not is_single_value(error):
                raise
            raise UserError(
                f"--data.batch_size {len(batch)}: a normalization layer receives a single value per channel, because "
                f"images of {images.shape[3]}x{images.shape[2]} shrink to one pixel or are averaged; give a "
                "larger --data.batch_size (or larger images, if they shrink to one pixel)"
            ) from error
        total = torch.stack(list(losses.values())).sum()
        self.step_losses = {"loss": total.detach()} | {f"loss_{k}": v.detach() for k, v in losses.items()}
        if self._trainer is not None:
            self.loss_history.add(self.step_losses, self.global_step + 1)
            # Logging a value takes Lightning up to 0.3 ms, so the parts are logged only when a row is due. To show a
            # loss in the progress bar, Lightning would wait for the device in every step.
            every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
            row_due = is_logged(self.global_step + 1, every) or self.trainer.is_last_batch
            names = list(self.step_losses) if row_due else ["loss"]
            self.log_dict({f"train/{name}": self.step_losses[name] for name in names})
        return total

    def _rescale(self, batch: Batch) -> tuple[Tensor, list[Target], View]:
        """Return normalized images and targets in the size of this step.

        All processes draw the same size, and a resumed training draws the same size again.
        """
        images, targets, sizes = self.normalize(batch.images, batch.sizes), batch.targets, batch.sizes
        if self.multi_scale is None:
            return images, targets, View(sizes)
        seed = [global_seed(), self.global_step // self.multi_scale_every]
        factor = self.multi_scale[int(np.random.default_rng(seed).integers(len(self.multi_scale)))]
        if factor == 1:
            return images, targets, View(sizes)
        height, width = images.shape[2:]
        new = scaled_size((height, width), factor)
        images, targets = rescale(images, targets, new)
        sizes = [(math.ceil(h * new[0] / height), math.ceil(w * new[1] / width)) for h, w in sizes]
        return images, targets, View(sizes, (new[0] / height, new[1] / width))

    # Evaluation.

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val_")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Prediction]]:
        return {"predictions": self._evaluate(batch, "test_")}  # for callbacks

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _evaluate(self, batch: Batch, key: str) -> list[Prediction]:
        predictions = self.predict_batch(batch)
        positions = [i for i, source in enumerate(batch.sources) if not source.duplicate]
        if positions:
            self.update_scores(self.scores[key], [predictions[i] for i in positions], batch, positions)  # type: ignore[arg-type]
        return predictions

    def _log_scores(self, stage: str) -> None:
        """Log the scores of an epoch as ``val/...`` or ``test/...``, and reset the metrics."""
        scores: Scores = self.scores[f"{stage}_"]  # type: ignore[assignment]
        pass_scores(self, stage, scores)
        values = {f"{stage}/{name}": value for name, value in scores.compute().items()}
        scores.reset()
        # The score of an absent class or size is undefined, not zero.
        present = {name: value for name, value in values.items() if not math.isnan(float(value))}
        # Remove undefined scores; otherwise the trainer and the record would keep the score of an earlier epoch.
        for name in values.keys() - present.keys():
            self.trainer.callback_metrics.pop(name, None)
        # All processes have computed the same numbers from the gathered states.
        self.log_dict({k: v for k, v in present.items() if k == self.monitor}, prog_bar=True, sync_dist=True)
        self.log_dict({k: v for k, v in present.items() if k != self.monitor}, sync_dist=True)

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the class of the model, the names of the classes and the size of images, as plain types.

        Raises:
            DivergedError: If a weight or the state of an optimizer is NaN or infinite; no file is written then.
        """
        check_checkpoint(self, checkpoint)
        data = getattr(self._trainer, "datamodule", None)
        own = Classes(self.class_names, list(getattr(self, "category_ids", [])))
        classes = data.classes if isinstance(data, DataModule) else own
        checkpoint[DESCRIPTION] = checkpoint.get(DESCRIPTION, {}) | {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "task": self.task,
            "class_names": [str(name) for name in classes.names],
            "category_ids": [int(number) for number in classes.category_ids],
            "mask_values": [int(value) for value in classes.mask_values],
            "palette_masks": bool(classes.palette_masks),
            "image_size": plain(self.image_size),
            "unsaved_arguments": self._unsaved_arguments,
            "steps": self._resumed_settings.length,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the size of images from the checkpoint; adapt the optimizer's state to the settings of this model."""
        description = checkpoint.get(DESCRIPTION) or {}
        self.trained_image_size = description.get("image_size")
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._resumed_settings.load(checkpoint, description.get("steps"), self)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: torch.device | str = "cpu", *, strict: bool = True,
        weights_only: bool = True, **kwargs: Any,
    ) -> Self:  # fmt: skip
        """Return the trained model of a checkpoint in evaluation mode.

        Args:
            checkpoint_path: The file, saved by the command or a plain Trainer. The class of its model must be this
                class or a subclass.
            map_location: The device of the model.
            strict: Whether the weights must be exactly those of the model. If not, missing ones keep initial values.
            weights_only: Whether only tensors and plain types are unpickled. Pass False for trusted files only.
            kwargs: Arguments of the model that replace those in the checkpoint.

        Raises:
            UserError: If the file cannot be read, is no checkpoint of this class, or does not fit the arguments.
        """
        checkpoint = read_checkpoint(Path(checkpoint_path), weights_only)
        class_path, saved_arguments = saved_model(Path(checkpoint_path), checkpoint, kwargs)
        try:
            # A class of a script is saved as __main__.X, which another script cannot import.
            own_paths = [f"{module}.{cls.__qualname__}" for module in (cls.__module__, "__main__")]
            model_class = cls if class_path in own_paths else import_class(class_path, cls)
        except UserError as error:
            raise UserError(f"{checkpoint_path}: {error}") from error
        with restoring(checkpoint["state_dict"]):
            model = model_class(**saved_arguments | kwargs)
        model.configure_model()
        model.on_load_checkpoint(checkpoint)
        try:
            model.load_state_dict(checkpoint["state_dict"], strict=strict)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:240]
            raise UserError(
                f"{checkpoint_path}: does not fit the model with these arguments ({reason}); give its own"
            ) from error
        return model.eval().to(map_location)
