"""Localization: the one object of an image, one file a family."""
