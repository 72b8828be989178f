"""Confusion matrices. Their cells lead to the images of the gallery that contain the confusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segdet.report.confusion import BACKGROUND, Confusion, confusion_of
from segdet.report.gallery_data import GalleryGroup, group_by_images
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import RunData
from segdet.runs.evidence import Evidence
from segdet.util.nouns import counted

MAX_CLASSES = 20
"""The number of classes of a matrix. The classes with fewer errors share a row."""

MAX_MATRICES = 20
"""The number of runs with a matrix."""

FREQUENT = 8
"""The number of confusions that are listed beside a matrix."""

_IMAGES = 12
"""The number of images listed for a cell, besides those of the gallery."""

_NUMBERS = 60_000
"""The number of listed images on the page. Larger tests list fewer images for each cell."""


@dataclass(frozen=True)
class _Cell:
    """A cell of a matrix.

    Attributes:
        row, column: The position.
        count: The count.
        share: The share of the row.
        images: The number of images.
        listed: The indices of some of them, those of the gallery first.
        in_gallery: How many of the listed images are in the gallery.
    """

    row: int
    column: int
    count: int
    share: float
    images: int
    listed: list[int]
    in_gallery: int

    @property
    def is_correct(self) -> bool:
        """Whether the class is correct."""
        return self.row == self.column


@dataclass(frozen=True)
class _Matrix:
    """The matrix of a run.

    Attributes:
        id: The id of its element.
        run: The run.
        confusion: The matrix, reduced to the classes with the most errors.
        cells: The cells by row and column; None for zero.
        frequent: The most frequent confusions.
        gallery: The id of the gallery of its images, or None.
        files: The file names of the listed images by their index.
    """

    id: str
    run: RunData
    confusion: Confusion
    cells: list[list[_Cell | None]]
    frequent: list[_Cell]
    gallery: str | None
    files: dict[int, str]

    @property
    def script(self) -> dict[str, object]:
        """The values that the page's code needs: the images of each cell."""
        cells = {
            f"{cell.row},{cell.column}": [cell.images, cell.in_gallery, *cell.listed]
            for row in self.cells
            for cell in row
            if cell is not None
        }
        return {"cells": cells, "files": self.files}

    def amount(self, cell: _Cell) -> str:
        """Return the count and the number of images in words."""
        images = counted(cell.images, "image")
        if self.confusion.unit == "images":
            return images
        is_object = self.confusion.min_score is None or cell.row < len(self.confusion.names) - 1
        unit = self.confusion.unit.removesuffix("s") if is_object else "detection"
        return f"{counted(cell.count, unit)} in {images}"

    def describe(self, cell: _Cell) -> str:
        """Return the confusion in words. Unicode isolates keep right-to-left names in their place."""
        names = [f"\u2068{name}\u2069" for name in self.confusion.names]
        has_background = self.confusion.min_score is not None
        if cell.is_correct:
            return f"{names[cell.row]}, correct"
        if has_background and cell.row == len(names) - 1:
            return f"{names[cell.column]} without an object"
        if has_background and cell.column == len(names) - 1:
            return f"{names[cell.row]}, missed"
        return f"{names[cell.row]} as {names[cell.column]}"


def section(page: PageData) -> Section | None:
    """Return the section, or None if no run has evidence."""
    runs = [run for task in page.tasks for run in page.runs_of(task)]
    tested = [(run, run.evidence) for run in runs if run.evidence is not None]
    if not tested:
        return None
    groups = group_by_images(page.runs)
    shown = tested[:MAX_MATRICES]
    limit = int(np.clip(_NUMBERS // (len(shown) * (MAX_CLASSES + 1) ** 2), 3, _IMAGES))
    matrices = [
        _matrix(f"matrix-{number}", run, evidence, groups, limit)
        for number, (run, evidence) in enumerate(shown)
    ]
    left_out = [run.name for run, _ in tested[MAX_MATRICES:]]
    html = render("confusion.html.j2", matrices=matrices, left_out=left_out, background=BACKGROUND)
    return Section("confusion", "Confusion matrices", html)


def _matrix(
    identifier: str, run: RunData, evidence: Evidence, groups: Sequence[GalleryGroup], limit: int
) -> _Matrix:
    confusion = confusion_of(evidence).reduced(MAX_CLASSES)
    gallery, shown = None, np.zeros(0, np.int64)
    for group in groups:
        if run in group.runs:
            gallery, shown = group.id, group.rows(group.runs.index(run))
    matrix = confusion.matrix
    totals = matrix.sum(1)
    size = len(confusion.names)
    cells: list[list[_Cell | None]] = [[None] * size for _ in range(size)]
    files: dict[int, str] = {}
    for (row, column), (images, _) in confusion.images_by_cell().items():
        in_gallery = np.isin(images, shown)
        listed = [*images[in_gallery].tolist(), *images[~in_gallery][:limit].tolist()]
        files |= {index: evidence.file_names[index] for index in listed}
        count = int(matrix[row, column])
        cells[row][column] = _Cell(
            row, column, count, count / int(totals[row]), len(images), listed, int(in_gallery.sum())
        )
    wrong = [cell for line in cells for cell in line if cell is not None and not cell.is_correct]
    wrong.sort(key=lambda cell: (-cell.count, cell.row, cell.column))
    return _Matrix(identifier, run, confusion, cells, wrong[:FREQUENT], gallery, files)
