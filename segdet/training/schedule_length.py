"""The number of optimizer steps that a training will take, on which schedules depend."""

import math

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def schedule_length(trainer: pl.Trainer) -> tuple[float, float]:
    """Return the number of optimizer steps of the training, which may be infinite, and of its first epoch.

    Args:
        trainer: The trainer, whose training data are set up.
    """
    if trainer.limit_train_batches == 0:  # nothing is trained, and Lightning counts no batches
        return 0, 0
    batches = trainer.num_training_batches
    total: float = trainer.estimated_stepping_batches
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # Lightning's estimate assumes the accumulation of the first epoch in all epochs.
        if isinstance(callback, GradientAccumulationScheduler) and trainer.max_epochs not in (None, -1):
            factors = map(callback.get_accumulate_grad_batches, range(trainer.max_epochs))
            steps = sum(math.ceil(batches / factor) for factor in factors)
            total = steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
    return total, per_epoch
