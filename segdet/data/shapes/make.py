"""Write the Shapes dataset to disk."""

import json
from pathlib import Path
from typing import Literal

from segdet.data.shapes.scenes import SHAPES_CLASSES, Scenes
from segdet.data.shapes.writers import write_cityscapes, write_coco, write_voc
from segdet.util.cores import usable_cores
from segdet.util.errors import UserError

_VERSION = 1  # to be raised when the same seed gives other pixels, so that old folders are recognized
_FIRST_INDEX = {"train": 0, "val": 1_000_000, "test": 2_000_000}
_WRITERS = {"voc": write_voc, "coco": write_coco, "cityscapes": write_cityscapes}


def make_shapes(
    root: Path | str,
    format: Literal["voc", "coco", "cityscapes"] = "voc",
    *,
    train: int = 4000,
    val: int = 400,
    test: int = 400,
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a Shapes dataset as a VOC, COCO or Cityscapes folder, once.

    The settings are kept in ``shapes.json`` in the folder. Where a folder of the same settings is
    complete, nothing is done; an interrupted one is never taken for complete.

    Args:
        root: The folder to make.
        format: Whose files to write.
        train: Number of images in this split; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: ``(height, width)`` of the images.
        seed: Another seed gives another dataset.
        workers: Processes that draw and write; None for one per core. It changes no byte.
        progress: Show a bar.

    Returns:
        ``root``.

    Raises:
        UserError: If a setting is out of range, or if ``root`` holds something else.
    """
    root = Path(root)
    if format not in _WRITERS:
        raise UserError(f"format: there is no {format!r}; choose one of {', '.join(_WRITERS)}")
    counts = {"train": train, "val": val, "test": test}
    for name, count in counts.items():
        if not 0 <= count <= 1_000_000:
            raise UserError(f"{name}: {count} images cannot be made; give a number from 0 to 1000000")
    if min(size) < 64 or max(size) > 4096:
        raise UserError(f"size: {size[0]}x{size[1]} is out of range; give a height and width from 64 to 4096")
    if seed < 0:
        raise UserError(f"seed: {seed} is negative; give 0 or more")
    settings: dict[str, object] = {
        "format": format,
        **counts,
        "size": list(size),
        "seed": seed,
        "version": _VERSION,
    }
    if _is_made(root, settings):
        return root
    splits = {
        name: Scenes(seed, range(_FIRST_INDEX[name], _FIRST_INDEX[name] + count), size)
        for name, count in counts.items()
    }
    try:
        _WRITERS[format](
            root,
            splits,
            SHAPES_CLASSES,
            workers=workers if workers is not None else usable_cores(),
            progress=progress,
            files={"shapes.json": json.dumps(settings) + "\n"},
        )
    except UserError:
        # Another process may have finished the same folder in the meantime.
        if _is_made(root, settings):
            return root
        raise
    return root


def _is_made(root: Path, settings: dict[str, object]) -> bool:
    """Whether ``root`` is complete with just these settings; a `UserError` if it is something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "shapes.json").read_text())
        differences = [
            f"{key} {found.get(key)} instead of {settings[key]}"
            for key in settings
            if found.get(key) != settings[key]
        ]
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"{root}: exists and is no Shapes folder (no readable shapes.json); name another folder, or say what it "
            "is: --data VOCDataModule, COCODataModule, CityscapesDataModule or ImageFolder"
        ) from None
    if differences:
        raise UserError(
            f"{root}: holds Shapes with {', '.join(differences)}; give its own settings (--data.num_train and the "
            "like), or another folder"
        )
    return True
