"""A folder of ordinary images, to predict on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.datamodule import DataModule, Subset
from segdet.data.formats.reader import Reader
from segdet.data.sample import Objects, Task
from segdet.util.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


class FolderReader(Reader):
    """The images of a folder and its subfolders, in the order of their paths, without annotations.

    Hidden files and folders are passed over: macOS puts a ``._a.jpg``, which is no image, beside ``a.jpg``.

    Args:
        root: The folder.
        class_names: What the network that predicts on them can say.

    Raises:
        UserError: If the folder is missing or holds no image.
    """

    annotated = False
    states_classes = False

    def __init__(self, root: Path, class_names: list[str]) -> None:
        if not root.is_dir():
            fault = "is a file" if root.exists() else "no such folder"
            raise UserError(f"{root}: {fault}; give a folder of images as --data.root")
        self.paths = sorted(
            path
            for path in root.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(root).parts)
            and path.is_file()
        )
        if not self.paths:
            raise UserError(
                f"{root}: no image in this folder; give one that holds {', '.join(sorted(SUFFIXES))}"
            )
        self.class_names = self.mask_names = class_names
        self.category_ids = list(range(1, len(class_names) + 1))

    def __len__(self) -> int:
        return len(self.paths)

    def image_path(self, index: int) -> Path:
        return self.paths[index]

    def upright(self, index: int) -> bool:
        return True

    def declared_size(self, index: int) -> tuple[int, int] | None:
        return None

    def objects(self, index: int) -> Objects:
        return Objects()

    def mask(self, index: int) -> np.ndarray:
        raise NotImplementedError("a folder of images has no masks")

    def annotation_paths(self, index: int, task: Task) -> list[Path]:
        return []


class ImageFolder(DataModule):
    """A folder of ordinary images, for `segdet predict`. Photographs are turned upright as their EXIF says.

    Args:
        root: The folder; its subfolders are searched too.
        class_names: The classes of the network; taken from the checkpoint when null.
        kwargs: As for `DataModule`.
    """

    def __init__(self, root: str | Path, class_names: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.given_class_names = class_names

    def open_reader(self, subset: Subset) -> FolderReader:
        if self.given_class_names is None:
            raise UserError(
                f"{self.root}: a folder of images names no classes; give --ckpt_path, which knows them, or "
                "--data.class_names"
            )
        return FolderReader(self.root, self.given_class_names)
