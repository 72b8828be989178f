"""Read a folder of images without annotations, for prediction."""

from pathlib import Path

import numpy as np

from segdet.data.formats.reader import Reader
from segdet.data.images import SUFFIXES
from segdet.data.sample import Objects, TaskName
from segdet.util.errors import UserError


class FolderReader(Reader):
    """The images of a folder and its subfolders, sorted by path, without annotations.

    Hidden files and folders are skipped: macOS stores a ``._a.jpg``, which is not an image, beside ``a.jpg``.

    Args:
        root: The folder.
        class_names: Class names of the model that predicts on the images.

    Raises:
        UserError: If the folder is missing or has no images.
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
            suffixes = ", ".join(sorted(SUFFIXES))
            raise UserError(f"{root}: no image in this folder; give one with {suffixes} files")
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

    def annotation_paths(self, index: int, task: TaskName) -> list[Path]:
        return []
