"""Optimizers, schedules, averaging, freezing, compilation, progress and checkpoints of a training."""
