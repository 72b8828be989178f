"""Semantic segmentation: a class for every pixel, one file a family."""
