"""Experiment files, and how fast our parts are beside those that others use."""
