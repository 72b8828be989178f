"""Samples of each task: targets, originals, dominant objects and bad files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from segdet.data.cleaning import dominant_object
from segdet.data.dataset import TaskDataset
from segdet.data.formats.reader import Reader
from segdet.data.sample import Objects, TaskName, collate
from segdet.data.sampler import Draw
from segdet.data.transforms import Plain, ScaleJitter
from segdet.util.errors import BadSample, UserError


def _objects(*rows: tuple[float, float, float, float, int, bool, bool]) -> Objects:
    table = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    area = (table[:, 2] - table[:, 0]) * (table[:, 3] - table[:, 1])
    labels, crowd, difficult = (np.array([row[i] for row in rows]) for i in (4, 5, 6))
    return Objects(table, labels.astype(np.int64), crowd.astype(bool), difficult.astype(bool), area)


class _Reader(Reader):
    """Images of increasing width with given objects; masks are 1 in the left half and 255 in the top row."""

    class_names = ["a", "b"]
    mask_names = ["background", "left"]
    category_ids = [1, 2]

    def __init__(self, folder: Path, objects: list[Objects], mask_height: int = 20) -> None:
        self.given = objects
        self.mask_height = mask_height
        self.paths = [folder / f"{i}.png" for i in range(len(objects))]
        for i, path in enumerate(self.paths):
            cv2.imwrite(str(path), np.full((20, 30 + i, 3), 10 * i, np.uint8))

    def __len__(self) -> int:
        return len(self.given)

    def image_path(self, index: int) -> Path:
        return self.paths[index]

    def declared_size(self, index: int) -> tuple[int, int] | None:
        return 20, 30 + index

    def objects(self, index: int) -> Objects:
        return self.given[index]

    def mask(self, index: int) -> np.ndarray:
        mask = np.zeros((self.mask_height, 30 + index), np.uint8)
        mask[:, :15] = 1
        mask[0] = 255
        return mask

    def annotation_paths(self, index: int, task: TaskName) -> list[Path]:
        return [self.paths[index].with_suffix(".xml")]


PLAIN_BOX = (2, 3, 12, 13, 1, False, False)
CROWD = (0, 0, 30, 20, 2, True, False)
DIFFICULT = (5, 5, 15, 15, 2, False, True)
OUTSIDE_PARTLY = (20, 10, 40, 30, 2, False, False)
DEGENERATE = (4, 4, 4, 9, 1, False, False)


def test_detection_trains_on_ordinary_objects_and_scores_against_all(tmp_path: Path) -> None:
    reader = _Reader(tmp_path, [_objects(PLAIN_BOX, CROWD, DIFFICULT, OUTSIDE_PARTLY, DEGENERATE)])
    sample = TaskDataset(reader, "detection", Plain(), training=True)[0]
    assert sample.image.dtype == torch.uint8 and sample.image.shape == (3, 20, 30)
    assert sample.original is None
    torch.testing.assert_close(sample.target["boxes"], torch.tensor([[2.0, 3, 12, 13], [20, 10, 30, 20]]))
    assert sample.target["labels"].tolist() == [1, 2]
    assert sample.source.notes == ("0.xml: box 4,4,4,9 of class a is degenerate",)

    scored = TaskDataset(reader, "detection", Plain(size=(40, 60)), training=False)[0]
    assert scored.source.original_size == (20, 30)
    assert scored.original is not None
    assert scored.original["boxes"].tolist() == [
        [2, 3, 12, 13],
        [0, 0, 30, 20],
        [5, 5, 15, 15],
        [20, 10, 40, 30],
    ]
    assert scored.original["iscrowd"].tolist() == [False, True, False, False]
    assert scored.original["difficult"].tolist() == [False, False, True, False]
    torch.testing.assert_close(scored.target["boxes"][0], torch.tensor([4.0, 6, 24, 26]))


def test_an_image_without_objects_has_empty_targets(tmp_path: Path) -> None:
    sample = TaskDataset(
        _Reader(tmp_path, [_objects()]), "detection", ScaleJitter(size=(20, 30)), training=True
    )[0]
    assert sample.target["boxes"].shape == (0, 4)
    assert sample.target["labels"].shape == (0,)


def test_segmentation_scores_at_the_original_resolution(tmp_path: Path) -> None:
    sample = TaskDataset(
        _Reader(tmp_path, [_objects()]), "segmentation", Plain(size=(10, 15)), training=False
    )[0]
    assert sample.target["mask"].shape == (10, 15)
    assert sample.original is not None
    mask = sample.original["mask"]
    assert mask.shape == (20, 30) and mask.dtype == torch.int64
    assert (mask[0] == 255).all() and (mask[1:, :15] == 1).all() and (mask[1:, 15:] == 0).all()


def test_the_error_for_a_mask_of_another_size_names_both_sizes(tmp_path: Path) -> None:
    dataset = TaskDataset(
        _Reader(tmp_path, [_objects()], mask_height=7), "segmentation", Plain(), training=True
    )
    with pytest.raises(BadSample, match=r"0\.xml: the mask is 30x7 but its image 0\.png is 30x20"):
        dataset[0]


def test_the_dominant_object_is_the_largest_that_is_neither_crowd_nor_difficult() -> None:
    assert dominant_object(_objects(CROWD, PLAIN_BOX, DIFFICULT)) == 1
    assert dominant_object(_objects(PLAIN_BOX, PLAIN_BOX)) == 0
    assert dominant_object(_objects(PLAIN_BOX, PLAIN_BOX), dominance=1.5) is None
    assert dominant_object(_objects(PLAIN_BOX, OUTSIDE_PARTLY), dominance=4) == 1
    assert dominant_object(_objects(CROWD)) is None


def test_localization_leaves_out_images_without_dominant_object(tmp_path: Path) -> None:
    reader = _Reader(
        tmp_path, [_objects(), _objects(PLAIN_BOX, OUTSIDE_PARTLY), _objects(DEGENERATE), _objects(CROWD)]
    )
    dataset = TaskDataset(reader, "localization", Plain(), training=False)
    assert len(dataset) == 1
    sample = dataset[0]
    assert sample.source.image_id == 2
    assert sample.target["labels"].tolist() == [2]
    torch.testing.assert_close(sample.target["boxes"], torch.tensor([[20.0, 10, 31, 20]]))


def test_augmentation_never_removes_the_object_of_localization(tmp_path: Path) -> None:
    reader = _Reader(tmp_path, [_objects((27, 0, 30, 3, 1, False, False))])
    dataset = TaskDataset(reader, "localization", ScaleJitter(size=(20, 30), scale=(2, 3)), training=True)
    for epoch in range(20):
        assert len(dataset[Draw(0, epoch)].target["labels"]) == 1


def test_augmentation_depends_only_on_seed_epoch_and_sample(tmp_path: Path) -> None:
    reader = _Reader(tmp_path, [_objects(PLAIN_BOX)] * 3)
    recipe = ScaleJitter(size=(20, 30))
    one, two = (TaskDataset(reader, "detection", recipe, training=True, seed=4) for _ in range(2))
    two[0], two[1]  # drawing other samples first must not matter
    assert (one[Draw(2, 1)].image == two[Draw(2, 1)].image).all()
    assert any((one[Draw(2, e)].image != one[Draw(2, 1)].image).any() for e in range(2, 6))


def test_a_bad_sample_raises_or_is_replaced_and_listed(tmp_path: Path) -> None:
    reader = _Reader(tmp_path, [_objects(PLAIN_BOX)] * 3)
    reader.paths[1].write_bytes(b"")
    with pytest.raises(BadSample, match=r"1\.png: .*empty|1\.png: .*zero"):
        TaskDataset(reader, "detection", Plain(), training=True)[1]
    train = TaskDataset(reader, "detection", Plain(), training=True, on_bad_sample="skip")[1]
    assert train.source.path.name == "2.png" and not train.source.duplicate
    assert "1.png" in train.source.notes[0]
    scored = TaskDataset(reader, "detection", Plain(), training=False, on_bad_sample="skip")[1]
    assert (
        scored.source.duplicate
    )  # because the sample that replaces the bad one is also scored at its own index
    for path in reader.paths:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 3 samples can be read"):
        TaskDataset(reader, "detection", Plain(), training=True, on_bad_sample="skip")[0]


def test_collate_pads_at_the_bottom_and_right(tmp_path: Path) -> None:
    reader = _Reader(tmp_path, [_objects(PLAIN_BOX)] * 3)
    batch = collate([TaskDataset(reader, "segmentation", Plain(), training=False)[i] for i in (0, 2)])
    assert batch.images.shape == (2, 3, 20, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes == [(20, 30), (20, 32)]
    assert (batch.targets[0]["mask"][:, 30:] == 255).all()
    assert batch.originals is not None and batch.originals[0]["mask"].shape == (20, 30)
    assert len(batch.to("cpu")) == 2
