"""Optimizers, schedules, averaging, freezing, compilation, seeding, progress and checkpoints of a training."""
