"""Faults of a dataset: the file, the fault, its severity and its remedy."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from segdet.util.errors import BadSample


class FaultKind(StrEnum):
    """The kind of a fault."""

    UNREADABLE = "unreadable"
    """The file is missing or corrupt, or its content is invalid."""
    PIXEL_FORMAT = "pixel_format"
    """The image is not 8-bit RGB."""
    ROTATION = "rotation"
    """The image has an EXIF rotation."""
    SIZE = "size"
    """Image and annotation differ in size."""
    NOT_FINITE = "not_finite"
    """A coordinate of a box is NaN or infinite."""
    DEGENERATE = "degenerate"
    """A box has no width or no height."""
    OUTSIDE = "outside"
    """A box lies outside the image."""
    SMALL = "small"
    """A box is smaller than a pixel, possibly only after resizing."""
    CLIPPED = "clipped"
    """A part of a box lies outside the image."""
    ANNOTATION = "annotation"
    """Another fault of an annotation, such as a repeated id or an unknown mask value."""
    CLASSES = "classes"
    """Class names are missing, assumed or contradictory, or a class has no objects or pixels."""
    CATEGORY = "category"
    """A category is left out, missing, or numbered differently in another split."""
    SPLIT = "split"
    """An image is in several splits, in none, or twice in one."""


@dataclass(frozen=True)
class Fault:
    """A fault in a file of a dataset.

    Attributes:
        path: The file at fault.
        fault: Description of the fault.
        fatal: Whether the sample is unusable, so that training stops with an error.
        remedy: How to fix the fault or, for a fault that is not fatal, how it is handled.
        note: True for information about the dataset that is not a fault.
        kind: The kind of the fault.
    """

    path: Path
    fault: str
    fatal: bool
    remedy: str
    note: bool = False
    kind: FaultKind = FaultKind.ANNOTATION

    @classmethod
    def of(cls, error: BadSample) -> "Fault":
        """Return the fatal fault that ``error`` describes."""
        return cls(error.path, error.fault, True, error.remedy, kind=FaultKind.UNREADABLE)

    def error(self, more: int = 0) -> BadSample:
        """Return the fault as an error.

        Args:
            more: Number of further faults, which the message mentions.
        """
        others = f" ({more:,} more: see `segdet data check`)" if more else ""
        return BadSample(self.path, self.fault, self.remedy + others)

    @property
    def note_line(self) -> str:
        """The name of the file and the fault, for ``left_out.txt``."""
        return f"{self.path.name}: {self.fault}"

    @property
    def severity(self) -> str:
        """``fatal``, ``warning`` or ``note``."""
        return "fatal" if self.fatal else "note" if self.note else "warning"

    def __str__(self) -> str:
        return f"{self.severity:<8} {self.path}: {self.fault}; {self.remedy}"
