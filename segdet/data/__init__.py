"""Datasets: formats, tasks, transforms, and the scenes made here.

The names below are loaded when they are first asked for: `segdet data check` and its like read files
without Lightning.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "CityscapesDataModule": "datamodule",
    "COCODataModule": "datamodule",
    "DataModule": "datamodule",
    "ShapesDataModule": "datamodule",
    "VOCDataModule": "datamodule",
    "ImageFolder": "formats.image_folder",
    "Plain": "transforms",
    "SSDAugmentation": "transforms",
    "ScaleJitter": "transforms",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
