"""Read COCO's annotations: one JSON file per split, with boxes, polygons and run-length masks.

Format: https://cocodataset.org/#format-data (Lin et al., "Microsoft COCO: Common Objects in Context", 2014).
"""

import json
import marshal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segdet.data.faults import Fault, FaultKind
from segdet.data.formats.outlines import outline_mask
from segdet.data.formats.reader import Reader, names_from
from segdet.data.formats.splits import coco_files
from segdet.data.images import image_size
from segdet.data.sample import IGNORE, Objects, TaskName
from segdet.util.errors import BadSample, UserError
from segdet.util.suggest import did_you_mean

_LARGE_FILE = 30_000_000
_MOST_FAULTS = 100

# The annotations of a file; `place` is the index of the image, `number` the annotation's own id or -1.
_COLUMNS = np.dtype(
    [("place", "i8"), ("label", "i8"), ("category", "i8"), ("number", "i8"), ("crowd", "?"), ("area", "f8"),
     ("box", "f8", 4)]
)  # fmt: skip


class COCOReader(Reader):
    """The images of one COCO annotation file, including those without annotations.

    Categories, sorted by id, become the labels 1..K; `category_ids` maps labels to ids. Semantic masks are made from
    the objects: 0 for background, else the label. Where objects overlap, the one with the smaller ``area`` is on top
    (for equal areas, the later one in the file). Crowd regions are ignored (255) except where an object covers them.

    Args:
        root: Folder that contains ``annotations/`` and the images.
        split: ``train2017`` means ``annotations/instances_train2017.json`` and the images in ``train2017/``; for other
            names of the file see `segdet.data.formats.splits.coco_files`. If there is only an
            ``annotations/image_info_<split>.json``, as for ``test-dev2017``, the split is for prediction only.
        task: The task. Outlines are kept in memory for segmentation only.
        annotation_file: Another annotation file; a relative path is looked up in ``root`` first.
        image_folder: Folder of the images; a relative path is looked up in ``root`` first. Default: the folder that
            contains the first image, searched in the order ``<split>/`` (for ``test-dev2017`` also ``test2017/``),
            ``images/<split>/``, ``images/``, the root and the annotation file's folder.
        class_names: Categories to use, in this order, or a text file with one per line (looked up in ``root`` first).
            Objects of other categories are left out.
        masks: Whether objects have masks.

    Raises:
        UserError: If a file, a folder or a class cannot be found.
        BadSample: If the annotation file is not valid JSON or not in COCO's format.
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
        with tqdm(total=2, desc=f"reading {self.annotation_file.name}", disable=small) as progress:
            document = _load(self.annotation_file)
            self.annotated = "annotations" in document
            progress.update()
            self._faults: list[Fault] = []
            label_of = self._read_categories(document["categories"], class_names)
            place_of = self._read_images(document["images"])
            self._read_annotations(document.get("annotations", []), place_of, label_of)
            progress.update()
        first = str(self._names[0])
        self.image_folder = _find_image_folder(self.root, self.annotation_file, first, split, image_folder)

    def __len__(self) -> int:
        return len(self._ids)

    def image_path(self, index: int) -> Path:
        return self.image_folder / str(self._names[index])

    def image_id(self, index: int) -> int:
        return int(self._ids[index])

    def declared_size(self, index: int) -> tuple[int, int] | None:
        """Return ``(height, width)`` of the image's entry; None if a side is missing or 0."""
        height, width = (int(value) for value in self._sizes[index])
        return (height, width) if height > 0 and width > 0 else None

    def objects(self, index: int) -> Objects:
        """Return the annotations of the image; none is difficult."""
        rows = self._rows(index)
        self._check_categories(index, rows)
        boxes = self._boxes[rows]
        wrong = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
        if len(wrong):
            raise self._bad(index, rows.start + int(wrong[0]), "bbox is not four finite numbers")
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        masks = None
        if self.masks:
            size = self._size(index)
            masks = np.zeros((len(boxes), *size), np.uint8)
            for mask, row in zip(masks, range(rows.start, rows.stop), strict=True):
                mask[:] = self._inside(index, row, size)
        return Objects(
            boxes=corners.astype(np.float32),
            labels=self._labels[rows].copy(),
            iscrowd=self._iscrowd[rows].copy(),
            difficult=np.zeros(len(boxes), bool),
            area=self._areas[rows].astype(np.float32),
            masks=masks,
        )

    def mask(self, index: int) -> np.ndarray:
        """Return the semantic mask made from the objects; see `COCOReader`."""
        if self._outlines is None:
            raise UserError(f"{self.annotation_file}: was read without outlines; open it for segmentation")
        size, rows = self._size(index), self._rows(index)
        self._check_categories(index, rows)
        # Run lengths are column-major; with a mask in the same order, painting is contiguous in memory.
        mask = np.zeros(size, np.uint8, order="F")
        # Paint the largest first, so that the smallest is on top. Crowds come last and cover no object.
        order = (rows.start + np.argsort(-self._areas[rows], kind="stable")).tolist()
        for row in order:
            if not self._iscrowd[row]:
                np.copyto(mask, self._labels[row], where=self._inside(index, row, size), casting="unsafe")
        for row in order:
            if self._iscrowd[row]:
                np.copyto(mask, IGNORE, where=self._inside(index, row, size) & (mask == 0), casting="unsafe")
        return np.ascontiguousarray(mask)

    def annotation_paths(self, index: int, task: TaskName) -> list[Path]:
        return [self.annotation_file]

    def faults(self, index: int, task: TaskName) -> Iterator[Fault]:
        """Yield degenerate boxes and polygons without area; with image 0 also the faults of the whole file.

        Faults of the whole file are repeated ids and annotations of images that are not listed.
        """
        if index == 0:
            yield from self._faults
        rows = self._rows(index)
        if task == "segmentation":
            if self._outlines is None:
                return
            for row in range(rows.start, rows.stop):
                outline = self._outline(row)
                if not isinstance(outline, list):
                    continue
                short = sum(isinstance(part, list) and len(part) < 6 for part in outline)
                if 0 < short < len(outline):
                    described = self._describe(index, row)
                    fault = f"{described}: {short} polygons of fewer than 3 points are left out"
                    yield Fault(self.annotation_file, fault, False, "check that this is intended")
            return
        boxes = self._boxes[rows]
        for place in np.flatnonzero((boxes[:, 2:] <= 0).any(axis=1)):
            x, y, width, height = (f"{value:.6g}" for value in boxes[place])
            described = self._describe(index, rows.start + int(place))
            fault = f"{described}: degenerate box x={x} y={y} width={width} height={height} as written"
            yield Fault(self.annotation_file, fault, False, "it is dropped", kind=FaultKind.DEGENERATE)

    def _read_categories(self, categories: list[Any], selected: Sequence[str] | None) -> dict[int, int]:
        """Set names and ids of the classes; return the label of each category id, 0 for omitted categories."""
        path = self.annotation_file
        name_of: dict[int, str] = {}
        for place, category in enumerate(categories):
            number = _value(path, category, "categories", place, "id")
            name = _value(path, category, "categories", place, "name", integer=False)
            if number in name_of:
                raise BadSample(path, f"two categories have the id {number}", "give each its own id")
            if name in name_of.values():
                raise BadSample(path, f"two categories are named {name!r}", "give each its own name")
            name_of[number] = str(name)
        if not name_of:
            raise BadSample(path, "has no categories", "list the classes under 'categories'")
        ids = sorted(name_of)
        if selected is not None:
            id_of = {name: number for number, name in name_of.items()}
            for name in selected:
                if name not in id_of:
                    hint = did_you_mean(name, id_of)
                    raise UserError(f"class_names: {path} has no category {name!r}; {hint}")
            if not selected or len(set(selected)) < len(selected):
                raise UserError("class_names: name at least one category, and each once")
            ids = [id_of[name] for name in selected]
        self.category_ids = ids
        self.class_names = [name_of[number] for number in ids]
        self.mask_names = ["background", *self.class_names]
        return dict.fromkeys(name_of, 0) | {number: label for label, number in enumerate(ids, start=1)}

    def _read_images(self, images: list[Any]) -> dict[int, int]:
        """Set ids, names and sizes of the images; return the index of each id."""
        path = self.annotation_file
        if not images:
            raise BadSample(path, "lists no images", "list them under 'images'")
        ids, names, sizes = [], [], []
        place_of: dict[int, int] = {}
        for place, image in enumerate(images):
            number = _value(path, image, "images", place, "id")
            ids.append(number)
            names.append(str(_value(path, image, "images", place, "file_name", integer=False)))
            sizes.append([_positive(image.get("height")), _positive(image.get("width"))])
            if place_of.setdefault(number, place) != place:
                first = names[place_of[number]]
                self._note(f"image id {number} is given to {first} and to {names[-1]}", fatal=True)
        # Reference counting would copy lists of objects into each forked worker; arrays stay shared.
        self._ids = np.array(ids, np.int64)
        self._names = np.array(names)
        self._sizes = np.array(sizes, np.int64).reshape(-1, 2)
        return place_of

    def _read_annotations(
        self, annotations: list[Any], place_of: dict[int, int], label_of: dict[int, int]
    ) -> None:
        path = self.annotation_file
        rows: list[tuple[Any, ...]] = []
        outlines: list[bytes] = []
        keep_outlines = self.task == "segmentation" or self.masks
        orphans: dict[int, int] = {}
        for entry, annotation in enumerate(annotations):
            image = _value(path, annotation, "annotations", entry, "image_id")
            category = _value(path, annotation, "annotations", entry, "category_id")
            label = label_of.get(category, -1)
            if image not in place_of:
                orphans[image] = orphans.get(image, 0) + 1
                continue
            if label == 0:
                continue
            number = annotation.get("id")
            number = number if isinstance(number, int) else -1
            crowd, area = bool(annotation.get("iscrowd")), _number(annotation.get("area"))
            box = _four(annotation.get("bbox"))
            rows.append((place_of[image], label, category, number, crowd, area, box))
            if keep_outlines:
                outlines.append(marshal.dumps(annotation.get("segmentation")))
        for image, count in orphans.items():
            refer = "annotation refers" if count == 1 else "annotations refer"
            fault = f"{count} {refer} to the image id {image}, which is not among the images"
            self._note(fault, fatal=False)
        table = np.array(rows, _COLUMNS)
        values, counts = np.unique(table["number"][table["number"] >= 0], return_counts=True)
        for value, count in zip(values[counts > 1], counts[counts > 1], strict=True):
            self._note(f"{count} annotations have the id {value}", fatal=False)
        # Sorted by image, so that the annotations of an image are a slice.
        order = np.argsort(table["place"], kind="stable")
        table = table[order]
        self._starts = np.searchsorted(table["place"], np.arange(len(self._ids) + 1))
        self._labels, self._categories, self._numbers = table["label"], table["category"], table["number"]
        self._iscrowd, self._boxes = table["crowd"], table["box"]
        extent = self._boxes[:, 2:].clip(0).prod(1)
        self._areas = np.where(np.isfinite(table["area"]), table["area"], extent)
        self._outlines: np.ndarray | None = None
        if keep_outlines:
            lengths = np.array([len(outlines[row]) for row in order], np.int64)
            self._outline_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            self._outlines = np.frombuffer(b"".join(outlines[row] for row in order), np.uint8)

    def _note(self, fault: str, fatal: bool) -> None:
        if len(self._faults) < _MOST_FAULTS:
            remedy = "fix the annotation" if fatal else "check that this is intended"
            self._faults.append(Fault(self.annotation_file, fault, fatal, remedy))

    def _size(self, index: int) -> tuple[int, int]:
        return self.declared_size(index) or image_size(self.image_path(index))

    def _rows(self, index: int) -> slice:
        return slice(int(self._starts[index]), int(self._starts[index + 1]))

    def _check_categories(self, index: int, rows: slice) -> None:
        unknown = np.flatnonzero(self._labels[rows] < 0)
        if len(unknown):
            row = rows.start + int(unknown[0])
            fault = f"category_id {self._categories[row]} is not among the categories"
            raise self._bad(index, row, fault, "fix it or list the category")

    def _describe(self, index: int, row: int) -> str:
        return f"annotation {self._numbers[row]} of {self._names[index]}"

    def _bad(
        self, index: int, row: int, fault: str, remedy: str = "fix or remove the annotation"
    ) -> BadSample:
        return BadSample(self.annotation_file, f"{self._describe(index, row)}: {fault}", remedy)

    def _outline(self, row: int) -> Any:
        assert self._outlines is not None
        start, stop = self._outline_starts[row], self._outline_starts[row + 1]
        return marshal.loads(self._outlines[start:stop].data)

    def _inside(self, index: int, row: int, size: tuple[int, int]) -> np.ndarray:
        """Return the mask of an annotation: bool ``[H, W]``."""
        outline = self._outline(row)
        bad = partial(self._bad, index, row)
        if not outline:
            raise bad("has no segmentation", "add an outline, or train on boxes")
        try:
            return outline_mask(outline, size)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise bad(f"segmentation cannot be read ({error})") from None


def _given(root: Path, given: Path | str, what: str, exists: Callable[[Path], bool]) -> Path:
    """Return the path ``given`` by the user, looked up in ``root`` first."""
    for path in (root / given, Path(given)):
        if exists(path):
            return path
    raise UserError(f"{given}: no such {what}, neither in {root} nor here")


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
    raise UserError(f"{path}: no such annotation file; {there}")


def _find_image_folder(
    root: Path, annotation_file: Path, first: str, split: str, given: Path | str | None
) -> Path:
    """Return the folder that contains the image named ``first``."""
    if given is not None:
        return _given(root, given, "folder of images", Path.is_dir)
    images, test = root / "images", split.replace("test-dev", "test")  # test-dev2017 is a subset of test2017
    places = [root / split, root / test, images / split, images, root, annotation_file.parent]
    for folder in places:
        if (folder / first).is_file():
            return folder
    if not places[0].is_dir():
        raise UserError(
            f"{places[0]}: no such folder of images, and {first} is nowhere in {root}; "
            f"put the images there, or into {images / split} or {images}"
        )
    return places[0]


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            document = json.load(file)
    except json.JSONDecodeError as error:
        if not path.stat().st_size:
            raise BadSample(path, "the file is empty (0 bytes)") from None
        fault = f"not valid JSON at line {error.lineno}, column {error.colno} ({error.msg})"
        raise BadSample(path, fault, "download or export it again") from None
    except (UnicodeDecodeError, OSError, RecursionError) as error:
        raise BadSample(path, f"cannot be read as JSON ({error})", "download or export it again") from None
    if not isinstance(document, dict):
        fault = f"contains a {type(document).__name__}, not an object with images, annotations and categories"
        raise BadSample(path, fault, "give the annotation file, not a results file")
    for key in ("images", "annotations", "categories"):
        if key == "annotations" and key not in document and path.name.startswith("image_info_"):
            continue
        if not isinstance(document.get(key), list):
            fault = f"{key!r} is not a list" if key in document else f"has no key {key!r}"
            raise BadSample(path, fault, "give an instances file in COCO's format")
    return document


def _value(path: Path, entry: Any, key: str, place: int, field: str, integer: bool = True) -> Any:
    """Return ``entry[field]``, where ``entry`` is item ``place`` of the list ``key``."""
    if not isinstance(entry, dict):
        raise BadSample(path, f"{key}[{place}] is not an object", "fix or remove it")
    if field not in entry:
        raise BadSample(path, f"{key}[{place}] has no key {field!r}", "add it or remove the entry")
    if integer and not isinstance(entry[field], int):
        fault = f"{key}[{place}] has {field} {entry[field]!r}, not an integer"
        raise BadSample(path, fault, "fix the entry")
    return entry[field]


def _positive(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 < value < 1e9 else 0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _four(values: Any) -> tuple[float, ...]:
    """Return the four numbers of a box; NaN for an invalid box, which is reported when its image is read."""
    valid = isinstance(values, list) and len(values) == 4
    return tuple(_number(value) for value in values) if valid else (np.nan,) * 4
