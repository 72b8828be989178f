"""LightningDataModules, one per dataset format. Each supports every task."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from segdet.data.base import DataModule, Subset
from segdet.data.formats.cityscapes import CityscapesReader
from segdet.data.formats.coco import COCOReader, NoSuchSplit
from segdet.data.formats.image_files import ImageFilesReader, find_image_files
from segdet.data.formats.reader import KnownClasses, Reader
from segdet.data.formats.voc import VOCReader
from segdet.data.sample import Batch, collate
from segdet.data.shapes.make import ShapesFormat, make_shapes
from segdet.data.video import VideoFrames
from segdet.util.errors import UserError, check_choice, check_range


class VOCDataModule(DataModule):
    """Pascal VOC 2007 and 2012, and any folder of that format.

    Args:
        root: Folder that contains ``JPEGImages``, or folders of years such as ``VOC2007``.
        train: Image sets to train on: ``train`` for a folder with ``JPEGImages``, ``2007/trainval`` and
            ``2012/trainval`` for VOC's years.
        val: Image sets to validate on.
        test: Image sets to test on; default: ``val`` (VOC 2012's test annotations are secret).
        class_names: Class names, or a text file with one name per line; default: see `VOCReader`.
        ignore_index: Mask value to ignore, besides 255.
        mask_values: Mask value of each class name; default: 0, 1, 2, ... The value 255 is a class only if this list
            contains it, such as ``[0, 255]`` for masks of 0 and 255.
        kwargs: See `DataModule`.
    """

    folder_format = "voc"

    def __init__(
        self,
        root: str | Path,
        train: list[str] = ["train"],  # noqa: B006  read only; jsonargparse shows it as the default
        val: list[str] = ["val"],  # noqa: B006
        test: list[str] | None = None,
        class_names: list[str] | str | None = None,
        ignore_index: int = 255,
        mask_values: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.sets: dict[str, list[str]] = {"train": train, "val": val, "test": test or val}
        self.test_is_val = not test
        self.requested_class_names = class_names
        check_range("--data.ignore_index", ignore_index, least=0, most=255)
        self.ignore_index = ignore_index
        self.mask_values = mask_values

    def open_reader(self, subset: Subset) -> VOCReader:
        known = None if self.known_classes is None else self.known_classes.names
        _refuse_masks(self.root, self.masks)
        return VOCReader(
            self.root,
            self.sets[subset],
            self.task,
            self.requested_class_names,
            self.ignore_index,
            known,
            self.mask_values,
        )


class COCODataModule(DataModule):
    """COCO, and any folder of that format, or annotation files anywhere.

    Args:
        root: Folder that contains ``annotations/instances_<split>.json`` (or ``annotations/<split>.json``, or
            Roboflow's ``<split>/_annotations.coco.json``) and a folder ``<split>`` of images. Default: the folder of
            ``train_annotations``.
        train: Split to train on.
        val: Split to validate on.
        test: Split to test on; default: the validation split (COCO's test annotations are secret).
        train_annotations: Annotation file to train on, instead of the split's. A relative path is looked up in
            ``root`` first.
        train_images: Folder of the training images, to which the file names in the annotations are relative; default:
            see `COCOReader`. A relative path is looked up in ``root`` first.
        val_annotations: Annotation file to validate on.
        val_images: Folder of the validation images.
        test_annotations: Annotation file to test on.
        test_images: Folder of the test images.
        class_names: Categories to use, or a text file with one per line; default: all.
        kwargs: See `DataModule`.

    Raises:
        UserError: If neither ``root`` nor ``train_annotations`` is given.
    """

    folder_format = "coco"

    def __init__(
        self,
        root: str | Path | None = None,
        train: str = "train2017",
        val: str = "val2017",
        test: str | None = None,
        train_annotations: str | Path | None = None,
        train_images: str | Path | None = None,
        val_annotations: str | Path | None = None,
        val_images: str | Path | None = None,
        test_annotations: str | Path | None = None,
        test_images: str | Path | None = None,
        class_names: list[str] | str | None = None,
        **kwargs: Any,
    ) -> None:
        if root is None and train_annotations is None:
            raise UserError(
                "--data.root: give the COCO folder, or --data.train_annotations FILE and --data.train_images DIR"
            )
        super().__init__(Path(train_annotations or "").parent if root is None else root, **kwargs)
        self.splits = {"train": train, "val": val, "test": test or val}
        self.files = {
            "train": (train_annotations, train_images),
            "val": (val_annotations, val_images),
            "test": (test_annotations, test_images),
        }
        self.test_is_val = not (test or test_annotations or test_images)
        if self.test_is_val:
            self.files["test"] = self.files["val"]
        self.requested_class_names = class_names

    def open_reader(self, subset: Subset) -> COCOReader:
        annotations, images = self.files[subset]
        known = None
        if self.known_classes is not None and subset != "train":
            ids = self.known_classes.category_ids
            # A checkpoint for segmentation has the names of mask values, background first.
            names = self.known_classes.names[-len(ids) :] if ids else []
            known = KnownClasses(dict(zip(names, ids, strict=True)), "the model")
        elif subset != "train" and "train" in self._readers:
            train = self.reader("train")
            ids_by_name = dict(zip(train.class_names, train.category_ids, strict=True))
            known = KnownClasses(ids_by_name, str(train.annotation_paths(0, self.task)[0]))
        try:
            return COCOReader(
                self.root,
                self.splits[subset],
                self.task,
                annotation_file=annotations,
                image_folder=images,
                class_names=self.requested_class_names,
                masks=self.masks,
                known=known,
            )
        except NoSuchSplit as error:
            if options := self._splits_to_give(error.splits):
                raise UserError(f"{error}; give {options}") from None
            raise

    def _splits_to_give(self, existing: Sequence[str]) -> str:
        """Return the options for the splits that are missing, such as ``--data.val valid``."""
        options = []
        for subset, split in self.splits.items():
            near = next((name for name in existing if name.casefold().startswith(subset)), None)
            explicit = self.files[subset][0] is not None or (subset == "test" and self.test_is_val)
            if near is not None and split not in existing and not explicit:
                options.append(f"--data.{subset} {shlex.quote(near)}")
        return " ".join(options)


class CityscapesDataModule(DataModule):
    """Cityscapes: street scenes with 19 classes of pixels and 8 classes of objects.

    Args:
        root: Folder that contains ``leftImg8bit`` and ``gtFine``.
        train: Split to train on.
        val: Split to validate on.
        test: Split to test on; default: the validation split (Cityscapes' test annotations are secret).
        kwargs: See `DataModule`.
    """

    folder_format = "cityscapes"

    def __init__(
        self, root: str | Path, train: str = "train", val: str = "val", test: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(root, **kwargs)
        self.splits = {"train": train, "val": val, "test": test or val}
        self.test_is_val = not test

    def open_reader(self, subset: Subset) -> CityscapesReader:
        return CityscapesReader(self.root, self.splits[subset], self.task, self.masks)


class ShapesDataModule(DataModule):
    """The synthetic Shapes dataset, generated on first use and read as a VOC, COCO or Cityscapes folder.

    Args:
        root: Folder to create, or an existing one with the same settings.
        format: Format of the folder: ``voc``, ``coco`` or ``cityscapes``.
        num_train: Number of training images.
        num_val: Number of validation images.
        num_test: Number of test images.
        image_size: ``[height, width]`` of the images.
        data_seed: Seed of the scenes.
        kwargs: See `DataModule`.
    """

    def __init__(
        self,
        root: str | Path = "data/shapes",
        format: ShapesFormat = "voc",
        num_train: int = 4000,
        num_val: int = 400,
        num_test: int = 400,
        image_size: tuple[int, int] = (128, 128),
        data_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        check_choice("--data.format", format, ShapesFormat)
        self.format: ShapesFormat = format
        self.counts = (num_train, num_val, num_test)
        self.image_size = (image_size[0], image_size[1])
        self.data_seed = data_seed

    def prepare_data(self) -> None:
        """Generate the folder if it does not exist."""
        self._make()
        super().prepare_data()

    def _make(self) -> None:
        train, val, test = self.counts
        make_shapes(
            self.root, self.format, train=train, val=val, test=test, size=self.image_size, seed=self.data_seed
        )

    def open_reader(self, subset: Subset) -> Reader:
        self._make()
        if self.format == "voc":
            _refuse_masks(self.root, self.masks)
            return VOCReader(self.root, [subset], self.task)
        if self.format == "coco":
            return COCOReader(self.root, f"{subset}2017", self.task, masks=self.masks)
        return CityscapesReader(self.root, subset, self.task, self.masks)


class Images(DataModule):
    """Images and videos without annotations, for `segdet predict --images`.

    The EXIF rotation of images is applied. Images that cannot be read are skipped and listed. Samples of a video have
    their position and time in ``source.frame``.

    Args:
        paths: Images, videos, folders, glob patterns, or lists of these in ``.txt`` files; see
            `segdet.data.formats.image_files.find_image_files`.
        class_names: Class names of the model; default: those in the checkpoint.
        every_n_frames: Use every n-th frame of a video.
        kwargs: See `DataModule`.

    Attributes:
        files: The images and videos, and the files that are skipped.

    Raises:
        UserError: If a path does not exist, or nothing can be used.
    """

    def __init__(
        self,
        paths: list[str] | str,
        class_names: list[str] | None = None,
        every_n_frames: int = 1,
        **kwargs: Any,
    ) -> None:
        check_range("--data.every_n_frames", every_n_frames, least=1)
        files = find_image_files([paths] if isinstance(paths, str | Path) else paths)
        super().__init__(files.root, on_bad_sample="skip", **kwargs)
        self.files = files
        self.requested_class_names = class_names
        self.notes |= {str(each): each.group for each in files.skipped}
        self.frames = VideoFrames(
            files.videos,
            self.recipe,
            every_n_frames,
            len(files.images) + 1,
            self.proposals,
            self.max_proposals,
            self.notes,
        )

    def open_reader(self, subset: Subset) -> ImageFilesReader:
        if self.requested_class_names is None:
            raise UserError(
                f"{self.root}: images alone have no class names; give --ckpt_path, whose checkpoint has them, or "
                "--data.class_names"
            )
        return ImageFilesReader(self.files.images, self.requested_class_names)

    def prepare_data(self) -> None:
        """Compute the proposals of the images; those of a frame are computed when it is read."""
        if self.files.images:
            super().prepare_data()

    def predict_dataloader(self) -> list[DataLoader[Batch]]:  # type: ignore[override]
        """Return the batches of the images and of the frames.

        Raises:
            UserError: If several processes would have to share a video.
        """
        loaders = [super().predict_dataloader()] if self.files.images else []
        if not self.files.videos:
            return loaders
        if self.trainer is not None and self.trainer.world_size > 1:
            raise UserError(
                f"{self.files.videos[0].path}: a video is read by one process; give --trainer.devices 1"
            )
        # The model may determine the size of images, and is known only now.
        self.frames.pipeline = self.recipe.evaluation()
        # This process reads the frames, because its callbacks use them too.
        frames: DataLoader[Any] = DataLoader(self.frames, batch_size=self.eval_batch_size, collate_fn=collate)
        return [*loaders, frames]

    @property
    def expected_predict_batches(self) -> int | None:
        """The number of batches that the headers of the videos imply, or None if a header states no number."""
        images, frames = len(self.files.images), self.frames.expected_samples()
        return (
            None if frames is None else sum(-(-count // self.eval_batch_size) for count in (images, frames))
        )


def _refuse_masks(root: Path, masks: bool) -> None:
    if masks:
        raise UserError(
            f"{root}: --data.masks true: VOC's format has no masks of objects; use a COCO or Cityscapes folder "
            "(Shapes: --data.format coco)"
        )
