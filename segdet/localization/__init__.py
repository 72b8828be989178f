"""Localization: the dominant object of an image, with class and box. One file per family."""

from segdet.localization.base import Localizer
from segdet.localization.box_head import BoxHead

__all__ = ["BoxHead", "Localizer"]
