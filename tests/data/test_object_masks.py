"""Masks of objects, from COCO and Cityscapes folders to the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segdet.data import ShapesDataModule, VOCDataModule
from segdet.data.dataset import TaskDataset
from segdet.data.formats.cityscapes import CityscapesReader
from segdet.data.formats.coco import COCOReader
from segdet.data.formats.reader import Reader
from segdet.data.sample import collate
from segdet.data.shapes.make import make_shapes
from segdet.data.shapes.scenes import draw_scene
from segdet.data.transforms import Plain, ScaleJitter
from segdet.util.errors import UserError

COUNT = 6


@pytest.fixture(scope="module", params=["coco", "cityscapes"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp("shapes") / request.param
    make_shapes(root, request.param, train=COUNT, val=1, test=1, size=(96, 128), workers=1, progress=False)
    return request.param, root


def _reader(folder: tuple[str, Path], masks: bool = True) -> Reader:
    kind, root = folder
    if kind == "coco":
        return COCOReader(root, "train2017", "detection", masks=masks)
    return CityscapesReader(root, "train", "detection", masks)


def test_masks_equal_the_objects_of_the_scenes(folder: tuple[str, Path]) -> None:
    reader = _reader(folder)
    scenes = [draw_scene(0, index, (96, 128)) for index in range(COUNT)]
    seen = 0
    for index in range(COUNT):
        objects = reader.objects(index)
        assert objects.masks is not None and objects.masks.shape == (len(objects), 96, 128)
        # Files and scenes have different orders; boxes identify the objects.
        found = {tuple(box): mask for box, mask in zip(objects.boxes.tolist(), objects.masks, strict=True)}
        for scene in scenes:
            boxes = {tuple(map(float, box)): place for place, box in enumerate(scene.boxes.tolist())}
            if set(boxes) == set(found):
                break
        for box, place in boxes.items():
            if not scene.crowd[place]:
                assert np.array_equal(found[box], scene.instances == place + 1)
                seen += 1
    assert seen > COUNT
    assert _reader(folder, masks=False).objects(0).masks is None


def test_masks_go_through_the_same_transforms(folder: tuple[str, Path]) -> None:
    recipe = ScaleJitter((96, 96), scale=(0.7, 1.4), hflip=1.0, vflip=0.5, rotate90=1.0, min_visibility=0.0)
    dataset = TaskDataset(_reader(folder), "detection", recipe, training=True)
    checked = 0
    for index in range(COUNT):
        sample = dataset[index]
        masks, boxes = sample.target["masks"], sample.target["boxes"]
        assert masks.shape == (len(boxes), 96, 96) and masks.dtype == torch.uint8
        assert not len(masks) or int(masks.max()) == 1
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
            y, x = mask.nonzero(as_tuple=True)
            around = [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]
            # Masks clipped at the border may be narrower than their boxes.
            assert around[0] >= x0 - 2 and around[1] >= y0 - 2 and around[2] <= x1 + 2 and around[3] <= y1 + 2
            if min(x0, y0) > 1 and max(x1, y1) < 95:
                np.testing.assert_allclose(around, [x0, y0, x1, y1], atol=2)
                checked += 1
    assert checked > COUNT / 2


def test_evaluation_keeps_the_original_masks_and_batches_are_padded(folder: tuple[str, Path]) -> None:
    reader = _reader(folder)
    large = TaskDataset(reader, "detection", Plain((96, 128)), training=False)
    small = TaskDataset(reader, "detection", Plain((48, 64)), training=False)
    batch = collate([large[0], small[1]])
    assert [target["masks"].shape[1:] for target in batch.targets] == [(96, 128)] * 2
    assert not batch.targets[1]["masks"][:, 48:].any() and not batch.targets[1]["masks"][:, :, 64:].any()
    assert batch.originals is not None
    for index, original in enumerate(batch.originals):
        objects = reader.objects(index)
        assert objects.masks is not None
        assert torch.equal(original["masks"], torch.from_numpy(objects.masks))
        assert len(original["iscrowd"]) == len(original["masks"])
    moved = batch.to("meta")
    assert moved.targets[0]["masks"].device.type == "meta"


def test_an_image_without_objects(folder: tuple[str, Path]) -> None:
    reader = _reader(folder)
    objects = reader.objects(0)
    none = objects.select(np.zeros(len(objects), bool))
    reader.objects = lambda index: none  # type: ignore[method-assign]
    sample = TaskDataset(reader, "detection", ScaleJitter((64, 64)), training=True)[0]
    assert sample.target["masks"].shape == (0, 64, 64)


def test_mistakes_are_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="masks of objects are for detection, not for segmentation"):
        VOCDataModule(tmp_path, task="segmentation", masks=True)
    with pytest.raises(UserError, match="VOC's format has no masks of objects"):
        VOCDataModule(tmp_path, masks=True).reader("train")
    small = {"num_train": 2, "num_val": 1, "num_test": 1, "image_size": (64, 64)}
    with pytest.raises(UserError, match=r"\(Shapes: --data\.format coco\)"):
        ShapesDataModule(tmp_path / "voc", masks=True, **small).reader("train")  # type: ignore[arg-type]
    module = ShapesDataModule(tmp_path / "coco", format="coco", masks=True, **small)  # type: ignore[arg-type]
    assert "masks" in module.dataset("train")[0].target
