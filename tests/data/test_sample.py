"""Moving batches to a device."""

from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from segdet.data.sample import Batch, Source, Target, _moved


def batch(counts: list[int]) -> Batch:
    targets = [
        Target(
            boxes=torch.rand(count, 4),
            labels=torch.arange(count),
            iscrowd=torch.zeros(count, dtype=torch.bool),
        )
        for count in counts
    ]
    sources = [Source(Path("a.png"), number, (8, 8)) for number in range(len(counts))]
    return Batch(
        torch.zeros(len(counts), 3, 8, 8, dtype=torch.uint8), [(8, 8)] * len(counts), targets, sources
    )


class Copies(TorchDispatchMode):
    """Counter of copies from one device to another."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "_to_copy" in str(function)
        return function(*args, **(kwargs or {}))


def test_objects_of_all_images_are_moved_in_one_copy_per_key() -> None:
    seen = []
    for counts in ([2, 0, 3], [1] * 20):
        with Copies() as copies:
            moved = batch(counts).to("meta")
        seen.append(copies.count)
        assert moved.images.device.type == "meta"
        assert [len(target["labels"]) for target in moved.targets] == counts
        assert {value.device.type for target in moved.targets for value in target.values()} == {"meta"}  # type: ignore[attr-defined]
    assert seen == [4, 4]  # one copy of the images and one for each of the three keys of the targets


def test_a_batch_that_is_already_on_the_device_is_not_copied() -> None:
    here = batch([1, 2])
    assert here.to("cpu") is here


def test_moved_targets_are_equal() -> None:
    targets = batch([2, 0, 3]).targets
    for one, other in zip(_moved(targets, torch.device("cpu"), False), targets, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)  # type: ignore[literal-required]
