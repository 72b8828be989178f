"""Samplers for training and evaluation on one or several processes.

The samplers derive from ``DistributedSampler``. Lightning therefore does not replace them, for any value of the
Trainer's ``use_distributed_sampler``. With ``overfit_batches``, Lightning replaces samplers that are not sequential by
one that does not divide the samples among the processes, so `EvalSampler` is sequential too.

In evaluation, Lightning's own sampler repeats samples, which then count twice. `EvalSampler` marks repeated samples as
duplicates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DistributedSampler, SequentialSampler


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of a sample.

    Attributes:
        index: The sample's index.
        epoch: The epoch, which seeds the augmentation.
        duplicate: Whether the sample only fills the last round of a multi-process evaluation.
    """

    index: int
    epoch: int = 0
    duplicate: bool = False


class TrainSampler(DistributedSampler[Draw]):
    """A permutation of the samples, divided among the processes. It depends only on seed and epoch.

    All processes draw the same number of samples. The remainder, which differs in each epoch, is left out.
    If training is resumed within an epoch, the first epoch has only the remaining samples.

    Args:
        length: The size of the dataset.
        seed: The seed of the permutations.
        rank: The rank of this process.
        world_size: The number of processes.
        first_epoch: The epoch to begin with.
        drawn: The number of samples of ``first_epoch`` that this process has already drawn.
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
        super().__init__(range(length), world_size, rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.length = length
        self.world_size = world_size
        self.first_epoch = first_epoch
        self.drawn = drawn
        self.epoch = first_epoch

    def set_epoch(self, epoch: int) -> None:
        """Select the permutation; Lightning calls this before every epoch."""
        # Data-loader workers draw samples in advance, before Lightning sets the epoch to resume in. If no step of that
        # epoch was done, Lightning resumes in the previous epoch.
        self.epoch = max(epoch, self.first_epoch)

    def __len__(self) -> int:
        """The number of samples of a whole epoch, even if only a part of the first epoch remains."""
        return self.length // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        mine = order[self.rank : len(self) * self.world_size : self.world_size]
        if self.epoch == self.first_epoch:
            mine = mine[self.drawn :]
        return (Draw(int(index), self.epoch) for index in mine)


class EvalSampler(DistributedSampler[Draw], SequentialSampler):
    """Every sample once, in order, assigned to the processes in turn.

    All processes draw the same number of samples, because each step synchronizes them. If the samples cannot be divided
    evenly, the last draw of some processes is a duplicate: a sample of another process.

    The arguments are those of `TrainSampler`.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(length), world_size, rank, shuffle=False)  # type: ignore[arg-type]
        self.length = length
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[Draw]:  # type: ignore[override]
        for position in range(self.rank, len(self) * self.world_size, self.world_size):
            yield Draw(position % self.length, 0, position >= self.length)
