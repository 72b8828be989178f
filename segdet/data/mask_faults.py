"""Find masks that training uses differently from their annotation.

`segdet data check` and the check before a training share these rules.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segdet.data.annotation_faults import no_score, wh
from segdet.data.faults import Fault, FaultKind
from segdet.data.formats.reader import Reader
from segdet.data.sample import IGNORE

_MANY = 0.5
"""Share of ignored pixels that is reported even if masks contain all classes."""


@dataclass
class PixelTally:
    """Numbers of pixels.

    Attributes:
        pixels: int64 ``[256]``, pixels of each class; the last number is that of ignored pixels.
        complete: Whether all masks were counted. If not, no faults are reported.
        remedy: Advice to the user if some pixels are ignored and some classes have no pixels.
    """

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    complete: bool = True
    remedy: str = ""

    @classmethod
    def of(cls, mask: np.ndarray) -> "PixelTally":
        """Count the pixels of a mask uint8 ``[H, W]``."""
        return cls(np.bincount(mask.ravel(), minlength=IGNORE + 1).astype(np.int64))

    def add(self, other: "PixelTally") -> None:
        """Add the numbers of another tally."""
        self.pixels = self.pixels + other.pixels

    def nothing_to_learn(self, path: Path) -> Fault | None:
        """Return the fatal fault of training images without a pixel to learn from, or None."""
        if not self._all_ignored():
            return None
        fault = f"training has no pixel to learn from: all {self.pixels.sum():,} are ignored"
        return Fault(path, fault, True, self.remedy or "train on annotated masks", kind=FaultKind.CLASSES)

    def nothing_to_score(self, path: Path, validation: bool) -> Fault | None:
        """Return the fault of images without a pixel that counts in scores, or None; see `no_score`."""
        if not self._all_ignored():
            return None
        fault = f"no pixel counts in scores: all {self.pixels.sum():,} are ignored"
        return Fault(path, fault, False, no_score(validation), kind=FaultKind.CLASSES)

    def training_faults(self, reader: Reader, path: Path) -> list[Fault]:
        """Return the classes without pixels, and a large share of ignored pixels, in training images."""
        total, ignored = int(self.pixels.sum()), int(self.pixels[IGNORE])
        if not self.complete or ignored == total:
            return []
        faults = []
        share = f"{100 * ignored / total:.3g}% of the pixels are ignored"
        if unused := self.unused(reader):
            names = [f"{reader.mask_names[index]} (value {reader.mask_values[index]})" for index in unused]
            fault = f"no mask contains {_listed(names)}" + (f", and {share}" if ignored else "")
            remedy = self.remedy if ignored and self.remedy else "check that this is intended"
            faults.append(Fault(path, fault, False, remedy, kind=FaultKind.CLASSES))
        elif ignored > _MANY * total:
            faults.append(Fault(path, share, False, "check that this is intended", kind=FaultKind.CLASSES))
        return faults

    def unused(self, reader: Reader) -> list[int]:
        """Return the classes that the dataset names but no mask contains."""
        if not reader.states_masks:
            return []
        return [index for index in range(len(reader.mask_names)) if not self.pixels[index]]

    def _all_ignored(self) -> bool:
        return self.complete and bool(self.pixels.any()) and not self.pixels[:IGNORE].any()


def count_pixels(reader: Reader, tallies: Iterable[PixelTally], complete: bool = True) -> PixelTally:
    """Return the sum of the tallies of a reader's masks."""
    total = PixelTally(complete=complete)
    for tally in tallies:
        total.add(tally)
    total.remedy = reader.unused_class_remedy(total.unused(reader))
    return total


def mask_size_fault(reader: Reader, index: int, mask: np.ndarray, size: tuple[int, int]) -> Fault | None:
    """Return the fatal fault of a mask whose size is not the image's ``size`` (height, width), or None."""
    found = (mask.shape[0], mask.shape[1])
    if found == size:
        return None
    fault = f"the mask is {wh(found)} but its image {reader.image_path(index).name} is {wh(size)}"
    path = reader.annotation_paths(index, "segmentation")[0]
    return Fault(path, fault, True, "fix or remove the file", kind=FaultKind.SIZE)


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" ... ({len(names)})" if len(names) > most else "")
