"""Random numbers that follow from the step, so that a training that goes on draws those that it would have drawn."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch


class StepSeed(pl.Callback):
    """Seeds torch anew before every batch, from the run's seed, the epoch, the batch and the process.

    Dropout and the like then are the same whether or not the run was interrupted on the way. Augmentation has
    seeds of its own (`segdet.data.dataset.TaskDataset`).

    Args:
        seed: The run's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds."""
        place = [self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))
