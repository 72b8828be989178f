"""Which samples a process draws, in which order: the same for any number of workers.

Lightning's own distributed sampler repeats samples in evaluation, which then count twice. The samplers
here know the process they serve, and what they repeat to fill the last round they mark as a duplicate.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of a sample: its index, the epoch (which seeds its augmentation), and whether it only fills up."""

    index: int
    epoch: int = 0
    duplicate: bool = False


class TrainSampler(Sampler[Draw]):
    """A new permutation each epoch, from the seed and the epoch alone, shared out among the processes.

    Each process draws equally many; what does not divide is left out of the epoch (another part each time).
    A training that goes on begins in the middle of an epoch: it draws what is left of that one, and all of
    those that follow.

    Args:
        length: The size of the data set.
        seed: Of the permutations.
        rank: This process.
        world_size: All processes.
        first_epoch: The epoch to begin with.
        drawn: How many of this process's draws of that epoch lie behind it already.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        first_epoch: int = 0,
        drawn: int = 0,
    ) -> None:
        self.length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.first_epoch = first_epoch
        self.drawn = drawn
        self.epoch = first_epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation; Lightning calls it before every epoch."""
        # Worker processes draw ahead, before Lightning has said in which epoch it goes on; and it goes on in
        # the one that was finished last where no step of the next had been done.
        self.epoch = max(epoch, self.first_epoch)

    def __len__(self) -> int:
        """The draws of a whole epoch, also where only a part of the first is left."""
        return self.length // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        mine = order[self.rank : len(self) * self.world_size : self.world_size]
        if self.epoch == self.first_epoch:
            mine = mine[self.drawn :]
        return (Draw(int(index), self.epoch) for index in mine)


class EvalSampler(Sampler[Draw]):
    """Every sample once, in order; the processes take turns.

    All processes draw equally many, because a step of one is a step of all: where the number does not
    divide, the last draw of some is a sample that another one has, marked as a duplicate.

    Args:
        length: The size of the data set.
        rank: This process.
        world_size: All processes.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[Draw]:
        for position in range(self.rank, len(self) * self.world_size, self.world_size):
            yield Draw(position % self.length, 0, position >= self.length)
