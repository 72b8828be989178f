"""Checks, statistics and pictures of a dataset."""
