"""COCO's annotations: one JSON file a split, with boxes, polygons and run-length masks.

Format: https://cocodataset.org/#format-data (Lin et al., "Microsoft COCO: Common Objects in Context", 2014).
"""

import json
import marshal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from segdet.data.faults import Fault, FaultKind
from segdet.data.formats.reader import Reader, names_from
from segdet.data.formats.splits import coco_files
from segdet.data.images import image_size
from segdet.data.sample import IGNORE, Objects, TaskName
from segdet.util.errors import BadSample, UserError
from segdet.util.suggest import did_you_mean

_LARGE_FILE = 30_000_000
_MOST_FAULTS = 100


class COCOReader(Reader):
    """The images of one COCO annotation file, those without annotations included.

    Categories, sorted by id, become the labels 1..K; `category_ids` leads back. Masks are made from the
    objects: background is 0, an object its label, and where objects overlap the one with the smaller
    ``area`` lies on top (of equal ones, the later in the file). Crowd regions are ignored (255), but where
    an object lies on them the object counts.

    Args:
        root: The folder that holds ``annotations/`` and the images.
        split: ``train2017``: of ``annotations/instances_train2017.json`` and the images in ``train2017/``; for
            other names of the file see `segdet.data.formats.detect.coco_files`. Where there is but an
            ``annotations/image_info_<split>.json``, as for ``test-dev2017``, its images can be predicted on.
        task: What the annotations are for; the outlines are kept in memory for segmentation only.
        annotation_file: Another file, looked for in ``root`` first.
        image_folder: Where the images are, looked for in ``root`` first. By default the first of
            ``<split>/`` (of ``test-dev2017`` also ``test2017/``), ``images/<split>/``, ``images/``, the root and the
            annotation's own folder that has the first image.
        class_names: Categories to use, in this order, or a text file with one on each line (looked for in ``root``
            first); objects of others are left out.
        masks: Whether objects come with their masks.

    Raises:
        UserError: If a file, a folder or a class cannot be found.
        BadSample: If the annotation file is no JSON or lacks what makes it COCO's.
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
            raise UserError(f"{self.root}: no such folder; give the folder that holds annotations/")
        if isinstance(class_names, str | Path):
            class_names = names_from(class_names, self.root)
        self.annotation_file = self._find_annotation_file(split, annotation_file)
        size = self.annotation_file.stat().st_size
        with tqdm(
            total=2, desc=f"reading {self.annotation_file.name}", disable=size < _LARGE_FILE
        ) as progress:
            document = _load(self.annotation_file)
            self.annotated = "annotations" in document
            progress.update()
            self._faults: list[Fault] = []
            label_of = self._read_categories(document["categories"], class_names)
            place_of = self._read_images(document["images"])
            self._read_annotations(document.get("annotations", []), place_of, label_of)
            progress.update()
        self.image_folder = self._find_image_folder(split, image_folder)

    def __len__(self) -> int:
        return len(self._ids)

    def image_path(self, index: int) -> Path:
        """``file_name`` in the folder of the images."""
        return self.image_folder / str(self._names[index])

    def image_id(self, index: int) -> int:
        """COCO's id of the image."""
        return int(self._ids[index])

    def declared_size(self, index: int) -> tuple[int, int] | None:
        """``(height, width)`` of the image's entry; None where one is missing or 0."""
        height, width = (int(value) for value in self._sizes[index])
        return (height, width) if height > 0 and width > 0 else None

    def objects(self, index: int) -> Objects:
        """The annotations of the image; none of them is difficult."""
        rows = self._rows(index)
        self._check_categories(index, rows)
        boxes = self._boxes[rows]
        wrong = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
        if len(wrong):
            raise self._bad(index, rows.start + int(wrong[0]), "bbox is not four finite numbers")
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        masks = None
        if self.masks:
            size = self.declared_size(index) or image_size(self.image_path(index))
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
        """The objects' outlines painted over one another, see the class."""
        if self._outlines is None:
            raise UserError(f"{self.annotation_file}: was read without outlines; read it for segmentation")
        size = self.declared_size(index) or image_size(self.image_path(index))
        rows = self._rows(index)
        self._check_categories(index, rows)
        # By columns, as run lengths are, so that painting reads and writes along the same memory.
        mask = np.zeros(size, np.uint8, order="F")
        # Largest first, so that the smallest ends on top; crowds at last, under everything.
        order = (rows.start + np.argsort(-self._areas[rows], kind="stable")).tolist()
        for row in order:
            if not self._iscrowd[row]:
                np.copyto(mask, self._labels[row], where=self._inside(index, row, size), casting="unsafe")
        for row in order:
            if self._iscrowd[row]:
                np.copyto(mask, IGNORE, where=self._inside(index, row, size) & (mask == 0), casting="unsafe")
        return np.ascontiguousarray(mask)

    def annotation_paths(self, index: int, task: TaskName) -> list[Path]:
        """The one file of the split."""
        return [self.annotation_file]

    def faults(self, index: int, task: TaskName) -> Iterator[Fault]:
        """Boxes without extent as written and polygons without area; with image 0 also the whole file's:
        ids that occur twice and annotations of images that are not listed.

        What `objects`, `mask` or reading the image raise is not repeated here.
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
                    fault = (
                        f"{self._describe(index, row)}: {short} polygons of fewer than 3 points are left out"
                    )
                    yield Fault(self.annotation_file, fault, False, "check that this is intended")
            return
        boxes = self._boxes[rows]
        for place in np.flatnonzero((boxes[:, 2:] <= 0).any(axis=1)):
            x, y, width, height = (f"{value:.6g}" for value in boxes[place])
            described = self._describe(index, rows.start + int(place))
            fault = f"{described}: degenerate box x={x} y={y} width={width} height={height} as written"
            yield Fault(self.annotation_file, fault, False, "it is dropped", kind=FaultKind.DEGENERATE)

    def _find_annotation_file(self, split: str, given: Path | str | None) -> Path:
        if given is not None:
            path = self.root / given
            path = path if path.is_file() else Path(given)
            if not path.is_file():
                raise UserError(f"{given}: no such annotation file, neither in {self.root} nor here")
            return path
        files = coco_files(self.root)
        if split in files:
            return files[split]
        images_alone = self.root / "annotations" / f"image_info_{split}.json"
        if images_alone.is_file():
            return images_alone
        path = self.root / "annotations" / f"instances_{split}.json"
        there = (
            f"there are {', '.join(sorted(files))}" if files else f"no instances_*.json is in {path.parent}"
        )
        raise UserError(f"{path}: no such annotation file; {there}")

    def _find_image_folder(self, split: str, given: Path | str | None) -> Path:
        if given is not None:
            folder = self.root / given
            folder = folder if folder.is_dir() else Path(given)
            if not folder.is_dir():
                raise UserError(f"{given}: no such folder of images, neither in {self.root} nor here")
            return folder
        images = self.root / "images"
        # The images of test-dev2017 are some of test2017.
        places = [
            self.root / split,
            self.root / split.replace("test-dev", "test"),
            images / split,
            images,
            self.root,
            self.annotation_file.parent,
        ]
        for folder in places:
            if (folder / str(self._names[0])).is_file():
                return folder
        if not places[0].is_dir():
            raise UserError(
                f"{places[0]}: no such folder of images, and {self._names[0]} is nowhere in {self.root}; "
                f"put the images there, or into {images / split} or {images}"
            )
        return places[0]

    def _read_categories(self, categories: list[Any], wanted: Sequence[str] | None) -> dict[int, int]:
        """Sets the names and ids of the classes; returns each category id's label, 0 for those left out."""
        path = self.annotation_file
        name_of: dict[int, str] = {}
        for place, category in enumerate(categories):
            number = _whole(path, category, "categories", place, "id")
            name = _value(path, category, "categories", place, "name")
            if number in name_of:
                raise BadSample(path, f"two categories have the id {number}", "give each its own id")
            if name in name_of.values():
                raise BadSample(path, f"two categories are named {name!r}", "give each its own name")
            name_of[number] = str(name)
        if not name_of:
            raise BadSample(path, "has no categories", "list the classes under 'categories'")
        ids = sorted(name_of)
        if wanted is not None:
            id_of = {name: number for number, name in name_of.items()}
            for name in wanted:
                if name not in id_of:
                    hint = did_you_mean(name, id_of)
                    raise UserError(f"class_names: {path} has no category {name!r}; {hint}")
            if not wanted or len(set(wanted)) < len(wanted):
                raise UserError("class_names: name at least one category, and each once")
            ids = [id_of[name] for name in wanted]
        self.category_ids = ids
        self.class_names = [name_of[number] for number in ids]
        self.mask_names = ["background", *self.class_names]
        return dict.fromkeys(name_of, 0) | {number: label for label, number in enumerate(ids, start=1)}

    def _read_images(self, images: list[Any]) -> dict[int, int]:
        """Sets the images' ids, names and sizes; returns each id's place."""
        path = self.annotation_file
        if not images:
            raise BadSample(path, "lists no images", "list them under 'images'")
        ids, names, sizes = [], [], []
        place_of: dict[int, int] = {}
        for place, image in enumerate(images):
            number = _whole(path, image, "images", place, "id")
            ids.append(number)
            names.append(str(_value(path, image, "images", place, "file_name")))
            sizes.append([_positive(image.get("height")), _positive(image.get("width"))])
            if place_of.setdefault(number, place) != place:
                first = names[place_of[number]]
                self._note(f"image id {number} is given to {first} and to {names[-1]}", fatal=True)
        # Arrays, unlike lists of objects, are not copied into each worker process by counting references.
        self._ids = np.array(ids, np.int64)
        self._names = np.array(names)
        self._sizes = np.array(sizes, np.int64).reshape(-1, 2)
        return place_of

    def _read_annotations(
        self, annotations: list[Any], place_of: dict[int, int], label_of: dict[int, int]
    ) -> None:
        path = self.annotation_file
        places, labels, categories, numbers, crowds, areas = [], [], [], [], [], []
        boxes: list[Any] = []
        outlines: list[bytes] = []
        keep_outlines = self.task == "segmentation" or self.masks
        orphans: dict[int, int] = {}
        for entry, annotation in enumerate(annotations):
            image = _whole(path, annotation, "annotations", entry, "image_id")
            category = _whole(path, annotation, "annotations", entry, "category_id")
            label = label_of.get(category, -1)
            if image not in place_of:
                orphans[image] = orphans.get(image, 0) + 1
                continue
            if label == 0:
                continue
            number = annotation.get("id", -1)
            places.append(place_of[image])
            labels.append(label)
            categories.append(category)
            numbers.append(number if isinstance(number, int) else -1)
            crowds.append(bool(annotation.get("iscrowd", 0)))
            areas.append(_number(annotation.get("area")))
            boxes.append(_four(annotation.get("bbox")))
            if keep_outlines:
                outlines.append(marshal.dumps(annotation.get("segmentation")))
        for image, count in orphans.items():
            plural = "annotation refers" if count == 1 else "annotations refer"
            self._note(
                f"{count} {plural} to the image id {image}, which is not among the images", fatal=False
            )
        self._note_repeated(np.array(numbers, np.int64))
        # Sorted by image: the annotations of one are then a slice, found by counting.
        order = np.argsort(np.array(places, np.int64), kind="stable")
        self._starts = np.zeros(len(self._ids) + 1, np.int64)
        np.cumsum(np.bincount(np.array(places, np.int64), minlength=len(self._ids)), out=self._starts[1:])
        self._labels = np.array(labels, np.int64)[order]
        self._categories = np.array(categories, np.int64)[order]
        self._numbers = np.array(numbers, np.int64)[order]
        self._iscrowd = np.array(crowds, bool)[order]
        self._boxes = np.array(boxes, np.float64).reshape(-1, 4)[order]
        given = np.array(areas, np.float64)[order]
        extent = np.maximum(self._boxes[:, 2], 0) * np.maximum(self._boxes[:, 3], 0)
        self._areas = np.where(np.isfinite(given), given, extent)
        self._outlines: np.ndarray | None = None
        if keep_outlines:
            lengths = np.array([len(outlines[row]) for row in order], np.int64)
            self._outline_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            self._outlines = np.frombuffer(b"".join(outlines[row] for row in order), np.uint8)

    def _note_repeated(self, numbers: np.ndarray) -> None:
        values, counts = np.unique(numbers[numbers >= 0], return_counts=True)
        for value, count in zip(values[counts > 1], counts[counts > 1], strict=True):
            self._note(f"{count} annotations have the id {value}", fatal=False)

    def _note(self, fault: str, fatal: bool) -> None:
        if len(self._faults) < _MOST_FAULTS:
            remedy = "fix the annotation" if fatal else "check that this is intended"
            self._faults.append(Fault(self.annotation_file, fault, fatal, remedy))

    def _rows(self, index: int) -> slice:
        return slice(int(self._starts[index]), int(self._starts[index + 1]))

    def _check_categories(self, index: int, rows: slice) -> None:
        unknown = np.flatnonzero(self._labels[rows] < 0)
        if len(unknown):
            row = rows.start + int(unknown[0])
            fault = f"category_id {self._categories[row]} is not among the categories"
            raise self._bad(index, row, fault, "mend it or list the category")

    def _describe(self, index: int, row: int) -> str:
        return f"annotation {self._numbers[row]} of {self._names[index]}"

    def _bad(
        self, index: int, row: int, fault: str, remedy: str = "mend or remove the annotation"
    ) -> BadSample:
        return BadSample(self.annotation_file, f"{self._describe(index, row)}: {fault}", remedy)

    def _outline(self, row: int) -> Any:
        assert self._outlines is not None
        start, stop = self._outline_starts[row], self._outline_starts[row + 1]
        return marshal.loads(self._outlines[start:stop].data)

    def _inside(self, index: int, row: int, size: tuple[int, int]) -> np.ndarray:
        """Where an annotation's object is: bool ``[H, W]``."""
        outline = self._outline(row)
        bad = partial(self._bad, index, row)
        if not outline:
            raise bad("has no segmentation", "give it an outline, or train on boxes")
        try:
            runs = _polygons(outline, size) if isinstance(outline, list) else _run_lengths(outline, size)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise bad(f"segmentation cannot be read ({error})") from None
        # By columns, beginning with a run of outside.
        values = np.arange(len(runs)) % 2 == 1
        return np.repeat(values, runs).reshape(size[::-1]).T


def _polygons(parts: list[Any], size: tuple[int, int]) -> np.ndarray:
    """The runs of an object given as polygons, filled as COCO's own library fills them."""
    height, width = size
    for part in parts:
        points = np.asarray(part, np.float64)
        if points.ndim != 1 or points.size % 2:
            raise ValueError("a polygon is not a flat list x, y, x, y ...")
        # The rasterizer walks along each edge: one astray would take it all memory there is.
        if not (np.abs(points) <= 100 * (height + width)).all():
            raise ValueError("a polygon's point is not finite or far outside the image")
    # Of a list that begins with four numbers the library would think that it holds boxes.
    parts = [part for part in parts if len(part) >= 6]
    if not parts:
        raise ValueError("no polygon has 3 points")
    return _decompressed(rle.merge(rle.frPyObjects(parts, height, width))["counts"])


def _run_lengths(outline: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The runs of an object given by their lengths, compressed or not."""
    height, width = size
    counts = outline["counts"]
    if [int(side) for side in outline["size"]] != [height, width]:
        raise ValueError(f"its size {outline['size']} is not the image's [{height}, {width}]")
    runs = np.asarray(counts) if isinstance(counts, list) else _decompressed(counts.encode("ascii"))
    if runs.dtype.kind not in "iu" or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"its counts do not add up to the image's {height * width} pixels")
    return runs


def _decompressed(counts: bytes) -> np.ndarray:
    """The run lengths int64 of COCO's compressed string.

    Each character, less 48, has five bits of a number, lowest first, and a sixth that says that more
    follow; the highest of the last five is the sign. From the fourth number on they are differences to
    the number two places earlier. (pycocotools decodes this too, but not quietly on NumPy 2.)
    """
    bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((bits & 0x20) == 0)
    if not bits.size or last.size == 0 or last[-1] != bits.size - 1:
        raise ValueError("its counts break off")
    starts = np.concatenate([[0], last[:-1] + 1])
    lengths = last - starts + 1
    if lengths.max() > 12:
        raise ValueError("its counts are no numbers")
    shifts = 5 * (np.arange(bits.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((bits & 0x1F) << shifts, starts)
    numbers -= np.where(bits[last] & 0x10, 1 << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            document = json.load(file)
    except json.JSONDecodeError as error:
        if not path.stat().st_size:
            raise BadSample(path, "the file is empty (0 bytes)") from None
        fault = f"not valid JSON at line {error.lineno}, column {error.colno} ({error.msg})"
        raise BadSample(path, fault, "fetch or export it again") from None
    except (UnicodeDecodeError, OSError, RecursionError) as error:
        raise BadSample(path, f"cannot be read as JSON ({error})", "fetch or export it again") from None
    if not isinstance(document, dict):
        fault = f"holds a {type(document).__name__}, not an object with images, annotations and categories"
        raise BadSample(path, fault, "give the annotation file, not one of results")
    for key in ("images", "annotations", "categories"):
        if key == "annotations" and key not in document and path.name.startswith("image_info_"):
            continue
        if not isinstance(document.get(key), list):
            fault = f"{key!r} is not a list" if key in document else f"has no key {key!r}"
            raise BadSample(path, fault, "give an instances file in COCO's format")
    return document


def _value(path: Path, entry: Any, key: str, place: int, field: str) -> Any:
    if not isinstance(entry, dict):
        raise BadSample(path, f"{key}[{place}] is not an object", "mend or remove it")
    if field not in entry:
        raise BadSample(path, f"{key}[{place}] has no key {field!r}", "add it or remove the entry")
    return entry[field]


def _whole(path: Path, entry: Any, key: str, place: int, field: str) -> int:
    value = _value(path, entry, key, place, field)
    if not isinstance(value, int):
        raise BadSample(path, f"{key}[{place}] has {field} {value!r}, not a whole number", "mend the entry")
    return value


def _positive(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 < value < 1e9 else 0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _four(values: Any) -> Sequence[float]:
    """The four numbers of a box, or NaN for what is none; it is spoken of when the image's turn comes."""
    if isinstance(values, list) and len(values) == 4:
        return [_number(value) for value in values]
    return (np.nan, np.nan, np.nan, np.nan)
