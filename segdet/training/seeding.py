"""Random numbers that follow from the step, so that a training that goes on draws those that it would have drawn."""

from typing import Any

import lightning.pytorch as pl
import torch

_MASK = (1 << 64) - 1


class StepSeed(pl.Callback):
    """Seeds torch anew before every batch, from the run's seed, the epoch, the batch and the process.

    Dropout and the like then are the same whether or not the run was interrupted on the way. Augmentation has
    seeds of its own (`segdet.data.dataset.TaskDataset`).

    Args:
        seed: The run's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins the count of the epoch's batches, so that a run stopped from here on goes on with all of them."""
        # Lightning does so a moment later, and where SLURM's signal had a checkpoint saved before that, it would find
        # the count of the epoch before when it goes on, and pass over this epoch as one that is done.
        loop = trainer.fit_loop
        loop.epoch_loop.batch_progress.reset_on_run()
        current = loop.epoch_progress.current
        current.ready = current.started + 1  # type: ignore[attr-defined]  # it is one less by then

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds."""
        seed = step_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        # Not torch.manual_seed, which looks for devices of all kinds and takes half a millisecond for it.
        torch.default_generator.manual_seed(seed)
        device = pl_module.device
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)


def step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """A seed below 2^32 of its own for each batch of a run, and for each process.

    The CPU's generator looks at 32 bits only, so that the numbers have to be stirred into these.
    """
    mixed = 0
    for number in (seed, epoch, batch, rank):
        # A round of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) behind each of them.
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 32
