"""Read COCO's annotations: one JSON file per split, with boxes, polygons and run-length masks.

Format: https://cocodataset.org/#format-data (Lin et al., "Microsoft COCO: Common Objects in Context", 2014).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segdet.data.faults import Fault, FaultKind
from segdet.data.formats.class_names import names_from
from segdet.data.formats.coco_document import category_faults, read_document, repeated, without_placeholders
from segdet.data.formats.file_names import is_foreign_name, missing_file_advice, name_in
from segdet.data.formats.outlines import Outline, outline_mask
from segdet.data.formats.reader import KnownClasses, Reader
from segdet.data.formats.splits import coco_files, import_remedy
from segdet.data.images import image_size
from segdet.data.sample import IGNORE, Objects, TaskName
from segdet.util.errors import BadSample, UserError
from segdet.util.nouns import counted
from segdet.util.suggest import did_you_mean

_LARGE_FILE = 30_000_000


class NoSuchSplit(UserError):
    """A split without an annotation file.

    Args:
        message: The message.
        splits: The splits that have one.
    """

    def __init__(self, message: str, splits: Sequence[str]) -> None:
        super().__init__(message)
        self.splits = list(splits)


class NoImageFolder(UserError):
    """The images of an annotation file cannot be found."""


class COCOReader(Reader):
    """The images of one COCO annotation file, including those without annotations.

    Categories, sorted by id, become the labels 1..K; `category_ids` maps labels to ids. Placeholders, as in Roboflow's
    exports, are left out. These are categories without annotations that share the name of another category or are
    only a supercategory.

    Semantic masks are made from the objects: 0 for background, else the label. Where objects overlap, the one with the
    smaller ``area`` is on top (for equal areas, the later one in the file). Crowd regions are ignored (255) except
    where an object covers them.

    Args:
        root: Folder that contains ``annotations/`` and the images.
        split: ``train2017`` means ``annotations/instances_train2017.json`` and the images in ``train2017/``. The file
            may have other names, see `segdet.data.formats.splits.coco_files`. If there is only an
            ``annotations/image_info_<split>.json``, as for ``test-dev2017``, the split is for prediction only.
        task: The task. Outlines are kept in memory for segmentation only.
        annotation_file: Another annotation file; a relative path is looked up in ``root`` first.
        image_folder: Folder of the images; a relative path is looked up in ``root`` first. Default: the folder that
            contains the first image, searched in the order ``<split>/`` (for ``test-dev2017`` also ``test2017/``),
            ``images/<split>/``, ``images/``, the root and the annotation file's folder.
        class_names: Categories to use, in this order, or a text file with one per line (looked up in ``root`` first).
            Objects of other categories are left out.
        masks: Whether objects have masks.
        known: Classes of the training split or of a model. Categories are matched to them by name. A class may be
            missing in the file. Objects of other categories are left out. If the file has none of these names,
            ``known`` is ignored.
        strict: Whether a fatal fault of the file is an error. If not, `file_faults` contains it.

    Raises:
        UserError: If a file, a folder or a class cannot be found.
        BadSample: If the annotation file is not valid JSON or not in COCO's format, or has a fatal fault.
    """

    def __init__(
        self,
        root: Path | str,
        split: str,
        task: TaskName,
        annotation_file: Path | str | None = None,
        image_folder: Path | str | None = None,
        class_names: Sequence[str] | Path | str | None = None,
        masks: bool = False,
        known: KnownClasses | None = None,
        strict: bool = True,
    ) -> None:
        self.root = Path(root)
        self.task = task
        self.masks = masks
        if not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder; give the folder that contains annotations/")
        if isinstance(class_names, str | Path):
            class_names = names_from(class_names, self.root)
        self.annotation_file = _find_annotation_file(self.root, split, annotation_file)
        small = self.annotation_file.stat().st_size < _LARGE_FILE
        with tqdm(total=1, desc=f"reading {self.annotation_file.name}", disable=small) as progress:
            self._document = read_document(self.annotation_file, task == "segmentation" or masks)
            progress.update()
        self.annotated = self._document.annotated
        self._faults = list(self._document.faults)
        self._set_classes(class_names, known)
        fatal = [fault for fault in self._faults if fault.fatal]
        if fatal and strict:
            raise fatal[0].error(len(fatal) - 1)
        first = str(self._document.names[0]) if len(self) else ""
        self.image_folder = find_image_folder(self.root, self.annotation_file, first, split, image_folder)

    def __len__(self) -> int:
        return len(self._document.ids)

    def image_path(self, index: int) -> Path:
        return self.image_folder / str(self._document.names[index])

    def image_id(self, index: int) -> int:
        return int(self._document.ids[index])

    def declared_size(self, index: int) -> tuple[int, int] | None:
        """Return ``(height, width)`` of the image's entry; None if a side is missing or 0."""
        height, width = (int(value) for value in self._document.sizes[index])
        return (height, width) if height > 0 and width > 0 else None

    def objects(self, index: int) -> Objects:
        """Return the annotations of the image; none is difficult."""
        rows = self._checked_rows(index, boxes=True)
        boxes = self._document.table["box"][rows]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        masks = None
        if self.masks:
            size = self._size(index)
            masks = np.zeros((len(boxes), *size), np.uint8)
            for mask, row in zip(masks, rows.tolist(), strict=True):
                mask[:] = self._inside(index, row, size)
        return Objects(
            boxes=corners.astype(np.float32),
            labels=self._labels[rows],
            iscrowd=self._document.table["crowd"][rows],
            difficult=np.zeros(len(boxes), bool),
            area=self._areas[rows].astype(np.float32),
            masks=masks,
        )

    def mask(self, index: int) -> np.ndarray:
        """Return the semantic mask made from the objects; see `COCOReader`."""
        if self._document.outlines is None:
            raise UserError(f"{self.annotation_file}: was read without outlines; open it for segmentation")
        size, rows = self._size(index), self._checked_rows(index, boxes=False)
        # Run lengths are column-major; with a mask in the same order, painting is contiguous in memory.
        mask = np.zeros(size, np.uint8, order="F")
        # Paint the largest first, so that the smallest is on top. Crowds come last and cover no object.
        order = rows[np.argsort(-self._areas[rows], kind="stable")].tolist()
        crowd = self._document.table["crowd"]
        for row in order:
            if not crowd[row]:
                np.copyto(mask, self._labels[row], where=self._inside(index, row, size), casting="unsafe")
        for row in order:
            if crowd[row]:
                np.copyto(mask, IGNORE, where=self._inside(index, row, size) & (mask == 0), casting="unsafe")
        return np.ascontiguousarray(mask)

    def outlines(self, index: int) -> list[Outline | None]:
        """Return the annotated outline of each object in `objects`; None for an object without one.

        Raises:
            UserError: If the outlines are not in memory, because the file was not opened for segmentation.
        """
        outlines = self._document.outlines
        if outlines is None:
            raise UserError(f"{self.annotation_file}: was read without outlines; open it for segmentation")
        return [outlines[row] or None for row in self._checked_rows(index, boxes=True).tolist()]

    def annotation_paths(self, index: int, task: TaskName) -> list[Path]:
        return [self.annotation_file]

    def describe_object(self, index: int, row: int) -> str:
        """Describe an object by the id of its annotation, with its box as written."""
        place = int(self._rows(index)[row])
        x, y, width, height = (f"{value:.6g}" for value in self._document.table["box"][place])
        box = f"box x={x} y={y} width={width} height={height}"
        name = self.class_names[self._labels[place] - 1]
        return f"{self._document.describe(index, place)}: {box} of class {name}"

    def file_faults(self) -> list[Fault]:
        """Return the faults of the whole file: its entries, repeated ids, and categories that are left out."""
        return self._faults

    def faults(self, index: int, task: TaskName) -> Iterator[Fault]:
        """Yield every fault of an image: a foreign file name, values, repeated objects, outlines for segmentation."""
        name, path = str(self._document.names[index]), self.image_path(index)
        if is_foreign_name(name) and not path.exists():
            advice = missing_file_advice(self.image_folder, name)
            yield Fault(path, "no such file", True, advice, kind=FaultKind.UNREADABLE)
        rows = self._rows(index).tolist()
        yield from self._value_faults(index, rows, boxes=task != "segmentation")
        for row, earlier in repeated(self._document, index):
            if self._labels[row] > 0:
                other = self._document.describe(index, earlier).partition(" of ")[0]
                fault = f"{self._document.describe(index, row)}: has the class and box of {other}"
                yield self._fault(fault, False, "remove one of them")
        if self._document.outlines is not None and (task == "segmentation" or self.masks):
            yield from self._outline_faults(index, rows)

    def _outline_faults(self, index: int, rows: list[int]) -> Iterator[Fault]:
        try:
            size = self._size(index)
        except BadSample:
            return  # reported when the image is read
        assert self._document.outlines is not None
        for row in rows:
            described = self._document.describe(index, row)
            try:
                covered = self._inside(index, row, size).any()
            except BadSample as error:
                yield Fault.of(error)
                continue
            if not covered:
                yield self._fault(f"{described}: its outline covers no pixel", False, "it is not used")
            outline = self._document.outlines[row]
            short = sum(isinstance(part, list) and len(part) < 6 for part in outline)
            if short:
                fault = f"{described}: left out: {counted(short, 'polygon')} of fewer than 3 points"
                yield self._fault(fault, False, "check that this is intended")

    def _fault(self, fault: str, fatal: bool, remedy: str) -> Fault:
        return Fault(self.annotation_file, fault, fatal, remedy)

    def _set_classes(self, selected: Sequence[str] | None, known: KnownClasses | None) -> None:
        """Set names and ids of the classes, and the label of each annotation: 0 if left out, -1 if unknown."""
        named = [*(selected or ()), *(known.ids if known else ())]
        categories, faults = without_placeholders(self._document, named)
        self._faults += faults
        id_of: dict[str, int] = {}
        for category in categories:
            if category.name in id_of:
                fault = f"two categories are named {category.name!r}"
                self._faults.append(self._fault(fault, True, "give each its own name"))
            id_of.setdefault(category.name, category.number)
        names = list(id_of)
        if known is not None and not id_of.keys().isdisjoint(known.ids):
            names = list(known.ids)
            differences = category_faults(self.annotation_file, categories, known.ids, known.origin)
            self._faults += [fault for fault in differences if fault.note or selected is None]
            unused = max([*id_of.values(), *known.ids.values()]) + 1
            for name in names:
                if name not in id_of:
                    taken = known.ids[name] in id_of.values()
                    id_of[name] = unused if taken else known.ids[name]
                    unused += taken
        elif selected is not None:
            for name in selected:
                if name not in id_of:
                    hint = did_you_mean(name, id_of) if id_of else "it has none"
                    raise UserError(f"class_names: {self.annotation_file} has no category {name!r}; {hint}")
            if not selected or len(set(selected)) < len(selected):
                raise UserError("class_names: name at least one category, and each once")
            names = list(selected)
        self.class_names, self.category_ids = names, [id_of[name] for name in names]
        self.mask_names = ["background", *names]
        label_of = {name: label for label, name in enumerate(names, start=1)}
        used = {category.number for category in categories}
        labels = [
            label_of.get(category.name, 0) if category.number in used else 0
            for category in self._document.categories
        ]
        table = self._document.table
        # The last label is that of unknown categories, whose position is -1.
        self._labels = np.array([*labels, -1], np.int64)[table["category"]]
        extent = table["box"][:, 2:].clip(0).prod(1)
        self._areas = np.where(np.isfinite(table["area"]), table["area"], extent)

    def _size(self, index: int) -> tuple[int, int]:
        return self.declared_size(index) or image_size(self.image_path(index))

    def _rows(self, index: int) -> np.ndarray:
        """Return the annotations of an image, except those of categories that are left out."""
        rows = self._document.rows(index)
        return np.flatnonzero(self._labels[rows]) + rows.start

    def _checked_rows(self, index: int, boxes: bool) -> np.ndarray:
        """Return `_rows`; raise `BadSample` for the first fatal fault."""
        rows = self._rows(index)
        if self._document.entry_faults:
            for fault in self._value_faults(index, rows.tolist(), boxes):
                if fault.fatal:
                    raise fault.error()
        return rows

    def _value_faults(self, index: int, rows: list[int], boxes: bool) -> Iterator[Fault]:
        """Yield the faults of the entries of annotations, and of their boxes if ``boxes`` is true."""
        for row in rows:
            for fault in self._document.faults_of(row):
                if boxes or not fault.of_box:
                    text = f"{self._document.describe(index, row)}: {fault.fault}"
                    yield self._fault(text, fault.fatal, fault.remedy)

    def _inside(self, index: int, row: int, size: tuple[int, int]) -> np.ndarray:
        """Return the mask of an annotation: bool ``[H, W]``."""
        assert self._document.outlines is not None
        outline = self._document.outlines[row]
        described = self._document.describe(index, row)
        if not outline:
            fault, remedy = "has no segmentation", "add an outline, or train on boxes"
            raise BadSample(self.annotation_file, f"{described}: {fault}", remedy)
        try:
            return outline_mask(outline, size)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            fault = f"{described}: segmentation cannot be read ({error})"
            raise BadSample(self.annotation_file, fault, "fix or remove the annotation") from None


def _given(root: Path, given: Path | str, what: str, exists: Callable[[Path], bool]) -> Path:
    """Return the path ``given`` by the user, looked up in ``root`` first."""
    for path in (root / given, Path(given)):
        if exists(path):
            return path
    raise UserError(f"{given}: no such {what}, in {root} or in the current folder")


def _find_annotation_file(root: Path, split: str, given: Path | str | None) -> Path:
    if given is not None:
        return _given(root, given, "annotation file", Path.is_file)
    files = coco_files(root)
    if split in files:
        return files[split]
    path, images_alone = (
        root / "annotations" / f"{kind}_{split}.json" for kind in ("instances", "image_info")
    )
    if images_alone.is_file():
        return images_alone
    there = f"there are {', '.join(sorted(files))}" if files else f"no instances_*.json is in {path.parent}"
    if not files and (remedy := import_remedy(root)):
        there += f"; {remedy}"
    raise NoSuchSplit(f"{path}: no such annotation file; {there}", sorted(files))


def find_image_folder(
    root: Path, annotation_file: Path, first: str, split: str, given: Path | str | None = None
) -> Path:
    """Return the folder that contains the image named ``first``; for the order of the search see `COCOReader`.

    Raises:
        NoImageFolder: If there is none.
        UserError: If the folder ``given`` does not exist.
    """
    if given is not None:
        return _given(root, given, "folder of images", Path.is_dir)
    images, test = root / "images", split.replace("test-dev", "test")  # test-dev2017 is a subset of test2017
    places = [root / split, root / test, images / split, images, root, annotation_file.parent]
    for folder in places:
        if (folder / first).is_file():
            return folder
    if is_foreign_name(first):  # each image with such a name is a fault
        for folder in places:
            if name_in(folder, first) is not None:
                return folder
    if first and not places[0].is_dir():
        raise NoImageFolder(
            f"{places[0]}: no such folder of images, and {first} is nowhere in {root}; "
            f"put the images there, or into {images / split} or {images}"
        )
    return places[0]
