"""Classes of index masks: the value and the name of each class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segdet.data.formats.class_names import ClassList, is_ignored
from segdet.data.images import MAX_PIXELS, read_mask
from segdet.data.sample import IGNORE
from segdet.util.errors import BadSample, UserError, check_range


class MaskClasses:
    """Map the values of mask files to classes 0..C-1 and to 255 (ignored).

    Args:
        given: Class names. Without ``mask_values``, name i belongs to value i.
        ignore_index: Value to ignore. If it has a name, the name is left out. LabelMe's ``__ignore__`` is always
            left out.
        mask_values: Value of each name; default: 0, 1, 2, ... The value 255 is a class only if this list contains it.

    Attributes:
        names: Names of the classes.
        values: Value of each class in the files.

    Raises:
        UserError: If names and values do not match.
    """

    def __init__(
        self, given: ClassList, ignore_index: int = IGNORE, mask_values: Sequence[int] | None = None
    ) -> None:
        if mask_values is None:
            if len(given.names) > 256:
                raise UserError(
                    f"class_names: {len(given.names)} names, but a mask of 8 bits has 256 values; give fewer"
                )
            ignored = {ignore_index, IGNORE}
            values = list(range(len(given.names)))
        else:
            _check_values(mask_values, given, ignore_index)
            ignored = {ignore_index, IGNORE} - set(mask_values)
            values = list(mask_values)
        value_of = dict(zip(given.names, values, strict=True))
        ignored |= {value for name, value in value_of.items() if is_ignored(name)}
        self.names = [name for name, value in value_of.items() if value not in ignored]
        self.values = [value_of[name] for name in self.names]
        self._colours = {
            colour: value_of.get(name, IGNORE) for colour, name in given.colours.items() if name in value_of
        }
        self._ignored = ignored
        self._lookup, self._valid = np.full(256, IGNORE, np.uint8), np.zeros(256, np.uint8)
        self._lookup[self.values] = np.arange(len(self.values))
        self._valid[[*self.values, *ignored]] = 1

    @property
    def encoding(self) -> list[Any]:
        """Names, values, ignored values and colours, for cache keys."""
        return [self.names, self.values, sorted(self._ignored), sorted(self._colours.items())]

    def read(self, path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Return the class of each pixel of a mask file: uint8 ``[H, W]``, 0..C-1, 255 = ignore.

        Raises:
            BadSample: If the file cannot be read, or contains a value or a colour that is not a class.
        """
        values = read_mask(path, max_pixels, self._colours)
        if not cv2.LUT(values, self._valid).all():
            present = np.bincount(values.ravel(), minlength=256) > 0
            wrong = np.flatnonzero(present & (self._valid == 0)).tolist()
            shown = ", ".join(map(str, wrong[:8])) + (f" ... ({len(wrong)})" if len(wrong) > 8 else "")
            fault = f"value {shown} is not one of the {len(self.names)} classes"
            fix = (
                "give a name for each value in class_names (from 0, or as listed in mask_values), or another "
                "ignore_index"
            )
            raise BadSample(path, fault, fix)
        return cv2.LUT(values, self._lookup)


def _check_values(values: Sequence[int], given: ClassList, ignore_index: int) -> None:
    check_range("mask_values", list(values), least=0, most=255)
    if len(set(values)) < len(values):
        raise UserError(f"mask_values: {list(values)} contains a value twice; give one value per class")
    if len(values) != len(given.names):
        raise UserError(
            f"mask_values: {len(values)} values, but {len(given.names)} class names "
            f"({', '.join(given.names[:4])}{', ...' if len(given.names) > 4 else ''}); give one value per name"
        )
    if ignore_index != IGNORE and ignore_index in values:
        raise UserError(
            f"ignore_index {ignore_index}: is also one of the mask_values; leave it out of one of them"
        )
