"""Seeds of random number generators."""

import os

import torch

_MASK = (1 << 64) - 1


def global_seed() -> int:
    """Return the seed given to `lightning.seed_everything`, or 0 if it has not been called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def seed_step(seed: int, epoch: int, batch: int, rank: int, device: torch.device) -> None:
    """Seed torch's random numbers, on the CPU and on ``device``, for a batch of an epoch in the process ``rank``.

    Dropout and similar layers then draw the same numbers in a resumed training as in an uninterrupted one. Augmentation
    has its own seeds (`segdet.data.dataset.TaskDataset`).
    """
    mixed = step_seed(seed, epoch, batch, rank)
    # torch.manual_seed checks for devices of all kinds, which takes half a millisecond.
    torch.default_generator.manual_seed(mixed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(mixed)


def step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """Return a seed below 2^32 that differs for each batch of a run and for each process.

    torch's CPU generator uses 32 bits of a seed, so the four numbers are mixed into 32 bits.
    """
    mixed = 0
    for number in (seed, epoch, batch, rank):
        # One round of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) after each number.
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 32
