"""Experiment files, what a model costs, and the record that a run leaves."""
