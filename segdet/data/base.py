"""The base class of the LightningDataModules in `segdet.data.datamodules`."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import lightning as L
import torch
from torch.utils.data import DataLoader, Sampler

from segdet.data.dataset import OnBadSample, TaskDataset
from segdet.data.defaults import BATCH_SIZE, default_recipe, hardware
from segdet.data.formats.detect import DATA_MODULES, format_of
from segdet.data.formats.reader import Reader
from segdet.data.images import MAX_PIXELS, MOST_PIXELS
from segdet.data.mosaic import MosaicDataset
from segdet.data.proposal_source import ProposalSource
from segdet.data.sample import Batch, TaskName, collate
from segdet.data.sampler import Draw, EvalSampler, TrainSampler
from segdet.data.settable_batch_size import SettableBatchSize
from segdet.data.survey import Survey, refuse_unusable, shared_images, survey
from segdet.data.transforms import Plain, Recipe, Size
from segdet.data.worker_signals import StopSafeLoader, leave_signals_to_parent
from segdet.util.cores import usable_cores
from segdet.util.distributed import run_on_rank_0
from segdet.util.errors import BadSample, UserError, check_choice, check_range
from segdet.util.nouns import counted
from segdet.util.seeds import global_seed

Subset = Literal["train", "val", "test"]
SUBSETS: tuple[Subset, ...] = ("train", "val", "test")

_NEEDED: dict[str, tuple[Subset, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""The subsets that each stage reads with their annotations."""


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset.

    Attributes:
        names: Names of the mask values (segmentation) or of the object classes (other tasks), label 1 first.
        category_ids: The dataset's own id of each object class.
        mask_values: Value of each name in the dataset's mask files, for segmentation.
        palette_masks: Whether mask files have VOC's palette; if not, they are plain grayscale.
    """

    names: list[str]
    category_ids: list[int]
    mask_values: list[int] = field(default_factory=list)
    palette_masks: bool = True

    @classmethod
    def of(cls, reader: Reader, task: TaskName) -> Classes:
        """Return the classes of a reader for a task."""
        ids = list(reader.category_ids)
        if task == "segmentation":
            return cls(list(reader.mask_names), ids, reader.mask_values, reader.palette_masks)
        return cls(list(reader.class_names), ids)


class DataModule(SettableBatchSize, L.LightningDataModule):
    """The training, validation and test images of one dataset, for one task.

    In a script, the class names of a dataset are the first argument of a model::

        data = VOCDataModule("data/bccd", recipe=SSDAugmentation((300, 300)))
        model = SSD(data.class_names)
        lightning.Trainer(max_epochs=10).fit(model, data)

    Args:
        root: Folder of the dataset.
        task: segmentation, localization or detection.
        recipe: Transforms of training and evaluation; `Plain` changes nothing. Default: transforms for the training
            images and this machine (see `segdet.data.defaults`). A trained model resizes to the size of its training.
        batch_size: Images per training step on each device; default: 4 on a CPU, 8 on a GPU.
        eval_batch_size: Images per evaluation step; default: ``batch_size``. Scores do not depend on it.
        num_workers: Data-loader processes; default: one less than the number of cores, at most 8.
        on_bad_sample: ``raise`` stops at a sample that cannot be read, with an error that names the file. ``skip`` uses
            the next sample instead, and the skipped samples are listed at the end.
        dominance: For localization, the minimum ratio of the area of the largest object to that of the second-largest.
            Images with a lower ratio are left out.
        seed: Seed of the order and augmentation of the training images; default: the seed given to
            `lightning.seed_everything`, else 0.
        limit_train: Train on the first ``limit_train`` images only, for example to overfit them; default: all.
        proposals: Source of region proposals, such as SelectiveSearch. Proposals are computed once per dataset, before
            the first epoch, and cached.
        max_proposals: Maximum number of proposals per image; the best ones are used.
        masks: Whether objects have masks, for Mask R-CNN (COCO and Cityscapes only).
        mosaic: For detection, probability from 0 to 1 that a training image is replaced by a mosaic of four (see
            `segdet.data.mosaic`).
        mosaic_off_epochs: Number of epochs without mosaics at the end of training, as in YOLOX.
        max_pixels: The largest number of pixels of an image. A larger image is a bad sample.

    Attributes:
        folder_format: Format of the folder: ``voc``, ``coco`` or ``cityscapes``; None if it has no fixed format.
        test_is_val: Whether the validation split is also the test split, because no test split is given.
        known_classes: Classes of a checkpoint. If set, they replace the classes of the training split, which may then
            be missing. They are also used to read datasets that do not name their classes.
        notes: Samples, boxes and files that are left out, one line each, as the keys of a dict. A value that is not
            None describes a group: the terminal shows the number of its lines.
        surveys: The faults in the annotations of the subsets that were checked.

    Raises:
        UserError: If an argument is invalid.
    """

    test_is_val: bool = False
    folder_format: str | None = None

    def __init__(
        self,
        root: str | Path,
        task: TaskName = "detection",
        recipe: Recipe | None = None,
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        on_bad_sample: OnBadSample = "raise",
        dominance: float = 1.0,
        seed: int | None = None,
        limit_train: int | None = None,
        proposals: ProposalSource | None = None,
        max_proposals: int = 2000,
        masks: bool = False,
        mosaic: float = 0.0,
        mosaic_off_epochs: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__()
        for name, number, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("limit_train", limit_train, 1),
            ("max_proposals", max_proposals, 1),
            ("mosaic_off_epochs", mosaic_off_epochs, 0),
        ):
            if number is not None:
                check_range(f"--data.{name}", number, least=least, whole=True)
        check_range("--data.max_pixels", max_pixels, least=1, most=MOST_PIXELS)
        if not isinstance(recipe, Recipe | None):
            raise UserError(f"--data.recipe {recipe!r}: must be a recipe, such as Plain((300, 300))")
        check_choice("--data.task", task, TaskName)
        check_choice("--data.on_bad_sample", on_bad_sample, OnBadSample)
        self._datasets: dict[tuple[Subset, bool], TaskDataset] = {}
        self.root = Path(root)
        self.task: TaskName = task
        self.chosen_recipe = recipe
        self.batch_size = batch_size or BATCH_SIZE[hardware()]
        self.eval_batch_size = eval_batch_size or self.batch_size
        self.num_workers = min(8, usable_cores() - 1) if num_workers is None else num_workers
        self.on_bad_sample: OnBadSample = on_bad_sample
        self.dominance = dominance
        self.seed = global_seed() if seed is None else seed
        self.limit_train = limit_train
        if proposals is not None and task == "segmentation":
            raise UserError(
                "--data.proposals: segmentation does not use region proposals; leave the option out"
            )
        if masks and task != "detection":
            raise UserError(
                f"--data.masks true: masks of objects are for detection, not for {task}; leave the option out"
            )
        check_range("--data.mosaic", mosaic, least=0, most=1)
        if mosaic and (task != "detection" or proposals is not None):
            where = f"for {task}" if task != "detection" else "with --data.proposals"
            raise UserError(f"--data.mosaic {mosaic}: mosaics cannot be used {where}; leave the option out")
        self.proposals = proposals
        self.max_proposals = max_proposals
        self.masks = masks
        self.mosaic = mosaic
        self.mosaic_off_epochs = mosaic_off_epochs
        self.max_pixels = max_pixels
        self.notes: dict[str, str | None] = {}
        self.known_classes: Classes | None = None
        self._position: dict[str, int] = {}
        self._readers: dict[str, Reader] = {}
        self.surveys: dict[str, Survey] = {}

    @property
    def recipe(self) -> Recipe:
        """The transforms, given or chosen. Until they are chosen, images have the size of the model's training."""
        if self.chosen_recipe is not None:
            return self.chosen_recipe
        model = getattr(self.trainer, "lightning_module", None)
        return Plain(getattr(model, "trained_image_size", None))

    def choose_recipe(self, fixed_size: Size = None) -> Recipe:
        """Return the transforms. If they are not given, choose them for the training images on the first call.

        Args:
            fixed_size: The ``(height, width)`` that the network needs, or None for any size.
        """
        if self.chosen_recipe is None:
            self.chosen_recipe = default_recipe(self.reader("train"), self.task, fixed_size)
            self._datasets.clear()  # they have other transforms
        return self.chosen_recipe

    @abstractmethod
    def open_reader(self, subset: Subset) -> Reader:
        """Open a new reader of a subset."""

    def reader(self, subset: Subset) -> Reader:
        """Return the reader of a subset, opened once."""
        if subset not in self._readers:
            try:
                opened = self.open_reader(subset)
            except BadSample:
                raise
            except UserError as error:
                raise _other_format(self) or error from None
            opened.max_pixels = self.max_pixels
            for other, before in self._readers.items():
                _same_classes(self.root, (other, before), (subset, opened), self.task)
            self._readers[subset] = opened
        return self._readers[subset]

    @property
    def classes(self) -> Classes:
        """The classes of the training split, or `known_classes` if set."""
        return self.known_classes or Classes.of(self.reader("train"), self.task)

    @property
    def class_names(self) -> list[str]:
        """Names of the mask values (segmentation) or of the object classes (other tasks), label 1 first."""
        return self.classes.names

    @property
    def category_ids(self) -> list[int]:
        """The dataset's own id of each object class, for results files."""
        return self.classes.category_ids

    def dataset(self, subset: Subset) -> TaskDataset:
        """Return the samples of a subset, without annotations if the trainer predicts."""
        # Images for prediction may have no annotations, as in the test split of a benchmark.
        annotated = self.trainer is None or self.trainer.state.fn != "predict"
        key = (subset, annotated)
        if key not in self._datasets:
            training = subset == "train"
            self._datasets[key] = TaskDataset(
                self.reader(subset), self.task, self.recipe, training, self.on_bad_sample, self.seed,
                self.dominance, annotated, self.limit_train if training else None, self.proposals, self.max_proposals,
            )  # fmt: skip
        return self._datasets[key]

    def loader_of(self, dataset: TaskDataset, positions: Sequence[int]) -> DataLoader[Batch]:
        """Return the samples of ``dataset`` at ``positions``, in this order, in batches of ``eval_batch_size``."""
        return _loader(self, dataset, [Draw(position) for position in positions], self.eval_batch_size, False)

    def cached_files(self) -> set[Path]:
        """Return the cache files that contain the proposals of all subsets opened so far."""
        opened = self._datasets.values()
        return {file for each in opened if each.proposals is not None for file in each.proposals.files()}

    def prepare_data(self) -> None:
        """Compute the proposals of a stage in one process per machine; other processes read them from the cache."""
        _choose_recipe_for_fit(self)
        if self.proposals is not None and self.trainer is not None:
            stage = str(getattr(self.trainer.state.fn, "value", None))
            _check_annotated(self, stage)
            for subset in _NEEDED.get(stage, ("test",)):
                self.dataset(subset)

    def setup(self, stage: str) -> None:
        """Open the subsets of a stage, so that a missing folder is reported before the model is built."""
        _check_annotated(self, stage)
        _choose_recipe_for_fit(self)
        for subset in _NEEDED.get(stage, ()):
            _report_annotations(self, subset, stage)
        if stage == "test" and self.test_is_val and (self.trainer is None or self.trainer.is_global_zero):
            sys.stderr.write(
                "segdet: no --data.test is given; the scores are those of the validation split, on which the best "
                "checkpoint was selected\n"
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches; the last incomplete batch of an epoch is dropped."""
        dataset = self.dataset("train")
        rank, world_size = _rank_and_world_size(self.trainer)
        if len(dataset) < self.batch_size * world_size:
            raise UserError(
                f"{self.root}: {len(dataset)} training images do not fill one batch of {self.batch_size} on "
                f"{world_size} device(s); give a smaller --data.batch_size"
            )
        samples = _with_mosaic(self, dataset) if self.mosaic else dataset
        position, self._position = self._position, {}
        epoch, drawn = position.get("epoch", 0), position.get("batches", 0) * self.batch_size
        sampler: Sampler[Draw]
        if getattr(self.trainer, "overfit_batches", 0):
            # The same batches in every epoch; the remainder that does not fill all processes is left out.
            sampler = EvalSampler(len(dataset) // world_size * world_size, rank, world_size)
        else:
            sampler = TrainSampler(len(dataset), self.seed, rank, world_size, first_epoch=epoch, drawn=drawn)
        return _loader(self, samples, sampler, self.batch_size, True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches."""
        return _eval_loader(self, "val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches."""
        return _eval_loader(self, "test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the batches of the test split, without annotations."""
        return _eval_loader(self, "test")

    def state_dict(self) -> dict[str, int]:
        """Return the position of training: the epoch, the number of its finished batches, and the images per batch."""
        if self.trainer is None:
            return {}
        epoch, batches = _place_in(self.trainer.fit_loop)
        if batches >= self.trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches, "batch_size": self.batch_size * self.trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume within an epoch: the next training loader skips the samples that were already used."""
        fits = self.trainer is None or self.trainer.state.fn == "fit"
        self._position = dict(state_dict) if fits else {}  # a test must not change where a later fit starts
        now = self.batch_size * _rank_and_world_size(self.trainer)[1]
        first = self.trainer is None or self.trainer.is_global_zero
        if fits and first and state_dict.get("batches") and state_dict["batch_size"] != now:
            sys.stderr.write(
                f"segdet: the checkpoint was saved within an epoch with {state_dict['batch_size']} images per step, "
                f"but this run has {now}; in this epoch, some images will be used twice and others not at all\n"
            )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch to ``device``, asynchronously from pinned memory, and collect its `notes`."""
        self.notes.update(dict.fromkeys(note for source in batch.sources for note in source.notes))
        return batch.to(device, non_blocking=True)


def _choose_recipe_for_fit(data: DataModule) -> None:
    if data.trainer is not None and data.trainer.state.fn == "fit":
        data.choose_recipe(getattr(data.trainer.lightning_module, "input_size", None))


def _eval_loader(data: DataModule, subset: Subset) -> DataLoader[Batch]:
    dataset = data.dataset(subset)
    sampler = EvalSampler(len(dataset), *_rank_and_world_size(data.trainer))
    return _loader(data, dataset, sampler, data.eval_batch_size, False)


def _loader(
    data: DataModule,
    dataset: TaskDataset | MosaicDataset,
    sampler: Sampler[Draw] | Iterable[Draw],
    batch_size: int,
    training: bool,
) -> DataLoader[Batch]:
    workers = min(data.num_workers, -(-len(dataset) // batch_size))
    return StopSafeLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=training,
        pin_memory=data.trainer is not None and data.trainer.strategy.root_device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
    )


def _rank_and_world_size(trainer: L.Trainer | None) -> tuple[int, int]:
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def _check_annotated(data: DataModule, stage: str) -> None:
    """Raise `UserError` if ``stage`` needs annotations that a subset does not have."""
    for subset in _NEEDED.get(stage, ()):
        reader = data.reader(subset)
        if not reader.annotated:
            where = next(iter(reader.annotation_paths(0, data.task)), data.root)
            raise UserError(
                f"{where}: images without annotations cannot be used to {stage}; use them with `segdet predict`"
            )


def _report_annotations(data: DataModule, subset: Subset, stage: str) -> None:
    """Report the faults in the annotations of a subset, once.

    Raises:
        UserError: If a sample cannot be used, training has nothing to learn from, or a test has nothing to score.
    """
    dataset = data.dataset(subset)
    if subset in data.surveys:
        return
    earlier = [fault for each in data.surveys.values() for fault in each.faults]
    check = partial(survey, dataset, subset, earlier)
    found = data.surveys[subset] = check() if data.trainer is None else run_on_rank_0(check)
    first = data.trainer is None or data.trainer.is_global_zero
    if first:
        sys.stderr.writelines(
            f"{line}\n"
            for line in found.lines(subset, data.root, dataset.on_bad_sample == "skip", data.recipe.size)
        )
    fault = refuse_unusable(found, dataset, subset)
    if fault is not None and stage != "fit":
        raise UserError(f"{fault.path}: {fault.fault}; give an annotated split as --data.{subset}")
    if fault is not None and first:
        sys.stderr.write(f"segdet: {subset}: {fault.path}: {fault.fault}; {fault.remedy}\n")
    data.notes.update(dict.fromkeys(found.left_out()))
    if first and subset == "val" and "train" in data.surveys:
        shared = shared_images(data.dataset("train"), dataset)
        if shared:
            used = f"{shared:,} of {counted(len(dataset), 'image')} {'is' if shared == 1 else 'are'} used for training"
            sys.stderr.write(f"segdet: val: {used} as well; scores on training images are meaningless\n")


def _other_format(data: DataModule) -> UserError | None:
    """Return the error of a folder in the format of another data module, or None."""
    found = format_of(data.root) if data.root.is_dir() and data.folder_format is not None else None
    if found is None or found == data.folder_format:
        return None
    name = DATA_MODULES[found]
    return UserError(f"{data.root}: is a folder of {name}; give --data {name}")


def _with_mosaic(data: DataModule, dataset: TaskDataset) -> MosaicDataset:
    if not data.mosaic_off_epochs:
        return MosaicDataset(dataset, data.mosaic)
    epochs = data.trainer.max_epochs if data.trainer is not None else None
    if epochs is None or epochs < 0:
        raise UserError(
            f"--data.mosaic_off_epochs {data.mosaic_off_epochs}: the number of epochs is not limited; give "
            "--trainer.max_epochs"
        )
    return MosaicDataset(dataset, data.mosaic, max(0, epochs - data.mosaic_off_epochs))


def _place_in(loop: Any) -> tuple[int, int]:
    """Return the current epoch, counted from 0, and the number of its finished batches."""
    epochs = loop.epoch_progress.current
    # Between two epochs, the batch counter still has the value of the finished epoch.
    within = epochs.started > epochs.processed
    return epochs.processed, loop.epoch_loop.batch_progress.current.processed if within else 0


def _same_classes(root: Path, one: tuple[str, Reader], other: tuple[str, Reader], task: TaskName) -> None:
    """Raise `UserError` if two subsets differ in their classes."""
    first, second = (
        reader.mask_names if task == "segmentation" else reader.class_names for _, reader in (one, other)
    )
    if first != second:
        differences = sorted(set(map(str, first)) ^ set(map(str, second)))[:3] or ["their order"]
        raise UserError(
            f"{root}: {one[0]} and {other[0]} do not have the same classes ({', '.join(differences)}); give the "
            "classes in --data.class_names, or fix the annotations"
        )


def _start_worker(_: int) -> None:
    """Prepare a data-loader worker: one thread, because there is one worker per core, and only its parent's signals."""
    cv2.setNumThreads(0)
    leave_signals_to_parent()
