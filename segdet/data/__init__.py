"""Datasets: formats, samples, transforms, LightningDataModules and the synthetic Shapes dataset.

The names below are imported on first use, so that `segdet data check` and similar commands do not import Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segdet.data.base import DataModule
    from segdet.data.datamodules import (
        CityscapesDataModule,
        COCODataModule,
        Images,
        ShapesDataModule,
        VOCDataModule,
    )
    from segdet.data.transforms import Plain, Recipe, ScaleJitter, SSDAugmentation

_MODULES = {"DataModule": "base"} | dict.fromkeys(
    ("Plain", "Recipe", "SSDAugmentation", "ScaleJitter"), "transforms"
)

__all__ = [
    "COCODataModule",
    "CityscapesDataModule",
    "DataModule",
    "Images",
    "Plain",
    "Recipe",
    "SSDAugmentation",
    "ScaleJitter",
    "ShapesDataModule",
    "VOCDataModule",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'datamodules')}"), name)


def __dir__() -> list[str]:
    return __all__
