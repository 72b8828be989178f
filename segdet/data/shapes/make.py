"""Write the Shapes dataset to disk."""

import json
from pathlib import Path
from typing import Literal

from segdet.data.shapes.scenes import SHAPES_CLASSES, Scenes
from segdet.data.shapes.writers import write_cityscapes, write_coco, write_voc
from segdet.util.cores import usable_cores
from segdet.util.errors import UserError, check_choice, check_range

_VERSION = 1  # increase it when the same seed gives other pixels, so that old folders are recognized
_FIRST_INDEX = {"train": 0, "val": 1_000_000, "test": 2_000_000}
ShapesFormat = Literal["voc", "coco", "cityscapes"]
_WRITERS = {"voc": write_voc, "coco": write_coco, "cityscapes": write_cityscapes}


def make_shapes(
    root: Path | str,
    format: ShapesFormat = "voc",
    *,
    train: int = 4000,
    val: int = 400,
    test: int = 400,
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a Shapes dataset as a VOC, COCO or Cityscapes folder, unless it exists already.

    The settings are stored in ``shapes.json`` in the folder.

    Args:
        root: The folder to create.
        format: The format of the files.
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        size: ``(height, width)`` of the images.
        seed: Seed of the scenes.
        workers: Number of processes, which does not change the files; default: one per core.
        progress: Whether to show a progress bar.

    Returns:
        ``root``.

    Raises:
        UserError: If a setting is out of range, or ``root`` exists with other content.
    """
    root = Path(root)
    check_choice("format", format, ShapesFormat)
    counts = {"train": train, "val": val, "test": test}
    for name, count in counts.items():
        check_range(name, count, least=0, most=1_000_000)
    check_range("size", size, least=64, most=4096)
    check_range("seed", seed, least=0)
    settings: dict[str, object] = {"format": format, **counts}
    settings |= {"size": list(size), "seed": seed, "version": _VERSION}
    if _is_made(root, settings):
        return root
    splits = {
        name: Scenes(seed, range(_FIRST_INDEX[name], _FIRST_INDEX[name] + count), size)
        for name, count in counts.items()
    }
    workers = usable_cores() if workers is None else workers
    files = {"shapes.json": json.dumps(settings) + "\n"}
    try:
        _WRITERS[format](root, splits, SHAPES_CLASSES, workers=workers, progress=progress, files=files)
    except UserError:
        # Another process may have created the same folder in the meantime.
        if not _is_made(root, settings):
            raise
    return root


def _is_made(root: Path, settings: dict[str, object]) -> bool:
    """Return whether ``root`` exists with these settings; raise `UserError` if it has other content."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "shapes.json").read_text())
        differences = [
            f"{key} {found.get(key)} instead of {value}"
            for key, value in settings.items()
            if found.get(key) != value
        ]
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"{root}: exists and is not a Shapes folder (no readable shapes.json); choose another folder, or read it "
            "with --data VOCDataModule, COCODataModule, CityscapesDataModule or Images"
        ) from None
    if differences:
        raise UserError(
            f"{root}: contains Shapes with {', '.join(differences)}; give the same settings (such as "
            "--data.num_train), or another folder"
        )
    return True
