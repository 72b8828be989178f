"""Mosaics: pixels, boxes and masks match, and the seed determines them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from segdet.data import ShapesDataModule
from segdet.data.base import _with_mosaic
from segdet.data.mosaic import MosaicDataset, mosaic
from segdet.data.sample import Sample, Source, Target
from segdet.data.sampler import Draw
from segdet.data.transforms import ScaleJitter
from segdet.util.errors import UserError

SIDE = 64


def quartered(count: int) -> list[Sample]:
    """Return images of one colour each, with a rectangular object of another colour."""
    samples = []
    for place in range(count):
        image = torch.full((3, SIDE, SIDE), 40 * place + 10, dtype=torch.uint8)
        image[:, 8:56, 16:48] += 5
        masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
        masks[0, 8:56, 16:48] = 1
        masks[1, 0:2, 0:2] = 1
        target = Target(
            boxes=torch.tensor([[16.0, 8, 48, 56], [0, 0, 2, 2]]), labels=torch.tensor([place + 1, 9]),
            iscrowd=torch.zeros(2, dtype=torch.bool), difficult=torch.zeros(2, dtype=torch.bool),
            area=torch.tensor([768.0, 4.0]), masks=masks,
        )  # fmt: skip
        samples.append(Sample(image, target, Source(Path(f"{place}.png"), place, (SIDE, SIDE))))
    return samples


@pytest.mark.parametrize("seed", range(8))
def test_boxes_and_masks_match_the_pixels(seed: int) -> None:
    made = mosaic(quartered(4), np.random.default_rng(seed))
    assert made.image.shape == (3, SIDE, SIDE)
    target = made.target
    tall = 0
    for box, label, mask, area in zip(
        target["boxes"], target["labels"], target["masks"], target["area"], strict=True
    ):
        x0, y0, x1, y1 = (int(v) for v in box)
        within = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        within[y0:y1, x0:x1] = True
        assert torch.equal(mask.bool(), within)
        size = (x1 - x0) * (y1 - y0)
        if label != 9:
            there = made.image[0] == 40 * (int(label) - 1) + 15
            assert torch.equal(there, within)
            assert float(area) == pytest.approx(768 * size / (32 * 48))  # the area shrinks with the box
            tall += 1
    assert tall >= 2
    colours = {int(v) // 40 for v in made.image[0].unique()}
    assert colours == {0, 1, 2, 3}


def test_boxes_below_min_visibility_are_dropped() -> None:
    few, many = (
        sum(len(mosaic(quartered(4), np.random.default_rng(s), least).target["boxes"]) for s in range(10))
        for least in (0.9, 0.0)
    )
    assert 0 < few < many


def test_small_images_are_padded_with_the_mean_colour() -> None:
    large, *others = quartered(4)
    small = [Sample(o.image[:, :5, :5], Target(**{k: v[:0] for k, v in o.target.items() if k != "masks"}), o.source)  # type: ignore[index,misc]
             for o in others]  # fmt: skip
    del large.target["masks"]
    made = mosaic([large, *small], np.random.default_rng(0))
    assert (made.image == torch.tensor([124, 116, 104])[:, None, None]).all(0).sum() > 500


def module(root: Path, **options: Any) -> ShapesDataModule:
    return ShapesDataModule(
        root, num_train=8, num_val=2, num_test=2, image_size=(64, 64), batch_size=4, seed=3,
        recipe=ScaleJitter(crop=(48, 48)), **options,
    )  # fmt: skip


def epoch(data: ShapesDataModule, number: int) -> list[torch.Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    batches = list(loader)
    return [
        torch.cat([b.images.flatten() for b in batches]),
        torch.cat([t["boxes"] for b in batches for t in b.targets]),
    ]


def test_mosaics_depend_on_the_seed_and_not_on_workers(tmp_path: Path) -> None:
    alone = epoch(module(tmp_path, num_workers=0, mosaic=0.5), 1)
    by_worker = epoch(module(tmp_path, num_workers=1, mosaic=0.5), 1)
    assert all(torch.equal(one, other) for one, other in zip(alone, by_worker, strict=True))
    another = epoch(module(tmp_path, num_workers=0, mosaic=0.5), 2)
    assert not torch.equal(alone[0], another[0])


def test_the_last_epochs_have_no_mosaics(tmp_path: Path) -> None:
    data = module(tmp_path, num_workers=0, mosaic=1.0, mosaic_off_epochs=2)

    class Five:
        max_epochs = 5
        state = SimpleNamespace(fn="fit")

    data.trainer = Five()  # type: ignore[assignment]
    dataset = _with_mosaic(data, data.dataset("train"))
    assert dataset.epochs == 3
    plain = module(tmp_path, num_workers=0).dataset("train")
    assert torch.equal(dataset[Draw(1, 3)].image, plain[Draw(1, 3)].image)
    assert not torch.equal(dataset[Draw(1, 2)].image, plain[Draw(1, 2)].image)
    Five.max_epochs = -1
    with pytest.raises(UserError, match=r"--data.mosaic_off_epochs 2: .* give --trainer.max_epochs"):
        _with_mosaic(data, data.dataset("train"))


def test_mosaics_of_other_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mosaics cannot be used for segmentation"):
        module(tmp_path, task="segmentation", mosaic=0.5)
    with pytest.raises(UserError, match="must be at least 0 and at most 1"):
        module(tmp_path, mosaic=1.5)


def test_a_bad_sample_of_a_mosaic_is_replaced_and_listed(tmp_path: Path) -> None:
    data = module(tmp_path, num_workers=0, on_bad_sample="skip")
    dataset = data.dataset("train")
    bad = dataset.reader.image_path(1)
    bad.write_bytes(b"")
    mosaics = MosaicDataset(dataset, 1.0)
    notes = {note for index in range(8) for note in mosaics[index].source.notes}
    assert any(bad.name in note for note in notes)
