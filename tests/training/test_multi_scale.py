"""Resized batches: boxes, areas and masks are resized too, and the given targets are not modified."""

import torch

from segdet.data.sample import Target
from segdet.training.multi_scale import rescale, scaled_size


def test_everything_of_a_batch_is_rescaled() -> None:
    images = torch.rand(1, 3, 64, 96)
    mask = torch.zeros(64, 96, dtype=torch.int64)
    mask[16:48, 24:72] = 255
    box = torch.tensor([[24.0, 16, 72, 48]])
    target = Target(
        boxes=box, proposals=box + 1, area=torch.tensor([600.0]), labels=torch.tensor([2]), mask=mask,
        masks=(mask == 255)[None].to(torch.uint8),
    )  # fmt: skip
    before = {key: value.clone() for key, value in target.items()}  # type: ignore[attr-defined]
    larger, (new,) = rescale(images, [target], (128, 96))
    assert larger.shape == (1, 3, 128, 96)
    assert new["boxes"].tolist() == [[24, 32, 72, 96]]
    assert new["proposals"].tolist() == [[25, 34, 73, 98]]
    assert new["area"].tolist() == [1200]
    assert (new["mask"][32:96, 24:72] == 255).all() and (new["mask"] == 255).sum() == 64 * 48
    assert (new["masks"][0] == (new["mask"] == 255)).all()
    for key, value in before.items():
        assert torch.equal(target[key], value)  # type: ignore[literal-required]
    same, targets = rescale(larger, [new], (128, 96))
    assert same is larger and targets[0] is new


def test_sides_are_multiples_of_32() -> None:
    assert scaled_size((64, 160), 1.5) == (96, 256)
    assert scaled_size((480, 640), 0.7) == (320, 448)
    assert scaled_size((40, 40), 0.2) == (32, 32)
