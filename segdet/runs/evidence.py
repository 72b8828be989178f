"""The evidence of a test: the predictions and annotations of each image, from which all scores can be recomputed.

It is stored in ``per_image/evidence.npz`` in the run's folder. This path is the field ``per_image`` of the record. The
scores of any selection of images follow from it without the network and the dataset, for example for a bootstrap over
images. Reading it does not import torch.

The file is a compressed archive of numpy arrays, one per attribute of the classes below, and ``header``: JSON with the
version, the task and the lists of strings.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

import numpy as np

from segdet.util.errors import UserError
from segdet.util.files import write_atomically

EVIDENCE_NAME = "per_image/evidence.npz"
"""The path of the evidence in a run's folder, as in the record."""

VERSION = 1
"""The version of the format. Increase it when an array changes its meaning, not for a new optional array."""

WRONG, CORRECT, IGNORED = range(3)
"""The values of ``match``, ``voc_match`` and ``mask_match``."""

IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
"""The thresholds of ``match`` and ``mask_match``: COCO's .5, .55, ... .95."""

GUESSES = 5
"""The number of classes per image in `LocalizationEvidence`."""


@dataclass(frozen=True)
class _Layout:
    """The type and shape of an array.

    Attributes:
        dtype: The type; ``f`` means float32 if that is exact, else float64.
        shape: A letter is a length that several arrays share.
        values: The smallest value, and the letter whose length is the number of values; None if all are permitted.
    """

    dtype: str
    shape: tuple[str | int, ...]
    values: tuple[int, str] | None = None

    def check_values(self, name: str, array: np.ndarray, lengths: dict[str, int]) -> None:
        """Check that all values are permitted.

        Raises:
            ValueError: If not.
        """
        if self.values is None or not array.size:
            return
        least, letter = self.values
        most = least + lengths[letter] - 1
        if array.min() < least or array.max() > most:
            raise ValueError(f"{name} has values outside of {least} to {most}")


@dataclass(frozen=True, eq=False, kw_only=True)
class _Images:
    """The images of a test, in ascending order of their ids.

    Attributes:
        class_names: The names of the K classes.
        image_ids: int64 ``[I]``, ascending and unique.
        file_names: The image files, relative to the root of the dataset, with ``/`` on all systems.
        sizes: int32 ``[I, 2]``: height and width of each image on disk.
    """

    task: ClassVar[str]

    class_names: list[str]
    image_ids: Annotated[np.ndarray, _Layout("i8", ("I",))]
    file_names: list[str]
    sizes: Annotated[np.ndarray, _Layout("i4", ("I", 2))]

    def __post_init__(self) -> None:
        """Convert the arrays to their types and check their shapes.

        Raises:
            ValueError: If a shape, type, index or label is wrong.
        """
        lengths = {"I": len(self.file_names), "K": len(self.class_names)}
        for name, layout in _layouts(type(self)).items():
            value = getattr(self, name)
            if value is None:
                continue
            array = _converted(name, value, layout.dtype)
            shape = tuple(
                lengths.setdefault(length, array.shape[axis] if axis < array.ndim else -1)
                if isinstance(length, str)
                else length
                for axis, length in enumerate(layout.shape)
            )
            if array.shape != shape:
                raise ValueError(f"{name} has the shape {array.shape} instead of {shape}")
            layout.check_values(name, array, lengths)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)


def _layouts(cls: type[_Images]) -> dict[str, _Layout]:
    """Return the layouts of the arrays of ``cls`` by name."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionEvidence(_Images):
    """The detections and objects of a test, and which detections are correct.

    Detections are sorted by image, class and descending score; at equal scores in an image, the first one ranks
    higher. Objects are sorted by image and class. A dataset-wide ranking by score is stable: at equal scores, the
    detection of the earlier image comes first.

    COCO evaluates at most 100 detections per image and class. The others are IGNORED in ``match`` and ``mask_match``,
    but count in ``voc_match``.

    Attributes:
        image: int32 ``[N]``: the index of each detection's image.
        label: int16 ``[N]``: 1..K.
        score: float ``[N]``: float32, or float64 if float32 would change a score.
        box: float32 ``[N, 4]``: xyxy in pixels of the image on disk.
        match: uint8 ``[N, 10]``: WRONG, CORRECT or IGNORED by COCO's rule at each of `IOUS`, for objects of all areas.
        voc_match: uint8 ``[N]``: the same by VOC's rule, at IoU > .5.
        object_image: int32 ``[M]``: the index of each object's image.
        object_label: int16 ``[M]``: 1..K.
        object_box: float32 ``[M, 4]``: xyxy in pixels of the image on disk.
        object_crowd: bool ``[M]``: the object is a crowd. Crowds and difficult objects do not count as objects.
        object_difficult: bool ``[M]``: the object is difficult.
        object_area: float64 ``[M]``: the annotated area.
        mask_match: uint8 ``[N, 10]``: as ``match``, for masks; None if no masks were scored.
    """

    task: ClassVar[str] = "detection"

    image: Annotated[np.ndarray, _Layout("i4", ("N",), (0, "I"))]
    label: Annotated[np.ndarray, _Layout("i2", ("N",), (1, "K"))]
    score: Annotated[np.ndarray, _Layout("f", ("N",))]
    box: Annotated[np.ndarray, _Layout("f4", ("N", 4))]
    match: Annotated[np.ndarray, _Layout("u1", ("N", len(IOUS)))]
    voc_match: Annotated[np.ndarray, _Layout("u1", ("N",))]
    object_image: Annotated[np.ndarray, _Layout("i4", ("M",), (0, "I"))]
    object_label: Annotated[np.ndarray, _Layout("i2", ("M",), (1, "K"))]
    object_box: Annotated[np.ndarray, _Layout("f4", ("M", 4))]
    object_crowd: Annotated[np.ndarray, _Layout("?", ("M",))]
    object_difficult: Annotated[np.ndarray, _Layout("?", ("M",))]
    object_area: Annotated[np.ndarray, _Layout("f8", ("M",))]
    mask_match: Annotated[np.ndarray | None, _Layout("u1", ("N", len(IOUS)))] = None

    def has_objects_of(self, other: "DetectionEvidence") -> bool:
        """Return whether both tests have the same images, classes and objects."""
        arrays = (
            "image_ids",
            "object_image",
            "object_label",
            "object_box",
            "object_crowd",
            "object_difficult",
        )
        return (
            self.class_names == other.class_names
            and self.file_names == other.file_names
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays)
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentationEvidence(_Images):
    """The confusion matrix of each image, as a list of its entries that are not zero.

    Entries are sorted by image, true class and predicted class.

    Attributes:
        image: int32 ``[N]``: the index of each entry's image.
        truth: uint8 ``[N]``: the true class, 0..K-1.
        predicted: uint8 ``[N]``: the predicted class, 0..K-1.
        pixels: int64 ``[N]``: the number of pixels.
        boundary_f1: float64 ``[I, K]``: the F1 of each class's boundary, NaN where it is undefined; None if boundary
            scores were not computed. ``bf`` is the mean over the images of the mean over the defined classes.
        boundary_bands: int64 ``[I, 2, K]``: the pixels in the intersection and the union of the bands of each class;
            None if boundary scores were not computed.
    """

    task: ClassVar[str] = "segmentation"

    image: Annotated[np.ndarray, _Layout("i4", ("N",), (0, "I"))]
    truth: Annotated[np.ndarray, _Layout("u1", ("N",), (0, "K"))]
    predicted: Annotated[np.ndarray, _Layout("u1", ("N",), (0, "K"))]
    pixels: Annotated[np.ndarray, _Layout("i8", ("N",))]
    boundary_f1: Annotated[np.ndarray | None, _Layout("f8", ("I", "K"))] = None
    boundary_bands: Annotated[np.ndarray | None, _Layout("i8", ("I", 2, "K"))] = None


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalizationEvidence(_Images):
    """The predictions and the object of each image.

    Attributes:
        label: int16 ``[I]``: the true class, 1..K.
        predicted: int16 ``[I, 5]``: the five best classes, best first; 0 where there are fewer classes.
        iou: float64 ``[I]``: the IoU of the first prediction's box, of any class.
        located_top5: bool ``[I]``: one of the five predictions has the correct class and a box of IoU >= .5.
        box: float32 ``[I, 4]``: the first prediction's box, xyxy in pixels of the image on disk.
        object_box: float32 ``[I, 4]``: the object's box.
        score: float32 ``[I]``: the first prediction's score.
    """

    task: ClassVar[str] = "localization"

    label: Annotated[np.ndarray, _Layout("i2", ("I",), (1, "K"))]
    predicted: Annotated[np.ndarray, _Layout("i2", ("I", GUESSES))]
    iou: Annotated[np.ndarray, _Layout("f8", ("I",))]
    located_top5: Annotated[np.ndarray, _Layout("?", ("I",))]
    box: Annotated[np.ndarray, _Layout("f4", ("I", 4))]
    object_box: Annotated[np.ndarray, _Layout("f4", ("I", 4))]
    score: Annotated[np.ndarray, _Layout("f4", ("I",))]


Evidence = DetectionEvidence | SegmentationEvidence | LocalizationEvidence

_CLASSES: dict[str, type[Evidence]] = {
    each.task: each for each in (DetectionEvidence, SegmentationEvidence, LocalizationEvidence)
}


def write_evidence(path: Path | str, evidence: Evidence) -> None:
    """Write evidence to the file ``path`` atomically; create its folder.

    Equal evidence gives equal files.

    Raises:
        UserError: If the file cannot be written.
    """
    header = {
        "version": VERSION,
        "task": evidence.task,
        "class_names": [str(name) for name in evidence.class_names],
        "file_names": [str(name) for name in evidence.file_names],
    }
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    arrays = {name: getattr(evidence, name) for name in _layouts(type(evidence))}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with write_atomically(Path(path), parents=True) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, header=np.frombuffer(text, np.uint8), **arrays)


def read_evidence(path: Path | str) -> Evidence:
    """Read the evidence in the file ``path``.

    Raises:
        UserError: If the file is missing or corrupt, or another version of segdet wrote it.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or "header" not in archive:
                raise _corrupt(path, "no evidence of a test")
            header = json.loads(archive["header"].tobytes().decode("utf-8", "surrogatepass"))
            if header["version"] != VERSION:
                raise UserError(
                    f"{path}: has version {header['version']!r}, but this version of segdet reads {VERSION}; use the "
                    "version that wrote it, or run segdet test again"
                )
            cls = _CLASSES[header["task"]]
            values = {name: [str(each) for each in header[name]] for name in ("class_names", "file_names")}
            arrays = {name: archive[name] for name in _layouts(cls) if name in archive}
            return cls(**values, **arrays)  # type: ignore[arg-type]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run segdet test to write it") from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _corrupt(path, str(error)) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); make the file readable"
        ) from error


def _corrupt(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: corrupt, or not evidence ({' '.join(reason.split())}); run segdet test again")


def _converted(name: str, value: Any, dtype: str) -> np.ndarray:
    """Return ``value`` as an array of ``dtype``; see `_Layout`.

    Raises:
        ValueError: If the conversion would change values.
    """
    array = np.asarray(value)
    if dtype == "f":
        if array.dtype.kind != "f":
            raise ValueError(f"{name} has the type {array.dtype} instead of a float")
        narrow = array.astype(np.float32)
        return narrow if np.array_equal(narrow, array) else array
    target = np.dtype(dtype)
    if array.dtype.kind in "ui" and target.kind in "ui" and array.size:
        limits = np.iinfo(target)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"{name} has values outside of {target}")
    elif array.dtype.kind != target.kind and array.size:
        raise ValueError(f"{name} has the type {array.dtype} instead of {target}")
    return array.astype(target, copy=False)
