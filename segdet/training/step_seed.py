"""Random numbers that depend only on the step, so that a resumed training draws those of an uninterrupted one."""

import lightning.pytorch as pl
import torch

_MASK = (1 << 64) - 1


def seed_step(seed: int, epoch: int, batch: int, rank: int, device: torch.device) -> None:
    """Seed torch's random numbers, on the CPU and on ``device``, for one batch of a training.

    Dropout and the like are then the same whether or not the training was interrupted. Augmentation has its own seeds
    (`segdet.data.dataset.TaskDataset`).

    Args:
        seed: The seed of the run.
        epoch: The epoch.
        batch: The batch within the epoch.
        rank: The process.
        device: The model's device.
    """
    mixed = step_seed(seed, epoch, batch, rank)
    # torch.manual_seed checks for devices of all kinds, which takes half a millisecond.
    torch.default_generator.manual_seed(mixed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(mixed)


def start_epoch_count(trainer: pl.Trainer) -> None:
    """Reset the count of batches at the start of an epoch, so that a checkpoint saved now resumes with all of them.

    Lightning resets it slightly later. If SLURM's signal had a checkpoint saved before that, the resumed training would
    find the count of the previous epoch and skip this epoch.
    """
    loop = trainer.fit_loop
    loop.epoch_loop.batch_progress.reset_on_run()
    current = loop.epoch_progress.current
    current.ready = current.started + 1  # type: ignore[attr-defined]  # Lightning increases `started` after this hook


def step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """Return a seed below 2^32 that differs for each batch of a run and for each process.

    torch's CPU generator uses 32 bits of a seed, so the four numbers are mixed into these.
    """
    mixed = 0
    for number in (seed, epoch, batch, rank):
        # One round of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) after each number.
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 32
