"""The base class of the LightningDataModules; `segdet.data.datamodules` has one per format."""

from __future__ import annotations

import hashlib
import os
import sys
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import lightning as L
import torch
from torch.utils.data import DataLoader, Sampler

from segdet.data.dataset import OnBadSample, TaskDataset
from segdet.data.formats.reader import Reader
from segdet.data.mosaic import MosaicDataset
from segdet.data.proposal_source import ProposalSource
from segdet.data.sample import Batch, TaskName, collate
from segdet.data.sampler import Draw, EvalSampler, TrainSampler
from segdet.data.transforms import Plain, Recipe
from segdet.util.cores import usable_cores
from segdet.util.errors import UserError

Subset = Literal["train", "val", "test"]

_NEEDED: dict[str, tuple[Subset, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""The annotated subsets that each stage reads; prediction reads images alone."""


@dataclass(frozen=True)
class Classes:
    """The classes that a network tells apart.

    Attributes:
        names: Of the mask's values for segmentation, else of the objects, label 1 first.
        category_ids: The dataset's own id of each object class.
        mask_values: The value of each of ``names`` in the dataset's own mask files, for segmentation.
        palette_masks: Whether those have VOC's palette; plain grayscale if not.
    """

    names: list[str]
    category_ids: list[int]
    mask_values: list[int] = field(default_factory=list)
    palette_masks: bool = True


class DataModule(L.LightningDataModule):
    """The training, validation and test images of one dataset, for one task.

    Args:
        root: The dataset's folder.
        task: segmentation, localization or detection.
        recipe: The transforms; none but what makes a batch when null.
        batch_size: Images a training step, on each device.
        eval_batch_size: Images an evaluation step; the batch size when null. No score depends on it.
        num_workers: Processes that read and transform; all but one core, at most 8, when null.
        on_bad_sample: ``raise`` stops at a sample that cannot be read, with a line that names its file;
            ``skip`` takes another one and lists them at the end.
        dominance: For localization, how many times as large as the next object the dominant one must
            be for its image to count (see `TaskDataset`).
        seed: Of order and augmentation; ``seed_everything`` when null.
        limit_train: Trains on the first so many images alone (to overfit them, say); all when null.
        proposals: Region proposals for every image, such as SelectiveSearch: computed before the first
            epoch, once for the dataset, and kept. None when null.
        max_proposals: Takes so many of the best of an image.
        masks: Whether objects come with their masks, for families that find these too (COCO's and Cityscapes' shape).
        mosaic: How often, 0 to 1, a training image of detection is put together from it and three others, each
            transformed (see `segdet.data.mosaic`).
        mosaic_off_epochs: In how many of the last epochs it is not, as in YOLOX, so that training ends on whole images.

    Attributes:
        test_is_val: Whether no test split is given, so that the validation split stands in for it; testing says so.
    """

    test_is_val: bool = False

    def __init__(
        self,
        root: str | Path,
        task: TaskName = "detection",
        recipe: Recipe | None = None,
        batch_size: int = 8,
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
            if number is not None and number < least:
                raise UserError(f"--data.{name} {number}: must be at least {least}")
        self.root = Path(root)
        self.task: TaskName = task
        self.recipe = recipe or Plain()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = min(8, usable_cores() - 1) if num_workers is None else num_workers
        self.on_bad_sample: OnBadSample = on_bad_sample
        self.dominance = dominance
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.limit_train = limit_train
        if proposals is not None and task == "segmentation":
            raise UserError("--data.proposals: segmentation has no use for region proposals; leave them out")
        self.proposals = proposals
        self.max_proposals = max_proposals
        if masks and task != "detection":
            raise UserError(
                f"--data.masks true: objects' masks are for detection, not for {task}; leave it out"
            )
        self.masks = masks
        if not 0 <= mosaic <= 1:
            raise UserError(f"--data.mosaic {mosaic}: must be from 0 to 1")
        if mosaic and (task != "detection" or proposals is not None):
            what = f"{task}" if task != "detection" else "images with --data.proposals"
            raise UserError(f"--data.mosaic {mosaic}: is for detection, not for {what}; leave it out")
        self.mosaic = mosaic
        self.mosaic_off_epochs = mosaic_off_epochs
        self.notes: dict[str, None] = {}
        self.known: Classes | None = None
        self._position: dict[str, int] = {}
        self._readers: dict[str, Reader] = {}
        self._datasets: dict[tuple[Subset, bool], TaskDataset] = {}

    @abstractmethod
    def open_reader(self, subset: Subset) -> Reader:
        """The reader of a subset, newly opened."""

    def reader(self, subset: Subset) -> Reader:
        """The reader of a subset."""
        if subset not in self._readers:
            opened = self.open_reader(subset)
            for other, before in self._readers.items():
                _same_classes(self.root, (other, before), (subset, opened), self.task)
            self._readers[subset] = opened
        return self._readers[subset]

    @property
    def classes(self) -> Classes:
        """What is to be told apart: as the training split has it, or as it is known from elsewhere."""
        return self.classes_of("train") if self.known is None else self.known

    @property
    def class_names(self) -> list[str]:
        """The classes of the task: those of the mask's values for segmentation, else those of objects."""
        return self.classes.names

    @property
    def category_ids(self) -> list[int]:
        """The dataset's own id of each object class, which results files are written with."""
        return self.classes.category_ids

    def classes_of(self, subset: Subset) -> Classes:
        """The classes as the files of a subset have them."""
        reader = self.reader(subset)
        if self.task == "segmentation":
            values = reader.mask_values
            return Classes(list(reader.mask_names), list(reader.category_ids), values, reader.palette_masks)
        return Classes(list(reader.class_names), list(reader.category_ids))

    def know_classes(self, known: Classes) -> None:
        """Takes the classes from elsewhere, a checkpoint, so that the training split need not be there.

        Where nothing in the folder and no argument names the classes, files are read with these.
        """
        self.known = known

    def dataset(self, subset: Subset) -> TaskDataset:
        """The samples of a subset."""
        key = (subset, annotated := not self._predicting)
        if key not in self._datasets:
            training = subset == "train"
            self._datasets[key] = TaskDataset(
                self.reader(subset), self.task, self.recipe, training, self.on_bad_sample, self.seed,
                self.dominance, annotated, self.limit_train if training else None, self.proposals, self.max_proposals,
            )  # fmt: skip
        return self._datasets[key]

    @property
    def _predicting(self) -> bool:
        """Whether nobody asks what is annotated: images to predict on need not be, as those of a benchmark's server."""
        return self.trainer is not None and self.trainer.state.fn == "predict"

    def plain_training(self) -> TaskDataset:
        """Return the training samples without augmentation, annotated as in evaluation."""
        return self.dataset("train").without_augmentation()

    def loader_of(self, dataset: TaskDataset, positions: Sequence[int]) -> DataLoader[Batch]:
        """The samples of ``dataset`` at ``positions`` in this order, in batches of evaluation."""
        return self._loader(dataset, [Draw(position) for position in positions], self.eval_batch_size, False)

    def kept_files(self) -> set[Path]:
        """What the subsets that were opened keep on disk beside the data itself: their proposals."""
        opened = self._datasets.values()
        return {file for each in opened if each.proposals is not None for file in each.proposals.files()}

    def prepare_data(self) -> None:
        """Computes the proposals that the stage needs, in one process of each machine; the others find them done."""
        if self.proposals is not None and self.trainer is not None:
            stage = str(getattr(self.trainer.state.fn, "value", None))
            self._check_annotated(stage)
            for subset in _NEEDED.get(stage, ("test",)):
                self.dataset(subset)

    def setup(self, stage: str) -> None:
        """Opens what a stage reads, so that a missing folder stops the run before anything is built."""
        self._check_annotated(stage)
        for subset in _NEEDED.get(stage, ()):
            self.dataset(subset)
        if stage == "test" and self.test_is_val and (self.trainer is None or self.trainer.is_global_zero):
            sys.stderr.write(
                "segdet: no --data.test is given, so what is tested is the validation split, by which the best "
                "checkpoint was chosen\n"
            )

    def _check_annotated(self, stage: str) -> None:
        """Raises `UserError` where ``stage`` needs annotations and a subset has none."""
        for subset in _NEEDED.get(stage, ()):
            reader = self.reader(subset)
            if not reader.annotated:
                where = next(iter(reader.annotation_paths(0, self.task)), self.root)
                raise UserError(
                    f"{where}: plain images without annotations can only be predicted on, not used to {stage}"
                )

    def train_dataloader(self) -> DataLoader[Batch]:
        dataset = self.dataset("train")
        rank, world_size = self._process()
        if len(dataset) < self.batch_size * world_size:
            raise UserError(
                f"{self.root}: {len(dataset)} training images do not fill one batch of {self.batch_size} on "
                f"{world_size} device(s); give a smaller --data.batch_size"
            )
        samples = MosaicDataset(dataset, self.mosaic, self._mosaic_epochs()) if self.mosaic else dataset
        position, self._position = self._position, {}
        sampler = TrainSampler(
            len(dataset),
            self.seed,
            rank,
            world_size,
            first_epoch=position.get("epoch", 0),
            drawn=position.get("batches", 0) * self.batch_size,
        )
        return self._loader(samples, sampler, self.batch_size, True)

    def _mosaic_epochs(self) -> int | None:
        if not self.mosaic or not self.mosaic_off_epochs:
            return None
        epochs = self.trainer.max_epochs if self.trainer is not None else None
        if epochs is None or epochs < 0:
            raise UserError(
                f"--data.mosaic_off_epochs {self.mosaic_off_epochs}: nobody knows which epoch is the last; give "
                "--trainer.max_epochs"
            )
        return max(0, epochs - self.mosaic_off_epochs)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test")

    def state_dict(self) -> dict[str, int]:
        """Where training stands: the epoch, the batches of it that are done, and what a batch is."""
        if self.trainer is None:
            return {}
        epoch, batches = _place_in(self.trainer.fit_loop)
        if batches >= self.trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches, "batch_size": self.batch_size * self.trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets training go on with the samples that the epoch has left, where the checkpoint was saved within one."""
        self._position = dict(state_dict)
        now = self.batch_size * self._process()[1]
        first = self.trainer is None or self.trainer.is_global_zero
        fits = self.trainer is None or self.trainer.state.fn == "fit"
        if fits and first and state_dict.get("batches") and state_dict["batch_size"] != now:
            sys.stderr.write(
                f"segdet: the checkpoint was saved within an epoch of {state_dict['batch_size']} images a step, "
                f"now there are {now}: some images come twice in this epoch, or not at all\n"
            )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves a batch; what lies in page-locked memory travels while the device works on."""
        return batch.to(device, non_blocking=True)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Collects what the readers left out, for the list at the end."""
        for source in batch.sources:
            for note in source.notes:
                self.notes[note] = None
        return batch

    def fingerprint(self) -> str:
        """A digest of the dataset as this run sees it: names and sizes of the files it reads."""
        digest = hashlib.sha256()
        subsets: tuple[Subset, ...] = ("train", "val", "test")
        for subset in subsets:
            try:
                reader = self.reader(subset)
            except UserError:  # one that this run does not read may be absent
                digest.update(f"{subset} is absent\n".encode())
                continue
            for index in range(len(reader)):
                for path in (reader.image_path(index), *reader.annotation_paths(index, self.task)):
                    size = path.stat().st_size if path.is_file() else -1
                    digest.update(f"{subset} {path.name} {size}\n".encode())
        return digest.hexdigest()[:16]

    def _eval_loader(self, subset: Subset) -> DataLoader[Batch]:
        dataset = self.dataset(subset)
        return self._loader(dataset, EvalSampler(len(dataset), *self._process()), self.eval_batch_size, False)

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self,
        dataset: TaskDataset | MosaicDataset,
        sampler: Sampler[Draw] | Iterable[Draw],
        batch_size: int,
        training: bool,
    ) -> DataLoader[Batch]:
        workers = min(self.num_workers, -(-len(dataset) // batch_size))
        return DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            drop_last=training,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_one_thread,
        )


def _place_in(loop: Any) -> tuple[int, int]:
    """The epoch that training is in, counted from 0, and how many of its batches have been worked on."""
    epochs = loop.epoch_progress.current
    # Between two epochs the batches' count is still that of the one that is done.
    within = epochs.started > epochs.processed
    return epochs.processed, loop.epoch_loop.batch_progress.current.processed if within else 0


def _same_classes(root: Path, one: tuple[str, Reader], other: tuple[str, Reader], task: TaskName) -> None:
    """Raises `UserError` where two subsets would give one label two meanings."""
    first, second = (
        reader.mask_names
        if task == "segmentation"
        else list(zip(reader.class_names, reader.category_ids, strict=True))
        for _, reader in (one, other)
    )
    if first != second:
        odd = sorted(set(map(str, first)) ^ set(map(str, second)))[:3] or ["their order"]
        raise UserError(
            f"{root}: {one[0]} and {other[0]} do not have the same classes ({', '.join(odd)}); name the classes in "
            "--data.class_names, or mend the annotations"
        )


def _one_thread(_: int) -> None:
    # Workers are already as many as cores are spared for them.
    cv2.setNumThreads(0)
