"""Tests of the samplers: the samples that each process draws."""

import pytest

from segdet.data.sampler import EvalSampler, TrainSampler


@pytest.mark.parametrize("length", [1, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_draws_every_sample_once_and_marks_duplicates(length: int, world: int) -> None:
    draws = [list(EvalSampler(length, rank, world)) for rank in range(world)]
    assert len({len(mine) for mine in draws}) == 1
    counted = [d.index for mine in draws for d in mine if not d.duplicate]
    assert sorted(counted) == list(range(length))
    assert all(0 <= d.index < length for mine in draws for d in mine)


def test_training_processes_share_one_permutation_that_changes_with_the_epoch() -> None:
    samplers = [TrainSampler(9, seed=1, rank=rank, world_size=2) for rank in range(2)]
    first = [[d.index for d in s] for s in samplers]
    assert len(first[0]) == len(first[1]) == 4
    assert len({*first[0], *first[1]}) == 8
    for sampler in samplers:
        sampler.set_epoch(1)
    second = [list(s) for s in samplers]
    assert [[d.index for d in mine] for mine in second] != first
    assert {d.epoch for mine in second for d in mine} == {1}
    for sampler in samplers:
        sampler.set_epoch(0)
    assert [[d.index for d in s] for s in samplers] == first


def test_resumed_training_draws_the_remaining_samples() -> None:
    for rank in range(2):
        whole = TrainSampler(11, seed=1, rank=rank, world_size=2)
        rest = TrainSampler(11, seed=1, rank=rank, world_size=2, first_epoch=2, drawn=3)
        assert len(rest) == len(whole) == 5
        whole.set_epoch(2)
        expected = list(whole)[3:]
        assert list(rest) == expected  # even before set_epoch, because workers draw samples in advance
        rest.set_epoch(1)
        assert list(rest) == expected
        rest.set_epoch(2)
        assert list(rest) == expected
        for sampler in (whole, rest):
            sampler.set_epoch(3)
        assert list(rest) == list(whole)
