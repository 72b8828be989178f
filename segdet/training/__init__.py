"""Optimizers, schedules, averaging, freezing, seeding and progress of a training."""
