"""Read Cityscapes folders: ``leftImg8bit/<split>/<city>/`` and ``gtFine/<split>/<city>/``.

Format and labels: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", 2016, and
the labels of the authors' cityscapesScripts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from torchvision.datasets import Cityscapes

from segdet.data.faults import Fault
from segdet.data.formats.reader import Reader
from segdet.data.images import SUFFIXES, read_mask, read_png16
from segdet.data.sample import IGNORE, Objects, TaskName
from segdet.util.errors import BadSample, MissingFile, UserError

LABELS = Cityscapes.classes
"""All labels, as in cityscapesScripts. Polygons of ``license plate``, with id -1, are not drawn into the masks."""

_CLASSES = sorted((label for label in LABELS if not label.ignore_in_eval), key=lambda label: label.train_id)
_THINGS = [label for label in _CLASSES if label.has_instances]
THING_NAMES = [label.name for label in _THINGS]
"""Names of the classes with instances, in the order of their labels."""

_TRAIN_ID = np.full(256, IGNORE, np.uint8)
_TRAIN_ID[[label.id for label in _CLASSES]] = [label.train_id for label in _CLASSES]
_SAME_TRAIN_ID = np.full(256, IGNORE, np.uint8)
_SAME_TRAIN_ID[: len(_CLASSES)] = np.arange(len(_CLASSES))
_KNOWN = np.zeros(256, bool)
_KNOWN[[label.id for label in LABELS if label.id >= 0]] = True
# The object class of each label id (an instance value divided by 1000); 0 for none.
_OBJECT_LABEL = np.zeros(256, np.int64)
_OBJECT_LABEL[[label.id for label in _THINGS]] = np.arange(1, len(_THINGS) + 1)

_Kind = Literal["labelIds", "labelTrainIds", "instanceIds"]

_IMAGE_END = "_leftImg8bit"
_FETCH = (
    "register at https://www.cityscapes-dataset.com/, download leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip and unpack both"
)


class CityscapesReader(Reader):
    """The images of one split of Cityscapes, sorted by city and name.

    Masks have the 19 train ids; everything else is 255. Objects are those of the 8 classes with instances
    (`category_ids` are Cityscapes' label ids). Boxes enclose the visible pixels; areas are pixel counts. Pixels of
    such a class that belong to no instance (a group) become one crowd object per class.

    Args:
        root: Folder that contains ``leftImg8bit/`` and ``gtFine/``.
        split: ``train``, ``val`` or ``test`` (without public annotations).
        task: The task, which determines the annotation files.
        masks: Whether each object has a mask of its visible pixels.

    Raises:
        UserError: If a folder is missing, or the split has polygons but no masks.
    """

    palette_masks = False

    def __init__(self, root: Path | str, split: str, task: TaskName, masks: bool = False) -> None:
        self.root = Path(root)
        self.masks = masks
        self.split = split
        self.class_names = list(THING_NAMES)
        self.mask_names = [label.name for label in _CLASSES]
        self.category_ids = [label.id for label in _THINGS]
        missing = [name for name in ("leftImg8bit", "gtFine") if not (self.root / name).is_dir()]
        if missing:
            names = " and no ".join(f"{name}/" for name in missing)
            raise UserError(f"{self.root}: has no {names}; {_FETCH} in {self.root}")
        images = self.root / "leftImg8bit"
        if not (images / split).is_dir():
            splits = sorted(path.name for path in images.iterdir() if path.is_dir())
            found = f"there are {', '.join(splits)}" if splits else f"it is empty: {_FETCH} in {self.root}"
            raise UserError(f"{images / split}: no such split; {found}")
        if not (self.root / "gtFine" / split).is_dir():
            raise UserError(f"{self.root / 'gtFine' / split}: no such folder; {_FETCH} in {self.root}")
        self._images = _images_in(images / split)
        if not self._images:
            fix = f"{_FETCH} in {self.root}, keeping the cities' folders"
            raise UserError(f"{images / split}: no <city>/*{_IMAGE_END}.png in it; {fix}")
        first = self._annotation(0, _kind_for(task))
        drawn = first.is_file() or (task == "segmentation" and self._has_train_ids(0))
        if not drawn and self._polygons_of(first).is_file():
            raise UserError(
                f"{first}: missing, although {self._polygons_of(first).name} exists; draw the polygons into "
                "labelIds and instanceIds images with cityscapesScripts (json2labelImg, json2instanceImg)"
            )

    @property
    def mask_values(self) -> list[int]:
        """The label ids, as the evaluation server expects them."""
        return [label.id for label in _CLASSES]

    def __len__(self) -> int:
        return len(self._images)

    def image_path(self, index: int) -> Path:
        return self.root / "leftImg8bit" / self.split / str(self._images[index])

    def declared_size(self, index: int) -> tuple[int, int] | None:
        """Return None: images are stored upright, and masks have the same size."""
        return None

    def objects(self, index: int) -> Objects:
        """Return the objects and groups in ``*_instanceIds.png``, sorted by value; none is difficult."""
        values = self._read(index, "instanceIds")
        count = np.bincount(values.ravel())
        present = np.flatnonzero(count)
        label_ids = np.where(present >= 1000, present // 1000, present)
        labels = _OBJECT_LABEL[np.minimum(label_ids, 255)]
        present, labels = present[labels > 0], labels[labels > 0]
        place = np.full(len(count), -1, np.int16)
        place[present] = np.arange(len(present))
        return Objects(
            boxes=_boxes(place[values], len(present)),
            labels=labels,
            iscrowd=present < 1000,
            difficult=np.zeros(len(present), bool),
            area=count[present].astype(np.float32),
            masks=(values == present[:, None, None]).astype(np.uint8) if self.masks else None,
        )

    def mask(self, index: int) -> np.ndarray:
        """Return the train ids of ``*_labelIds.png`` or, if it is missing, of ``*_labelTrainIds.png``."""
        if self._has_train_ids(index):
            return cv2.LUT(self._read(index, "labelTrainIds"), _SAME_TRAIN_ID)
        return cv2.LUT(self._read(index, "labelIds"), _TRAIN_ID)

    def annotation_paths(self, index: int, task: TaskName) -> list[Path]:
        if task == "segmentation" and self._has_train_ids(index):
            return [self._annotation(index, "labelTrainIds")]
        return [self._annotation(index, _kind_for(task))]

    def faults(self, index: int, task: TaskName) -> Iterator[Fault]:
        """Yield mask values that are not labels of Cityscapes; training ignores these pixels."""
        train_ids = task == "segmentation" and self._has_train_ids(index)
        try:
            values = self._read(index, "labelTrainIds" if train_ids else _kind_for(task))
        except BadSample:
            return
        present = np.flatnonzero(np.bincount(values.ravel()))
        ids = np.where(present >= 1000, present // 1000, present)
        known = np.arange(256) == _SAME_TRAIN_ID if train_ids else _KNOWN
        unknown = present[~known[np.minimum(ids, 255)]]
        if len(unknown):
            shown = ", ".join(map(str, unknown[:8])) + (" ..." if len(unknown) > 8 else "")
            fault = f"value {shown} is not a label of Cityscapes and is ignored"
            yield Fault(self.annotation_paths(index, task)[0], fault, False, "check that this is intended")

    def _has_train_ids(self, index: int) -> bool:
        """Return whether an image has masks of train ids only, as some tools write them."""
        return (
            not self._annotation(index, "labelIds").is_file()
            and self._annotation(index, "labelTrainIds").is_file()
        )

    def _annotation(self, index: int, kind: str) -> Path:
        city, _, name = str(self._images[index]).rpartition("/")
        stem = name.rpartition(_IMAGE_END)[0]
        return self.root / "gtFine" / self.split / city / f"{stem}_gtFine_{kind}.png"

    def _polygons_of(self, path: Path) -> Path:
        return path.with_name(path.name.rpartition("_")[0] + "_polygons.json")

    def _read(self, index: int, kind: _Kind) -> np.ndarray:
        path = self._annotation(index, kind)
        try:
            read = read_png16 if kind == "instanceIds" else read_mask
            return read(path, self.max_pixels)
        except MissingFile:
            if self._polygons_of(path).is_file():
                fault, fix = "no such file, only its polygons", "create it with cityscapesScripts"
            else:
                fault, fix = "no such annotation", "add it or remove its image"
            raise MissingFile(path, fault, fix) from None


def _kind_for(task: TaskName) -> _Kind:
    return "labelIds" if task == "segmentation" else "instanceIds"


def _images_in(folder: Path) -> list[str]:
    """Return the images of a split as ``city/name``. If several files have the same name, the PNG is returned."""
    paths = [
        path
        for path in folder.glob(f"*/*{_IMAGE_END}.*")
        # Names that start with a full stop are companion files of macOS.
        if path.suffix.lower() in SUFFIXES
        and path.stem.endswith(_IMAGE_END)
        and not path.name.startswith(".")
    ]
    # Later files replace earlier ones.
    paths.sort(key=lambda path: (path.suffix.lower() == ".png", path.name))
    found = {f"{path.parent.name}/{path.stem}": f"{path.parent.name}/{path.name}" for path in paths}
    return [found[key] for key in sorted(found)]


def _boxes(place: np.ndarray, count: int) -> np.ndarray:
    """Return the boxes float32 ``[count, 4]`` that enclose the pixels of each value 0..count-1; -1 is no object."""
    height, width = place.shape
    boxes = np.zeros((count, 4), np.float32)
    if not count:
        return boxes
    inside = place >= 0
    y, x = np.nonzero(inside)
    value = place[inside].astype(np.int64)
    for axis, (position, length) in enumerate(((x, width), (y, height))):
        seen = np.bincount(value * length + position, minlength=count * length).reshape(count, length) > 0
        boxes[:, axis] = seen.argmax(axis=1)
        boxes[:, axis + 2] = length - seen[:, ::-1].argmax(axis=1)
    return boxes
