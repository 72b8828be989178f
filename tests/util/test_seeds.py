"""Random numbers of training steps."""

import torch

from segdet.util.seeds import seed_step, step_seed


def drawn(epoch: int = 0, batch: int = 0, rank: int = 0, seed: int = 0) -> float:
    seed_step(seed, epoch, batch, rank, torch.device("cpu"))
    return float(torch.rand(()))


def test_random_numbers_depend_only_on_seed_epoch_batch_and_rank() -> None:
    first = drawn(epoch=3, batch=7)
    torch.rand(5)
    assert drawn(epoch=3, batch=7) == first
    others = [drawn(epoch=7, batch=3), drawn(3, 8), drawn(4, 7), drawn(3, 7, rank=1), drawn(3, 7, seed=1)]
    assert len({first, *others}) == 6


def test_seeds_have_32_bits_and_differ() -> None:
    seeds = [
        step_seed(seed, epoch, batch, rank)
        for seed in range(3) for epoch in range(10) for batch in range(200) for rank in range(4)
    ]  # fmt: skip
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert (
        len(set(seeds)) > len(seeds) - 10
    )  # 24,000 random numbers of 32 bits have 0.07 equal pairs on average
    ones = sum(f"{seed:032b}".count("1") for seed in seeds) / len(seeds)
    assert 15.9 < ones < 16.1
